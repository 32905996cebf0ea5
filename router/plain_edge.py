"""The edge for plain calls: a POST to a generation route, its body's length told, come in whole.

That is what clients of an engine send all day, and it is served without aiohttp's request and
response objects. A connection stays here as long as nothing else comes on it. Everything else, odd
or late, is aiohttp's: it gets the connection with its bytes, for good, and its rules are the
rules. So there is one place where malformed requests are refused, and this edge takes only what
that place would take, and understands it the same way:

 - one head by llhttp's strict parser, HTTP/1.1, its end where CR LF CR LF is;
 - no field twice, one Host, one Content-Length, none of `ODD_FIELDS`;
 - the path is a route, as it stands: no query, no escape, no scheme;
 - head and body are within bounds and here within `PATIENCE_S`.
"""

import asyncio
import re
from collections.abc import Callable
from typing import cast

import httptools
from aiohttp.web_protocol import RequestHandler

from router.apis import GENERATION_APIS
from router.config import RouterConfig
from router.edge_server import EdgeProtocol, EdgeServer
from router.express import Express
from router.handlers import Handlers
from router.http_client import HttpClient
from router.incoming import KnownHead, WholeRequest
from router.outbox import Outbox
from router.parse_worker import LARGE_BODY_BYTES

END = b"\r\n\r\n"
FOLDS = (b"\r\n ", b"\r\n\t")
"""A field that goes on in the next line (obsolete, RFC 9112, 5.2)."""
ODD_FIELDS = frozenset(
    ("transfer-encoding", "upgrade", "expect", "content-encoding", "te", "trailer")
)
ROUTES = {path.encode(): path for path in GENERATION_APIS}
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})(?=[ \t]*\r\n)", re.IGNORECASE)
MAX_HEADS = 256
"""That are remembered, of all connections together."""
PATIENCE_S = 1.0
"""For the rest of a head or body. aiohttp, which then has the connection, has bounds of its own."""
MAX_AHEAD_BYTES = 2 * LARGE_BODY_BYTES
"""What a client may send while its call is served: then its connection is not read."""


def _around_length(head: bytes) -> tuple[bytes, bytes]:
    """All of it but the digits of the body's length; empty where they are not found."""
    found = LENGTH.search(head)
    return (head[: found.start(1)], head[found.end(1) :]) if found else (b"", b"")


class Head:
    """One request's head, as far as llhttp reads it."""

    __slots__ = (
        *("_after", "_before", "field_count", "fields", "is_odd", "is_whole", "known", "length"),
        "url",
    )
    known: KnownHead

    def __init__(self, data: bytes) -> None:
        """`data` ends where the head does, or it is odd."""
        self.url = b""
        self.fields: dict[str, str] = {}
        self.is_whole = False
        self.is_odd = False
        self.length = 0
        if FOLDS[0] in data or FOLDS[1] in data:
            self.is_odd = True
            return
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.is_odd = True
            return
        self.is_odd = self.is_odd or not self.is_whole or not self._is_plain(parser)
        if not self.is_odd:
            self._before, self._after = _around_length(data)
            self.field_count = len(self.fields)
            del self.fields["content-length"]
            self.known = KnownHead(ROUTES[self.url], self.fields)

    def again(self, data: bytes) -> tuple[int, int] | None:
        """Where the head ends that `data` begins with, and its body's length, if it is this head
        once more with that changed. llhttp has read all the rest of it."""
        before = self._before
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + 13)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        return end + len(self._after), int(digits)

    # ---- llhttp's side

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        if key in self.fields:
            self.is_odd = True
        self.fields[key] = value.strip(b" \t").decode("utf-8", "surrogateescape")

    def on_headers_complete(self) -> None:
        self.is_whole = True

    def on_body(self, body: bytes) -> None:
        """What was taken for the head's end is not its end."""
        self.is_odd = True

    # ----

    def _is_plain(self, parser: httptools.HttpRequestParser) -> bool:
        fields = self.fields
        length = fields.get("content-length", "")
        if not length.isdecimal() or "host" not in fields or not ODD_FIELDS.isdisjoint(fields):
            return False
        if fields.get("connection", "keep-alive").lower() != "keep-alive":
            return False
        self.length = int(length)
        is_new = parser.get_http_version() == "1.1"
        return is_new and parser.get_method() == b"POST" and self.url in ROUTES


