"""Removes what a private Docker Engine made, once standard input ends. Run by `docker_engine`.

A process of its own, so that it works after a test run that was killed. Takes the engine's folder,
whose name is also that of the bridge and of the control group. Asks no daemon: it kills, unmounts
and deletes, so it makes no difference in which state the engine was. Imports nothing of ours.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 30.0
LOOK_EVERY_S = 0.02
CGROUPS = Path("/sys/fs/cgroup")


def main(root: Path) -> int:
    sys.stdin.buffer.read()
    until_none_left(lambda: [*daemons(root), *contained(root.name)], kill)
    for address in root.glob("containerd/state/**/address"):
        # Shims have their sockets outside; containerd removes those, when it is asked nicely.
        Path(address.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)
    until_none_left(lambda: mounts(root), unmount)
    until_none_left(lambda: cgroups(root.name), Path.rmdir)
    until_none_left(lambda: bridges(root), delete_link)
    shutil.rmtree(root)
    return 0


def until_none_left(find: Callable[[], list], end: Callable) -> None:
    """Again and again, as some go late and others appear meanwhile."""
    deadline_s = time.monotonic() + DEADLINE_S
    while left := find():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"still there: {left}")
        for one in left:
            try:
                end(one)
            except OSError:
                continue  # gone meanwhile, or not yet possible
        time.sleep(LOOK_EVERY_S)


def daemons(root: Path) -> list[int]:
    """dockerd, containerd, its shims and the port proxies: all whose environment has the mark."""
    mark = f"GPU_FLEET_RIG={root}".encode()
    return [pid for pid in pids() if mark in environment(pid).split(b"\0")]


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def contained(name: str) -> list[int]:
    return [int(pid) for group in cgroups(name) for pid in group_members(group)]


def group_members(group: Path) -> list[str]:
    try:
        return (group / "cgroup.procs").read_text().split()
    except OSError:
        return []


def cgroups(name: str) -> list[Path]:
    """Deepest first; one tree per controller where control groups are of version 1."""
    tops = [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]
    return [Path(path) for top in tops for path, _, _ in os.walk(top, topdown=False)]


def mounts(root: Path) -> list[str]:
    """Latest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{root}/")]


def bridges(root: Path) -> list[str]:
    """That of the engine, and those of networks that it made; its database keeps names as text."""
    database = root / "data/network/files/local-kv.db"
    networks = re.findall(rb"br-[0-9a-f]{12}", database.read_bytes()) if database.exists() else []
    names = {root.name, *(name.decode() for name in networks)}
    return [name for name in sorted(names) if Path("/sys/class/net", name).exists()]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def unmount(point: str) -> None:
    subprocess.run(["umount", "--lazy", point], capture_output=True)


def delete_link(name: str) -> None:
    program = shutil.which("ip", path=f"{os.environ.get('PATH')}:/usr/sbin:/sbin") or "ip"
    subprocess.run([program, "link", "delete", name], capture_output=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
