"""The relay floor: bytes in, the same bytes out, in the same language and event loop as the router.

    python -m tests.bench.relay --fd 3 --to 9001 --to 9002

Each connection gets one to the next replica in turn. No HTTP, no accounting: what a router costs
beyond this is what its knowledge costs.
"""

import argparse
import asyncio
import socket
from itertools import cycle
from typing import cast

import uvloop

from router.tasks import Tasks


class Half(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Relay:
    def __init__(self, ports: list[int]) -> None:
        self._ports = cycle(ports)
        self._tasks = Tasks()

    def accept(self) -> asyncio.Protocol:
        return _Accepted(self)

    def join(self, client: "_Accepted") -> None:
        self._tasks.spawn(self._joined(client), "join")

    async def _joined(self, client: "_Accepted") -> None:
        loop = asyncio.get_running_loop()
        try:
            _, replica = await loop.create_connection(Half, "127.0.0.1", next(self._ports))
        except OSError:
            if client.transport is not None:
                client.transport.close()
            return
        client.joined(replica)


class _Accepted(Half):
    """The client's half: keeps what comes before there is somewhere to send it."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay
        self._kept: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._relay.join(self)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._kept.append(data)
        else:
            super().data_received(data)

    def joined(self, replica: Half) -> None:
        self.other, replica.other = replica, self
        if replica.transport is None:
            return
        if self.transport is None:
            replica.transport.close()
        elif self._kept:
            replica.transport.write(b"".join(self._kept))
            self._kept.clear()


async def serve(listener: socket.socket, ports: list[int]) -> None:
    relay = Relay(ports)
    loop = asyncio.get_running_loop()
    async with await loop.create_server(relay.accept, sock=listener, backlog=4096) as server:
        await server.serve_forever()


def main() -> None:
    options = argparse.ArgumentParser(description="Relays bytes to replicas, connection by turns.")
    options.add_argument("--fd", type=int, required=True, help="inherited listening socket")
    options.add_argument("--to", type=int, required=True, action="append", help="a replica's port")
    given = options.parse_args()
    listener = socket.socket(fileno=given.fd)
    listener.setblocking(False)
    uvloop.run(serve(listener, given.to))


if __name__ == "__main__":
    main()
