"""When what is to be written goes out: at once, or with what else this turn of the loop brings.

A busy router finds many connections readable at a time. If it wrote after each read, it would wake
the process at the other end for every single message, and go in and out of the kernel in between:
that is a fifth of what a call costs. So the first message of a turn goes out at once, as others may
be waiting for it while nothing else is to be done here; those after it go out together, at the end
of the turn or once there are `BATCH` of them. Nothing waits for a connection that has not taken
what it got before: whether a client is behind shows in the call that finds out, as it did.
"""

import asyncio
from collections import deque
from typing import Protocol

BATCH = 32
"""So many messages wait for each other at most, if the turn does not end before."""
LARGE_BYTES = 16_384
"""Gains nothing by waiting, and its connection should say at once when it is too much."""


class Out(Protocol):
    """Where messages go; those for one connection keep their order."""

    is_open: bool
    """Others of this turn may be waiting: then nothing is written past them."""

    def write(self, transport: asyncio.Transport, data: bytes) -> None: ...

    def close(self, transport: asyncio.Transport) -> None:
        """Closes it behind what was written."""
        ...


class Outbox:
    """Messages to clients and replicas; one per router."""

    __slots__ = ("_loop", "_waiting", "is_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Transport, bytes]] = deque()
        self.is_open = False

    def __len__(self) -> int:
        """Messages that wait for the end of the turn."""
        return len(self._waiting)

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """A connection that closes until its message goes out gets nothing."""
        if not self.is_open:
            self.is_open = True
            self._loop.call_soon(self._turn_over)
            transport.write(data)
            return
        waiting = self._waiting
        waiting.append((transport, data))
        is_full = len(waiting) >= BATCH or len(data) > LARGE_BYTES
        if is_full or transport.get_write_buffer_size():
            self.flush()

    def close(self, transport: asyncio.Transport) -> None:
        self.flush()
        transport.close()

    def flush(self) -> None:
        """Everything goes out now."""
        waiting = self._waiting
        while waiting:
            transport, data = waiting.popleft()
            if not transport.is_closing():
                transport.write(data)

    def _turn_over(self) -> None:
        try:
            self.flush()
        finally:
            if self._waiting:  # one could not be written, which is no fault of the others
                self._loop.call_soon(self._turn_over)
            else:
                self.is_open = False


class AtOnce:
    """For connections on which others write as well, past any outbox."""

    is_open = False

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        transport.write(data)

    def close(self, transport: asyncio.Transport) -> None:
        transport.close()


AT_ONCE = AtOnce()
