"""Requests to replicas: a connection taken or made, the request sent, the reply ready to judge."""

import asyncio
from collections.abc import Callable

from router.config import RouterConfig
from router.connection import Connection, ConnectionPool
from router.errors import ConnectFailed, ReplicaLost, RouterError
from router.exchange import MAX_HELD_BYTES, Exchange, Limit
from router.replica import Replica

STALE_WITHIN_S = 1.0
"""A kept connection that the replica had closed already shows it at once."""


class Upstream:
    """Sends requests to replicas; one per router."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect_s: float, api_key: str | None):
        self._loop = loop
        self._connect_s = connect_s
        self._authorization = _authorization(api_key)
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
    ) -> Exchange:
        """Sends one request and waits until its reply can be judged, or comes into doubt.

        An idle connection that the replica closed meanwhile is no failure of the replica: as long
        as no byte came back, the request is sent once more on a new connection. `sent` is told
        when it goes out, and whether the connection is new.
        """
        request = self._head(replica, method, path, headers, body), body
        pool = self._pool(replica)
        kept = pool.take()
        if kept is not None:
            exchange = Exchange(self._loop, kept, replica, self._running, max_held_bytes)
            if sent is not None:
                sent(exchange.last_data_s, False)
            if not await self._is_stale(exchange, kept, request, limit, doubt_at_s):
                return exchange
        try:
            connection = await pool.connect(self._connect_s)
        except ConnectFailed as error:
            error.was_sent = kept is not None
            raise
        exchange = Exchange(self._loop, connection, replica, self._running, max_held_bytes)
        if sent is not None:
            sent(exchange.last_data_s, True)
        await self._opened(exchange, connection, request, limit, doubt_at_s)
        return exchange

    async def _is_stale(
        self,
        exchange: Exchange,
        connection: Connection,
        request: tuple[bytes, bytes],
        limit: Limit | None,
        doubt_at_s: float | None,
    ) -> bool:
        sent_s = self._loop.time()
        try:
            await self._opened(exchange, connection, request, limit, doubt_at_s)
        except ReplicaLost:
            is_late = self._loop.time() - sent_s > STALE_WITHIN_S
            if exchange.has_bytes or is_late or exchange.replica.is_gone:
                raise
            return True
        return False

    async def _opened(
        self,
        exchange: Exchange,
        connection: Connection,
        request: tuple[bytes, bytes],
        limit: Limit | None,
        doubt_at_s: float | None,
    ) -> None:
        connection.send(exchange, *request)
        try:
            await exchange.opened(limit, doubt_at_s)
        except BaseException:
            exchange.close()
            raise

    def _pool(self, replica: Replica) -> ConnectionPool:
        pool = self._pools.get(replica)
        if pool is None:
            pool = ConnectionPool(self._loop, replica)
            if replica.is_gone:
                pool.close()  # used once, kept by nobody
            else:
                self._pools[replica] = pool
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


def _authorization(api_key: str | None) -> str:
    return f"Authorization: Bearer {api_key}\r\n" if api_key else ""
