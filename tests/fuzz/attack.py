"""Sends what nobody means to a real router, reads what comes back, and checks that it stays well.

Nothing here knows what the right reply to nonsense is: it must only be a reply (never a 500), and
must harm nobody. That is what the good calls in between are for: each is judged to the byte.
"""

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.router_client import RouterClient, replica_states
from launcher.simulator.tokens_text import TextModel
from tests.campaign import leaks
from tests.campaign.asks import Ask, mixed
from tests.campaign.client import Client
from tests.campaign.oracle import Kind, Oracle, Verdict
from tests.campaign.processes import EOS_RATE, MODEL, Fleet
from tests.fuzz.grammar import PADDING, pieces_of

STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d) ")
REQUEST = re.compile(rb" HTTP/1\.[01]\r\n")
LAST_WORD = b"GET /health HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n\r\n"
"""Behind everything: its answer says that the connection is through with the rest."""
QUIET_S = 0.1
"""Silence after which a connection is given up: its router waits for more than it gets."""
GOOD_EVERY = 100
LARGE = PADDING + b'{"inputs":"a","parameters":{"max_new_tokens":1}}'
"""A process of the router's own parses it."""
SETTLE_S = 20.0
ROUTER = {
    "port": 0,
    "timeouts": {"body_s": 1, "idle_s": 2, "total_s": 30, "drain_s": 5},
    "health": {"eject_base_s": 1, "eject_max_s": 3},
}
WELL = (Kind.RIGHT, Kind.LEFT)


@dataclass(slots=True)
class Report:
    requests: int = 0
    connections: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    silent: int = 0
    """Connections that got no reply at all: what they sent was not a whole request."""
    good: int = 0
    wrong: list[str] = field(default_factory=list)
    """Good calls that were not answered rightly."""
    bad: list[tuple[bytes, bytes]] = field(default_factory=list)
    """What was sent for which a 500 of the router's own came back, and that."""
    leaks: list[str] = field(default_factory=list)
    rss_bytes: tuple[int, int] = (0, 0)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.wrong or self.bad or self.leaks)


class Attack:
    """One run over one fleet; owns its report."""

    def __init__(self, fleet: Fleet, admin: RouterClient, seed: int) -> None:
        self.report = Report()
        self._fleet = fleet
        self._admin = admin
        self._seed = seed
        self._asks = (ask for ask in mixed(f"{seed}-good", TextModel(EOS_RATE)) if is_short(ask))
        self._oracle = Oracle(TextModel(EOS_RATE), is_stable=True)
        self._epoch = 0

    async def run(self, requests: int, connections: int) -> Report:
        await self._warm_up()
        report = self.report = Report()
        before = await self._at_rest()
        began_s = time.monotonic()
        numbers = itertools.count()
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(self._attacker(numbers, requests))
        report.seconds = time.monotonic() - began_s
        after = await self._at_rest()
        await self._check(before, after)
        return report

    async def _attacker(self, numbers: Iterator[int], requests: int) -> None:
        while self.report.requests < requests and not self._fleet.router.has_ended:
            number = next(numbers)
            pieces = pieces_of(random.Random(f"fuzz {self._seed} {number}"))
            await self._send(pieces)
            if number % GOOD_EVERY == 0:
                await self._good_call()

    async def _send(self, pieces: list[bytes]) -> None:
        report, sent = self.report, b"".join(pieces)
        report.connections += 1
        report.requests += max(1, len(REQUEST.findall(sent)))
        try:
            got = await self._exchanged([*pieces, LAST_WORD])
        except ConnectionRefusedError:
            report.leaks.append("the router takes no connections")
            raise
        statuses = [found.decode() for found in STATUS.findall(got)]
        report.statuses.update(statuses)
        report.silent += not statuses
        if "500" in statuses and not _is_engines(sent, got):
            report.bad.append((sent, got))

    async def _exchanged(self, pieces: list[bytes]) -> bytes:
        """All that came back, until the router closed or said nothing more."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._fleet.router_port)
        got = b""
        try:
            for piece in pieces:
                if writer.transport.is_closing():  # refused before it was all sent
                    break
                writer.write(piece)
                await asyncio.sleep(0)
            while True:
                async with asyncio.timeout(QUIET_S):
                    data = await reader.read(65_536)
                if not data:
                    return got
                got += data
        except (TimeoutError, ConnectionError):
            return got
        finally:
            writer.transport.abort()

    async def _good_call(self) -> None:
        def ended(ask: Ask, verdict: Verdict, took_s: float) -> None:
            self.report.good += 1
            if verdict.kind not in WELL:
                self.report.wrong.append(f"{ask.id} {ask.kind}: {verdict.kind} {verdict.cause}")

        rng = random.Random(0)
        client = Client(self._fleet.router_port, self._oracle, self._asks, ended, rng)
        await client.call_once()

    # ---- before and after ----

    async def _warm_up(self) -> None:
        """Everything has happened once that allocates for good: all pages, all forms, and the
        process for large bodies."""
        await self._push()
        for number in range(100):
            await self._exchanged([*pieces_of(random.Random(f"warm {number}")), LAST_WORD])
        head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n\r\n" % len(LARGE)
        await self._exchanged([head, LARGE, LAST_WORD])
        await self._good_call()

    async def _push(self) -> None:
        """All replicas are new to the router then: it keeps no connection from before."""
        self._epoch += 1
        generations = [self._epoch] * len(self._fleet.simulators)
        await self._admin.push(MODEL, self._epoch, self._fleet.listed(generations, {}))
        async with asyncio.timeout(SETTLE_S):
            while not _all_healthy(await self._admin.state()):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.05)

    async def _at_rest(self) -> leaks.Look:
        until_s = time.monotonic() + SETTLE_S
        while left := leaks.unrest(await self._admin.state()):
            if time.monotonic() > until_s:
                self.report.leaks += left
                break
            await asyncio.sleep(0.1)
        await self._push()
        await asyncio.sleep(1.0)
        return leaks.look(self._fleet.router.pid)

    async def _check(self, before: leaks.Look, after: leaks.Look) -> None:
        report, router = self.report, self._fleet.router
        report.rss_bytes = (before.rss_bytes, after.rss_bytes)
        report.leaks += leaks.grown(before, after)
        if router.has_ended:
            report.leaks.append("the router has ended")
        report.leaks += leaks.bugs(router.err.read_text(errors="replace"))
        for simulator in self._fleet.simulators:
            metrics = await asyncio.to_thread(simulator.fetch, "GET", "/metrics")
            report.leaks += leaks.engine_unrest(metrics.decode())


def _is_engines(sent: bytes, got: bytes) -> bool:
    """TGI answers 500 on /vertex to whatever it does not like, and is passed on there."""
    own = got.count(b"HTTP/1.1 500 ") - got.count(b'"error_type":"validation"')
    return b"/vertex" in sent and b"internal error" not in got and own <= 0


def is_short(ask: Ask) -> bool:
    """Good calls are asked often: they must not take long."""
    return ask.new_tokens <= 60 and not ask.manner.reads_slowly


def _all_healthy(state: dict[str, object]) -> bool:
    replicas = replica_states(state).values()
    return bool(replicas) and all(replica["health"] == "healthy" for replica in replicas)
