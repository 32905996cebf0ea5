"""TGI's log lines on standard output, as text or JSON.

Launchers read progress from these phrases, so their wording is an interface. Called by
``serving``.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


class StartupLog:
    """Writes one line at a time and flushes it: readers follow it live."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def info(self, message: str, target: str = "text_generation_launcher") -> None:
        self._write("INFO", message, target)

    def warn(self, message: str, target: str = "text_generation_launcher") -> None:
        self._write("WARN", message, target)

    def error(self, message: str, target: str = "text_generation_launcher") -> None:
        self._write("ERROR", message, target)

    def plain(self, line: str) -> None:
        """A line outside the log format, as the launcher's last word has."""
        print(line, file=sys.stderr, flush=True)

    def _write(self, level: str, message: str, target: str) -> None:
        timestamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if not self._as_json:
            print(f"{timestamp}  {level} {target}: {message}", flush=True)
            return
        line: dict[str, object] = {"timestamp": timestamp, "level": level}
        # The web server's lines are flat, the launcher's have `fields`.
        if target.startswith("text_generation_router"):
            line |= {"message": message, "target": target}
        else:
            line |= {"fields": {"message": message}, "target": target}
        print(json.dumps(line, separators=(",", ":")), flush=True)
