"""What an attempt came to: what its reply means, whom it blames, what it teaches, how it ends."""

from collections.abc import Callable

from router.call import Call
from router.dispatcher import Dispatcher
from router.errors import (
    ConnectFailed,
    ConnectTimeout,
    ReplicaLost,
    Retry,
    RouterError,
    UpstreamBroken,
)
from router.health import Event
from router.lease import Lease, Outcome, Report
from router.metrics import Metrics
from router.pool import Pool
from router.record import Record
from router.replica import Replica
from router.service import Service, Started
from router.story import GRANTED


class Outcomes:
    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    def end_of(
        self, service: Service, lease: Lease, started: Started | None, outcome: Outcome
    ) -> None:
        self.end(service.dispatcher, lease, started, outcome, learned(service, outcome))

    def end(
        self,
        dispatcher: Dispatcher,
        lease: Lease,
        started: Started | None,
        outcome: Outcome,
        report: Report,
    ) -> None:
        """The one way out of an attempt: nothing runs on for it, and its place is free."""
        if started is not None:
            started.exchange.close()
        is_cut = started is None or not started.exchange.is_done
        if is_cut and outcome in (Outcome.ABANDONED, Outcome.OUTRUN):
            left_s = dispatcher.service_s - (self._clock() - lease.granted_s)
            share = max(1, lease.replica.load.requests)
            self._metrics.saved(dispatcher.pool.model, max(0.0, left_s) / share)
        self._metrics.attempted(lease.replica, outcome.value)
        dispatcher.release(lease, outcome, report)

    def told(self, service: Service, lease: Lease) -> Outcome:
        """The client has its answer, or the engine's own error event, relayed as it was sent."""
        error = service.record.error
        return self.failed(service, lease, error) if error else Outcome.DONE

    def failed(self, service: Service, lease: Lease, error: RouterError) -> Outcome:
        """One call blames at most one replica for failing; a refused connection is a fact."""
        pool, attempts, replica = service.dispatcher.pool, service.attempts, lease.replica
        if isinstance(error, ConnectFailed) and not isinstance(error, ConnectTimeout):
            pool.on_event(replica, Event.REFUSED, error.message)
        elif error.hurts_health and not attempts.has_blamed:
            attempts.has_blamed = True
            pool.on_event(replica, Event.CALL_FAIL, error.message)
        if isinstance(error, ReplicaLost):
            pool.on_event(replica, Event.LOST, error.message)
        if error.hurts_health:
            return Outcome.FAILED
        return Outcome.SHED if error.retry is Retry.ELSEWHERE else Outcome.ABANDONED


def counted(record: Record, lease: Lease) -> None:
    """Another attempt begins."""
    replica = lease.replica.id
    record.attempts += 1
    record.queue_s += lease.waited_s
    record.replica = replica
    record.step(lease.granted_s, GRANTED, replica, lease.alone)


def judge(call: Call, started: Started) -> None:
    """Raises what the reply means, if that is no answer."""
    error = verdict(call, started)
    if error is not None:
        raise error


def verdict(call: Call, started: Started) -> RouterError | None:
    """What the reply means, if that is no answer."""
    exchange, dialect = started.exchange, started.lease.replica.dialect
    head = exchange.head
    if head is None:
        return ReplicaLost("the replica closed the connection without a reply")
    if exchange.is_stream:
        event = exchange.first_event()
        if not event:
            return UpstreamBroken("the replica ended its stream before the first event")
        return dialect.failure(event)
    if exchange.is_done:
        return dialect.refusal(head.status, head.text, exchange.body(), call.route)
    return None  # it is too large to hold: its length is the only check left


def served(pool: Pool, replica: Replica) -> None:
    """A call was, by this replica."""
    if not replica.health.is_spotless:
        pool.on_event(replica, Event.CALL_OK, "call served")


def learned(service: Service, outcome: Outcome) -> Report:
    """What an attempt teaches: of a continued answer, only its own part; of one that ended early,
    how much of an answer there was, which shows on a stream only."""
    if outcome is not Outcome.DONE:
        return Report(generated_tokens=service.fresh_events if service.record.is_stream else None)
    if service.broken is None:
        return service.record.report
    return Report(generated_tokens=max(1, service.fresh_events))
