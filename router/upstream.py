"""Requests to replicas: a connection taken or made, the request sent, the reply ready to judge."""

import asyncio
from collections.abc import Callable

from router.config import RouterConfig
from router.connection import Connection, ConnectionPool
from router.deadlines import Deadlines
from router.edge import Fields, fields
from router.errors import ConnectFailed, ReplicaLost, RouterError
from router.exchange import MAX_HELD_BYTES, Exchange, Limit
from router.outbox import Outbox
from router.replica import Replica

STALE_WITHIN_S = 1.0
"""A kept connection that the replica had closed already shows it at once."""


class Upstream:
    """Sends requests to replicas; one per router."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        outbox: Outbox,
        config: RouterConfig,
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._outbox = outbox
        self.use(config)
        self._pools: dict[Replica, ConnectionPool] = {}
        self._running: set[Exchange] = set()

    def use(self, config: RouterConfig) -> None:
        """For requests that are sent from here on."""
        self._connect_s = config.timeouts.connect_s
        self._authorization = _authorization(config.engine_api_key)

    async def send(
        self,
        replica: Replica,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        *,
        limit: Limit | None = None,
        doubt_at_s: float | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
        sent: Callable[[float, bool], None] | None = None,
        is_again: bool = False,
    ) -> Exchange:
        """Sends one request and waits until its reply can be judged, or comes into doubt.

        An idle connection that the replica closed meanwhile is no failure of the replica: as long
        as no byte came back, the request is sent once more on a new connection. `sent` is told
        when it goes out, and whether the connection is new. `is_again`: that was tried before.
        """
        pool = self._pool(replica)
        request = self._head(pool, method, path, headers, body)
        kept = pool.take()
        while True:
            is_new = kept is None
            connection = kept or await self._connect(pool, was_sent=is_again)
            exchange = self._exchange(connection, replica, max_held_bytes)
            exchange.is_on_new_connection = is_new
            sent_s = exchange.last_data_s
            if sent is not None:
                sent(sent_s, is_new)
            connection.send(exchange, request, body)
            try:
                await exchange.opened(limit, doubt_at_s)
            except ReplicaLost:
                exchange.close()
                if not self.is_stale(exchange, sent_s):
                    raise
            except BaseException:
                exchange.close()
                raise
            else:
                return exchange
            kept, is_again = None, True

    def at_once(
        self,
        replica: Replica,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> Exchange | None:
        """Sends a POST on an idle connection and waits for nothing; None if there is none."""
        pool = self._pool(replica)
        kept = pool.take()
        return self._post(pool, kept, replica, path, headers, body) if kept is not None else None

    async def on_new(
        self, replica: Replica, path: str, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> Exchange:
        """The same on a connection that is made for it. Raises ConnectFailed."""
        pool = self._pool(replica)
        connection = await self._connect(pool, was_sent=False)
        exchange = self._post(pool, connection, replica, path, headers, body)
        exchange.is_on_new_connection = True
        return exchange

    def _post(
        self,
        pool: ConnectionPool,
        connection: Connection,
        replica: Replica,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> Exchange:
        exchange = self._exchange(connection, replica)
        connection.send(exchange, self._head(pool, "POST", path, headers, body), body)
        return exchange

    def _exchange(
        self, connection: Connection, replica: Replica, max_held_bytes: int = MAX_HELD_BYTES
    ) -> Exchange:
        loop, deadlines, running = self._loop, self._deadlines, self._running
        return Exchange(loop, deadlines, connection, replica, running, max_held_bytes)

    def is_stale(self, exchange: Exchange, sent_s: float) -> bool:
        """It was sent on a connection that the replica had closed, and never reached it."""
        is_late = self._loop.time() - sent_s > STALE_WITHIN_S
        is_new = exchange.is_on_new_connection
        return not (is_new or exchange.has_bytes or is_late or exchange.replica.is_gone)

    async def _connect(self, pool: ConnectionPool, *, was_sent: bool) -> Connection:
        try:
            return await pool.connect(self._connect_s)
        except ConnectFailed as error:
            error.was_sent = was_sent
            raise

    def _pool(self, replica: Replica) -> ConnectionPool:
        pool = self._pools.get(replica)
        if pool is None:
            pool = ConnectionPool(self._loop, self._outbox, replica)
            if replica.is_gone:
                pool.close()  # used once, kept by nobody
            else:
                self._pools[replica] = pool
        return pool

    def _head(
        self,
        pool: ConnectionPool,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> bytes:
        first = pool.lines.get((method, path))
        if first is None:
            host = f"[{pool.host}]" if ":" in pool.host else pool.host
            first = f"{method} {path} HTTP/1.1\r\nHost: {host}:{pool.port}\r\n".encode("latin-1")
            pool.lines[method, path] = first
        if body:
            first = b"%bContent-Type: application/json\r\nContent-Length: %d\r\n" % (
                first,
                len(body),
            )
        return b"%b%b%b\r\n" % (first, fields(*headers), self._authorization)

    def forget(self, replica: Replica, *, has_died: bool = False) -> None:
        """The replica is gone: its idle connections are closed; busy ones end by themselves,
        unless a later generation of it runs: then nobody answers them any more.
        """
        if pool := self._pools.pop(replica, None):
            pool.close()
        for exchange in list(self._running) if has_died else []:
            if exchange.replica is replica:
                exchange.on_failure(ReplicaLost("a later generation of the replica runs"))

    def doubt(self, replica: Replica) -> None:
        """The replica says nothing any more: its calls may be better off elsewhere."""
        for exchange in list(self._running):
            if exchange.replica is replica:
                exchange.doubt()

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


def _authorization(api_key: str | None) -> Fields:
    return fields(("Authorization", f"Bearer {api_key}")) if api_key else b""
