"""The wires between router and replicas: a process of its own that goes wrong when told to.

    python -m tests.campaign.wire LISTEN:TARGET ... < orders

Knows nothing of calls: a fault is placed by bytes and time, and strikes connections that are open
as well as new ones. Orders are JSON lines, {"wire": 0, "kind": "cut", "amount": 17}; "none" ends
what lasts. Each is answered by a line with how many connections it struck.
"""

import asyncio
import json
import re
import socket
import struct
import sys
from dataclasses import dataclass, field

import uvloop

from router.tasks import Tasks

BEGINS_FRAME = re.compile(rb"HTTP/1\.1 |[0-9a-f]+\r\n")
"""A reply's head, or a chunk's: garbage in place of these is no HTTP, whatever comes next. Inside
a chunk nobody could tell it from an answer."""
GARBAGE = b"\x16\x03\xff" + bytes(range(128, 192))
DRIP_EVERY_S = 0.002
PIECE_BYTES = 65_536


class Broken(Exception):
    """The connection is to end here."""


@dataclass(eq=False, slots=True)
class Link:
    """One connection through a wire."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    left_bytes: int | None = None
    """So many more bytes of answers come through, then `ending` does."""
    ending: str = ""

    def write(self, data: bytes) -> None:
        """Raises Broken where the link's fault is."""
        if self.left_bytes is None:
            self.near.write(data)
        elif self.ending == "garbage" and self.left_bytes <= 0:
            self._garble(data)
        elif self.ending != "garbage" and len(data) >= self.left_bytes:
            self.near.write(data[: self.left_bytes])
            raise Broken
        else:
            self.left_bytes -= len(data)
            self.near.write(data)

    def _garble(self, data: bytes) -> None:
        if not BEGINS_FRAME.match(data):
            self.near.write(data)
            return
        self.near.write(GARBAGE)
        raise Broken

    def end(self, *, is_reset: bool = False) -> None:
        for writer in (self.near, self.far):
            if writer is not None and (is_reset or self.ending == "reset"):
                _reset(writer)
            elif writer is not None:
                writer.close()


@dataclass(eq=False)
class Wire:
    """From one port to another; `order` sets what goes wrong."""

    port: int
    target: int
    kind: str = "none"
    amount: int = 0
    links: set[Link] = field(default_factory=set)
    _tasks: Tasks = field(default_factory=Tasks)
    _healed: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", self.port, reuse_address=True
        )

    async def close(self) -> None:
        await self._stop_listening()
        for link in list(self.links):
            link.end(is_reset=True)
        await self._tasks.close()

    async def order(self, kind: str, amount: int = 0) -> int:
        """Gives how many open connections it struck."""
        if kind == "none":
            return await self._heal()
        self._healed.clear()
        if kind in ("cut", "reset", "garbage"):
            return self._break(kind, amount)
        self.kind, self.amount = kind, amount
        if kind == "refuse":
            await self._stop_listening()
        return len(self.links)

    def _break(self, kind: str, after_bytes: int) -> int:
        for link in list(self.links):
            link.left_bytes, link.ending = after_bytes, kind
            if kind != "garbage" and not after_bytes:
                link.end()
        return len(self.links)

    async def _heal(self) -> int:
        """Connections that were deaf end by a reset: what they should have carried is lost."""
        struck = len(self.links)
        for link in list(self.links):
            link.left_bytes = None
            if self.kind == "deaf":
                link.end(is_reset=True)
        if self.kind == "refuse":
            await self.open()
        self.kind = "none"
        self._healed.set()
        return struck

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)  # the loop lets go of the port in its next turn

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.spawn(self._linked(reader, writer), "link")

    async def _linked(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        link = Link(near)
        self.links.add(link)
        try:
            back, link.far = await asyncio.open_connection("127.0.0.1", self.target)
            there = self._tasks.spawn(_copy(reader, link.far), "requests")
            answers = self._tasks.spawn(self._answers(back, link), "answers")
            await asyncio.wait((there, answers), return_when=asyncio.FIRST_COMPLETED)
            there.cancel()
            answers.cancel()
        except OSError:
            link.ending = "reset"  # nobody listens behind it
        finally:
            link.end()
            self.links.discard(link)

    async def _answers(self, back: asyncio.StreamReader, link: Link) -> None:
        try:
            while data := await back.read(PIECE_BYTES):
                await self._pass_on(data, link)
        except (ConnectionResetError, BrokenPipeError):
            link.ending = link.ending or "reset"
        except Broken:
            return

    async def _pass_on(self, data: bytes, link: Link) -> None:
        if self.kind == "late":
            await asyncio.sleep(self.amount / 1000)
        while self.kind in ("stall", "deaf"):
            await self._healed.wait()
        while self.kind == "drip" and data:
            link.write(data[: self.amount])
            data = data[self.amount :]
            await asyncio.sleep(DRIP_EVERY_S)
        if data:
            link.write(data)
            await link.near.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve(pairs: list[str]) -> None:
    wires = [Wire(*map(int, pair.split(":"))) for pair in pairs]
    for wire in wires:
        await wire.open()
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print("ready", flush=True)
    while line := await orders.readline():
        order = json.loads(line)
        struck = await wires[order["wire"]].order(order["kind"], order.get("amount", 0))
        print(struck, flush=True)
    for wire in wires:
        await wire.close()


def main() -> None:
    uvloop.run(_serve(sys.argv[1:]))


if __name__ == "__main__":
    main()