class PlainEdge(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, front: "Front") -> None:
        self._front = front
        self.transport: asyncio.Transport | None = None
        self._data = b""
        self._head: Head | None = None
        """Of the request that is coming in."""
        self._last: Head | None = None
        self._head_end = 0
        self._length = 0
        self._call: Express | None = None
        self._is_beginning = False
        self._late: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._idle_since_s = 0.0
        self._drained: asyncio.Future[None] | None = None
        self._is_unread = False
        self.writing_paused = False
        self.on_lost: Callable[[], None] | None = None

    # ---- the connection ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._front.joined(self)
        self._rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.transport = None
        self._forget(self._late, self._idle)
        self._front.left(self)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None
        if self._call is not None:
            self._call.leave()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError("the client left"))

    def eof_received(self) -> None:
        """The transport closes itself then: replies that are ready go first."""
        self._front.outbox.flush()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def _drain_helper(self) -> None:
        """Until the client has taken what was written. Raises ConnectionError when it is lost."""
        if self.transport is None:
            raise ConnectionResetError("the client left")
        if not self.writing_paused:
            return
        self._drained = asyncio.get_running_loop().create_future()
        try:
            await self._drained
        finally:
            self._drained = None

    def close(self) -> None:
        if self.transport is not None:
            self._front.outbox.close(self.transport)

    # ---- what comes in ----

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._call is None:
            self._next()
        elif len(self._data) > MAX_AHEAD_BYTES and not self._is_unread:
            assert self.transport is not None
            self.transport.pause_reading()
            self._is_unread = True

    def _next(self) -> None:
        """The next calls, as long as they are here and end at once."""
        self._is_beginning = True
        while self._call is None and (request := self._read()) is not None:
            front, handlers = self._front, self._front.handlers
            extra = handlers.cors(request.headers)
            client = HttpClient(self.transport, self, extra, handlers, front.outbox)
            self._call = Express(handlers, request, client, self._ended)
            self._call.begin()
        self._is_beginning = False

    def _ended(self, client: HttpClient) -> None:
        """The call's reply is out, or its client is gone."""
        self._call = None
        if self.transport is None:
            return
        if not client.keeps_alive:
            self._data = b""
            return self.close()
        if self._is_unread:
            self.transport.resume_reading()
            self._is_unread = False
        if not self._data:
            self._rest()
        elif not self._is_beginning:
            self._next()

    def _read(self) -> WholeRequest | None:
        """The next request. None while it is not whole; what is no plain one goes to aiohttp."""
        head = self._head or (self._read_head() if self._data else None)
        if head is None:
            return None
        data = self._data
        whole = self._head_end + self._length
        if len(data) < whole:
            self._head = head
            self._wait_or_hand_over(self._length > LARGE_BODY_BYTES)
            return None
        if self._late is not None:
            self._late.cancel()
            self._late = None
        body, self._data, self._head = data[self._head_end : whole], data[whole:], None
        return WholeRequest(head.known, body)

    def _read_head(self) -> Head | None:
        """None while it is not whole, and when the connection was handed over."""
        data, front, head = self._data, self._front, self._last
        known = head.again(data) if head is not None else None
        if known is None:
            end = data.find(END) + len(END)
            if end < len(END):
                self._wait_or_hand_over(len(data) > front.head_bytes)
                return None
            if end > front.head_bytes:
                self._hand_over()
                return None
            head, length = front.head(data[:end])
            known = end, length
        assert head is not None
        if head.is_odd or head.field_count > front.head_fields:
            self._hand_over()
            return None
        self._last = head
        self._head_end, self._length = known
        return head

    # ---- what does not come ----

    def _wait_or_hand_over(self, is_large: bool) -> None:
        if is_large:
            self._hand_over()
        elif self._late is None:
            self._late = self._front.loop.call_later(PATIENCE_S, self._hand_over)

    def _rest(self) -> None:
        """Nothing is under way; a connection that stays so for long is closed."""
        self._idle_since_s = self._front.loop.time()
        if self._idle is None:
            self._idle = self._front.loop.call_later(self._front.idle_s, self._look)

    def _look(self) -> None:
        """One timer does for many calls: it looks how long it has been, and comes back."""
        loop = self._front.loop
        self._idle = None
        if self._call is not None:
            return
        left_s = self._idle_since_s + self._front.idle_s - loop.time()
        if left_s <= 0 and self.writing_paused and self.transport is not None:
            return self.transport.abort()  # what it has not read by now it never will
        if left_s <= 0 and not self._data:
            return self.close()
        self._idle = loop.call_later(max(left_s, PATIENCE_S), self._look)

    def _hand_over(self) -> None:
        """From here on the connection, and what has come on it, is aiohttp's."""
        transport, self.transport = self.transport, None
        assert transport is not None
        self._forget(self._late, self._idle)
        ordinary = self._front.ordinary()
        ordinary.on_lost, self.on_lost = self.on_lost, None
        self._front.left(self)
        data, self._data = self._data, b""
        self._front.outbox.flush()  # before anything that aiohttp writes
        transport.set_protocol(ordinary)
        ordinary.connection_made(transport)
        if self.writing_paused:  # the transport says it once
            ordinary.pause_writing()
        if data:  # once it waits for a request, and before anything else
            transport.pause_reading()
            self._front.loop.call_soon(self._pass_on, transport, ordinary, data)

    def _pass_on(self, transport: asyncio.Transport, ordinary: EdgeProtocol, data: bytes) -> None:
        if not transport.is_closing():
            transport.resume_reading()
            ordinary.data_received(data)

    def _forget(self, *timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


class Front:
    """Where connections begin; it makes a `PlainEdge` for each, and an aiohttp one where that
    gives up."""

    def __init__(
        self, handlers: Handlers, server: EdgeServer, outbox: Outbox, config: RouterConfig
    ) -> None:
        self.handlers = handlers
        self.outbox = outbox
        self.loop = asyncio.get_running_loop()
        self._server = server
        self._plain: set[PlainEdge] = set()
        self._heads: dict[tuple[bytes, bytes], Head] = {}
        self.use(config)

    def __call__(self) -> PlainEdge:
        return PlainEdge(self)

    def use(self, config: RouterConfig) -> None:
        """For requests that come in from here on."""
        self._server.use(config)
        self.head_bytes, self.head_fields = config.limits.head_bytes, config.limits.head_fields
        self.idle_s = config.timeouts.idle_s

    def head(self, text: bytes) -> tuple[Head, int]:
        """With its body's length; not read anew where another connection brought the same one:
        clients of a kind all send it."""
        key = _around_length(text)
        head = self._heads.get(key)
        known = head.again(text) if head is not None else None
        if head is not None and known is not None:
            return head, known[1]
        head = Head(text)
        if not head.is_odd:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head, head.length

    @property
    def connections(self) -> list[PlainEdge | RequestHandler]:
        """Those that are open, of either kind."""
        return [*self._plain, *self._server.connections]

    async def shutdown(self, timeout_s: float) -> None:
        """Calls are over by now: plain connections are closed at once, aiohttp's in that time."""
        for edge in list(self._plain):
            edge.close()
        await self._server.shutdown(timeout_s)

    # ---- the connections' side ----

    def ordinary(self) -> EdgeProtocol:
        return self._server()

    def joined(self, edge: PlainEdge) -> None:
        self._plain.add(edge)

    def left(self, edge: PlainEdge) -> None:
        self._plain.discard(edge)
