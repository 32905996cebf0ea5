"""What a call and an event cost in Python calls: counted, so it is the same on every machine.

    python -m tests.bench.counted

A whole router in one process, its sockets replaced by objects that answer at once: what is counted
is its own doing, from a request's bytes to its reply's. Every function that is called counts as
one, those written in C as well. Seconds are shown beside it and vary as seconds do.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, cast

import uvloop

from router.app import App
from router.config import RouterConfig
from router.connection import Connection
from router.event_log import EventLog
from router.fleet import ReplicaEntry, ReplicaList
from router.health import Event
from router.replica import Replica
from tests.bench import wire

CALLS = 2_000
EVENTS_PER_STREAM = 100
CLIENTS = 16
WAITING = 10_000
SLOTS = 8
"""Calls that a replica runs at a time where others wait."""


class Pipe:
    """A transport that hands what is written to whoever answers."""

    def __init__(self, on_write: Callable[[bytes], None]) -> None:
        self.write = on_write
        self._is_closed = False

    def is_closing(self) -> bool:
        return self._is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: int) -> None:
        """Also the socket that it has none of."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self._is_closed = True

    abort = close


class Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Cost:
    calls: float
    """Function calls for each call, or event, that was served."""
    us: float


class InMemory:
    """A router, its replicas and its clients."""

    def __init__(self, replicas: int, *, is_stream: bool = False, slots: int | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_stream = is_stream
        path = "/generate_stream" if is_stream else "/generate"
        self._request = wire.request(path, wire.tag_of(0), EVENTS_PER_STREAM)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        for_ever = {"timeout_s": 3600, "max_calls": 2 * WAITING, "max_bytes": 2**32}
        config = RouterConfig.model_validate(
            {"port": 0, "queue": for_ever, "timeouts": {"total_s": 3600}}
        )
        log = EventLog(cast(Any, Nowhere()))
        self.app = App(config, self._listener, log=log)
        self._served = 0
        self._wanted = 0
        self._is_done: asyncio.Future[None] = self._loop.create_future()
        self._join(replicas, slots)

    def _join(self, replicas: int, slots: int | None) -> None:
        prober = self.app.prober
        for name in ("watch", "hurry", "busy", "forget"):  # nobody is there to be asked
            setattr(prober, name, lambda *who: None)
        entries = [
            ReplicaEntry(
                id=f"replica-{i}",
                generation=1,
                url=f"http://127.0.0.1:{9000 + i}",
                model="default",
                max_requests=slots,
            )
            for i in range(replicas)
        ]
        self.app.fleet.apply(ReplicaList(protocol=1, cluster="bench", epoch=0, replicas=entries))
        (self.dispatcher,) = self.app.fleet
        for replica in self.dispatcher.pool:
            self.dispatcher.pool.learn(replica, replica.dialect.info({"/info": wire.INFO}))
            self.dispatcher.pool.on_event(replica, Event.PROBE_OK, "bench")
            self.dispatcher.pool.on_event(replica, Event.WARMED, "bench")
            self._connect(replica)

    # ---- replicas ----

    def _connect(self, replica: Replica) -> None:
        """So many idle connections that none has to be made."""
        pool = self.app.upstream._pool(replica)
        answer = self._stream if self._is_stream else self._whole
        for _ in range(CLIENTS):
            connection = Connection(self._loop, pool)
            pipe = Pipe(partial(_soon, self._loop, answer, connection))
            connection.connection_made(cast(asyncio.Transport, pipe))
            pool.keep(connection)

    def _whole(self, connection: Connection) -> None:
        body = wire.answer(wire.tag_of(0))
        length = b"content-length: %d\r\n\r\n" % len(body)
        connection.data_received(b"HTTP/1.1 200 OK\r\n" + wire.UNARY_FIELDS + length + body)

    def _stream(self, connection: Connection) -> None:
        events = wire.events(wire.tag_of(0), EVENTS_PER_STREAM)
        reads = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        reads[0] = b"HTTP/1.1 200 OK\r\n" + wire.STREAM_FIELDS + b"\r\n" + reads[0]
        reads[-1] += b"0\r\n\r\n"
        self._send(connection, iter(reads))

    def _send(self, connection: Connection, reads: Any) -> None:
        read = next(reads, None)
        if read is not None:
            connection.data_received(read)
            self._loop.call_soon(self._send, connection, reads)

    # ---- clients ----

    def _client(self) -> Any:
        edge, request = self.app._edge(), self._request

        def on_write(reply: bytes) -> None:
            if not reply.startswith(b"HTTP/1.1 200") and not self._is_stream:
                raise AssertionError(reply[:300])
            if self._is_stream and not reply.endswith(b"0\r\n\r\n"):
                return
            self._served += 1
            if self._served < self._wanted:
                self._loop.call_soon(edge.data_received, request)
            elif not self._is_done.done() and self._served >= self._wanted:
                self._is_done.set_result(None)

        edge.connection_made(cast(asyncio.Transport, Pipe(on_write)))
        edge.data_received(request)
        return edge

    async def round(self, calls: int, clients: int) -> int:
        """At least so many calls, of so many clients at a time; gives how many there were."""
        self._served, self._wanted = 0, calls
        self._is_done = self._loop.create_future()
        edges = [self._client() for _ in range(clients)]
        await self._is_done
        while self.app.handlers.calls_running:  # noqa: ASYNC110  # the last few; nobody tells
            await asyncio.sleep(0.001)
        for edge in edges:
            edge.connection_lost(None)
        return self._served

    async def cost(self, calls: int, clients: int) -> Cost:
        """Of one call, once everything is warm."""
        await self.round(calls, clients)
        began_s = time.process_time()
        served = await self.round(calls, clients)
        us = (time.process_time() - began_s) / served * 1e6
        counted = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            served = await self.round(calls, clients)
        finally:
            sys.setprofile(None)
        return Cost(counted / served, us)

    async def close(self) -> None:
        await self.app.close()


async def measured(waiting: int = WAITING) -> dict[str, Cost]:
    """By what was measured; `waiting`: calls in the queue, all the time."""
    found: dict[str, Cost] = {}
    for name, replicas, slots, clients in (
        ("unary call", 4, None, CLIENTS),
        ("unary call, 64 replicas", 64, None, CLIENTS),
        ("unary call, others waiting", 4, SLOTS, waiting),
    ):
        found[name] = await _measured(
            InMemory(replicas, slots=slots), max(CALLS, 2 * clients), clients
        )
    stream = await _measured(InMemory(4, is_stream=True), CALLS // 10, CLIENTS)
    found["event"] = Cost(stream.calls / EVENTS_PER_STREAM, stream.us / EVENTS_PER_STREAM)
    return found


async def _measured(memory: InMemory, calls: int, clients: int) -> Cost:
    try:
        return await memory.cost(calls, clients)
    finally:
        await memory.close()


def _soon(
    loop: asyncio.AbstractEventLoop,
    answer: Callable[[Connection], None],
    connection: Connection,
    request: bytes,
) -> None:
    loop.call_soon(answer, connection)


def main() -> None:
    for name, cost in uvloop.run(measured()).items():
        print(f"{name:28} {cost.calls:7.1f} function calls {cost.us:7.1f} us")


if __name__ == "__main__":
    main()
