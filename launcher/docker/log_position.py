"""Where the copy of a container's log ends, so that whoever goes on neither loses nor doubles.

The engine can be asked for its entries from a whole second on, and gives them in the order it has
them; their times may be equal, and a little out of order. So a position is a second, how many
entries from that second on are copied, and how long the file was then. A launcher killed between a
write and the note of it leaves a file that is longer than noted: as much of what comes next is
there already. `LogCopy` owns both files; used by `log_pump`.
"""

import fcntl
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_NOTE_BYTES = 160
_TIME_BYTES = len("2026-01-02T03:04:05.123456789Z")


@dataclass(frozen=True, slots=True)
class Position:
    """`second` is since 1970; 0 before the first entry."""

    container_id: str
    second: int = 0
    entries: int = 0
    file_bytes: int = 0

    def as_note(self) -> bytes:
        text = f"{self.container_id} {self.second} {self.entries} {self.file_bytes}"
        return text.ljust(_NOTE_BYTES - 1).encode() + b"\n"

    @classmethod
    def from_note(cls, note: bytes) -> "Position | None":
        """None for what is no note, as after a power cut."""
        with suppress(ValueError):
            container_id, second, entries, file_bytes = note.decode().split()
            return cls(container_id, int(second), int(entries), int(file_bytes))
        return None


def split_entry(entry: bytes) -> tuple[int, bytes]:
    """The second an entry is of, and what was written; 0 and all of it where it has no time."""
    time, space, written = entry.partition(b" ")
    if space and len(time) == _TIME_BYTES:
        with suppress(ValueError):
            return int(datetime.fromisoformat(f"{time[:19].decode()}+00:00").timestamp()), written
    return 0, entry


class Reading:
    """One reading of the entries from a position's second on; says what of each is new. Pure."""

    def __init__(self, start: Position, file_bytes: int) -> None:
        self._start = start
        self._entries_left = start.entries
        self._bytes_left = max(0, file_bytes - start.file_bytes)
        self._seen: Counter[int] = Counter()

    def new_part(self, second: int, written: bytes) -> bytes | None:
        """What of an entry has to be written; None when the position covers it."""
        self._seen[max(second, self._start.second)] += 1
        if self._entries_left:
            self._entries_left -= 1
            return None
        skipped = min(self._bytes_left, len(written))
        self._bytes_left -= skipped
        return written[skipped:]

    def position(self, file_bytes: int) -> Position:
        """After the last entry. The second before is counted, too: times may be out of order."""
        second = max(self._start.second, max(self._seen, default=0) - 1)
        for past in [seen for seen in self._seen if seen < second]:
            del self._seen[past]
        return Position(self._start.container_id, second, self._seen.total(), file_bytes)


class CopyHeld(Exception):
    """Another launcher's pump, or a command, is at it."""


class LogCopy:
    """The replica's log file as one container's log is copied into it. One writer at a time."""

    def __init__(self, container_id: str, log_path: Path, note_path: Path) -> None:
        """Raises CopyHeld, OSError."""
        self._note_fd = os.open(note_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._note_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._log_fd = os.open(log_path, flags, 0o600)
        except BlockingIOError as exc:
            os.close(self._note_fd)
            raise CopyHeld(str(log_path)) from exc
        except OSError:
            os.close(self._note_fd)
            raise
        noted = Position.from_note(os.pread(self._note_fd, _NOTE_BYTES, 0))
        if noted is None or noted.container_id != container_id:
            noted = Position(container_id)
        self._reading = Reading(noted, self._size())
        self.since = noted.second or None

    def add(self, entry: bytes) -> None:
        """One entry as the engine sends it, from `since` on. OSError when the disk is full."""
        part = self._reading.new_part(*split_entry(entry))
        if part is None:
            return
        while part:
            part = part[os.write(self._log_fd, part) :]
        os.pwrite(self._note_fd, self._reading.position(self._size()).as_note(), 0)

    def close(self) -> None:
        os.close(self._log_fd)
        os.close(self._note_fd)

    def _size(self) -> int:
        return os.fstat(self._log_fd).st_size
