"""How a process of this machine is shown its GPUs, and only them. Pure; used by the engines.

Containers need none of this: their runtime gives them their GPUs, which are 0, 1 ... inside.
"""

from collections.abc import Sequence

_INDEXED = "cuda:"


def cuda_env(devices: Sequence[str]) -> dict[str, str]:
    """Indexes count in the bus order that `nvidia-smi` shows; no device hides all of them."""
    visible = ",".join(device.removeprefix(_INDEXED) for device in devices)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}


def are_indexed(devices: Sequence[str]) -> bool:
    """Whether all are named by number; some engines understand nothing else."""
    return all(device.startswith(_INDEXED) for device in devices)


def order_env(devices: Sequence[str]) -> dict[str, str]:
    """In a container with several: CUDA's own order would put the fastest first."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if len(devices) > 1 else {}
