"""Tells of what happens to the GPUs (XID, ECC, fallen off the bus) while replicas run on them.

A thread of its own waits in the driver: a call to a dying GPU may never return, and must hold up
neither the event loop nor the launcher's end. Used by the supervisor.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from launcher.gpu import GpuEvent
from launcher.gpus import GpuMonitor

log = logging.getLogger("launcher")

_WAIT_S = 2.0


class GpuWatch:
    """`run` until cancelled; `on_event` is called on the event loop."""

    def __init__(self, on_event: Callable[[GpuEvent], None]) -> None:
        self._on_event = on_event
        self._over = threading.Event()
        self._trouble = ""

    async def run(self) -> None:
        """Returns only by cancellation; without a driver there is just nothing to tell."""
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._watch, args=(loop,), name="gpus", daemon=True)
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._over.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        with GpuMonitor() as monitor:
            if not monitor.inventory.gpus:
                return
            while not self._over.is_set():
                for event in monitor.wait_events(_WAIT_S):
                    slices = monitor.inventory.slices_at(event.uuid)
                    self._tell(loop, replace(event, slices=slices))
                self._note(monitor.trouble)

    def _note(self, trouble: str) -> None:
        """Told when it begins and when it ends; it is nobody's fault, so it is no event."""
        if trouble and not self._trouble:
            log.error("GPUs: %s", trouble)
        elif self._trouble and not trouble:
            log.warning("GPUs: the driver answers again")
        self._trouble = trouble

    def _tell(self, loop: asyncio.AbstractEventLoop, event: GpuEvent) -> None:
        try:
            loop.call_soon_threadsafe(self._on_event, event)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._over.set()
