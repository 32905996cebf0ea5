"""Starting one child so that it outlives us: own session, log file, nothing inherited by accident.

Used for replicas, for the router and for a detached launcher. The child's output goes to a file
and never to a pipe that we hold, its standard input is empty, and only the descriptors named in
`pass_fds` reach it. It never waits for the child.
"""

import errno
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.processes import ProcessId, identify_child
from router.errors import StartError

# Python ignores SIGPIPE, and nohup ignores SIGHUP: a child must not inherit either.
_DEFAULT_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGCHLD,
)
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    log_path: Path,
    pass_fds: Sequence[int] = (),
    *,
    is_private: bool = False,
) -> ProcessId:
    """Start `argv` in its own session, its output appended to `log_path`.

    `is_private`: only this user may read the files it makes. Not for engines, which fill caches
    that others share. Raises StartError; it is not recoverable when the program does not exist or
    may not be run.
    """
    _seal_descriptors(keep=pass_fds)
    mask_before = os.umask(0o077)  # the child inherits it; asking for it means setting it
    if not is_private:
        os.umask(mask_before)
    try:
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            dict(env),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_path), _LOG_FLAGS, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
    except OSError as exc:
        raise _start_error(argv[0], log_path, exc) from exc
    finally:
        os.umask(mask_before)
        _seal_descriptors()
    return identify_child(pid)


def _seal_descriptors(keep: Sequence[int] = ()) -> None:
    """Only `keep` passes an exec. What our own parent left open (a flock, a pipe) stays ours."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2:
            try:
                os.set_inheritable(fd, fd in keep)
            except OSError as exc:
                if exc.errno != errno.EBADF:  # the listing's own descriptor is closed by now
                    raise


def require_program(program: str) -> None:
    """Raises the StartError that starting it would, where there is no such program."""
    if shutil.which(program) is None:
        raise _not_runnable(program, os.strerror(errno.ENOENT))


def _start_error(program: str, log_path: Path, exc: OSError) -> StartError:
    # 1. The program is wrong: no retry helps.
    if exc.errno in {errno.ENOENT, errno.EACCES, errno.ENOEXEC} and log_path.parent.is_dir():
        return _not_runnable(program, exc.strerror)
    # 2. The machine is short of something (processes, memory, disk): later it may not be.
    return StartError(f"cannot start {program!r}: {exc.strerror}")


def _not_runnable(program: str, why: str | None) -> StartError:
    found = f"cannot run {program!r}: {why}"
    return StartError(
        f"{found}; expected an executable file or a command on PATH", recoverable=False
    )
