"""What the router counts, under the prefix `fleet_`. Label values come from bounded sets only.

Counters and histograms are written at their one call site, a dozen for each call, and so they are
no more than dictionaries; prometheus_client writes the page. What others own (queue length, load,
health) is read from them when the page is asked for, so it can never drift from the truth.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from router.call import Priority
from router.dispatcher import Dispatcher
from router.health import State
from router.lease import Report
from router.replica import Replica

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_REPLICA_LABELS = 256
MAX_TENANT_LABELS = 64
OTHER_TENANTS = "other"
CALL_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 60, 120)
SHED_REASONS = (
    "queue_full: it holds all it may; gave_way: to another call, by shares or priority; "
    "too_late: it would not be served in its time; queue_timeout: it was not; "
    "no_room: queueing is off; no_replica: none serves or starts; "
    "connections, client_connections: as many are open as there may be."
)
TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1, 3)


Labels = tuple[str | int, ...]


class _Counter(dict[Labels, float]):
    """Its values by label values."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.name, self.text, self.labels = name, text, labels

    def __missing__(self, values: Labels) -> float:
        return 0.0

    def family(self) -> Metric:
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for values, value in self.items():
            family.add_metric(tuple(map(str, values)), value)
        return family


class _Histogram(dict[Labels, list[float]]):
    """By label values: how many fell into each bucket, the one beyond the last bound, the sum."""

    def __init__(
        self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.name, self.text, self.bounds, self.labels = name, text, bounds, labels

    def __missing__(self, values: Labels) -> list[float]:
        self[values] = row = [0.0] * (len(self.bounds) + 2)
        return row

    def observe(self, values: Labels, value: float) -> None:
        row = self[values]
        row[bisect_left(self.bounds, value)] += 1.0  # a bound belongs to its bucket
        row[-1] += value

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        for values, (*counts, total) in self.items():
            family.add_metric(
                tuple(map(str, values)), list(zip(names, accumulate(counts), strict=True)), total
            )
        return family


class Metrics:
    """One registry per router: nothing global."""

    def __init__(
        self, dispatchers: Callable[[], Iterable[Dispatcher]], tenants: Iterable[str] = ()
    ) -> None:
        """`tenants` are those that keep a label of their own, whoever else comes."""
        registry = self.registry = CollectorRegistry()
        self._tenant_labels = set(tenants)
        registry.register(_Live(dispatchers, self._tenant_label))
        registry.register(self)
        self._written: list[_Counter | _Histogram] = []

        def counter(name: str, text: str, *labels: str) -> _Counter:
            self._written.append(made := _Counter(f"fleet_{name}", text, labels))
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> _Histogram:
            self._written.append(made := _Histogram(f"fleet_{name}", text, bounds, labels))
            return made

        self._calls = counter("calls", "Calls finished.", "route", "status")
        self._call_s = histogram("call_seconds", "Whole call.", CALL_BUCKETS, "route")
        self._wait_s = histogram("queue_wait_seconds", "Wait for a replica.", WAIT_BUCKETS, "model")
        self._first_s = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", CALL_BUCKETS, "model"
        )
        self._between_s = histogram(
            "inter_token_seconds", "Mean time between tokens of a call.", TOKEN_BUCKETS, "model"
        )
        self._prompt = counter("prompt_tokens", "Prompt tokens of finished calls.", "model")
        self._generated = counter("generated_tokens", "Generated tokens.", "model")
        self._retries = counter("retries", "Attempts after the first.", "reason")
        self._resumes = counter(
            "resumes",
            "Streams that broke off in mid-answer: resumed elsewhere, completed by the router when "
            "all was generated, or refused: the client got an error.",
            "model",
            "outcome",
        )
        self._hedges = counter(
            "hedges",
            "Calls asked of a second replica: its answer was won, or the first one's kept.",
            "model",
            "outcome",
        )
        self._saved_s = counter(
            "gpu_seconds_saved",
            "Replica-seconds of work that nobody awaited any more and that was cancelled, by what "
            "calls usually take and how many run together.",
            "model",
        )
        self._sheds = counter("sheds", f"Calls refused for load. {SHED_REASONS}", "reason")
        self._tenant_sheds = counter(
            "tenant_sheds",
            f"The same by tenant, '' being none named. {SHED_REASONS}",
            "tenant",
            "reason",
        )
        self._tenant_tokens = counter(
            "tenant_tokens", "Tokens of calls, also of those that ended early.", "tenant", "kind"
        )
        self._cancels = counter("cancellations", "Calls whose client left.", "phase")
        self._ejections = counter("ejections", "Ejections after failed calls.", "replica")
        self._suspicions = counter("suspicions", "Busy replicas found silent.", "replica")
        self._tries = counter(
            "one_token_calls", "The router's own calls.", "replica", "kind", "outcome"
        )
        self._attempts = counter("attempts", "Attempts at replicas.", "replica", "outcome")
        self._idle_s = counter(
            "idle_while_waiting_seconds", "Replica-seconds idle while calls waited.", "model"
        )
        self._key_refusals = counter("key_refusals", "Calls over a key's limit.", "key", "limit")
        self._replica_labels: set[str] = set()

    def use(self, tenants: Iterable[str]) -> None:
        """These have a label of their own from now on; those before keep theirs."""
        self._tenant_labels |= set(tenants)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        return (metric.family() for metric in self._written)

    # ---- one call site each ----

    def call_done(self, route: str, status: int, seconds: float) -> None:
        self._calls[route, status] += 1.0
        self._call_s.observe((route,), seconds)

    def first_token(self, model: str, seconds: float) -> None:
        self._first_s.observe((model,), seconds)

    def between_tokens(self, model: str, seconds: float) -> None:
        self._between_s.observe((model,), seconds)

    def retried(self, reason: str) -> None:
        self._retries[reason,] += 1.0

    def resumed(self, model: str, outcome: str) -> None:
        self._resumes[model, outcome] += 1.0

    def hedged(self, model: str, outcome: str) -> None:
        self._hedges[model, outcome] += 1.0

    def saved(self, model: str, seconds: float) -> None:
        self._saved_s[model,] += seconds

    def turned_away(self, reason: str) -> None:
        """A connection was, before anybody knew whose it is."""
        self._sheds[reason,] += 1.0

    def cancelled(self, phase: str) -> None:
        self._cancels[phase,] += 1.0

    def attempted(self, replica: Replica, outcome: str) -> None:
        self._attempts[self._label(replica), outcome] += 1.0

    def ejected(self, replica: Replica) -> None:
        self._ejections[self._label(replica),] += 1.0

    def suspected(self, replica: Replica) -> None:
        self._suspicions[self._label(replica),] += 1.0

    def tried(self, replica: Replica, kind: str, is_passed: bool) -> None:
        self._tries[self._label(replica), kind, "passed" if is_passed else "failed"] += 1.0

    def key_refused(self, key: str, limit: str) -> None:
        self._key_refusals[key, limit] += 1.0

    # ---- dispatcher.Observer ----

    def waited(self, model: str, wait_s: float) -> None:
        self._wait_s.observe((model,), wait_s)

    def shed(self, reason: str, tenant: str) -> None:
        self._sheds[reason,] += 1.0
        self._tenant_sheds[self._tenant_label(tenant), reason] += 1.0

    def idled(self, model: str, idle_s: float) -> None:
        self._idle_s[model,] += idle_s

    def tokens(self, model: str, report: Report) -> None:
        self._prompt[model,] += report.prompt_tokens or 0
        self._generated[model,] += report.generated_tokens or 0

    def used(self, tenant: str, input_tokens: int, output_tokens: int) -> None:
        label = self._tenant_label(tenant)
        self._tenant_tokens[label, "prompt"] += input_tokens
        self._tenant_tokens[label, "generated"] += output_tokens

    def _tenant_label(self, tenant: str) -> str:
        """The tenant's name, for the first so many; clients may make up any number of them."""
        if tenant in self._tenant_labels:
            return tenant
        if len(self._tenant_labels) < MAX_TENANT_LABELS:
            self._tenant_labels.add(tenant)
            return tenant
        return OTHER_TENANTS

    def _label(self, replica: Replica) -> str:
        """The replica's id, until so many different ones were seen that it could go on for ever."""
        if replica.id in self._replica_labels:
            return replica.id
        if len(self._replica_labels) < MAX_REPLICA_LABELS:
            self._replica_labels.add(replica.id)
            return replica.id
        return "other"


