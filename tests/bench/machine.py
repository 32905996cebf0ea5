"""What the kernel tells: CPU time of a process and of a core, memory, and which machine this is."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. With one core only, all share it and nothing is pinned."""

    router: frozenset[int]
    load: frozenset[int]

    @property
    def are_apart(self) -> bool:
        return not self.router & self.load


def cores() -> Cores:
    """The last core for what is measured, the others for the load and the replicas."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(frozenset(usable), frozenset(usable))
    return Cores(frozenset(usable[-1:]), frozenset(usable[:-1]))


def cpu_s(pid: int) -> float:
    """User and system time the process has used so far, all its threads; resolution 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def busy_s(wanted: Iterable[int]) -> float:
    """Seconds these cores were not idle since boot, time stolen by the hypervisor included."""
    names = {f"cpu{core}" for core in wanted}
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy * TICK_S


def pss_bytes(pid: int) -> int:
    """Memory of the process, shared pages in proportion; socket buffers are the kernel's."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no Pss in /proc/{pid}/smaps_rollup")


def describe() -> dict[str, str | int]:
    """What figures have to be read with."""
    here = cores()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "router_on": ",".join(map(str, sorted(here.router))),
        "load_on": ",".join(map(str, sorted(here.load))),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "aiohttp": version("aiohttp"),
        "httptools": version("httptools"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
