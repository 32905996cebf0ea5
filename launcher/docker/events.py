"""Notices that something happened to a container, and wakes whoever waits for it.

One stream of the engine's events for the whole cluster, in a thread. An event only says: look
again; what is true is what `inspect` says then. So nothing depends on none being lost, and after
every reconnect everybody looks. Used by the docker runtime.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from launcher.docker.engine import DockerEngine, LongReply
from launcher.docker.labels import CLUSTER

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger("launcher")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_OVERLAP_S = 2  # asked for again: a stream begins a moment after its reply does


class Events:
    """Of one cluster's containers. Begins with the first listener, ends with `close`."""

    def __init__(self, engine: DockerEngine, cluster: str) -> None:
        self._engine = engine
        self._cluster = cluster
        self._reply = LongReply(engine)
        self._listeners: dict[str, list[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_away = False

    @contextmanager
    def listening(self, container_id: str) -> Iterator[asyncio.Event]:
        """The event is set whenever looking at that container may show something new."""
        self._begin()
        bell = asyncio.Event()
        self._listeners.setdefault(container_id, []).append(bell)
        try:
            yield bell
        finally:
            bells = self._listeners[container_id]
            bells.remove(bell)
            if not bells:
                del self._listeners[container_id]

    def close(self) -> None:
        self._reply.close()

    def _begin(self) -> None:
        if self._loop is None and not self._reply.is_closed:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, name="docker events", daemon=True).start()

    # ---- in the thread

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._reply.is_closed:
            try:
                for event in self._reply.read(self._ask, self._opened):
                    pause_s = _FIRST_PAUSE_S
                    self._tell((event.get("Actor") or {}).get("ID"))
            except Exception as exc:  # of any kind: the next try says whether it lasts
                self._lost(exc)
            self._tell(None)
            self._reply.pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _ask(self, api: "APIClient") -> Iterator[Mapping[str, Any]]:
        filters = {"type": "container", "label": f"{CLUSTER}={self._cluster}"}
        since = int(time.time()) - _OVERLAP_S
        events: Iterator[Mapping[str, Any]] = api.events(decode=True, filters=filters, since=since)
        return events

    def _opened(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("docker: the Docker Engine answers again")
        self._tell(None)

    def _lost(self, exc: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("docker: %s; what runs is left alone", exc)

    def _tell(self, container_id: str | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop may be gone
            self._loop.call_soon_threadsafe(self._ring, container_id)

    # ---- in the loop

    def _ring(self, container_id: str | None) -> None:
        """None: everybody."""
        if container_id is not None:
            bells = self._listeners.get(container_id, [])
        else:
            bells = [bell for group in self._listeners.values() for bell in group]
        for bell in bells:
            bell.set()
