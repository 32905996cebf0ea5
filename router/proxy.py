"""One call, straight through: acquire -> send -> deliver -> release -> retry?

The only way back up is from a failed attempt to another one: for the whole answer until the first
event has reached the client, and after that for the rest of it (`resume`). What cannot be served is
raised as a RouterError: the edge answers it. Nothing here knows how the call came in (edge) or what
an engine's events mean (dialects).
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from math import inf

from router.call import Call
from router.config import ResumeConfig, RouterConfig
from router.delivery import Delivery
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import (
    CallTimeout,
    ConnectFailed,
    ConnectTimeout,
    NoReplica,
    PoisonCall,
    ReplicaLost,
    ReplicaSilent,
    Retry,
    RouterError,
    UpstreamBroken,
    UpstreamTimeout,
)
from router.exchange import Exchange, Limit
from router.health import Event
from router.lease import NOTHING_TOLD, Lease, Outcome, Report
from router.metrics import Metrics
from router.pool import Pool
from router.race import first_good, outcome_of
from router.record import Record
from router.relay import Relay, StreamOpener
from router.replica import Replica
from router.resume import Ledger, NotResumable, Transcript
from router.retry import (
    PROGRESS_EVENTS,
    WAVE_S,
    Attempts,
    RetryBudget,
    Scene,
    Step,
    next_step,
    trial_step,
)
from router.service import Begun, Service, Started
from router.story import CONTINUED, GRANTED, HEDGED, NEXT, QUIET
from router.tasks import Tasks
from router.tokenizer import Tokenizer
from router.upstream import Upstream


class Proxy:
    def __init__(
        self,
        upstream: Upstream,
        tokenizer: Tokenizer,
        config: RouterConfig,
        metrics: Metrics,
        tasks: Tasks,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._tokenizer = tokenizer
        self._config = config
        self._delivery = Delivery(metrics, clock)
        self._metrics = metrics
        self._tasks = tasks
        self._clock = clock

    def use(self, config: RouterConfig) -> None:
        """For calls that are served from here on."""
        self._config = config

    # ---- without waiting: one attempt that nothing comes between ----

    def begin(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> Begun | None:
        """As much of the first attempt as can be made at once; None: not even a lease."""
        lease = dispatcher.at_once(call)
        if lease is None:
            return None
        service = self._service(call, dispatcher, client, record) if call.ask.stream else None
        return self._granted(Begun(lease, None, service), record)

    async def wait(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> Begun:
        """The same where the call has to wait for its turn. Raises why it does not come."""
        service = self._service(call, dispatcher, client, record) if call.ask.stream else None
        record.phase = "queue"
        if service is not None:
            service.opener.watch()
        try:
            lease = await dispatcher.acquire(call, Attempts(), queued=record.queued)
        except BaseException:
            if service is not None:
                service.opener.close()
            raise
        return self._granted(Begun(lease, None, service), record)

    def _granted(self, begun: Begun, record: Record) -> Begun:
        """Sent, if there is an idle connection."""
        lease, call = begun.lease, begun.lease.call
        _count(record, lease)
        record.phase = "prefill"
        if begun.service is not None:
            begun.service.opener.watch()
        exchange = self._upstream.at_once(lease.replica, call.route, call.headers, call.body)
        return begun if exchange is None else self._sent(begun, exchange, record, is_new=False)

    async def connect(self, begun: Begun, record: Record) -> Begun:
        """Goes on from where there is no idle connection."""
        call = begun.lease.call
        try:
            exchange = await self._upstream.on_new(
                begun.lease.replica, call.route, call.headers, call.body
            )
        except RouterError as error:
            return begun._replace(failure=error)
        return self._sent(begun, exchange, record, is_new=True)

    def _sent(self, begun: Begun, exchange: Exchange, record: Record, *, is_new: bool) -> Begun:
        lease, service = begun.lease, begun.service
        record.sent(exchange.last_data_s, is_new)
        limit: Limit = lease.call.deadline_s, _out_of_time
        if service is not None:
            limit, exchange.doubt_at_s = self._limit(service), self._doubt_at_s(lease)
        return begun._replace(started=Started(lease, exchange, None, limit))

    def begin_stream(self, begun: Begun) -> bool:
        """Passes a stream's events on from here on, if the first one is an answer's."""
        lease, started, service, _ = begun
        assert started is not None
        if service is None or not started.exchange.is_stream or _verdict(lease.call, started):
            return False
        service.opener.close()
        service.record.phase = "relay"
        self._delivery.begin_stream(service, started)
        return True

    def is_answered(self, begun: Begun) -> bool:
        """It has its whole reply, and that is an answer; a stream has been passed on."""
        lease, started, service, _ = begun
        assert started is not None
        exchange = started.exchange
        if service is not None:
            return exchange.is_passed_on and self._delivery.is_whole(service, started)
        return exchange.is_done and not exchange.is_stream and not _verdict(lease.call, started)

    def finish(self, begun: Begun, dispatcher: Dispatcher, client: Client, record: Record) -> None:
        """The client gets what is missing of that reply."""
        lease, started, service, _ = begun
        assert started is not None
        record.phase = "relay"
        outcome, report = Outcome.ABANDONED, NOTHING_TOLD
        try:
            if service is not None:
                self._delivery.end_stream(service)
                outcome = self._told(service, lease)
                report = _learned(service, outcome)
            else:
                report = record.report = self._delivery.whole(record, client, started)
                outcome = Outcome.DONE
            if outcome is Outcome.DONE:
                _served(dispatcher.pool, lease.replica)
        finally:
            self._end(dispatcher, lease, started, outcome, report)
        if record.error is None:
            dispatcher.budget.earn()

    def abandon(self, begun: Begun, dispatcher: Dispatcher, record: Record) -> None:
        """The client left; many do at the last word, not at the end of the body."""
        lease, started, service, _ = begun
        outcome, report = Outcome.ABANDONED, NOTHING_TOLD
        if service is not None and started is not None:
            service.opener.close()
            if started.exchange.is_forwarding:
                record.is_told = self._delivery.is_whole(service, started)
                outcome = self._told(service, lease) if record.is_told else outcome
            report = _learned(service, outcome)
        if outcome is Outcome.DONE:
            _served(dispatcher.pool, lease.replica)
        self._end(dispatcher, lease, started, outcome, report)

    def _service(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> Service:
        config = self._config
        opener = StreamOpener(record, client, config.timeouts.stream_open_after_s)
        relay = Relay(client, Ledger(partial(_transcript, call, dispatcher.pool, config.resume)))
        return Service(call, dispatcher, client, record, opener, relay, config)

    # ---- whatever comes between ----

    async def serve(
        self,
        call: Call,
        dispatcher: Dispatcher,
        client: Client,
        record: Record,
        begun: Begun | None = None,
    ) -> None:
        """The client has its whole answer when this returns; raises RouterError when it cannot.

        Goes on from what was `begun` already.
        """
        service = begun.service if begun is not None else None
        service = service or self._service(call, dispatcher, client, record)
        try:
            await self._attempts(service, begun)
        finally:
            service.opener.close()
        if record.error is None:
            dispatcher.budget.earn()

    async def _attempts(self, service: Service, begun: Begun | None) -> None:
        record = service.record
        step: Step | None = None
        while True:
            started = failure = None
            if begun is not None:
                (lease, started, _, failure), begun = begun, None
                service.attempts.count = 1
                service.opener.watch()
            else:
                lease = await self._turn(service, step)
            try:
                await self._attempt(service, lease, started, failure)
                return
            except RouterError as error:
                record.failed(self._clock(), error)
                step = self._after(service, lease, error)
                record.step(self._clock(), NEXT, step.value)
                if step is Step.GIVE_UP:
                    return self._give_up(service, error)
            if step is Step.COMPLETE:
                return await self._complete(service)
            if step is Step.ALONE:
                step = await self._quiet(service)

    async def _turn(self, service: Service, step: Step | None) -> Lease:
        """The next attempt's right, `step` being what the last one led to."""
        record, attempts = service.record, service.attempts
        record.phase = "queue"
        service.opener.watch()
        lease = await service.dispatcher.acquire(
            service.wish,
            attempts,
            is_retry=step is not None,
            at_head=step is not Step.AGAIN,
            queued=record.queued,
        )
        attempts.count += 1
        _count(record, lease)
        service.events_before = service.relay.events
        service.relay.unsent = b""
        return lease

    async def _attempt(
        self,
        service: Service,
        lease: Lease,
        started: Started | None,
        failure: RouterError | None,
    ) -> None:
        """One try at one replica, or at two when the first falls silent; its lease ends with it.

        `started`: it was sent already; `failure`: it could not be.
        """
        record, pool = service.record, service.dispatcher.pool
        outcome = Outcome.ABANDONED
        try:
            if failure is not None:
                raise failure
            if started is None or not started.exchange.is_forwarding:
                record.phase = "prefill"
                started = await self._opened(service, lease, started)
                if not started.exchange.is_ready:
                    started = await self._race(service, started)
                    lease = started.lease
                    record.replica = lease.replica.id
                _judge(service.call, started)
            service.opener.close()
            record.phase = "relay"
            record.report = await self._delivery.deliver(service, started)
            outcome = self._told(service, lease)
        except RouterError as error:
            outcome = self._failed(service, lease, error)
            raise
        except asyncio.CancelledError:
            if record.is_told:  # many clients leave at the last word, not at the end of the body
                outcome = self._told(service, lease)
            raise
        finally:
            if outcome is Outcome.DONE:
                _served(pool, lease.replica)
            self._end_of(service, lease, started, outcome)

    async def _opened(self, service: Service, lease: Lease, started: Started | None) -> Started:
        """The request sent, and its reply ready to be judged, unless it came into doubt first."""
        if started is None:
            return await self._send(service, lease)
        exchange = started.exchange
        try:
            if not exchange.is_doubted:
                await exchange.opened(started.limit, exchange.doubt_at_s)
        except ReplicaLost:
            exchange.close()
            if not self._upstream.is_stale(exchange, lease.granted_s):
                raise
            return await self._send(service, lease, is_again=True)
        return started

    async def _send(self, service: Service, lease: Lease, *, is_again: bool = False) -> Started:
        call, seam = service.call, None
        if service.broken is not None:
            counted = await self._tokenizer.count(service.broken.question(), lease.replica)
            continuation = service.broken.continued(counted)
            call, seam = continuation.call, continuation.seam
            service.record.step(self._clock(), CONTINUED, service.relay.events)
        limit = self._limit(service)
        exchange = await self._upstream.send(
            lease.replica,
            "POST",
            call.route,
            call.headers,
            call.body,
            limit=limit,
            doubt_at_s=self._doubt_at_s(lease),
            sent=service.record.sent,
            is_again=is_again,
        )
        return Started(lease, exchange, seam, limit)

    def _limit(self, service: Service) -> Limit:
        call = service.call
        first_s = service.config.timeouts.first_event_s if call.ask.stream else None
        if first_s is not None and self._clock() + first_s < call.deadline_s:
            words = f"the replica sent no event within {first_s:g} s"
            return self._clock() + first_s, partial(UpstreamTimeout, words)
        return call.deadline_s, _out_of_time

    def _doubt_at_s(self, lease: Lease) -> float:
        """When a stream's first event is later than this replica's ever are."""
        if not lease.call.ask.stream:
            return inf
        now_s, pace = self._clock(), lease.replica.pace
        return now_s + pace.first_token_deadline_s(lease.cost.input_tokens, now_s)

    # ---- two at a time ----

    async def _race(self, service: Service, first: Started) -> Started:
        """Nothing comes from the replica: another is asked too, and who answers first counts.

        As long as nobody answers it is looked again: the second may fail or fall silent as well,
        and where nobody else was there somebody may come. Raises how the first failed; it is then
        still the caller's to end.
        """
        while not first.exchange.is_ready:
            if not self._may_hedge(service, first.lease.replica):
                await first.exchange.opened(first.limit, inf)
            elif winner := await self._raced(service, first):
                return winner
        return first

    async def _raced(self, service: Service, first: Started) -> Started | None:
        """One round; None when the second failed and the first still says nothing."""
        name, winner = f"call {service.call.id}", None
        own = self._tasks.spawn(outcome_of(self._answered(service, first)), f"{name}, first")
        second = self._tasks.spawn(outcome_of(self._second(service, first)), f"{name}, second")
        try:
            winner = await first_good(own, second)
            if winner is not None:
                word = "kept" if winner is first else "won"
                self._metrics.hedged(service.record.model, word)
            return winner
        finally:
            own.cancel()
            second.cancel()
            await asyncio.wait((own, second))
            rival = None if second.cancelled() else second.result()
            if isinstance(rival, Started) and rival is not winner:
                self._end_of(service, rival.lease, rival, Outcome.OUTRUN)
            if winner is not None and winner is not first:
                failure = None if own.cancelled() else own.result()
                outcome = Outcome.OUTRUN
                if isinstance(failure, RouterError):
                    outcome = self._failed(service, first.lease, failure)
                self._end_of(service, first.lease, first, outcome)

    def _may_hedge(self, service: Service, silent: Replica) -> bool:
        attempts, pool = service.attempts, service.dispatcher.pool
        attempts.excluded |= {silent.id}
        others = any(replica.is_usable and replica.id not in attempts.excluded for replica in pool)
        if attempts.alone or not others:
            return False
        is_suspect = not silent.health.is_sure  # then it is not the call that takes long
        return is_suspect or _budget(service).spend()

    async def _answered(self, service: Service, started: Started) -> Started:
        """A good reply, whatever is doubted meanwhile. Its replica was asked first,
        so it is the first to be blamed."""
        try:
            while not started.exchange.is_ready:
                await started.exchange.opened(started.limit, inf)
            _judge(service.call, started)
        except RouterError as error:
            self._failed(service, started.lease, error)
            raise
        return started

    async def _second(self, service: Service, first: Started) -> Started:
        """A second attempt beside the first; its lease ends here unless it has a good reply."""
        silent = first.lease.replica
        lease = await service.dispatcher.acquire(
            service.wish, service.attempts, is_retry=True, at_head=not silent.health.is_sure
        )
        service.attempts.count += 1
        service.record.attempts = service.attempts.count
        service.record.step(lease.granted_s, HEDGED, lease.replica.id)
        service.attempts.excluded |= {lease.replica.id}
        started = None
        try:
            if lease.replica is silent:
                raise NoReplica("there is no other replica")
            started = await self._send(service, lease)
            if not started.exchange.is_ready:
                raise ReplicaSilent("the replica that was asked as well says nothing either")
            _judge(service.call, started)
            return started
        except BaseException as error:
            outcome = Outcome.OUTRUN
            if isinstance(error, RouterError):
                outcome = self._failed(service, lease, error)
                service.record.hedge_failed(self._clock(), lease.replica.id, error)
            self._end_of(service, lease, started, outcome)
            raise

    # ---- after an attempt ----

    def _end_of(
        self, service: Service, lease: Lease, started: Started | None, outcome: Outcome
    ) -> None:
        self._end(service.dispatcher, lease, started, outcome, _learned(service, outcome))

    def _end(
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

    def _after(self, service: Service, lease: Lease, error: RouterError) -> Step:
        """How to go on after a failed attempt; raises PoisonCall when the call is the cause."""
        if error.retry is Retry.NEVER:
            return Step.GIVE_UP
        if service.record.is_committed:
            service.broken = self._broken(service, error)
            if service.broken is not None and service.broken.is_finished:
                return Step.COMPLETE
        step = self._next_step(service, lease, error)
        if step is Step.REFUSE:
            raise PoisonCall(
                f"refused: {service.attempts.deaths} replicas died while they served this call"
            ) from error
        if step is Step.GIVE_UP or self._clock() >= service.call.deadline_s:
            return Step.GIVE_UP
        if not service.attempts.was_shed:
            service.attempts.excluded |= {lease.replica.id}
        self._metrics.retried(type(error).__name__)
        return step

    def _next_step(self, service: Service, lease: Lease, error: RouterError) -> Step:
        attempts, pool = service.attempts, service.dispatcher.pool
        if service.fresh_events >= PROGRESS_EVENTS:
            attempts.got_further(service.fresh_events)
        scene = Scene(
            replica=lease.replica.id,
            now_s=self._clock(),
            lost=self._lost(pool),
            is_stuck=service.record.is_committed and service.broken is None,
        )
        return next_step(error, attempts, _budget(service), service.config.retries, scene)

    async def _quiet(self, service: Service) -> Step:
        """A suspect waits a moment before its trial: if all replicas are dying, that shows."""
        record, now_s = service.record, self._clock()
        record.phase = "queue"
        record.step(now_s, QUIET)
        quiet_s = min(service.attempts.quiet_until_s, service.call.deadline_s) - now_s
        await asyncio.sleep(max(0.0, quiet_s))
        record.queue_s += self._clock() - now_s
        return trial_step(service.attempts, self._lost(service.dispatcher.pool))

    def _lost(self, pool: Pool) -> frozenset[str]:
        return pool.lost_since(self._clock() - WAVE_S)

    def _give_up(self, service: Service, error: RouterError) -> None:
        """Raises the error, unless the client has its whole answer, or the engine's own words."""
        if service.broken is not None and service.broken.has_ended:
            return self._say(service, service.broken.last_words(None))
        if not service.relay.unsent:
            raise error
        service.record.error = error
        self._say(service, service.relay.unsent)

    def _say(self, service: Service, words: bytes) -> None:
        """The last there is to say."""
        if words:
            service.client.write(words)
        service.client.end()

    # ---- an answer that broke off ----

    def _broken(self, service: Service, error: RouterError) -> Transcript | None:
        """What the client has, if the rest can be asked elsewhere; else the error says why not."""
        if not service.record.is_stream:
            return None
        try:
            transcript = service.relay.ledger.transcript()
            if not transcript.is_finished:
                service.wish = transcript.continued(None).call
        except NotResumable as refusal:
            self._metrics.resumed(service.record.model, "refused")
            error.because(f"the answer cannot be continued elsewhere: {refusal}")
            return None
        return transcript

    async def _complete(self, service: Service) -> None:
        """All was generated; what the stream lacks of its end is said by the router."""
        assert service.broken is not None
        counted = None
        replica = next((one for one in service.dispatcher.pool if one.is_usable), None)
        if replica is not None:
            with contextlib.suppress(RouterError):
                counted = await self._tokenizer.count(service.broken.question(), replica)
        self._say(service, service.broken.last_words(counted))
        self._metrics.resumed(service.record.model, "completed")


def _count(record: Record, lease: Lease) -> None:
    """Another attempt begins."""
    replica = lease.replica.id
    record.attempts += 1
    record.queue_s += lease.waited_s
    record.replica = replica
    record.step(lease.granted_s, GRANTED, replica, lease.alone)


def _out_of_time() -> RouterError:
    return CallTimeout("the call's deadline passed before its answer")


def _judge(call: Call, started: Started) -> None:
    """Raises what the reply means, if that is no answer."""
    error = _verdict(call, started)
    if error is not None:
        raise error


def _verdict(call: Call, started: Started) -> RouterError | None:
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


def _served(pool: Pool, replica: Replica) -> None:
    if not replica.health.is_spotless:
        pool.on_event(replica, Event.CALL_OK, "call served")


def _budget(service: Service) -> RetryBudget:
    """It covers what the loss of one replica may cost."""
    budget, pool = service.dispatcher.budget, service.dispatcher.pool
    budget.cover(max((replica.room.requests for replica in pool), default=0))
    return budget


def _learned(service: Service, outcome: Outcome) -> Report:
    """What an attempt teaches: of a continued answer, only its own part; of one that ended early,
    how much of an answer there was, which shows on a stream only."""
    if outcome is not Outcome.DONE:
        return Report(generated_tokens=service.fresh_events if service.record.is_stream else None)
    if service.broken is None:
        return service.record.report
    return Report(generated_tokens=max(1, service.fresh_events))


def _transcript(call: Call, pool: Pool, config: ResumeConfig) -> Transcript:
    """Raises NotResumable."""
    if not config.enabled:
        raise NotResumable("that is switched off (router.resume.enabled)")
    return pool.dialect.transcript(call, pool.info, seeded=config.seeded)
