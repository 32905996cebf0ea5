"""Clients that make one call after the other, each in its manner, and note how each ended.

A call ends exactly once, in one of these ways: judged by the oracle, left by its client, or lost
(no reply, a reply that is cut or malformed, no end in time).
"""

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

from tests.campaign.asks import Ask
from tests.campaign.http_reply import BadFraming, Reply
from tests.campaign.oracle import Kind, Oracle, Verdict

END_WITHIN_S = 100.0
"""More than the router may take for any call: later means never."""
SLOW_PAUSE_S = 0.02
SLOW_BYTES = 512
FAST_BYTES = 65_536
SLOW_RECEIVE_BUFFER = 4_096


class Client:
    """One connection at a time; `ended` hears of each call once."""

    def __init__(
        self,
        port: int,
        oracle: Oracle,
        asks: Iterator[Ask],
        ended: Callable[[Ask, Verdict, float], None],
        rng: random.Random,
    ) -> None:
        self._port = port
        self._oracle = oracle
        self._asks = asks
        self._ended = ended
        self._rng = rng
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, until_s: float) -> None:
        """No new call after `until_s`; the last one is finished."""
        while time.monotonic() < until_s:
            await self._call()
        self._disconnect()

    async def call_once(self) -> None:
        """On a connection of its own."""
        await self._call()
        self._disconnect()

    async def _call(self) -> None:
        ask, began_s = next(self._asks), time.monotonic()
        verdict = await self._called(ask)
        self._ended(ask, verdict, time.monotonic() - began_s)

    async def _called(self, ask: Ask) -> Verdict:
        reply = Reply()
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await self._connect(ask)
                await self._send(ask)
                if not await self._read(ask, reply):
                    self._disconnect(resets=ask.manner.resets)
                    return Verdict(Kind.LEFT)
        except TimeoutError:
            self._disconnect()
            return Verdict(Kind.LOST, f"no end within {END_WITHIN_S:g} s")
        except BadFraming as exc:
            self._disconnect()
            return Verdict(Kind.LOST, f"framing: {exc}")
        except OSError as exc:
            self._disconnect()
            return Verdict(Kind.LOST, f"{_how_far(reply)}: {exc!r}")
        if not reply.is_whole:
            self._disconnect()
            return Verdict(Kind.LOST, f"{_how_far(reply)}: closed")
        if not reply.keeps_alive:
            self._disconnect()
        return self._oracle.judge(ask, reply)

    async def _connect(self, ask: Ask) -> None:
        if ask.manner.is_new_connection or ask.manner.reads_slowly:
            self._disconnect()
        if self._writer is not None:
            return
        sock = socket.socket()
        if ask.manner.reads_slowly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BUFFER)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except BaseException:
            sock.close()
            raise
        limit = SLOW_BYTES if ask.manner.reads_slowly else FAST_BYTES
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=limit)

    async def _send(self, ask: Ask) -> None:
        body = json.dumps(ask.body, ensure_ascii=self._rng.random() < 0.5).encode()
        data = (
            f"POST {ask.path} HTTP/1.1\r\nHost: fleet\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {ask.id}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        assert self._writer is not None
        if not ask.manner.sends_in_pieces:
            self._writer.write(data)
            return
        cuts = sorted(self._rng.choices(range(len(data)), k=3))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self._writer.write(data[start:end])
            await asyncio.sleep(0.002)

    async def _read(self, ask: Ask, reply: Reply) -> bool:
        """To the reply's end, or to the connection's; false when the client has left."""
        manner, got = ask.manner, 0
        assert self._reader is not None
        while not reply.is_whole:
            if manner.leaves_after_bytes is not None and got >= manner.leaves_after_bytes:
                return False
            data = await self._reader.read(SLOW_BYTES if manner.reads_slowly else FAST_BYTES)
            if not data:
                return True
            got += len(data)
            reply.feed(data)
            if manner.reads_slowly:
                await asyncio.sleep(SLOW_PAUSE_S)
        return True

    def _disconnect(self, *, resets: bool = False) -> None:
        if self._writer is None:
            return
        if resets:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self._reader = self._writer = None


def _how_far(reply: Reply) -> str:
    if not reply.has_bytes:
        return "no reply"
    return "cut in the body" if reply.has_head else "cut in the head"
