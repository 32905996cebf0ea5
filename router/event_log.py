"""One JSON line per finished call and per state transition, on standard output.

Lines are collected and written together, at the latest after a fifth of a second: a write per line
would cost more than the line. Prompts, answers and credentials never go in.
"""

import asyncio
import sys
import time
from datetime import UTC, datetime
from typing import Any, BinaryIO

import orjson

from router.config import RouterConfig

FLUSH_AFTER_S = 0.2
FLUSH_BYTES = 65_536


class EventLog:
    """Owned by the app; `close` writes what is left. A full disk loses lines, nothing else."""

    def __init__(self, out: BinaryIO | None = None, *, calls: bool = True) -> None:
        self._out = out if out is not None else sys.stdout.buffer
        self._calls = calls
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._shown_second = ""

    def use(self, config: RouterConfig) -> None:
        self._calls = config.log_calls

    def call(self, fields: dict[str, Any]) -> None:
        """One is written for every call: its fields are not copied behind the first two."""
        if self._calls:
            head = b'{"time":"%b","event":"call",' % self._now().encode()
            self._add(head + orjson.dumps(fields)[1:])

    def event(self, kind: str, **fields: Any) -> None:
        self._add(orjson.dumps({"time": self._now(), "event": kind, **fields}))

    def close(self) -> None:
        self._flush()

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size > FLUSH_BYTES:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(FLUSH_AFTER_S, self._flush)

    def _now(self) -> str:
        """As RFC 3339 has it; all but the milliseconds is the same for a second's lines."""
        milliseconds = time.time_ns() // 1_000_000
        second = milliseconds // 1000
        if second != self._second:
            self._second = second
            self._shown_second = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._shown_second}.{milliseconds % 1000:03d}Z"

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines, self._size = self._lines, [], 0
        if not lines:
            return
        try:
            self._out.write(b"\n".join(lines) + b"\n")
            self._out.flush()
        except (OSError, ValueError):  # nobody reads, or no space: serving goes on
            return
