"""A TCP proxy before a real replica that can be told to go wrong: late, dripping, cut, reset, deaf.

It knows nothing of HTTP: faults are placed by bytes of the replica's answers. `Faults` holds for
connections accepted from then on; `heal` ends it.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from router.tasks import Tasks


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes that come back."""

    latency_s: float = 0.0
    """Before each piece of an answer."""
    drip_bytes: int | None = None
    """At most so many bytes at a time."""
    cut_after_bytes: int | None = None
    """So many bytes of answers come through on a connection, then it ends."""
    is_reset: bool = False
    """It ends by RST, not by FIN."""
    is_once: bool = False
    """Only the next connection meets them."""
    is_deaf: bool = False
    """Connections are accepted, and nothing ever comes back."""


class FaultProxy:
    """Listens on a free port of the loopback, in front of `port`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.faults = Faults()
        self.plan: Iterator[Faults] = iter(())
        """What the next connections meet, one after the other; then `faults` again."""
        self.cuts = 0
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def heal(self) -> None:
        self.faults = Faults()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._tasks.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        faults = next(self.plan, self.faults)
        if faults.is_once:
            self.heal()
        self._tasks.spawn(self._connection(reader, writer, faults), "connection")

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults
    ) -> None:
        try:
            if faults.is_deaf:
                await _swallow(reader)
                return
            back, forth = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(forth)
            try:
                there = self._tasks.spawn(_copy(reader, forth), "there")
                answers = self._tasks.spawn(self._answer(back, writer, faults), "answers")
                await asyncio.wait((there, answers), return_when=asyncio.FIRST_COMPLETED)
                there.cancel()
                answers.cancel()
            finally:
                forth.transport.abort()
                self._writers.discard(forth)
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults
    ) -> None:
        left = faults.cut_after_bytes
        while data := await _read(reader, faults.drip_bytes):
            if faults.latency_s:
                await asyncio.sleep(faults.latency_s)
            if left is not None and len(data) >= left:
                writer.write(data[:left])
                await writer.drain()
                self._cut(writer, faults)
                return
            left = None if left is None else left - len(data)
            writer.write(data)
            await writer.drain()

    def _cut(self, writer: asyncio.StreamWriter, faults: Faults) -> None:
        self.cuts += 1
        if faults.is_reset:
            linger = struct.pack("ii", 1, 0)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, drip_bytes: int | None) -> bytes:
    try:
        return await reader.read(drip_bytes or 65536)
    except ConnectionError:
        return b""


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await _read(reader, None):
        pass


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await _read(reader, None):
        writer.write(data)
        await writer.drain()
