"""Stands in for replicas: TGI's routes at the least cost that keeps the protocol.

    python -m tests.bench.stand_in --replicas 4 --interval-ms 20 [--batch 16]

One process listens on one port per replica and prints them. Unary calls are answered at once;
streams get `max_new_tokens` events, one per interval, each in a write of its own. It never
validates: what it is asked is known.
"""

import argparse
import asyncio
import re
from typing import cast

import uvloop

from tests.bench import wire

TICK_S = 0.001
SPREAD = 617
"""Prime and near the golden ratio of 1000: few streams are spread over the wheel, too."""
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
Pages = dict[bytes, tuple[bytes, bytes]]


def pages(batch: int | None) -> Pages:
    """What is to be seen of an engine; `batch`: the calls it says it runs at a time."""
    info = wire.INFO if batch is None else wire.INFO[:-1] + b',"max_batch_size":%d}' % batch
    return {
        b"/health": (b"", b"text/plain"),
        b"/info": (info, b"application/json"),
        b"/metrics": (wire.METRICS, b"text/plain"),
    }


class Stream:
    """One running reply."""

    __slots__ = ("index", "replica", "tag", "tokens")

    def __init__(self, replica: "Replica", tag: bytes, tokens: int) -> None:
        self.replica = replica
        self.tag = tag
        self.tokens = tokens
        self.index = 0

    def emit(self) -> bool:
        """Sends the next event; false after the last one."""
        self.index += 1
        is_last = self.index >= self.tokens
        event = wire.event(self.tag, self.index, is_last=is_last)
        end = b"0\r\n\r\n" if is_last else b""
        self.replica.write(b"%x\r\n%b\r\n%b" % (len(event), event, end))
        return not is_last


class Pace:
    """Which stream sends when: a wheel of one slot per millisecond, streams spread evenly."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_ms: int) -> None:
        self._loop = loop
        self._slots: list[set[Stream]] = [set() for _ in range(interval_ms)]
        self._slot_of: dict[Stream, int] = {}
        self._joined = 0
        self._tick = 0
        self._began_s = loop.time()
        loop.call_later(TICK_S, self._run)

    def join(self, stream: Stream) -> None:
        slot = self._joined * SPREAD % len(self._slots)
        self._joined += 1
        self._slots[slot].add(stream)
        self._slot_of[stream] = slot

    def leave(self, stream: Stream) -> None:
        slot = self._slot_of.pop(stream, None)
        if slot is not None:
            self._slots[slot].discard(stream)

    def _run(self) -> None:
        """Every slot that is due by now, late ones too, so that the rate is kept."""
        due = int((self._loop.time() - self._began_s) / TICK_S)
        while self._tick < due:
            slot = self._slots[self._tick % len(self._slots)]
            for stream in [stream for stream in slot if not stream.emit()]:
                self.leave(stream)
            self._tick += 1
        self._loop.call_later(TICK_S, self._run)


class Replica(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, pace: Pace, pages: Pages) -> None:
        self._pace = pace
        self._pages = pages
        self._transport: asyncio.Transport | None = None
        self._stream: Stream | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._stream is not None:
            self._pace.leave(self._stream)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head_end = data.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(data, 0, head_end + 2) if head_end >= 0 else None
        size = head_end + 4 + (int(length[1]) if length else 0)
        if head_end < 0 or len(data) < size:
            self._buffer = data
            return
        self._buffer = data[size:]
        self._answer(data, head_end + 4)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _answer(self, data: bytes, body_start: int) -> None:
        path = data.split(b" ", 2)[1]
        if path == b"/generate":
            body = wire.answer(_tag(data, body_start))
            self._reply(b"200 OK", wire.UNARY_FIELDS, body)
        elif path == b"/generate_stream":
            self.write(b"HTTP/1.1 200 OK\r\n%b\r\n" % wire.STREAM_FIELDS)
            tag, tokens = _tag(data, body_start), _tokens(data, body_start)
            self._stream = Stream(self, tag, tokens)
            self._pace.join(self._stream)
        elif page := self._pages.get(path):
            self._reply(b"200 OK", b"content-type: %b\r\n" % page[1], page[0])
        else:
            self._reply(b"404 Not Found", b"", b"")

    def _reply(self, status: bytes, fields: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n" % (status, fields, len(body))
        self.write(head + body)


def _tag(data: bytes, start: int) -> bytes:
    at = data.index(wire.INPUTS_MARK, start) + len(wire.INPUTS_MARK)
    return data[at : at + wire.TAG_CHARS]


def _tokens(data: bytes, start: int) -> int:
    at = data.index(wire.LENGTH_MARK, start) + len(wire.LENGTH_MARK)
    return int(data[at : data.index(b",", at)])


async def serve(replicas: int, interval_ms: int, batch: int | None) -> None:
    loop = asyncio.get_running_loop()
    pace, shown = Pace(loop, interval_ms), pages(batch)
    ports = []
    for _ in range(replicas):
        server = await loop.create_server(
            lambda: Replica(pace, shown), "127.0.0.1", 0, backlog=4096
        )
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    options = argparse.ArgumentParser(description="Replicas that cost next to nothing.")
    options.add_argument("--replicas", type=int, default=4)
    options.add_argument("--interval-ms", type=int, default=20)
    options.add_argument("--batch", type=int, help="calls each one says it runs at a time")
    given = options.parse_args()
    uvloop.run(serve(given.replicas, given.interval_ms, given.batch))


if __name__ == "__main__":
    main()
