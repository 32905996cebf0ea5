"""How a container gets its GPUs: which of the ways an engine has, and what has to be asked. Pure.

Called by `container`. Every way names the GPUs one by one: a request without ids restricts nothing
on engines below 27.3, and images made for CUDA then see all GPUs of the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.errors import StartError

_FIRST_API = (1, 40)
NVIDIA = "nvidia"
CDI_KIND = "nvidia.com/gpu="
# `compute` is CUDA; `utility` is NVML and nvidia-smi, which engines ask.
DRIVER_CAPABILITIES = ("compute", "utility")
NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine tells of itself, as far as making containers depends on it; and what the
    settings of its user add to containers."""

    version: str = ""
    runtimes: frozenset[str] = frozenset()
    cdi_devices: frozenset[str] = frozenset()
    has_init: bool = True
    raises_limits: bool = True  # above its own, for containers
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a password


@dataclass(frozen=True, slots=True)
class Injection:
    """What a container asks for: a request, or a runtime; and the variables that go with it."""

    driver: str = ""
    ids: tuple[str, ...] = ()
    runtime: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def facts_of(info: Mapping[str, Any]) -> EngineFacts:
    """From the engine's `/info`."""
    found = info.get("DiscoveredDevices") or ()
    return EngineFacts(
        version=str(info.get("ServerVersion", "")),
        runtimes=frozenset(info.get("Runtimes") or ()),
        cdi_devices=frozenset(d.get("ID", "") for d in found if d.get("Source") == "cdi"),
        has_init=(info.get("InitCommit") or {}).get("ID") != "N/A",
        raises_limits="name=rootless" not in (info.get("SecurityOptions") or ()),
    )


def require_api_version(found: str) -> None:
    """Engines before 19.03 take requests for GPUs, and ignore them. Raises StartError."""
    if tuple(int(part) for part in found.split(".") if part.isdecimal()) < _FIRST_API:
        raise StartError(
            f"found a Docker Engine with API {found}, expected {'.'.join(map(str, _FIRST_API))} or "
            "newer (Docker 19.03)",
            is_slow=True,
        )


def injection_of(way: str, devices: tuple[str, ...], facts: EngineFacts) -> Injection:
    """How these devices (UUIDs, or `cuda:N`) get in; `way` is `runtime.docker.gpu_injection`.

    `auto`: by CDI where the engine lists all of them, as that survives what drops GPUs from
    running containers (systemd's daemon-reload); else by request, which works wherever the
    NVIDIA Container Toolkit is installed, and which only a start can prove.
    Raises StartError when the engine cannot do what `way` names.
    """
    ids = tuple(device.removeprefix("cuda:") for device in devices)
    if not ids:
        return Injection(env=NO_GPU)
    names = tuple(CDI_KIND + id_ for id_ in ids)
    missing = [name for name in names if name not in facts.cdi_devices]
    # 1. Nothing is injected: the operator's own image or daemon sees to it.
    if way == "none":
        return Injection()
    # 2. CDI, asked for or found.
    if way == "cdi" and missing:
        raise StartError(_no_cdi(missing, facts))
    if way == "cdi" or (way == "auto" and not missing):
        return Injection("cdi", names)
    # 3. The runtime, which reads a variable.
    if way == "runtime":
        if NVIDIA not in facts.runtimes:
            raise StartError(_no_runtime(facts), is_slow=True)
        env = {
            "NVIDIA_VISIBLE_DEVICES": ",".join(ids),
            "NVIDIA_DRIVER_CAPABILITIES": ",".join(DRIVER_CAPABILITIES),
        }
        return Injection(runtime=NVIDIA, env=env)
    # 4. A request.
    return Injection(ids=ids)


def device_requests(injection: Injection) -> list[dict[str, Any]]:
    """As the API takes it: one request with all ids, as of several only the last counts."""
    if not injection.ids:
        return []
    # `driver` stays empty: naming nvidia makes engines refuse what another driver could do. `gpu`
    # alone leaves it to the image which parts of the driver it gets, as `docker run --gpus` does;
    # where an image says nothing, NVIDIA's toolkit gives compute and utility.
    capabilities = [] if injection.driver == "cdi" else [["gpu"]]
    return [
        {
            "Driver": injection.driver,
            "Count": 0,
            "DeviceIDs": list(injection.ids),
            "Capabilities": capabilities,
            "Options": {},
        }
    ]


def _no_cdi(missing: list[str], facts: EngineFacts) -> str:
    known = ", ".join(sorted(facts.cdi_devices)) or "none"
    return (
        f"runtime.docker.gpu_injection: cdi: the Docker Engine (version {facts.version or '?'}, "
        f"expected 25 or newer) knows no {', '.join(missing)}; it knows: {known}. `sudo nvidia-ctk "
        "cdi generate --output=/etc/cdi/nvidia.yaml` lists this machine's GPUs for it"
    )


def _no_runtime(facts: EngineFacts) -> str:
    known = ", ".join(sorted(facts.runtimes)) or "none"
    return (
        f"runtime.docker.gpu_injection: runtime: the Docker Engine has no runtime nvidia, it has: "
        f"{known}. `sudo nvidia-ctk runtime configure --runtime=docker` adds it, then `sudo "
        "systemctl restart docker`"
    )
