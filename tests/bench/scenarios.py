"""What is measured, and how the figures follow from it.

A scenario is one or more loads; each load runs direct, through the relay and through the router,
right after one another, `reps` times. A figure is the median over the repetitions; a ratio is the
median of the ratios inside each repetition, so that slow drifts of the machine cancel.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from tests.bench.processes import (
    DIRECT,
    RELAY,
    ROUTER,
    TARGETS,
    Engines,
    load,
    running,
    wait_until_quiet,
)

EXTRA_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it: enough for stable figures, or just enough to see that all of it works."""

    warm_s: float
    seconds: float
    callers: int
    streams: int
    events_per_stream: int
    held_streams: int
    quiet_s: float
    max_noise: float
    """Share of the router's core that others may use before a run is done again."""
    tries: int


FULL = Size(1.0, 3.0, 64, 256, 100, 2000, 2.0, 0.15, 3)
QUICK = Size(0.1, 0.25, 8, 16, 10, 40, 0.0, 1e9, 1)
STREAM_INTERVAL_MS = 20
HELD_INTERVAL_MS = 1000


@dataclass(frozen=True, slots=True)
class Run:
    """One load against one target."""

    load: str
    target: str
    repetition: int
    seconds: float
    calls: int
    events: int
    reads: int
    errors: int
    first_error: str | None
    p50_us: float
    p99_us: float
    middle_cpu_s: float | None
    """CPU of the relay or the router; None when going direct."""
    path_cpu_s: float
    """CPU of everything a call passes: load, middle, stand-ins."""
    noise: float
    """Share of the router's core that was used by others."""
    load_noise: float
    """The same of the load's cores."""
    grown_bytes_per_connection: float


Value = Callable[[Run, Run], float | None]
"""From a run and the direct run of the same repetition; None where it means nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    of: Value
    digits: int = 1
    has_ratio: bool = True
    """Off where both may be near zero, or where neither more nor less is better."""


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    arguments: Callable[[Size], list[str]]
    figures: tuple[Figure, ...]
    interval_ms: int = STREAM_INTERVAL_MS
    targets: tuple[str, ...] = TARGETS
    counts: str = "calls"
    """What must not be zero at the end."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    scenario: str
    figure: str
    unit: str
    digits: int
    values: dict[str, float | None]
    to_direct: float | None
    to_relay: float | None
    noise: float
    load_noise: float


def _middle_us(count: str) -> Value:
    def of(run: Run, direct: Run) -> float | None:
        many = getattr(run, count)
        return run.middle_cpu_s / many * 1e6 if run.middle_cpu_s is not None and many else None

    return of


def _path_us(count: str) -> Value:
    def of(run: Run, direct: Run) -> float | None:
        many = getattr(run, count)
        return run.path_cpu_s / many * 1e6 if many else None

    return of


def _rate(count: str) -> Value:
    return lambda run, direct: float(getattr(run, count) / run.seconds)


def _core_share(run: Run, direct: Run) -> float | None:
    return None if run.middle_cpu_s is None else 100 * run.middle_cpu_s / run.seconds


def _added(quantile: str) -> Value:
    def of(run: Run, direct: Run) -> float | None:
        added = float(getattr(run, quantile) - getattr(direct, quantile))
        return None if run.target == DIRECT else added

    return of


def _latency(quantile: str) -> Value:
    return lambda run, direct: float(getattr(run, quantile))


def _latency_figures(connections: str) -> tuple[Figure, ...]:
    return tuple(
        figure
        for name, quantile in (("p50", "p50_us"), ("p99", "p99_us"))
        for figure in (
            Figure(f"latency {name}, {connections}", "µs", _latency(quantile), 0),
            Figure(
                f"added latency {name}, {connections}", "µs", _added(quantile), 0, has_ratio=False
            ),
        )
    )


def _window(size: Size, connections: int) -> list[str]:
    counts = [f"--connections={connections}"]
    return [*counts, f"--warm-s={size.warm_s}", f"--seconds={size.seconds}"]


SCENARIOS: dict[str, tuple[Load, ...]] = {
    "unary": (
        Load(
            "unary",
            lambda size: _window(size, size.callers),
            (
                Figure("CPU in the middle per unary call", "µs", _middle_us("calls")),
                Figure("CPU of the whole path per unary call", "µs", _path_us("calls")),
                Figure("unary calls per second", "1/s", _rate("calls"), 0),
                Figure("core used in the middle, unary", "%", _core_share, 0, has_ratio=False),
            ),
        ),
    ),
    "latency": (
        Load("latency-1", lambda size: _window(size, 1), _latency_figures("1 connection")),
        Load("latency-8", lambda size: _window(size, 8), _latency_figures("8 connections")),
    ),
    "events": (
        Load(
            "events",
            lambda size: [*_window(size, size.streams), f"--events={size.events_per_stream}"],
            (
                Figure("CPU in the middle per event", "µs", _middle_us("events")),
                Figure("CPU of the whole path per event", "µs", _path_us("events")),
                Figure("events per second", "1/s", _rate("events"), 0),
                Figure("core used in the middle, events", "%", _core_share, 0, has_ratio=False),
            ),
            counts="events",
        ),
    ),
    "memory": (
        Load(
            "memory",
            lambda size: [
                *(f"--connections={size.held_streams}", "--events=100", "--hold"),
                *(f"--warm-s={size.warm_s}", "--seconds=0.5"),
            ],
            (
                Figure(
                    "memory per open stream",
                    "KB",
                    lambda run, direct: run.grown_bytes_per_connection / 1024,
                ),
            ),
            interval_ms=HELD_INTERVAL_MS,
            targets=(RELAY, ROUTER),
            counts="events",
        ),
    ),
}


