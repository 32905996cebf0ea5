"""What overload does to a fleet: goodput at one, two and three times what it can serve, and what a
quiet tenant notices of another one's flood.

    python -m tests.bench.overload [--quick] [--reps N] [--seconds S]

A real router in front of four real simulators, one process each, with the step times of an A10G:
the replicas are the bottleneck, not this machine. Where a process needed more than 60 % of a core,
or others used the machine, the figures mean little, and it says so.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine
from tests.bench.open_load import Answer, OpenLoad, Source
from tests.bench.processes import BenchError, Child

REPLICAS = 4
SLOTS = 16
"""Calls per replica at a time."""
LOADS = (1.0, 2.0, 3.0)
LIMIT_S = 5.0
"""How long a client waits in the goodput scenes: some four times a call's service."""
QUIET_SHARE = 0.1
"""Of what the fleet can serve; its fair share would be half."""
MAX_CPU_SHARE = 0.6
MAX_GOODPUT_LOSS = 0.05
MAX_P99_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Fleet:
    endpoint: str
    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """One load, measured."""

    name: str
    answers: list[Answer]
    seconds: float
    cpu: dict[str, float]
    """Share of a core that each process needed."""
    others: float
    """Share of this machine's cores that went to anybody else."""

    def of(self, tenant: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.tenant == tenant]

    @property
    def good_per_s(self) -> float:
        return sum(answer.is_good for answer in self.answers) / self.seconds

    @property
    def good_tokens_per_s(self) -> float:
        return sum(one.new_tokens for one in self.answers if one.is_good) / self.seconds

    def count(self, status: int) -> int:
        return sum(answer.status == status for answer in self.answers)

    @property
    def late(self) -> int:
        return sum(one.status in (200, 504) and not one.is_good for one in self.answers)

    @property
    def wrong(self) -> int:
        return sum(answer.is_wrong for answer in self.answers)


# ---- processes ----


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    everywhere = frozenset(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-bench-")))
        flags = ["--gpu", "a10g", "--load-s", "0", "--max-batch-size", f"{SLOTS}"]
        replicas = []
        for number in range(REPLICAS):
            argv = ["launcher.simulator", "--port", "0", *flags, "--seed-noise", f"{number}"]
            replica = Child(everywhere, argv, folder / f"replica-{number}")
            stack.callback(replica.stop)
            replicas.append(replica)
        urls = [replica.told(r"listening on (http://\S+)") for replica in replicas]
        config = folder / "router.json"  # JSON is YAML
        config.write_text(json.dumps(_router_config(urls)))
        router = Child(everywhere, ["router", "--config", f"{config}"], folder / "router")
        stack.callback(router.stop)
        endpoint = router.told(r"serving on (http://\S+)")
        router.wait_until(lambda: _healthy(endpoint) == REPLICAS)
        pids = {"router": router.pid, "load": os.getpid()}
        pids |= {f"replica-{number}": replica.pid for number, replica in enumerate(replicas)}
        yield Fleet(endpoint, pids)


def _router_config(urls: list[str]) -> dict[str, object]:
    return {
        "router": {"port": 0, "log_calls": False},
        "replicas": [{"url": url, "max_requests": SLOTS} for url in urls],
    }


def _healthy(endpoint: str) -> int:
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=5) as reply:
        page = reply.read().decode()
    return len(re.findall(r'^fleet_replica_health{.*state="healthy"} 1', page, re.MULTILINE))


# ---- measuring ----


async def measured(
    where: Fleet, name: str, sources: list[Source], seconds: float, warm_up_s: float, seed: int
) -> Scene:
    """Only calls sent after the warm-up count, and the CPU of that time."""
    load = OpenLoad(where.endpoint, seed)
    running = asyncio.get_running_loop().create_task(load.run(sources, warm_up_s + seconds))
    try:
        await asyncio.sleep(warm_up_s)
        begun_s, before = time.monotonic(), _used(where)
        await asyncio.sleep(seconds)
        took_s, after = time.monotonic() - begun_s, _used(where)
        await running
    finally:
        running.cancel()
    used = {one: (after[one] - before[one]) / took_s for one in before}
    cores = len(os.sched_getaffinity(0))
    others = (used.pop("machine") - sum(used.values())) / cores
    answers = [one for one in load.answers if begun_s <= one.sent_s < begun_s + seconds]
    return Scene(name, answers, seconds, used, max(0.0, others))


def _used(where: Fleet) -> dict[str, float]:
    used = {name: machine.cpu_s(pid) for name, pid in where.pids.items()}
    return used | {"machine": machine.busy_s(os.sched_getaffinity(0))}


async def capacity_per_s(where: Fleet, seconds: float) -> float:
    """Calls per second of clients that keep every slot taken."""
    load = OpenLoad(where.endpoint, seed=0)
    begun_s = time.monotonic()
    await load.saturate(REPLICAS * SLOTS * 2, seconds)
    done = [one.done_s for one in load.answers if one.is_right]
    since_s = begun_s + seconds / 3  # the batches are full then
    counted = [at_s for at_s in done if since_s <= at_s < begun_s + seconds]
    if not counted:
        raise BenchError("no call was answered rightly")
    return len(counted) / (seconds * 2 / 3)


@dataclass(frozen=True, slots=True)
class Run:
    """One repetition of everything."""

    capacity_per_s: float
    goodput: list[Scene]
    half_full: Scene
    flooded: Scene

    @property
    def scenes(self) -> list[Scene]:
        return [*self.goodput, self.half_full, self.flooded]


