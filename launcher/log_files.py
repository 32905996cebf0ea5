"""Log files of replicas, router and launcher: kept bounded, read as they grow.

A log belongs to one start; the start before it is kept as `.1`. A child holds its log open for
appending, so a file that grows too large is copied and cut in place. Used by the process runtime,
the supervisor (progress) and `launcher logs`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from router.errors import StateError

MAX_LOG_BYTES = 64 * 1024**2
_MAX_READ_BYTES = 256 * 1024
_TAIL_BLOCK_BYTES = 64 * 1024
_LAST_WORDS_LINES = 20
_LAST_WORDS_CHARS = 200
_ERROR = re.compile(r"error|exception|fatal|panic|out of memory", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# `2026-01-02T03:04:05.678Z  WARN target: what`; engines agree on the order, not on the rest.
_DATED = re.compile(r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\dZ+:-]*\]?\s*")
_LEVEL = re.compile(r"\[?(TRACE|DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_GRAVE = frozenset({"ERROR", "CRITICAL", "FATAL"})
_SMALL_TALK = frozenset({"TRACE", "DEBUG", "INFO"})


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def rotate(path: Path) -> None:
    """Keep the last start's log as `.1`. StateError when the folder cannot be written."""
    try:
        if path.exists() and path.stat().st_size > 0:
            os.replace(path, previous(path))
    except OSError as exc:
        raise StateError(f"{path}: cannot rotate the log ({exc.strerror})") from exc


def bound(paths: Iterable[Path], max_bytes: int = MAX_LOG_BYTES) -> None:
    """Cut every log over `max_bytes` in place. A line written during the copy may be lost."""
    for path in paths:
        # A full disk keeps the old lines from being copied; cutting then is what helps.
        with suppress(OSError):
            if path.stat().st_size > max_bytes:
                with suppress(OSError):
                    previous(path).touch(mode=0o600)
                    shutil.copyfile(path, previous(path))
                os.truncate(path, 0)


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines, read from the end; empty when there is no such file."""
    data = b""
    with suppress(OSError), path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0 and data.count(b"\n") <= lines:
            step = min(_TAIL_BLOCK_BYTES, position)
            position -= step
            file.seek(position)
            data = file.read(step) + data
    return [line.decode(errors="replace") for line in data.splitlines()[-lines:]] if lines else []


def last_words(path: Path) -> str:
    """The most telling of the last lines: the last error, else the last warning, else the last.

    Without its time, and never one of level INFO or below: those say what went well, and a warning
    that one of them follows was got over. Nor is a line in JSON without a level quoted: it is about
    a call, not about why a program ended.
    """
    errors: list[str] = []
    warnings: list[str] = []
    others: list[str] = []
    for level, words in map(_level_and_words, tail(path, _LAST_WORDS_LINES)):
        if level in _SMALL_TALK:
            warnings.clear()
            others.clear()
        elif level in _GRAVE or _ERROR.search(words):
            errors.append(words)
        elif words:
            (warnings if level else others).append(words)
    return next(iter(errors[-1:] or warnings[-1:] or others[-1:]), "")[:_LAST_WORDS_CHARS]


def _level_and_words(line: str) -> tuple[str, str]:
    """A line's level, if it names one, and what it says, without its time."""
    line = _COLOUR.sub("", line).strip()
    if line.startswith("{"):
        return _of_json(line)
    words = _DATED.sub("", line, count=1) if _DATED.match(line) else line
    level = _LEVEL.match(words)
    return (level[1] if level else ""), words


def _of_json(line: str) -> tuple[str, str]:
    """As engines log with `json-output`: flat, or with the message under `fields`."""
    try:
        entry = json.loads(line)
        level = str(entry["level"]).upper()
        message = entry["message"] if "message" in entry else entry["fields"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):  # a client's text may nest deeply
        return "", ""
    return level, f"{level} {message}"


class LogReader:
    """Whole new lines of a growing log; starts over when the file is cut or replaced."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        self._partial = b""
        if from_end:
            with suppress(OSError):
                found = path.stat()
                self._inode, self._offset = found.st_ino, found.st_size

    def read_new(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset, self._partial = found.st_ino, 0, b""
                file.seek(self._offset)
                data = file.read(_MAX_READ_BYTES)
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]
