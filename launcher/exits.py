"""Noticing that a process ended, and how: by pidfd, for children and adopted processes alike.

Only a parent learns an exit code. Used by the process runtime and the router's keeper, which both
own processes that may have been started by an earlier launcher.
"""

import asyncio
import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher import processes
from launcher.processes import ProcessId


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `code` is None for a signal, or when it was no child of ours."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False
    detail: str = ""


class Children:
    """The processes we are the parent of; each is reaped once and its end remembered."""

    def __init__(self) -> None:
        self._oom_kills_at_start: dict[ProcessId, int] = {}
        self._exits: dict[ProcessId, Exit] = {}

    def add(self, process: ProcessId, oom_kills_at_start: int) -> None:
        self._oom_kills_at_start[process] = oom_kills_at_start

    def exit_of(self, process: ProcessId) -> Exit:
        """For one that has ended. What it left in its session is killed: it would hold the GPU."""
        if process in self._exits:
            return self._exits[process]
        signal_all(processes.session_members(process), signal.SIGKILL)
        before = self._oom_kills_at_start.get(process)
        if before is None:
            return Exit(detail="ended; it was adopted, so its exit code is not known")
        found = _reap(process, before)
        if found is None:
            return Exit(detail="it is ending; a thread of it is stuck in the kernel")
        del self._oom_kills_at_start[process]
        self._exits[process] = found
        return found


async def wait_ended(process: ProcessId) -> None:
    """Return when it has ended; cancelling the wait does nothing to it."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if processes.is_running(process):
            await _readable(pidfd)
    finally:
        os.close(pidfd)


async def has_ended(process: ProcessId, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await wait_ended(process)
    except TimeoutError:
        return not processes.is_running(process)
    return True


def signal_all(members: Iterable[ProcessId], signum: signal.Signals) -> None:
    for member in members:
        processes.send_signal(member, signum)


def oom_kills() -> int:
    """Processes this machine has killed for want of memory since it booted."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


async def _readable(fd: int) -> None:
    """Until `fd` is readable: a pidfd is so once all threads of its process have ended."""
    if select.select([fd], [], [], 0)[0]:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)


def _reap(process: ProcessId, oom_kills_before: int) -> Exit | None:
    """None while it cannot be reaped: waiting for what may be stuck would stop the event loop."""
    try:
        os.kill(process.pid, signal.SIGKILL)  # not reaped, so the pid is still its own
        reaped, status = os.waitpid(process.pid, os.WNOHANG)
    except (ChildProcessError, ProcessLookupError):
        return Exit(detail="ended; somebody else collected its exit code")
    if reaped == 0:
        return None
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        oom = signum == signal.SIGKILL and oom_kills() > oom_kills_before
        why = ": the machine ran out of memory" if oom else ""
        return Exit(signal=signum, oom=oom, detail=f"killed by {_name(signum)}{why}")
    code = os.waitstatus_to_exitcode(status)
    return Exit(code=code, detail=f"exited with code {code}")


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal
        return f"signal {signum}"