async def run(where: Fleet, seconds: float, seed: int) -> Run:
    # Until a queue is as long as it gets; too short for that, it shows that the bench runs.
    warm_up_s = LIMIT_S if seconds >= LIMIT_S else seconds / 4
    capacity = await capacity_per_s(where, max(2.5, seconds / 2))
    goodput = []
    for load in LOADS:
        source = Source("", load * capacity, LIMIT_S)
        scene = await measured(where, f"{load:g}x", [source], seconds, warm_up_s, seed)
        goodput.append(scene)
    quiet = Source("quiet", QUIET_SHARE * capacity)
    pair = []
    for name, load in (("half full", 0.5), ("3x, one floods", 3.0)):
        other = Source("flood", (load - QUIET_SHARE) * capacity)
        pair.append(await measured(where, name, [quiet, other], 2 * seconds, warm_up_s, seed))
    return Run(capacity, goodput, *pair)


# ---- telling ----


def percentile(answers: list[Answer], share: float) -> float:
    latencies = sorted(answer.latency_s for answer in answers if answer.is_good)
    return (
        latencies[min(len(latencies) - 1, int(share * len(latencies)))] if latencies else math.nan
    )


def tell(runs: list[Run]) -> Iterator[str]:
    yield f"capacity: {statistics.median(one.capacity_per_s for one in runs):.1f} calls/s"
    yield ""
    yield "| offered | served in time, 1/s | tokens/s | 429 | 503 | late | p50 s | p99 s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for scenes in zip(*(one.goodput for one in runs), strict=True):
        middle = sorted(scenes, key=lambda scene: scene.good_tokens_per_s)[len(scenes) // 2]
        yield (
            f"| {middle.name} | {middle.good_per_s:.1f} | {middle.good_tokens_per_s:,.0f} "
            f"| {middle.count(429)} | {middle.count(503)} | {middle.late} "
            f"| {percentile(middle.answers, 0.5):.2f} | {percentile(middle.answers, 0.99):.2f} |"
        )
    yield ""
    yield "| quiet tenant | calls | refused | p50 s | p99 s | the other's, 1/s | refused |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    ordered = sorted(runs, key=p99_ratio)
    for scene in (ordered[len(runs) // 2].half_full, ordered[len(runs) // 2].flooded):
        quiet, flood = scene.of("quiet"), scene.of("flood")
        served = sum(one.is_good for one in flood)
        yield (
            f"| {scene.name} | {len(quiet)} | {sum(not one.is_good for one in quiet)} "
            f"| {percentile(quiet, 0.5):.2f} | {percentile(quiet, 0.99):.2f} "
            f"| {served / scene.seconds:.1f} | {len(flood) - served} |"
        )
    yield ""
    ratios = ", ".join(f"{p99_ratio(one):.2f}" for one in ordered)
    losses = ", ".join(f"{goodput_loss(one):.1%}" for one in runs)
    yield f"quiet p99, flooded over half full: {ratios}; goodput lost at 3x: {losses}"
    scenes = [scene for one in runs for scene in one.scenes]
    most = {name: max(scene.cpu[name] for scene in scenes) for name in scenes[0].cpu}
    yield "CPU at most: " + ", ".join(f"{name} {share:.0%}" for name, share in most.items())
    yield f"others on this machine: {max(scene.others for scene in scenes):.0%} at most"


def p99_ratio(one: Run) -> float:
    return percentile(one.flooded.of("quiet"), 0.99) / percentile(one.half_full.of("quiet"), 0.99)


def goodput_loss(one: Run) -> float:
    tokens = [scene.good_tokens_per_s for scene in one.goodput]
    return 1.0 - tokens[-1] / max(tokens)


def verdict(runs: list[Run]) -> list[str]:
    """What does not hold, of the median repetition; an error or a busy process in any one."""
    found = []
    if (loss := statistics.median(map(goodput_loss, runs))) > MAX_GOODPUT_LOSS:
        found.append(f"goodput at {LOADS[-1]:g}x is {loss:.1%} under its peak")
    if (ratio := statistics.median(map(p99_ratio, runs))) > MAX_P99_RATIO:
        found.append(f"the quiet tenant's p99 is {ratio:.2f} times that on a half-full fleet")
    for scene in (scene for one in runs for scene in one.scenes):
        if scene.wrong:
            found.append(f"{scene.name}: {scene.wrong} answers were wrong")
        for name, share in scene.cpu.items():
            if share > MAX_CPU_SHARE:
                found.append(f"{scene.name}: {name} needed {share:.0%} of a core: nothing is shown")
    return found


async def _all(reps: int, seconds: float) -> list[Run]:
    with fleet() as where:
        return [await run(where, seconds, seed=number + 1) for number in range(reps)]


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seconds = 1.0 if given.quick else given.seconds
    where = machine.describe()
    print(f"machine: {where['cpu']}, {where['cores']} cores, {where['kernel']}", flush=True)
    print(f"{REPLICAS} replicas of {SLOTS} calls each, time limit {LIMIT_S:g} s", flush=True)
    try:
        runs = asyncio.run(_all(1 if given.quick else given.reps, seconds))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(tell(runs)))
    wrong = sum(scene.wrong for one in runs for scene in one.scenes)
    if given.quick:
        print("--quick: too short to measure anything; it shows that all of it runs.")
        print(f"errors: {wrong}")
        return 1 if wrong else 0
    found = verdict(runs)
    print("\n".join(f"FAILS: {one}" for one in found) or "all of it holds")
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench.overload", description="A fleet under too much load."
    )
    options.add_argument("--quick", action="store_true", help="some seconds: does it run?")
    options.add_argument("--reps", type=int, default=3, help="repetitions; default 3")
    options.add_argument("--seconds", type=float, default=20.0, help="of a scene; default 20")
    given = options.parse_args()
    if given.reps < 1 or given.seconds < 1:
        options.error("expected at least 1 repetition of at least 1 second")
    return given


if __name__ == "__main__":
    sys.exit(main())
