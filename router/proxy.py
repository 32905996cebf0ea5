"""One call, straight through: acquire -> open -> relay -> release -> retry?

The only way back up is from a failed attempt to another one, and only until the first event has
reached the client. What cannot be served is raised as a RouterError: the edge answers it. Nothing
here knows how the call came in (edge) or what an engine's events mean (dialects).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from router.call import Call
from router.config import RetryConfig, TimeoutConfig
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import (
    CallTimeout,
    ConnectFailed,
    ConnectTimeout,
    NoReplica,
    PoisonCall,
    ReplicaLost,
    Retry,
    RouterError,
    UpstreamBroken,
    UpstreamTimeout,
)
from router.exchange import MAX_HELD_BYTES, Exchange, Limit
from router.health import Event
from router.lease import Lease, Outcome, Report
from router.metrics import Metrics
from router.record import Record
from router.relay import Relay, StreamOpener, reply_headers
from router.replica import Replica
from router.retry import WAVE_S, Attempts, RetryBudget, Scene, Step, next_step, trial_step
from router.upstream import Upstream

TOKENIZE_TIMEOUT_S = 30.0
MAX_TOKENS_REPLY_BYTES = 16 * MAX_HELD_BYTES
"""A tokenizer's reply is many times its request."""


@dataclass(slots=True)
class Service:
    """One call being served: what all its steps share."""

    call: Call
    dispatcher: Dispatcher
    client: Client
    record: Record
    opener: StreamOpener
    attempts: Attempts = field(default_factory=Attempts)


