"""How the cost of a call grows: with the fleet, and with the calls that wait.

    python -m tests.bench.growth [--quick] [--reps N] [--waiting N]

The CPU that a router needs per call, over real sockets, from clients that ask again at once: in
front of 4 replicas whose slots are just filled, in front of 64, and with so many more calls in the
queue all the time. Ratios are to the first, inside each repetition.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine, table
from tests.bench.processes import (
    REPLICAS,
    ROUTER,
    BenchError,
    Engines,
    load,
    running,
    wait_until_quiet,
)

SLOTS = 16
"""Calls that each replica runs at a time."""
MANY_REPLICAS = 64
CALLERS = REPLICAS * SLOTS
WAITING = 10_000
SPARE_FILES = 500
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    replicas: int
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    us: float
    """Of the router's CPU, for each call."""
    calls: int
    errors: int
    first_error: str | None


def measured(case: Case, config: Path, seconds: float) -> Cost:
    """Raises BenchError."""
    wait_until_quiet(seconds / 2)
    engines = Engines(replicas=case.replicas, batch=SLOTS)
    # A caller in the queue has its turn after all others: the window has to be longer than that.
    longer = 3 if case.waiting else 1
    arguments = [f"--connections={CALLERS + case.waiting}", f"--warm-s={seconds / 3}"]
    with running(ROUTER, engines, ["--config", f"{config}"]) as setup:
        told = load(setup, [*arguments, f"--seconds={longer * seconds}"], TIMEOUT_S)
        cpu_s = told["cpu_s"][f"{setup.middle_pid}"]
    calls = max(1, told["calls"])
    return Cost(cpu_s / calls * 1e6, told["calls"], told["errors"], told["first_error"])


def allow_files(wanted: int) -> None:
    """Of this process and of those it starts. Raises BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = hard - SPARE_FILES - 2 * CALLERS
        raise BenchError(f"{needed} open files are needed, {hard} allowed: try --waiting {most}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def main() -> int:
    given = _arguments()
    seconds, reps = (0.3, 1) if given.quick else (3.0, given.reps)
    cases = (
        Case(f"{REPLICAS} replicas", REPLICAS),
        Case(f"{MANY_REPLICAS} replicas", MANY_REPLICAS),
        Case(f"{REPLICAS} replicas, {given.waiting} calls waiting", REPLICAS, given.waiting),
    )
    print(table.machine_line(machine.describe()), flush=True)
    try:
        allow_files(2 * CALLERS + given.waiting)
        found = _all(cases, seconds, reps)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return _show(cases, found)


def _all(cases: tuple[Case, ...], seconds: float, reps: int) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {case.name: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        config = Path(folder) / "router.json"
        most = CALLERS + max(case.waiting for case in cases)
        config.write_text(json.dumps({"router": {"queue": {"max_calls": 2 * most}}}))
        for repetition in range(reps):
            for case in cases:
                cost = measured(case, config, seconds)
                found[case.name].append(cost)
                words = f"{repetition + 1}/{reps} {case.name}: {cost.calls} calls, {cost.us:.1f} µs"
                print(words, file=sys.stderr, flush=True)
    return found


def _show(cases: tuple[Case, ...], found: dict[str, list[Cost]]) -> int:
    base = found[cases[0].name]
    errors = 0
    print("\n| | CPU of the router per call, µs | to the first |\n|---|---|---|")
    for case in cases:
        costs = found[case.name]
        us = statistics.median(cost.us for cost in costs)
        ratio = statistics.median(a.us / b.us for a, b in zip(costs, base, strict=True))
        print(f"| {case.name} | {us:.1f} | {ratio:.2f}x |")
    for name, costs in found.items():
        for cost in costs:
            errors += cost.errors or not cost.calls
            if cost.errors or not cost.calls:
                print(f"ERRORS: {name}: {cost.errors}, the first: {cost.first_error}")
    print(f"errors: {errors}")
    return 1 if errors else 0


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="python -m tests.bench.growth", description="How the cost of a call grows."
    )
    options.add_argument("--quick", action="store_true", help="a few seconds: does it run?")
    options.add_argument("--reps", type=int, default=3, help="interleaved repetitions; default 3")
    options.add_argument("--waiting", type=int, default=WAITING, help=f"calls; default {WAITING}")
    given = options.parse_args()
    if given.reps < 1 or given.waiting < 1:
        options.error("--reps and --waiting: expected at least 1")
    return given


if __name__ == "__main__":
    sys.exit(main())
