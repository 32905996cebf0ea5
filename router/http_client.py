"""`edge.Client` over one connection, of either edge.

Replies do not go through aiohttp's response objects: they are written to the connection directly,
and `Sent` tells aiohttp that nothing is left to send. That is a private contract with aiohttp
3.14 (guarded by tests/router/test_aiohttp_contract.py) and halves the cost of a call.
"""

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import Protocol

from aiohttp import web

from router.edge import Fields
from router.errors import ClientGone
from router.outbox import AT_ONCE, Out

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Edge(Protocol):
    """What a client needs to know of the edge it came in by."""

    is_draining: bool


class Flow(Protocol):
    """Whether a connection takes what is written; aiohttp's protocols are such."""

    @property
    def writing_paused(self) -> bool: ...

    async def _drain_helper(self) -> None:
        """Until it takes more. Raises ConnectionError when it is lost."""
        ...


class Sent:
    """Tells aiohttp that the reply is out already."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to prepare."""

    async def write_eof(self) -> None:
        """Nothing to end."""


class Reply(Enum):
    """How far a reply has come."""

    NONE = "nothing is out"
    OPEN = "its head is out, its body goes on"
    WHOLE = "it is out"


class HttpClient:
    __slots__ = (
        *("_closing", "_edge", "_extra", "_flow", "_head", "_http10", "_out", "_transport"),
        "reply",
    )

    def __init__(
        self,
        transport: asyncio.Transport | None,
        flow: Flow,
        extra: Fields,
        edge: Edge,
        out: Out,
        *,
        is_last: bool = False,
        is_http10: bool = False,
    ) -> None:
        """`is_last`: the client wants the connection closed then; `extra` goes into each head."""
        self._edge = edge
        self._out = out
        self._flow = flow
        self._transport = transport
        self._extra = extra
        self._http10 = is_http10
        self._closing = is_last
        self._head = b""
        self.reply = Reply.NONE

    @classmethod
    def of(cls, request: web.BaseRequest, extra: Fields, edge: Edge) -> "HttpClient":
        """Over one aiohttp request; aiohttp itself writes to the connection, too."""
        http10 = request.version < (1, 1)
        is_last = not request.keep_alive or http10
        transport = request.transport
        flow = request.protocol
        return cls(transport, flow, extra, edge, AT_ONCE, is_last=is_last, is_http10=http10)

    @property
    def has_started(self) -> bool:
        return self.reply is not Reply.NONE

    @property
    def is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def is_behind(self) -> bool:
        """It has not taken what was written."""
        return self._flow.writing_paused and not self.is_gone

    @property
    def is_closing(self) -> bool:
        """The connection ends with this reply. Once the head has said that it does not, it stays:
        the client may have sent its next call by then."""
        return self._closing or (self.reply is Reply.NONE and self._edge.is_draining)

    @property
    def keeps_alive(self) -> bool:
        return not self.is_closing and not self.is_gone

    def close_after(self) -> None:
        """The connection ends with this reply: what follows in it is not to be trusted."""
        self._closing = True

    def invite(self) -> None:
        """Lets a client send its body that asked first (Expect: 100-continue)."""
        self._put(CONTINUE)

    def send(self, status: int, headers: Fields, body: bytes) -> None:
        head = self._render(status, headers, b"content-length: %d\r\n" % len(body))
        self.reply = Reply.WHOLE
        self._put(head + body)

    def start(self, status: int, headers: Fields) -> None:
        framing = b"" if self._http10 else b"transfer-encoding: chunked\r\n"
        self._head = self._render(status, headers, framing)
        self.reply = Reply.OPEN

    def write(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():  # `_put`, spelled out: this is per event
            return True
        if not self._http10:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        if self._out.is_open:
            self._out.write(transport, data)
        else:  # most often the only message of its turn: waits for none and lets none wait
            transport.write(data)
        return not self._flow.writing_paused

    def end(self) -> None:
        self.reply = Reply.WHOLE
        self._put(self._head + (b"" if self._http10 else b"0\r\n\r\n"))
        self._head = b""

    def cut(self) -> None:
        self.reply = Reply.WHOLE
        self._closing = True
        if self._transport is not None:
            self._out.close(self._transport)

    async def drain(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._flow._drain_helper()
        except TimeoutError:
            self._closing = True
            if self._transport is not None:
                self._transport.abort()
            raise ClientGone(f"the client read nothing for {timeout_s:g} s") from None
        except ConnectionError as exc:
            raise ClientGone("the client left") from exc

    def _put(self, data: bytes) -> None:
        """Nothing for a client that is gone: for a moment only its transport knows, and raises."""
        if self._transport is not None and not self._transport.is_closing():
            self._out.write(self._transport, data)

    def _render(self, status: int, headers: Fields, framing: bytes) -> bytes:
        if not self._closing and self._edge.is_draining:
            self._closing = True  # said in the head, so it is settled
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        close = b"connection: close\r\n" if self._closing else b""
        return b"%b%b%b%b%b\r\n" % (line, headers, self._extra, close, framing)
