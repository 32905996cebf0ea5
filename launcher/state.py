"""The state folder of one cluster: its lock, its records, its log files.

One launcher at a time holds the lock, which the kernel drops with the process, however it ends.
Every file is replaced whole or not at all. A record that cannot be read, or is of another version,
counts as absent: what runs is found again by its marks (`processes`), so nothing here is the only
copy of a fact. Used by the supervisor, the process runtime and the commands.
"""

import fcntl
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.processes import ProcessId, identify, is_running
from router.errors import StateError

RECORD_VERSION = 1
STATUS_RECORD = "status.json"
CHANGE_REQUEST = "change.json"
# The last two are the router's: its replicas, and what an operator drained.
_OF_A_RUN = (STATUS_RECORD, "replicas.json", "replicas.part")
SOCKET_PATH_LIMIT_BYTES = 107  # sun_path, less its final zero

_MIN_FREE_BYTES = 16 * 1024**2


class StateFolder:
    """Files of one cluster under `path`; made on first writing, closed to other users."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def admin_socket(self) -> Path:
        return self.path / "router.sock"

    @property
    def config_copy(self) -> Path:
        """The config the router reads, so that a half-edited original cannot stop a restart."""
        return self.path / "cluster.yaml"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def create(self) -> None:
        """Make the folder (mode 0700). StateError when that fails or its path is too long."""
        if len(os.fsencode(self.admin_socket)) > SOCKET_PATH_LIMIT_BYTES:
            raise StateError(
                f"{self.path}: the path is too long for a unix socket in it "
                f"({len(os.fsencode(self.admin_socket))} bytes, at most "
                f"{SOCKET_PATH_LIMIT_BYTES}); set runtime.state_dir to a shorter one"
            )
        try:
            for folder in (self.path, self.path / "logs", self.path / "replicas"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as exc:
            raise StateError(
                f"{self.path}: cannot make the state folder ({exc.strerror}); "
                "set runtime.state_dir to a folder you may write to"
            ) from exc

    def require_space(self) -> None:
        """Refuse to start on a disk so full that records and logs would soon fail."""
        found = os.statvfs(self.path)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < _MIN_FREE_BYTES:
            raise StateError(
                f"{self.path}: found {free_bytes // 1024} KiB of free disk, expected at least "
                f"{_MIN_FREE_BYTES // 1024**2} MiB for logs and state; free some, or set "
                "runtime.state_dir to another disk"
            )

    def write_text(self, name: str, text: str, *, is_durable: bool = True) -> None:
        """Replace a file whole, or raise StateError (disk full ...) and leave the old one.

        `is_durable` also survives a power cut, and costs a wait for the disk.
        """
        target, temporary = self.path / name, None
        try:
            fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as exc:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
            raise StateError(
                f"{target}: cannot write ({exc.strerror}); nothing was changed"
            ) from exc

    def write_record(self, name: str, record: dict[str, Any], *, is_durable: bool = True) -> None:
        text = json.dumps({"version": RECORD_VERSION, **record}, indent=1) + "\n"
        self.write_text(name, text, is_durable=is_durable)

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The record, or None when it is absent, broken or from another version."""
        try:
            record = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("version") != RECORD_VERSION:
            return None
        return record

    def remove(self, name: str) -> None:
        with suppress(OSError):
            (self.path / name).unlink()

    def forget_run(self) -> None:
        """Drop what was true of a run of which nothing is left: records, drains, the socket.

        Logs stay, and the config's copy; so does the lock, which somebody may be waiting for.
        """
        for path in (self.path / "replicas").glob("*.json"):
            self.remove(f"replicas/{path.name}")
        for name in (*_OF_A_RUN, self.admin_socket.name):
            self.remove(name)

    def holder(self) -> ProcessId | None:
        """The launcher that holds the lock, by its own record; None when none runs."""
        record = self.read_record("launcher.json") or {}
        with suppress(KeyError, TypeError, ValueError):
            process = ProcessId.parse(record["process"])
            return process if is_running(process) else None
        return None


class LockHeld(StateError):
    """Another launcher has the cluster."""


class ClusterLock:
    """Held by the one launcher that may start and stop things in a state folder."""

    def __init__(
        self, folder: StateFolder, wait_s: float = 0.0, *, is_launcher: bool = True
    ) -> None:
        """`is_launcher`: write down who holds it; a stopping command need not, on a full disk."""
        self._folder = folder
        self._is_launcher = is_launcher
        self._wait_s = wait_s
        self._fd: int | None = None

    def __enter__(self) -> "ClusterLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, within `wait_s`, or raise a LockHeld that names who has it."""
        self._folder.create()
        deadline_s = time.monotonic() + self._wait_s
        try:
            fd = os.open(self._folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StateError(f"{self._folder.path}/lock: {exc.strerror}") from exc
        try:
            while not _try_lock(fd):
                if time.monotonic() >= deadline_s:
                    raise self._held_error()
                time.sleep(0.05)
            if self._is_launcher:
                # One left for the launcher before; once this one is named, they are for it.
                self._folder.remove(CHANGE_REQUEST)
                self._write_holder()
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            self._folder.remove("launcher.json")
            os.close(self._fd)
            self._fd = None

    def _write_holder(self) -> None:
        self._folder.write_record("launcher.json", {"process": str(identify(os.getpid()))})

    def _held_error(self) -> LockHeld:
        holder = self._folder.holder()
        who = f"launcher pid {holder.pid}" if holder else "another launcher"
        return LockHeld(f"this cluster is run by {who} (state folder {self._folder.path})")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