class Proxy:
    def __init__(
        self,
        upstream: Upstream,
        timeouts: TimeoutConfig,
        retries: RetryConfig,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._timeouts = timeouts
        self._retries = retries
        self._budget = RetryBudget(retries.budget_share)
        self._metrics = metrics
        self._clock = clock
        self._turn = 0

    async def serve(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> None:
        """The client has its whole answer when this returns; raises RouterError when it cannot."""
        opener = StreamOpener(record, client, self._timeouts.stream_open_after_s)
        try:
            await self._attempts(Service(call, dispatcher, client, record, opener))
        finally:
            opener.close()
        self._budget.earn()

    async def _attempts(self, service: Service) -> None:
        record, attempts = service.record, service.attempts
        step: Step | None = None
        while True:
            record.phase = "queue"
            lease = await service.dispatcher.acquire(
                service.call, attempts, is_retry=step is not None, at_head=step is not Step.AGAIN
            )
            attempts.count = record.attempts = attempts.count + 1
            record.queue_s += lease.waited_s
            record.replica = lease.replica.id
            try:
                await self._attempt(service, lease)
                return
            except RouterError as error:
                step = self._after(service, lease, error)
            if step is Step.ALONE:
                step = await self._quiet(service)

    def _after(self, service: Service, lease: Lease, error: RouterError) -> Step:
        """How to go on after a failed attempt; raises what the client is told if not at all."""
        attempts = service.attempts
        slots = max((replica.room.requests for replica in service.dispatcher.pool), default=0)
        self._budget.burst = max(16.0, slots)
        scene = Scene(
            replica=lease.replica.id,
            now_s=self._clock(),
            lost=self._lost(service),
            is_committed=service.record.is_committed,
        )
        step = next_step(error, attempts, self._budget, self._retries, scene)
        if step is Step.REFUSE:
            raise PoisonCall(
                f"refused: {attempts.deaths} replicas died while they served this call"
            ) from error
        if step is Step.GIVE_UP or self._clock() >= service.call.deadline_s:
            raise error
        if not attempts.was_shed:
            attempts.excluded |= {lease.replica.id}
        self._metrics.retried(type(error).__name__)
        return step

    async def _quiet(self, service: Service) -> Step:
        """A suspect waits a moment before its trial: if all replicas are dying, that shows."""
        record, now_s = service.record, self._clock()
        record.phase = "queue"
        quiet_s = min(service.attempts.quiet_until_s, service.call.deadline_s) - now_s
        await asyncio.sleep(max(0.0, quiet_s))
        record.queue_s += self._clock() - now_s
        return trial_step(service.attempts, self._lost(service))

    def _lost(self, service: Service) -> frozenset[str]:
        return service.dispatcher.pool.lost_since(self._clock() - WAVE_S)

    async def _attempt(self, service: Service, lease: Lease) -> None:
        """One try at one replica; its lease ends with it, whichever way."""
        record, pool = service.record, service.dispatcher.pool
        outcome, exchange = Outcome.ABANDONED, None
        try:
            record.phase = "prefill"
            exchange = await self._open(service.call, lease)
            service.opener.close()
            record.phase = "relay"
            record.report = await self._relay(service, lease, exchange)
            outcome = self._told(service, lease)
        except RouterError as error:
            outcome = self._failed(service, lease, error)
            raise
        except asyncio.CancelledError:
            if record.is_told:  # many clients leave at the last word, not at the end of the body
                outcome = self._told(service, lease)
            raise
        finally:
            if exchange is not None:
                exchange.close()
            if outcome is Outcome.DONE:
                pool.on_event(lease.replica, Event.CALL_OK, "call served")
            self._metrics.attempted(lease.replica, outcome.value)
            report = record.report if outcome is Outcome.DONE else _partial(record)
            service.dispatcher.release(lease, outcome, report)

    async def _open(self, call: Call, lease: Lease) -> Exchange:
        """The request sent and its reply judged: what comes back may be relayed."""
        exchange = await self._upstream.send(
            lease.replica, "POST", call.route, call.headers, call.body, limit=self._limit(call)
        )
        try:
            error = self._judge(call, exchange, lease.replica)
            if error is not None:
                raise error
        except BaseException:
            exchange.close()
            raise
        return exchange

    def _limit(self, call: Call) -> Limit:
        first_s = self._timeouts.first_event_s if call.ask.stream else None
        if first_s is not None and self._clock() + first_s < call.deadline_s:
            error = UpstreamTimeout(f"the replica sent no event within {first_s:g} s")
            return self._clock() + first_s, error
        return call.deadline_s, CallTimeout("the call's deadline passed before its answer")

    def _judge(self, call: Call, exchange: Exchange, replica: Replica) -> RouterError | None:
        head, dialect = exchange.head, replica.dialect
        if head is None:
            return ReplicaLost("the replica closed the connection without a reply")
        if exchange.is_stream:
            event = exchange.first_event()
            if not event:
                return UpstreamBroken("the replica ended its stream before the first event")
            return dialect.first_event(event)
        if not exchange.is_done:
            return None  # too large to hold: its length is the only check left
        return dialect.refusal(head.status, dict(head.fields), exchange.body(), call.route)

    # ---- the reply ----

    async def _relay(self, service: Service, lease: Lease, exchange: Exchange) -> Report:
        record, client, dialect = service.record, service.client, lease.replica.dialect
        head = exchange.head
        assert head is not None
        record.is_committed = True
        record.first_event_s = self._clock() - record.arrived_s
        if exchange.is_stream:
            service.dispatcher.first_token(lease)
            return await self._relay_stream(service, lease, exchange)
        if client.has_started:  # the head went out while it waited: only an error can follow
            raise dialect.refused(head.status, exchange.body())
        record.status = head.status
        if head.status >= 400 and exchange.is_done:
            record.told = dialect.refused(head.status, exchange.body())
        body = exchange.body() if exchange.is_done else b""
        report = dialect.report(dict(head.fields), body)
        if exchange.is_done:
            client.send(head.status, reply_headers(head, record), body)
            return report
        client.start(head.status, reply_headers(head, record))
        try:
            await self._forward(service.call, exchange, Relay(client))
        except RouterError:
            client.cut()  # no error can be put into half a document
            raise
        client.end()
        return report

    async def _relay_stream(self, service: Service, lease: Lease, exchange: Exchange) -> Report:
        record, client = service.record, service.client
        assert exchange.head is not None
        first_token_s = self._clock() - lease.granted_s
        if not client.has_started:
            record.status = exchange.head.status
            client.start(record.status, reply_headers(exchange.head, record))
        relay = Relay(client)
        try:
            await self._forward(service.call, exchange, relay)
        except asyncio.CancelledError:
            record.is_told = self._ended(service, lease, relay, first_token_s)
            raise
        finally:
            record.events = relay.events
        if exchange.tail or not self._ended(service, lease, relay, first_token_s):
            raise UpstreamBroken("the replica ended its stream before the answer was whole")
        client.end()
        return record.report

    def _ended(self, service: Service, lease: Lease, relay: Relay, first_token_s: float) -> bool:
        """Whether the last word is out; if so, what it was is on the record."""
        record = service.record
        ending = lease.replica.dialect.ending(service.call.route, relay.last)
        if not ending.is_whole:
            return False
        record.error = ending.error
        tokens = ending.generated_tokens or max(0, relay.events - ending.other_events)
        spent_s = self._clock() - lease.granted_s - first_token_s
        record.report = Report(
            prompt_tokens=ending.prompt_tokens,
            generated_tokens=tokens,
            first_token_s=first_token_s,
            between_tokens_s=spent_s / (tokens - 1) if tokens > 1 else None,
        )
        return True

    async def _forward(self, call: Call, exchange: Exchange, relay: Relay) -> None:
        """Until the replica has sent everything and the client has taken it."""
        silence_s = self._timeouts.between_events_s
        while True:
            await exchange.forwarded(relay, silence_s, call.deadline_s)
            if not exchange.is_paused:
                return
            await relay.client.drain(silence_s)
            exchange.resume()

    # ---- after an attempt ----

    def _told(self, service: Service, lease: Lease) -> Outcome:
        """The client has its answer, or the engine's own error event, relayed as it was sent."""
        error = service.record.error
        return self._failed(service, lease, error) if error else Outcome.DONE

    def _failed(self, service: Service, lease: Lease, error: RouterError) -> Outcome:
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

    # ---- tokenizer routes ----

    async def serve_unleased(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> None:
        """No generation, so no lease; any usable replica answers, in turn.

        Raises RouterError when none does.
        """
        usable = [replica for replica in dispatcher.pool if replica.is_usable]
        self._turn += 1
        error: RouterError = NoReplica("no replica is ready to tokenize", retry_after_s=1)
        for i in range(len(usable)):
            replica = usable[(self._turn + i) % len(usable)]
            record.replica, record.attempts, record.phase = replica.id, i + 1, "relay"
            try:
                await self._tokenized(call, replica, client, record)
                return
            except RouterError as failure:
                if failure.retry is Retry.NEVER:
                    raise
                error = failure
        raise error

    async def _tokenized(
        self, call: Call, replica: Replica, client: Client, record: Record
    ) -> None:
        limit_s = min(call.deadline_s, self._clock() + TOKENIZE_TIMEOUT_S)
        exchange = await self._upstream.send(
            replica,
            "POST",
            call.route,
            call.headers,
            call.body,
            limit=(limit_s, UpstreamTimeout(f"{replica.id} did not tokenize in time")),
            max_held_bytes=MAX_TOKENS_REPLY_BYTES,
        )
        try:
            head = exchange.head
            if head is None or head.status >= 500 or not exchange.is_done:
                raise UpstreamBroken(f"{replica.id} gave no whole answer")
            record.status = head.status
            client.send(head.status, reply_headers(head, record), exchange.body())
        finally:
            exchange.close()


def _partial(record: Record) -> Report:
    """Of an attempt that ended early; how much of an answer there was shows on a stream only."""
    return Report(generated_tokens=record.events if record.is_stream else None)
