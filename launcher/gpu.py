"""GPUs as values: what there is, what each one reads now, what happened to it. Pure.

The UUID is a GPU's identity; indexes are only how people name it. `launcher.gpus` fills these in
from the driver; placement, the supervisor and `launcher devices` read them. Nothing here talks to a
driver, and nothing here decides what to do about a fault: `gpu_faults` knows what faults mean.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

EventKind = Literal["xid", "ecc", "lost"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A physical GPU, or a MIG slice of one: then `parent` is the physical one's UUID.

    `index` is the N of `cuda:N`: the place in PCI bus order, a slice has its parent's. A GPU that
    cannot be reached keeps its number, so the others are not renamed by its loss.
    """

    uuid: str  # "GPU-...", a slice's is "MIG-..."
    index: int
    name: str
    memory_bytes: int  # 0 where the driver does not tell
    compute_capability: tuple[int, int] | None
    pci_bus_id: str  # as the driver writes it: "00000000:1A:00.0"
    numa_node: int | None  # None also on machines with a single node
    parent: str | None
    mig_enabled: bool  # then only its slices can run anything


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Somebody who holds memory on a GPU. `name` is empty where /proc does not tell."""

    pid: int
    used_bytes: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU's or slice's state at one time. None means that it has no such sensor.

    With `trouble` the GPU cannot be used, or will soon have to be looked after by a person; the
    words say why and what to do. Memory is 0 then, unless it could still be read.
    """

    uuid: str
    used_bytes: int
    free_bytes: int
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None  # since the driver was loaded
    is_persistent: bool | None = None  # False: it falls asleep when idle, and wakes slowly
    processes: tuple[GpuProcess, ...] = ()
    trouble: str = ""


class DriverState(StrEnum):
    """What became of asking the NVIDIA driver."""

    OK = "ok"
    NONE = "none"  # no driver library: most likely no GPU either
    BROKEN = "broken"  # the library is there but of no use


@dataclass(frozen=True, slots=True)
class Inventory:
    """The GPUs of this machine, in PCI bus order, and the MIG slices they are cut into.

    `trouble` says what is wrong and what to do. It may be there with state OK, too: GPUs that
    cannot be reached are then named in it and are missing from `gpus`.
    """

    state: DriverState
    gpus: tuple[Gpu, ...] = ()
    slices: tuple[Gpu, ...] = ()
    driver_version: str = ""
    cuda_version: str = ""  # the newest that the driver can run: "12.4"
    trouble: str = ""

    def find(self, device: str) -> Gpu | None:
        """The GPU that an operator means by `cuda:1`, `1`, `GPU-6d1f...` or `MIG-...`.

        A UUID may be shortened as long as it fits only one.
        """
        number = device.removeprefix("cuda:")
        if number.isascii() and number.isdecimal():
            return next((gpu for gpu in self.gpus if gpu.index == int(number)), None)
        if not device.startswith(("GPU-", "MIG-")) or len(device) <= len("GPU-"):
            return None
        found = [gpu for gpu in (*self.gpus, *self.slices) if gpu.uuid.startswith(device)]
        exact = [gpu for gpu in found if gpu.uuid == device]
        return (exact or found)[0] if exact or len(found) == 1 else None

    def slices_of(self, gpu: Gpu) -> tuple[Gpu, ...]:
        """Its MIG slices, in the driver's order."""
        return tuple(part for part in self.slices if part.parent == gpu.uuid)

    def slices_at(self, uuid: str) -> tuple[str, ...]:
        """The UUIDs of that GPU's MIG slices; none for a slice."""
        return tuple(part.uuid for part in self.slices if part.parent == uuid)


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """Something went wrong on a GPU. `code` is the XID's number.

    Fatal for the GPU: no restart helps, it has to be left alone until a person has seen to it.
    Otherwise the program on it is to blame or has died of it, and may be started again there; or
    the GPU works on and only wants to be looked after some time.
    """

    uuid: str
    kind: EventKind
    code: int | None
    is_fatal_for_gpu: bool
    message: str
    slices: tuple[str, ...] = ()  # the UUIDs of what it is cut into: they share its fate


def strangers(
    readings: Mapping[str, Reading], own_pids: Container[int]
) -> dict[str, tuple[GpuProcess, ...]]:
    """Who else holds memory, by the UUID of the GPU; those with nobody else are left out.

    A GPU that is cut into slices shows its slices' processes as well.
    """
    others = {
        uuid: tuple(process for process in reading.processes if process.pid not in own_pids)
        for uuid, reading in readings.items()
    }
    return {uuid: processes for uuid, processes in others.items() if processes}
