"""Connections to replicas, and one request with its reply on each. All I/O to replicas is here.

A `Connection` is an asyncio.Protocol around llhttp: it knows framing, nothing of tokens. An
`Exchange` is one request on it and collects the reply until the proxy takes it over:

    open -> head -> (unary) whole body              -> Reply, given back to the pool of connections
                 -> (stream) first event            -> Reply, then forwarded event by event

Foreign failures become ours here: refused or unreachable -> ConnectFailed, lost or malformed ->
UpstreamBroken, too slow -> UpstreamTimeout. A reply that was not read to its end closes its
connection: that is also how an engine learns that nobody waits any more.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, cast

import httptools

from router import sse
from router.errors import (
    CallTimeout,
    ConnectFailed,
    ReplicaLost,
    RouterError,
    UpstreamBroken,
    UpstreamTimeout,
)
from router.replica import Replica

MAX_HEAD_FIELDS = 256
MAX_HELD_BYTES = 8 * 1024**2
"""A whole reply larger than this is passed on while it arrives."""
MAX_IDLE_CONNECTIONS = 512
IDLE_CONNECTION_S = 30.0
"""Below the keep-alive time of every engine known."""


Limit = tuple[float, RouterError]
"""A monotonic time, and the error that its passing is."""


class Sink(Protocol):
    """Where a stream's whole events go once the client may see them."""

    def forward(self, events: bytes) -> bool:
        """Takes them; false asks to pause reading until `Exchange.resume`."""
        ...


@dataclass(slots=True)
class Head:
    """Status and header fields of a reply; field names in lower case."""

    status: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)
    is_reusable: bool = True

    def get(self, name: str) -> str:
        return next((value for key, value in self.fields if key == name), "")