class _Live:
    """Reads the owners' state at scrape time."""

    def __init__(
        self,
        dispatchers: Callable[[], Iterable[Dispatcher]],
        tenant_label: Callable[[str], str],
    ) -> None:
        self._dispatchers = dispatchers
        self._tenant_label = tenant_label

    def collect(self) -> Iterator[Metric]:
        calls = _gauge("queue_calls", "Calls waiting.", "model")
        held = _gauge("queue_bytes", "Bytes of waiting calls.", "model")
        tenants = _gauge(
            "tenant_queue_calls", "Calls waiting, by whose they are.", "model", "tenant", "priority"
        )
        requests = _gauge("replica_requests", "Calls in flight.", "model", "replica")
        tokens = _gauge("replica_tokens", "Tokens reserved.", "model", "replica")
        limits = _gauge("replica_request_limit", "Calls it may hold.", "model", "replica")
        health = _gauge("replica_health", "1 for its state.", "model", "replica", "state")
        for dispatcher in self._dispatchers():
            model = dispatcher.pool.model
            calls.add_metric([model], len(dispatcher.queue))
            held.add_metric([model], dispatcher.queue.waiting_bytes)
            for named, count in self._by_tenant(dispatcher).items():
                tenants.add_metric([model, *named], count)
            for replica in list(dispatcher.pool)[:MAX_REPLICA_LABELS]:
                labels = [model, replica.id]
                requests.add_metric(labels, replica.load.requests)
                tokens.add_metric(labels, replica.load.tokens)
                limits.add_metric(labels, replica.room.requests)
                for state in State:
                    is_it = replica.health.state is state
                    health.add_metric([*labels, state.value], float(is_it))
        yield from (calls, held, tenants, requests, tokens, limits, health)

    def _by_tenant(self, dispatcher: Dispatcher) -> Counts[tuple[str, str]]:
        counts: Counts[tuple[str, str]] = Counts()
        for tenant, places in dispatcher.queue.places.items():
            for priority in Priority:
                if places.calls[priority]:
                    key = self._tenant_label(tenant), priority.name.lower()
                    counts[key] += places.calls[priority]
        return counts


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fleet_{name}", text, labels=labels)
