"""The campaign itself: load and faults side by side, then quiet, then the books are checked."""

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from launcher.router_client import RouterClient, replica_states
from launcher.simulator.tokens import TokenModel
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel
from router.tasks import Tasks
from tests.campaign import leaks
from tests.campaign.asks import mixed
from tests.campaign.client import Client
from tests.campaign.oracle import Oracle
from tests.campaign.processes import EOS_RATE, MODEL, PERMITS, Fleet, answers, fetched
from tests.campaign.schedule import PROCESS, WIRE, Fault
from tests.campaign.tally import Tally

WARM_S = 3.0
SETTLE_S = 30.0
CHECK_EVERY_S = 0.2
PROGRESS_EVERY_S = 5.0
ENGINE_MODES = {"engine_garbage": "garbage"}
COUNTERS = ("fleet_retries_total", "fleet_resumes_total", "fleet_hedges_total")
"""Of the router's metrics, by their labels `outcome` or `reason`; those it has."""
FOR_EVER = -1
"""Calls that meet a fault which lasts."""
MODELS: dict[str, type[TextModel] | type[BpeModel]] = {"text": TextModel, "bpe": BpeModel}


@dataclass(slots=True)
class Report:
    """All that a campaign has to say."""

    faults: Counter[str] = field(default_factory=Counter)
    spared: int = 0
    """Faults left out, as no other replica was healthy just then."""
    tally: Tally = field(default_factory=Tally)
    counters: Counter[str] = field(default_factory=Counter)
    """What the router counted of its own doings: see COUNTERS."""
    leaks: list[str] = field(default_factory=list)
    rss_bytes: tuple[int, int] = (0, 0)
    """The router's, before and after."""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.tally.is_good and not self.leaks


