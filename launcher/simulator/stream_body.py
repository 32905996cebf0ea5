"""The body of a streamed reply: events straight into the transport.

The engine writes a step's events for all streams in one go, so an event costs one ``write`` and no
task switch; back-pressure is left out as in TGI, whose channel to a slow client is unbounded. The
route's handler owns the body, waits for its end and sends the comments of a silent stream.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from launcher.simulator.era import Era
from launcher.simulator.errors import ApiError
from launcher.simulator.faults import Fault, failure
from launcher.simulator.generation import Sequence
from launcher.simulator.tokens import Token
from launcher.simulator.wire import COMMENT


class StreamFormat(Protocol):
    """How tokens and errors of one sequence are written."""

    def token(self, sequence: Sequence, token: Token) -> bytes:
        """The token's event; the last one if the sequence has a finish reason."""
        ...

    def error(self, error: ApiError) -> bytes:
        """An error's event."""
        ...

    def end(self) -> bytes:
        """What follows the last event; may be empty."""
        ...


class StreamBody:
    """A chunked (or, for HTTP/1.0, plain) body under way."""

    def __init__(self, transport: asyncio.Transport, is_chunked: bool) -> None:
        self._transport = transport
        self._is_chunked = is_chunked
        self._written_s = time.monotonic()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, data: bytes) -> None:
        """Write one event."""
        if data and not self._transport.is_closing():
            self._transport.write(self._framed(data))
            self._written_s = time.monotonic()

    def end(self, data: bytes) -> None:
        """Write what follows the last event."""
        StreamBody.send(self, data)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        if not self.done.done():
            self.done.set_result(None)

    async def wait(self, comment_every_s: float) -> None:
        """Wait for the end, with a comment after each silence of ``comment_every_s``."""
        while not self.done.done():
            left_s = self._written_s + comment_every_s - time.monotonic()
            if left_s <= 0:
                self.send(COMMENT)
                continue
            await asyncio.wait({self.done}, timeout=left_s)

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data


class FaultyBody(StreamBody):
    """A body that breaks instead of sending the event after ``fault.after_events``."""

    def __init__(
        self,
        transport: asyncio.Transport,
        is_chunked: bool,
        fault: Fault,
        form: StreamFormat,
        era: Era,
    ) -> None:
        super().__init__(transport, is_chunked)
        self._fault = fault
        self._form = form
        self._era = era
        self._left = fault.after_events
        self._is_broken = False

    def send(self, data: bytes) -> None:
        if self._is_broken or not data:
            return
        if self._left > 0 or data == COMMENT:
            self._left -= data != COMMENT
            super().send(data)
            return
        self._is_broken = True
        self._break(data)

    def finish(self) -> None:
        # A stream that hangs never ends by itself.
        if not (self._is_broken and self._fault.mode == "hang"):
            super().finish()

    def _break(self, data: bytes) -> None:
        mode = self._fault.mode
        if mode == "hang":
            return
        error = failure(self._fault, is_stream=self._era.incomplete_stream_words)
        if error is not None:
            super().send(self._form.error(error))
            self.finish()
            return
        framed = self._framed(data)
        if mode == "cut_mid_event":
            framed = framed[: len(framed) // 2]
        elif mode == "wrong_length":
            framed = b"ffff\r\n" + data
        elif mode == "garbage":
            framed = self._framed(b'data: {"index":\xff not JSON\n\n')
        self._transport.write(framed)
        self._transport.close()
        self.finish()
