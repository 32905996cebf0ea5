"""Copies a container's log to the replica's log file, as it grows, in a thread of its own.

So everything that reads logs (`launcher logs`, progress, last words) works as with processes. The
copy survives the engine going away and this launcher dying: the next pump goes on after the last
entry (`log_position`). Used by the docker runtime. A full disk stops the copy, never the replica.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.docker.engine import DockerEngine, LongReply
from launcher.docker.log_position import CopyHeld, LogCopy
from launcher.docker.refusals import NotThere

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger("launcher")

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 2.0


class LogPump:
    """Of one container, from `start` until its log has ended or `close`."""

    def __init__(
        self, engine: DockerEngine, container_id: str, log_path: Path, note_path: Path
    ) -> None:
        self.container_id = container_id
        self._log_path = log_path
        self._note_path = note_path
        self._reply = LongReply(engine)
        self._is_warned = False
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

    def start(self) -> None:
        name = f"docker log {self.container_id[:12]}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def has_ended(self, within_s: float) -> bool:
        """Whether all is copied that ever will be, or nothing more will be copied."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._ended.wait()
        return self._ended.is_set()

    def close(self) -> None:
        """Stop copying; another pump may go on."""
        self._reply.close()

    # ---- in the thread

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._reply.is_closed:
            try:
                with closing(self._open()) as copy:
                    if self._copy(copy):
                        break
                pause_s = _FIRST_PAUSE_S
            except NotThere:
                break
            except CopyHeld:
                log.debug("%s: somebody else copies it", self._log_path)
            except Exception as exc:  # the engine is away, the disk is full: later, then
                self._warn(exc)
            self._reply.pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        with suppress(RuntimeError):  # the loop may be gone
            self._loop.call_soon_threadsafe(self._ended.set)

    def _open(self) -> LogCopy:
        return LogCopy(self.container_id, self._log_path, self._note_path)

    def _copy(self, copy: LogCopy) -> bool:
        """True once the container has ended and its log was copied to the end."""
        runs = True

        def begin(api: "APIClient") -> Iterable[bytes]:
            nonlocal runs
            # Asked first: all that it wrote is surely in the log of one that has ended.
            runs = bool(api.inspect_container(self.container_id)["State"]["Running"])
            return _entries(api, self.container_id, copy.since, follow=runs)

        for entry in self._reply.read(begin):
            copy.add(entry)
        return not runs

    def _warn(self, exc: Exception) -> None:
        is_going = "marked for removal" in str(exc)  # its end is told, by whoever sees to it
        if not self._is_warned and not is_going:
            self._is_warned = True
            log.warning("%s: the log is not copied for now: %s", self._log_path, exc)


def catch_up(api: "APIClient", container_id: str, log_path: Path, note_path: Path) -> None:
    """Copy what is there now, once. Blocks. Nothing to do where a launcher's pump is at it."""
    try:
        copy = LogCopy(container_id, log_path, note_path)
    except CopyHeld:
        return
    with closing(copy):
        for entry in _entries(api, container_id, copy.since, follow=False):
            copy.add(entry)


def _entries(
    api: "APIClient", container_id: str, since: int | None, *, follow: bool
) -> Iterable[bytes]:
    """The container's log, an entry at a time: a line, or part of a long one, after its time."""
    entries: Any = api.logs(container_id, stream=True, follow=follow, timestamps=True, since=since)
    yield from entries
