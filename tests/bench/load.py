"""The load: so many connections, each asking again as soon as its answer is whole.

    python -m tests.bench.load --port 8080 --connections 64 --watch PID < /dev/null

Prints one JSON object. Every reply is parsed by llhttp and compared byte for byte with what the
stand-in sends, so that a router which loses, doubles, mixes up or cuts anything is counted as
wrong and cannot look fast. CPU times and counts are of the same window, taken here.
"""

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import httptools
import uvloop

from tests.bench import machine, wire

OPEN_TIMEOUT_S = 30.0
OPENED_AT_A_TIME = 64


@dataclass(slots=True)
class Tally:
    """What all connections have seen; counts are of the window, errors of the whole run."""

    calls: int = 0
    events: int = 0
    reads: int = 0
    latency_s: "array[float]" = field(default_factory=lambda: array("d"))
    errors: int = 0
    first_error: str | None = None
    to_begin: int = 0
    """Connections that have not got their first answer or event yet."""
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set also by an error: there is nothing to wait for then."""
    is_over: bool = False

    def restart(self) -> None:
        self.calls = self.events = self.reads = 0
        del self.latency_s[:]

    def one_begun(self) -> None:
        self.to_begin -= 1
        if not self.to_begin:
            self.all_begun.set()

    def failed(self, what: str) -> None:
        self.all_begun.set()
        self.errors += 1
        self.first_error = self.first_error or what


class Caller(asyncio.Protocol):
    """One connection: request, reply, request, ..."""

    def __init__(self, tally: Tally, request: bytes, expected: bytes, ends: list[int]) -> None:
        self._tally = tally
        self._request = request
        self._expected = expected
        self._ends = ends
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._is_waiting = False
        self._is_failed = False
        self._at = 0
        self._events = 0
        self._asked_s = 0.0
        self._has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._tally.is_over and not self._is_failed:
            self._fail(f"the connection was closed at byte {self._at} of a reply")

    def data_received(self, data: bytes) -> None:
        self._tally.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"framing: {exc}: {data[:80]!r}")
        if not self._is_waiting and not self._is_failed:
            self._ask()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _ask(self) -> None:
        self._at = self._events = 0
        self._is_waiting = True
        self._asked_s = time.perf_counter()
        assert self._transport is not None
        self._transport.write(self._request)

    def _fail(self, what: str) -> None:
        self._is_failed = True
        self._tally.failed(what)
        self.close()

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if not self._is_waiting:
            self._fail("a reply that nobody asked for")

    def on_body(self, body: bytes) -> None:
        if not self._expected.startswith(body, self._at):
            self._fail(f"wrong bytes at {self._at}: {body[:80]!r}")
            return
        self._at += len(body)
        before, ends = self._events, self._ends
        while self._events < len(ends) and ends[self._events] <= self._at:
            self._events += 1
        self._tally.events += self._events - before
        if not self._has_begun and self._events:
            self._has_begun = True
            self._tally.one_begun()

    def on_message_complete(self) -> None:
        if self._is_failed:
            return
        status = self._parser.get_status_code()
        if status != 200 or self._at != len(self._expected):
            got = f"{self._at} of {len(self._expected)} bytes"
            self._fail(f"status {status}, {got}")
            return
        self._is_waiting = False
        self._tally.calls += 1
        self._tally.latency_s.append(time.perf_counter() - self._asked_s)


class Load:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._tally = Tally(to_begin=given.connections)
        self._callers: list[Caller] = []
        self._ends = wire.event_ends(given.events)

    async def run(self) -> dict[str, object]:
        given, tally = self._given, self._tally
        before_bytes = machine.pss_bytes(given.watch[0]) if given.hold else 0
        await self._open()
        await asyncio.sleep(given.warm_s)
        after_bytes = machine.pss_bytes(given.watch[0]) if given.hold else 0
        tally.restart()
        before, began_s = self._clocks(), time.perf_counter()
        await asyncio.sleep(given.seconds)
        seconds, after = time.perf_counter() - began_s, self._clocks()
        result = self._result(seconds, before, after)
        tally.is_over = True
        for caller in self._callers:
            caller.close()
        grown_bytes = (after_bytes - before_bytes) / given.connections
        return result | {"grown_bytes_per_connection": grown_bytes}

    async def _open(self) -> None:
        """All connections, each with its first byte: the window starts with everybody at work."""
        loop, given = asyncio.get_running_loop(), self._given
        numbers = range(given.connections)
        for i in range(0, given.connections, OPENED_AT_A_TIME):
            some = numbers[i : i + OPENED_AT_A_TIME]
            ports = [given.port[n % len(given.port)] for n in some]
            await asyncio.gather(
                *(
                    loop.create_connection(partial(self._caller, n), "127.0.0.1", port)
                    for n, port in zip(some, ports, strict=True)
                )
            )
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._tally.all_begun.wait()

    def _caller(self, number: int) -> Caller:
        tag, tokens = wire.tag_of(number), self._given.events
        if tokens:
            request = wire.request("/generate_stream", tag, tokens)
            expected, ends = b"".join(wire.events(tag, tokens)), self._ends
        else:
            request = wire.request("/generate", tag, 20)
            expected = wire.answer(tag)
            ends = [len(expected)]
        caller = Caller(self._tally, request, expected, ends)
        self._callers.append(caller)
        return caller

    def _clocks(self) -> dict[str, float]:
        """CPU seconds by now: of each watched process, of this one, of the cores."""
        return {
            **{str(pid): machine.cpu_s(pid) for pid in self._given.watch},
            "load": time.process_time(),
            "router_cores": machine.busy_s(self._given.router_core),
            "load_cores": machine.busy_s(self._given.load_core),
        }

    def _result(
        self, seconds: float, before: dict[str, float], after: dict[str, float]
    ) -> dict[str, object]:
        tally = self._tally
        latencies = sorted(tally.latency_s)
        return {
            "seconds": seconds,
            "calls": tally.calls,
            "events": tally.events,
            "reads": tally.reads,
            "errors": tally.errors,
            "first_error": tally.first_error,
            "p50_us": quantile(latencies, 0.5) * 1e6,
            "p99_us": quantile(latencies, 0.99) * 1e6,
            "cpu_s": {name: after[name] - before[name] for name in before},
        }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at or above `share` of them; 0 of none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def main() -> None:
    options = argparse.ArgumentParser(description="Asks as fast as it is answered, checks all.")
    options.add_argument("--port", type=int, action="append", required=True)
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--events", type=int, default=0, help="per stream; 0: unary calls")
    options.add_argument("--warm-s", type=float, default=1.0)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--hold", action="store_true", help="measure the first --watch's memory")
    options.add_argument("--watch", type=int, action="append", default=[], help="a process id")
    options.add_argument("--router-core", type=int, action="append", default=[])
    options.add_argument("--load-core", type=int, action="append", default=[])
    print(json.dumps(uvloop.run(Load(options.parse_args()).run())))


if __name__ == "__main__":
    main()