class Campaign:
    """One run over one fleet. Owns the replicas' told generations and the report."""

    def __init__(self, fleet: Fleet, admin: RouterClient, seed: int, token_model: str) -> None:
        self.report = Report()
        self._fleet = fleet
        self._admin = admin
        self._seed = seed
        self._model: TokenModel = MODELS[token_model](EOS_RATE)
        self._oracle = Oracle(self._model, is_stable=token_model == "text")
        self._told = [1] * len(fleet.simulators)
        self._phases: dict[int, str] = {}
        self._epoch = 0
        self._struck: set[int] = set()
        self._orders = asyncio.Lock()
        self._tasks = Tasks()

    async def run(self, faults: tuple[Fault, ...], duration_s: float, clients: int) -> Report:
        try:
            await self._push()
            await self._until_healthy()
            await self._load(f"{self._seed}-warm", WARM_S, clients, Tally())
            before = await self._at_rest()
            began_s = time.monotonic()
            striking = self._tasks.spawn(self._strike_all(faults, began_s), "faults")
            progress = self._tasks.spawn(self._progress(began_s, duration_s), "progress")
            await self._load(f"{self._seed}", duration_s, clients, self.report.tally)
            progress.cancel()
            await striking
            self.report.seconds = time.monotonic() - began_s
            after = await self._at_rest()
            await self._check(before, after)
        finally:
            await self._tasks.close()
        return self.report

    async def _load(self, seed: str, duration_s: float, clients: int, tally: Tally) -> None:
        asks = mixed(seed, self._model)
        until_s = time.monotonic() + duration_s
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                rng = random.Random(f"client {seed} {number}")
                client = Client(self._fleet.router_port, self._oracle, asks, tally.ended, rng)
                group.create_task(client.run(until_s))

    async def _progress(self, began_s: float, duration_s: float) -> None:
        """For whoever watches a terminal; a log is spared it."""
        while sys.stderr.isatty():
            await asyncio.sleep(PROGRESS_EVERY_S)
            ended, faults = len(self.report.tally.ends), self.report.faults.total()
            seconds = time.monotonic() - began_s
            print(
                f"\r{seconds:.0f} of {duration_s:.0f} s: {faults} faults, {ended} calls ",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip

    # ---- faults ----

    async def _strike_all(self, faults: tuple[Fault, ...], began_s: float) -> None:
        striking = []
        for fault in faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
            if fault.replica in self._struck or not await self._leaves_one_healthy(fault.replica):
                self.report.spared += 1
                continue
            self.report.faults[fault.kind] += 1
            self._struck.add(fault.replica)
            striking.append(self._tasks.spawn(self._strike(fault), str(fault)))
        await asyncio.gather(*striking)

    async def _leaves_one_healthy(self, replica: int) -> bool:
        """The plan says so; a crowded machine may be slower than the plan."""
        states = replica_states(await self._admin.state())
        return any(
            states[f"replica-{i}"]["health"] == "healthy"
            for i in range(len(self._told))
            if i != replica and i not in self._struck
        )

    async def _strike(self, fault: Fault) -> None:
        """From its beginning to its end, both."""
        begin, end = self._wire, self._heal_wire
        if fault.kind in PROCESS:
            begin, end = self._hit, self._revive
        elif fault.kind not in WIRE:
            begin, end = self._arm, self._disarm
        await begin(fault)
        await asyncio.sleep(fault.lasts_s)
        await end(fault)
        self._struck.discard(fault.replica)

    async def _wire(self, fault: Fault) -> None:
        await self._order(fault.replica, fault.kind, fault.amount)

    async def _heal_wire(self, fault: Fault) -> None:
        await self._order(fault.replica, "none", 0)

    async def _order(self, replica: int, kind: str, amount: int) -> None:
        order = {"wire": replica, "kind": kind, "amount": amount}
        async with self._orders:
            await asyncio.to_thread(self._fleet.wire.order, order)

    async def _hit(self, fault: Fault) -> None:
        process = self._fleet.simulators[fault.replica].process
        assert process is not None
        if fault.kind == "stop":
            process.signal(signal.SIGSTOP)
        else:
            process.kill()

    async def _revive(self, fault: Fault) -> None:
        simulator = self._fleet.simulators[fault.replica]
        assert simulator.process is not None
        if fault.kind == "stop":
            simulator.process.signal(signal.SIGCONT)
            return
        simulator.start()
        if fault.is_told:
            self._told[fault.replica] += 1
            self._phases[fault.replica] = "loading"
            await self._push()
        while not await asyncio.to_thread(answers, simulator.port, "/health"):
            if simulator.process.has_ended:
                raise simulator.process.error("did not start again")
            await asyncio.sleep(0.05)
        if self._phases.pop(fault.replica, None):
            await self._push()

    async def _arm(self, fault: Fault) -> None:
        lasts = fault.kind in ("overload", "unhealthy")
        await self._set_fault(
            fault.replica,
            ENGINE_MODES.get(fault.kind, fault.kind),
            0 if fault.kind == "engine_garbage" else fault.amount,
            FOR_EVER if lasts else fault.calls,
        )

    async def _disarm(self, fault: Fault) -> None:
        if fault.kind == "hang":
            await self._hit(fault)
            await self._revive(fault)
        else:
            await self._set_fault(fault.replica, "none", 0, 0)

    async def _set_fault(self, replica: int, mode: str, after_events: int, count: int) -> None:
        body = {"mode": mode, "after_events": after_events, "count": count}
        simulator = self._fleet.simulators[replica]
        await asyncio.to_thread(simulator.fetch, "POST", "/simulator/faults", body)

    # ---- the router ----

    async def _push(self) -> None:
        self._epoch += 1
        listed = self._fleet.listed(self._told, self._phases)
        await self._admin.push(MODEL, self._epoch, listed)

    async def _until_healthy(self) -> None:
        def is_healthy(state: dict[str, Any]) -> bool:
            return all(one["health"] == "healthy" for one in replica_states(state).values())

        await self._until(lambda state: [] if is_healthy(state) else ["not all healthy"])

    async def _until(self, unrest: Any) -> list[str]:
        """Gives what is left of unrest when the time is up; nothing in most cases."""
        until_s = time.monotonic() + SETTLE_S
        while left := unrest(await self._admin.state()):
            if time.monotonic() > until_s:
                return left
            await asyncio.sleep(CHECK_EVERY_S)
        return []

    async def _at_rest(self) -> leaks.Look:
        """A look at the router when nothing runs, and all its replicas are new to it: connections
        that it keeps to those of before are closed then."""
        self.report.leaks += [f"router: {left}" for left in await self._until(leaks.unrest)]
        await self._until_healthy()
        self._told = [generation + 1 for generation in self._told]
        await self._push()
        await self._until_healthy()
        await asyncio.sleep(1.0)  # what probes opened is closed or kept
        return leaks.look(self._fleet.router.pid)

    # ---- the end ----

    async def _check(self, before: leaks.Look, after: leaks.Look) -> None:
        report, router = self.report, self._fleet.router
        report.rss_bytes = (before.rss_bytes, after.rss_bytes)
        report.leaks += [f"router: {leak}" for leak in leaks.grown(before, after)]
        page = await asyncio.to_thread(fetched, self._fleet.router_port, "GET", "/metrics")
        report.counters = counted(page.decode())
        for number, simulator in enumerate(self._fleet.simulators):
            metrics = await asyncio.to_thread(simulator.fetch, "GET", "/metrics")
            left = leaks.engine_unrest(metrics.decode())
            refused = await _refused(simulator.port)
            if refused:
                left.append(f"{refused} of {PERMITS} permits are gone")
            report.leaks += [f"replica-{number}: {leak}" for leak in left]
        code = await asyncio.to_thread(router.terminate, 15.0)
        if code != 0:
            report.leaks.append(f"router: exit code {code}")
        report.leaks += [f"router: {bug}" for bug in leaks.bugs(router.err.read_text())]
        with router.out.open("rb") as lines:
            report.tally.compare(lines)


def counted(page: str) -> Counter[str]:
    """Of a metrics page, what tells how often the router helped itself, and how."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in COUNTERS:
                how = sample.labels.get("outcome") or sample.labels.get("reason") or "all"
                name = sample.name.removeprefix("fleet_").removesuffix("_total")
                found[f"{name} {how}"] += round(sample.value)
    return found


async def _refused(port: int) -> int:
    """How many of as many calls as there are permits, all at once, an engine refuses."""
    body = b'{"inputs":"a","parameters":{"max_new_tokens":60}}'
    request = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    request += b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def status() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(request)
            return (await reader.read(-1))[9:12]

    async with asyncio.timeout(SETTLE_S):
        statuses = await asyncio.gather(*(status() for _ in range(PERMITS)))
    return sum(found != b"200" for found in statuses)
