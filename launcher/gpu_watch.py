"""Tells of what happens to the GPUs (XID, ECC, fallen off the bus) while replicas run on them, and
now and then how they are.

A thread of its own waits in the driver: a call to a dying GPU may never return, and must hold up
neither the event loop nor the launcher's end. Used by the supervisor.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from launcher.gpu import GpuEvent, Inventory, Reading
from launcher.gpus import GpuMonitor

log = logging.getLogger("launcher")

_WAIT_S = 2.0
_READ_EVERY_S = 10.0

Readings = Callable[[dict[str, Reading], Inventory], None]


class GpuWatch:
    """`run` until cancelled; `on_event` and `on_readings` are called on the event loop."""

    def __init__(
        self,
        on_event: Callable[[GpuEvent], None],
        on_readings: Readings = lambda readings, inventory: None,
    ) -> None:
        self._on_event = on_event
        self._on_readings = on_readings
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
            read_s = time.monotonic()
            while not self._over.is_set():
                if time.monotonic() >= read_s:
                    read_s = time.monotonic() + _READ_EVERY_S
                    self._call(loop, self._on_readings, monitor.readings(), monitor.inventory)
                for event in monitor.wait_events(_WAIT_S):
                    slices = monitor.inventory.slices_at(event.uuid)
                    self._call(loop, self._on_event, replace(event, slices=slices))
                self._note(monitor.trouble)

    def _note(self, trouble: str) -> None:
        """Told when it begins and when it ends; it is nobody's fault, so it is no event."""
        if trouble and not self._trouble:
            log.error("GPUs: %s", trouble)
        elif self._trouble and not trouble:
            log.warning("GPUs: the driver answers again")
        self._trouble = trouble

    def _call(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object
    ) -> None:
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._over.set()
