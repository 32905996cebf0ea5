"""What Linux itself tells about GPUs, from /sys and /proc, with or without a driver.

Called by `launcher.gpus` to fill in what NVML does not say. Answers None or nothing where a file is
missing (containers, WSL); it never raises and never decides.
"""

from contextlib import suppress
from pathlib import Path, PurePath

_PROC = Path("/proc")
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def numa_node(pci_bus_id: str) -> int | None:
    """The node of memory and cores next to this device; None on machines with only one."""
    domain, _, rest = pci_bus_id.lower().partition(":")
    # The driver writes eight digits of the domain, Linux as many as it needs but at least four.
    node = _read(_PCI / f"{domain.lstrip('0'):0>4}:{rest}" / "numa_node")
    return int(node) if node.isdecimal() else None  # "-1" where there is only one


def gpus_on_bus() -> int:
    """NVIDIA's display and compute devices, whether or not a driver has taken them."""
    count = 0
    with suppress(OSError):
        for device in _PCI.iterdir():
            is_nvidia = _read(device / "vendor") == _NVIDIA
            count += is_nvidia and _read(device / "class").startswith(_DISPLAY)
    return count


def driver_addresses() -> list[str]:
    """PCI addresses of all GPUs that the kernel module has taken, lost ones included, in order."""
    with suppress(OSError):
        return sorted(entry.name for entry in (_PROC / "driver/nvidia/gpus").iterdir())
    return []


def shared_memory() -> tuple[int, int]:
    """Total and available bytes of the machine: what a GPU without memory of its own works in."""
    fields = (line.split() for line in _read(_PROC / "meminfo").splitlines())
    kilobytes = {words[0]: int(words[1]) for words in fields if len(words) > 1}
    return kilobytes.get("MemTotal:", 0) * 1024, kilobytes.get("MemAvailable:", 0) * 1024


def process_name(pid: int) -> str:
    """The program, for Python the script or module. Never its arguments: they may hold secrets."""
    words = _read(_PROC / str(pid) / "cmdline").split("\0")
    program = PurePath(words[0]).name
    if not program:
        return _read(_PROC / str(pid) / "comm")
    if not program.startswith("python"):
        return program
    for at, word in enumerate(words[1:], 1):
        if word == "-m":
            return " ".join([program, *words[at : at + 2]])
        if not word.startswith("-"):
            return f"{program} {PurePath(word).name}".rstrip()
        if word.startswith("-c"):
            break
    return program


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip().rstrip("\0")
    except OSError:
        return ""
