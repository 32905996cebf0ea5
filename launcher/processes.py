"""Processes by identity: who a pid is, whether it still runs, and how to signal it safely.

A pid alone names nobody: the kernel gives it away again. Here a process is its pid *and* its start
time, so nothing started later under the same number is ever taken for it or signalled. Processes
of a cluster carry marks in their environment (`Marks`), so that even one whose record was never
written is found again. Called by the process runtime, the router's keeper and the commands; reads
/proc (Linux), never decides whether something ought to run.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_STATE_KEY = "GPU_FLEET_STATE_DIR"
_ROLE_KEY = "GPU_FLEET_ROLE"
_GENERATION_KEY = "GPU_FLEET_GENERATION"
_URL_KEY = "GPU_FLEET_URL"
_FINGERPRINT_KEY = "GPU_FLEET_FINGERPRINT"
MARK_KEYS = (_STATE_KEY, _ROLE_KEY, _GENERATION_KEY, _URL_KEY, _FINGERPRINT_KEY)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time: its pid, its start in clock ticks since boot, and which boot."""

    pid: int
    start_ticks: int
    boot: str

    def __str__(self) -> str:
        return f"{self.pid}/{self.start_ticks}/{self.boot}"

    @classmethod
    def parse(cls, text: str) -> "ProcessId":
        """The inverse of str(); ValueError when `text` is not one."""
        pid, start_ticks, boot = text.split("/")
        return cls(int(pid), int(start_ticks), boot)


@dataclass(frozen=True, slots=True)
class Marks:
    """What a child carries in its environment; `role` is `replica:ID`, `router` or `launcher`."""

    state_dir: Path
    role: str
    generation: int = 0
    url: str = ""
    fingerprint: str = ""

    def as_env(self) -> dict[str, str]:
        return {
            _STATE_KEY: str(self.state_dir),
            _ROLE_KEY: self.role,
            _GENERATION_KEY: str(self.generation),
            _URL_KEY: self.url,
            _FINGERPRINT_KEY: self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """A running process that carries a cluster's marks. The leader of a session started it."""

    process: ProcessId
    marks: Marks
    is_leader: bool


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none or it is a zombie."""
    fields = _stat_fields(pid)
    if fields is None or (fields[0] in {"Z", "X"} and not _has_other_threads(pid)):
        return None
    return ProcessId(pid, int(fields[19]), _boot_id())


def _has_other_threads(pid: int) -> bool:
    """Its first thread has ended, but not all: one may be stuck in a driver and hold the GPU."""
    try:
        return len(os.listdir(_PROC / str(pid) / "task")) > 1
    except OSError:
        return False


def identify_child(pid: int) -> ProcessId:
    """A child of ours that is not reaped yet; unlike `identify` it may have ended already."""
    fields = _stat_fields(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return ProcessId(pid, int(fields[19]), _boot_id())


def is_running(process: ProcessId) -> bool:
    return identify(process.pid) == process


def state_letter(process: ProcessId) -> str | None:
    """R, S, D (stuck in the kernel), T (stopped), Z ...; None when it is gone."""
    fields = _stat_fields(process.pid)
    return fields[0] if fields and int(fields[19]) == process.start_ticks else None


def send_signal(process: ProcessId, signum: signal.Signals) -> bool:
    """Signal exactly this process, through a pidfd; False when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        # The pidfd pins the process first, then its start time is checked: no window for a reuse.
        if not is_running(process):
            return False
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def session_members(leader: ProcessId) -> list[ProcessId]:
    """Every running process of the session that `leader` began, itself included.

    Empty once the leader has been reaped: only until then is the session's number surely its own.
    What is left of such a session is found by its marks.
    """
    fields = _stat_fields(leader.pid)
    if fields is None or ProcessId(leader.pid, int(fields[19]), _boot_id()) != leader:
        return []
    found = (identify(pid) for pid in _all_pids() if session_of(pid) == leader.pid)
    return [process for process in found if process is not None]


def session_of(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[3]) if fields else None


def marked(state_dir: Path) -> Iterator[Found]:
    """Every running process of ours that carries the marks of this state folder."""
    needle = f"{_STATE_KEY}={state_dir}".encode()
    for pid in _all_pids():
        try:
            environ = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            continue
        if needle not in environ:
            continue
        process, marks = identify(pid), _marks_in(environ, state_dir)
        if process is not None and marks is not None:
            yield Found(process, marks, is_leader=session_of(pid) == pid)


def marked_urls() -> set[str]:
    """The URLs given to replicas of any cluster of this user, listened on yet or not."""
    prefix = f"{_URL_KEY}=".encode()
    urls = set()
    for pid in _all_pids():
        with suppress(OSError):
            environ = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
            urls |= {e.removeprefix(prefix).decode() for e in environ if e.startswith(prefix)}
    return urls - {""}


def without_marks(environ: dict[str, str]) -> dict[str, str]:
    """An environment to start from: a launcher run inside a replica must not pass its marks on."""
    return {key: value for key, value in environ.items() if key not in MARK_KEYS}


def _marks_in(environ: list[bytes], state_dir: Path) -> Marks | None:
    values = dict(entry.decode(errors="replace").partition("=")[::2] for entry in environ if entry)
    role, generation = values.get(_ROLE_KEY), values.get(_GENERATION_KEY, "0")
    if not role or not generation.isdecimal():
        return None
    url, fingerprint = values.get(_URL_KEY, ""), values.get(_FINGERPRINT_KEY, "")
    return Marks(state_dir, role, int(generation), url, fingerprint)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command name, which may itself hold any character."""
    with suppress(OSError, ValueError):
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        return text[text.rindex(")") + 2 :].split()
    return None


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(_PROC) if name.isdecimal())


@cache
def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
