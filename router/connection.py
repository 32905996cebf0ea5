"""TCP connections to replicas: HTTP framing with llhttp, keep-alive, back-pressure.

Knows nothing of tokens or events. OS errors and malformed replies become ours here: refused or
unreachable -> ConnectFailed, lost -> ReplicaLost, no valid HTTP -> UpstreamBroken.
"""

import asyncio
import errno
import socket
from collections import deque
from typing import cast

import httptools

from router.errors import (
    ConnectFailed,
    ConnectTimeout,
    NoSockets,
    ReplicaLost,
    RouterError,
    UpstreamBroken,
)
from router.exchange import Exchange, Head
from router.outbox import Outbox
from router.replica import Replica

MAX_HEAD_FIELDS = 256
MAX_IDLE_CONNECTIONS = 512
IDLE_CONNECTION_S = 30.0
"""Below the keep-alive time of every engine known."""
OUR_FAULTS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
)
"""What connect(2) says when this machine has no more sockets, files or ports to give."""
KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""In seconds, and probes: a host that vanished is noticed within half a minute."""


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
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.close()  # bytes nobody asked for
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
            self._pool.drop_idle()  # they may have died with it, and would fail one call each
            where = "inside its reply" if self._exchange.has_bytes else "before its reply"
            self._fail(ReplicaLost(f"the connection to the replica was lost {where}"))

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second reply to one request: what was read is not to be trusted
            self._head = Head()
            raise httptools.HttpParserError("more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        head = self._head
        if head.status:
            return  # a trailer: it belongs to this connection, and must not pass for a head field
        fields = head.fields
        if len(fields) >= MAX_HEAD_FIELDS:
            raise httptools.HttpParserError("too many header fields")
        fields.append((name.lower(), value))

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
            self._pool.outbox.write(self._transport, head + body)

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
        is_clean = exchange.is_done and not exchange.error and self._head.is_reusable
        if is_clean and self.is_open and not self._is_sending:
            self.resume_reading()
            self._pool.keep(self)
        else:
            self.close()

    @property
    def _is_sending(self) -> bool:
        """The reply came before the request was out: what follows would go into its body."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def _ends_with_connection(self) -> bool:
        """A reply without length or chunks ends when the connection does."""
        head = self._exchange.head if self._exchange else None
        framed = head and (head.get(b"content-length") or head.get(b"transfer-encoding"))
        return head is not None and not framed

    def _fail(self, error: RouterError) -> None:
        if self._exchange is not None:
            self._exchange.is_done = False
            self._exchange.on_failure(error)
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ConnectionPool:
    """The idle connections to one replica, newest first; there is no cap on busy ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, replica: Replica) -> None:
        self.outbox = outbox
        self.host, self.port = replica.host, replica.port
        self.lines: dict[tuple[str, str], bytes] = {}
        """How requests to it begin, by method and path."""
        self._loop = loop
        self._idle: deque[Connection] = deque()
        self._is_closed = False

    def take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            is_fresh = self._loop.time() - connection.idle_since_s < IDLE_CONNECTION_S
            if connection.is_open and is_fresh:
                return connection
            connection.close()
        return None

    async def connect(self, timeout_s: float) -> Connection:
        """A new connection. Raises ConnectFailed, saying why."""
        host, port = self.host, self.port
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self), host, port
                )
        except TimeoutError:
            raise ConnectTimeout(f"{host}:{port} did not accept within {timeout_s:g} s") from None
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if exc.errno in OUR_FAULTS:
                raise NoSockets(f"the router has no socket to give: {reason}") from exc
            raise ConnectFailed(f"no connection to {host}:{port}: {reason}") from exc
        return connection

    def keep(self, connection: Connection) -> None:
        connection.idle_since_s = self._loop.time()
        if self._is_closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        self._is_closed = True
        self.drop_idle()

    def drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