@dataclass(slots=True)
class Results:
    runs: list[Run] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(run.errors for run in self.runs)

    def rows(self, names: list[str]) -> Iterator[Row]:
        for name in names:
            for load_ in SCENARIOS[name]:
                for figure in load_.figures:
                    yield self._row(name, load_, figure)

    def _row(self, scenario: str, load_: Load, figure: Figure) -> Row:
        mine = [run for run in self.runs if run.load == load_.name]
        by_rep = [
            {run.target: run for run in mine if run.repetition == repetition}
            for repetition in sorted({run.repetition for run in mine})
        ]
        values = [
            {target: figure.of(run, runs.get(DIRECT, run)) for target, run in runs.items()}
            for runs in by_rep
        ]
        routed = [run for run in mine if run.target == ROUTER]
        return Row(
            scenario,
            figure.name,
            figure.unit,
            figure.digits,
            {target: _median([v.get(target) for v in values]) for target in TARGETS},
            _median([_ratio(v, DIRECT) for v in values if figure.has_ratio]),
            _median([_ratio(v, RELAY) for v in values if figure.has_ratio]),
            statistics.median(run.noise for run in routed),
            statistics.median(run.load_noise for run in routed),
        )

    def as_json(self) -> list[dict[str, object]]:
        return [asdict(run) for run in self.runs]


def measure(names: list[str], size: Size, reps: int) -> Results:
    """Runs everything, says on stderr how far it is. Raises BenchError."""
    results = Results()
    for repetition in range(reps):
        for name in names:
            for load_ in SCENARIOS[name]:
                for target in load_.targets:
                    run = _quiet_run(load_, target, repetition, size)
                    results.runs.append(run)
                    print(_said(run, reps), file=sys.stderr, flush=True)
    return results


def _said(run: Run, reps: int) -> str:
    cpu = "-" if run.middle_cpu_s is None else f"{run.middle_cpu_s:.2f} s"
    return (
        f"{run.repetition + 1}/{reps} {run.load}, {run.target}: {run.calls} calls, "
        f"{run.events} events in {run.seconds:.1f} s, CPU in the middle {cpu}, "
        f"noise {run.noise:.0%}/{run.load_noise:.0%}, errors {run.errors}"
    )


def _quiet_run(load_: Load, target: str, repetition: int, size: Size) -> Run:
    """Of a few tries the first that others did not disturb, else the least disturbed.

    It is chosen by what others used, never by its outcome.
    """
    tried: list[Run] = []
    for _ in range(size.tries):
        wait_until_quiet(size.quiet_s)
        tried.append(_run(load_, target, repetition, size))
        if tried[-1].errors or _disturbance(tried[-1]) <= size.max_noise:
            return tried[-1]
    return min(tried, key=_disturbance)


def _disturbance(run: Run) -> float:
    """Others' use of the cores that this run used itself."""
    return run.load_noise if run.target == DIRECT else max(run.noise, run.load_noise)


def _run(load_: Load, target: str, repetition: int, size: Size) -> Run:
    with running(target, Engines(interval_ms=load_.interval_ms)) as setup:
        arguments = load_.arguments(size)
        told = load(setup, arguments, size.warm_s + size.seconds + EXTRA_TIMEOUT_S)
    cpu_s, seconds = told["cpu_s"], told["seconds"]
    middle_s = None if setup.middle_pid is None else cpu_s[f"{setup.middle_pid}"]
    behind_s = cpu_s["load"] + cpu_s[f"{setup.stand_in_pid}"]
    errors, first_error = told["errors"], told["first_error"]
    if not errors and not told[load_.counts]:
        errors, first_error = 1, f"no {load_.counts} within {seconds:.1f} s"
    return Run(
        load=load_.name,
        target=target,
        repetition=repetition,
        seconds=seconds,
        calls=told["calls"],
        events=told["events"],
        reads=told["reads"],
        errors=errors,
        first_error=first_error,
        p50_us=told["p50_us"],
        p99_us=told["p99_us"],
        middle_cpu_s=middle_s,
        path_cpu_s=behind_s + (middle_s or 0.0),
        noise=max(0.0, (cpu_s["router_cores"] - (middle_s or 0.0)) / seconds),
        load_noise=max(0.0, (cpu_s["load_cores"] - behind_s) / seconds),
        grown_bytes_per_connection=told["grown_bytes_per_connection"],
    )


def _ratio(values: dict[str, float | None], base: str) -> float | None:
    routed, based = values.get(ROUTER), values.get(base)
    return routed / based if routed is not None and based else None


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