class Exchange:
    """One request and its reply. The proxy awaits it; the connection feeds it."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_held",
        "_held_bytes",
        "_is_first",
        "_loop",
        "_replica",
        "_running",
        "_silence_s",
        "_sink",
        "_splitter",
        "_wake",
        "error",
        "has_bytes",
        "head",
        "is_done",
        "is_paused",
        "last_data_s",
    )

    def __init__(
        self, connection: "Connection", replica: Replica, running: "set[Exchange]"
    ) -> None:
        self._loop = connection.loop
        self._running = running
        running.add(self)
        self._connection = connection
        self._replica = replica
        self._wake: asyncio.Future[None] | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._splitter: sse.Splitter | None = None
        self._sink: Sink | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._silence_s = 0.0
        self.head: Head | None = None
        self.error: RouterError | None = None
        self.has_bytes = False
        self.is_done = False
        self.is_paused = False
        self.last_data_s = self._loop.time()

    # ---- the proxy's side ----

    @property
    def is_stream(self) -> bool:
        return self._splitter is not None

    async def opened(self, limit: Limit | None) -> None:
        """Until the reply can be judged: the whole body, or a stream's first event.

        Raises how it failed, or the limit's error when that time passes first.
        """
        if limit is not None:
            at_s, error = limit
            self._deadline = self._loop.call_at(at_s, self.on_failure, error)
        try:
            while not self.error and not self._is_judgeable():
                await self._woken()
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
        if self.error:
            raise self.error

    def first_event(self) -> bytes:
        """The first whole event held, or empty when the stream ended without one."""
        return next(iter(sse.events(b"".join(self._held))), b"")

    def body(self) -> bytes:
        return b"".join(self._held)

    async def forwarded(self, sink: Sink, silence_s: float, deadline_s: float) -> None:
        """Hands everything to the sink until the reply ends; raises how it failed.

        Returns early with `is_paused` when the sink wants no more for now.
        """
        self._silence_s = silence_s
        if self._sink is None:
            self._sink = sink
            self._watch(deadline_s)
            held, self._held = b"".join(self._held), []
            if held:
                self._pass_on(held)
        while not self.is_done and not self.error and not self.is_paused:
            await self._woken()
        if self.error:
            raise self.error

    def resume(self) -> None:
        """The sink takes more again; silence is counted from now."""
        self.is_paused = False
        self.last_data_s = self._loop.time()
        if not self.is_done and not self.error:
            self._connection.resume_reading()

    def close(self) -> None:
        """Ends it whatever its state; an unfinished one closes its connection."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._running.discard(self)
        self._connection.ended(self)

    @property
    def tail(self) -> bytes:
        """Bytes of an event that never became whole."""
        return self._splitter.tail if self._splitter else b""

    # ---- the connection's side ----

    def on_head(self, head: Head) -> None:
        self.head = head
        if head.status == 200 and head.get("content-type").startswith("text/event-stream"):
            self._splitter = sse.Splitter()

    def on_read(self, body: bytes) -> None:
        """After each read from the replica, with what it brought of the body."""
        self.has_bytes = True
        self.last_data_s = self._replica.progress_s = self._loop.time()
        if body and self._splitter is not None:
            body = self._splitter.push(body)
        if body and self._sink is not None:
            self._pass_on(body)
        elif body:
            self._held.append(body)
            self._held_bytes += len(body)
        if self._sink is None or self.is_done:
            self._notify()

    def on_failure(self, error: RouterError) -> None:
        if not self.is_done and self.error is None:
            self.error = error
            self._notify()

    def _pass_on(self, data: bytes) -> None:
        assert self._sink is not None
        if not self._sink.forward(data) and not self.is_paused:
            self.is_paused = True
            self._connection.pause_reading()
            self._notify()

    def _is_judgeable(self) -> bool:
        if self.is_done:
            return True
        if self.is_stream:
            return any(sse.has_event(block) for block in self._held)
        return self._held_bytes > MAX_HELD_BYTES

    async def _woken(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _watch(self, deadline_s: float) -> None:
        """One timer per stream, moved on lazily: it costs nothing per event."""
        now_s = self._loop.time()
        silent_until_s = self.last_data_s + self._silence_s
        if self.is_done or self.error:
            return
        if now_s >= deadline_s:
            self.on_failure(CallTimeout("the call's deadline passed inside its answer"))
        elif now_s >= silent_until_s and not self.is_paused:
            silence = f"no event for {self._silence_s:g} s"
            self.on_failure(UpstreamTimeout(f"the replica went silent: {silence}"))
        else:
            next_s = deadline_s if self.is_paused else min(silent_until_s, deadline_s)
            next_s = max(next_s, now_s + 0.05)
            if self.is_paused:
                next_s = min(next_s, now_s + self._silence_s)
            self._deadline = self._loop.call_at(next_s, self._watch, deadline_s)


class Connection(asyncio.Protocol):
    """One TCP connection to one replica; runs one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: "ConnectionPool") -> None:
        self.loop = loop
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head = Head()
        self._body: list[bytes] = []
        self._exchange: Exchange | None = None
        self._is_complete = True
        self._is_readable = True
        self.idle_since_s = 0.0

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self._close()  # bytes nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(UpstreamBroken(f"the replica's reply is no valid HTTP: {exc}"))
            return
        body = b"".join(self._body) if len(self._body) != 1 else self._body[0]
        self._body.clear()
        exchange.is_done = exchange.is_done or self._is_complete
        exchange.on_read(body)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        if self._exchange is None or self._exchange.is_done:
            return
        if self._ends_with_connection():
            self._exchange.is_done = True
            self._exchange.on_read(b"")
        else:
            where = "inside its reply" if self._exchange.has_bytes else "before its reply"
            self._fail(ReplicaLost(f"the connection to the replica was lost {where}"))

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second reply to one request: what was read is not to be trusted
            self._head = Head()
            raise httptools.HttpParserError("more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._head.fields) >= MAX_HEAD_FIELDS:
            raise httptools.HttpParserError("too many header fields")
        self._head.fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._exchange is not None:
            self._head.status = status
            self._exchange.on_head(self._head)
        else:
            self._head = Head()  # 100 Continue and its like: the reply is still to come

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._head.status:
            self._head.is_reusable = self._parser.should_keep_alive()
            self._is_complete = True

    # ---- the exchange's side ----

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        self._exchange = exchange
        self._head = Head()
        self._is_complete = False
        if self._transport is None:
            self._fail(ReplicaLost("the connection to the replica was lost before its reply"))
        elif len(body) > 65_536:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    def pause_reading(self) -> None:
        if self._transport is not None and self._is_readable:
            self._is_readable = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._is_readable:
            self._is_readable = True
            self._transport.resume_reading()

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over: keep the connection if its reply was read to the end."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        if exchange.is_done and not exchange.error and self.is_open and self._head.is_reusable:
            self.resume_reading()
            self._pool.keep(self)
        else:
            self._close()

    def _ends_with_connection(self) -> bool:
        """A reply without length or chunks ends when the connection does."""
        head = self._exchange.head if self._exchange else None
        framed = head and (head.get("content-length") or head.get("transfer-encoding"))
        return head is not None and not framed

    def _fail(self, error: RouterError) -> None:
        if self._exchange is not None:
            self._exchange.is_done = False
            self._exchange.on_failure(error)
        self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ConnectionPool:
    """The idle connections to one replica, newest first; there is no cap on busy ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, replica: Replica) -> None:
        self._loop = loop
        self._replica = replica
        self._idle: deque[Connection] = deque()
        self._is_closed = False

    def take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            is_fresh = self._loop.time() - connection.idle_since_s < IDLE_CONNECTION_S
            if connection.is_open and is_fresh:
                return connection
            connection._close()
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A new connection. Raises ConnectFailed, saying why."""
        host, port = self._replica.host, self._replica.port
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self), host, port
                )
        except TimeoutError:
            raise ConnectFailed(f"{host}:{port} did not accept within {timeout_s:g} s") from None
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise ConnectFailed(f"no connection to {host}:{port}: {reason}") from exc
        return connection

    def keep(self, connection: Connection) -> None:
        connection.idle_since_s = self._loop.time()
        if self._is_closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection._close()
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop()._close()


class Upstream:
    """Sends requests to replicas; one per router."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect_s: float, api_key: str | None):
        self._loop = loop
        self._connect_s = connect_s
        self._authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._pools: dict[Replica, ConnectionPool] = {}
        self._running: set[Exchange] = set()

    async def send(
        self,
        replica: Replica,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        *,
        limit: Limit | None = None,
        is_fresh: bool = False,
    ) -> Exchange:
        """Sends one request and waits until its reply can be judged.

        An idle connection that the replica closed meanwhile is no failure of the replica: as long
        as no byte came back, the request is sent once more on a new connection.
        """
        head = self._head(replica, method, path, headers, body)
        pool = self._pool(replica)
        connection = None if is_fresh else pool.take()
        if connection is not None:
            exchange = await self._attempt(connection, replica, head, body, limit, is_reused=True)
            if exchange is not None:
                return exchange
        try:
            connection = await pool.connect(self._connect_s)
        except ConnectFailed as error:
            error.was_sent = connection is not None
            raise
        fresh = await self._attempt(connection, replica, head, body, limit, is_reused=False)
        assert fresh is not None
        return fresh

    async def _attempt(
        self,
        connection: Connection,
        replica: Replica,
        head: bytes,
        body: bytes,
        limit: Limit | None,
        *,
        is_reused: bool,
    ) -> Exchange | None:
        exchange = Exchange(connection, replica, self._running)
        connection.send(exchange, head, body)
        try:
            await exchange.opened(limit)
        except ReplicaLost:
            exchange.close()
            if is_reused and not exchange.has_bytes:
                return None
            raise
        except BaseException:
            exchange.close()
            raise
        return exchange

    def _pool(self, replica: Replica) -> ConnectionPool:
        pool = self._pools.get(replica)
        if pool is None:
            pool = self._pools[replica] = ConnectionPool(self._loop, replica)
        return pool

    def _head(
        self,
        replica: Replica,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> bytes:
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        content = (
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        )
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {host}:{replica.port}\r\n"
            f"{content}{fields}{self._authorization}\r\n"
        ).encode("latin-1")

    def forget(self, replica: Replica) -> None:
        """The replica is gone: its idle connections are closed, busy ones end by themselves."""
        if pool := self._pools.pop(replica, None):
            pool.close()

    def fail_all(self, error: RouterError) -> None:
        """Ends every request in flight with this error."""
        for exchange in list(self._running):
            exchange.on_failure(error)

    def __len__(self) -> int:
        """Requests in flight, probes included."""
        return len(self._running)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
