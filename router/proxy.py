"""One call, straight through: acquire -> send -> deliver -> release -> retry?

The only way back up is from a failed attempt to another one: for the whole answer until the first
event has reached the client, and after that for the rest of it (`resume`). What cannot be served is
raised as a RouterError: the edge answers it. Nothing here knows how the call came in (edge) or what
an engine's events mean (dialects).
"""

import asyncio
import contextlib
from collections.abc import Callable
from math import inf

from router.call import Call
from router.config import RouterConfig
from router.delivery import Delivery
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import (
    NoReplica,
    PoisonCall,
    ReplicaLost,
    ReplicaSilent,
    Retry,
    RouterError,
)
from router.first_attempt import FirstAttempt
from router.lease import Lease, Outcome
from router.metrics import Metrics
from router.outcomes import Outcomes, counted, judge, served
from router.pool import Pool
from router.race import first_good, outcome_of
from router.record import Record
from router.replica import Replica
from router.resume import NotResumable, Transcript
from router.retry import (
    PROGRESS_EVENTS,
    WAVE_S,
    RetryBudget,
    Scene,
    Step,
    next_step,
    trial_step,
)
from router.service import Begun, Service, Started, doubt_at_s, limit_of, made
from router.story import CONTINUED, HEDGED, NEXT, QUIET
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
        self._outcomes = Outcomes(metrics, clock)
        self.first = FirstAttempt(upstream, self._delivery, self._outcomes, config, clock)
        self._metrics = metrics
        self._tasks = tasks
        self._clock = clock

    def use(self, config: RouterConfig) -> None:
        """For calls that are served from here on."""
        self._config = config
        self.first.use(config)

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
        service = service or made(call, dispatcher, client, record, self._config)
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
        counted(record, lease)
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
                judge(service.call, started)
            service.opener.close()
            record.phase = "relay"
            record.report = await self._delivery.deliver(service, started)
            outcome = self._outcomes.told(service, lease)
        except RouterError as error:
            outcome = self._outcomes.failed(service, lease, error)
            raise
        except asyncio.CancelledError:
            if record.is_told:  # many clients leave at the last word, not at the end of the body
                outcome = self._outcomes.told(service, lease)
            raise
        finally:
            if outcome is Outcome.DONE:
                served(pool, lease.replica)
            self._outcomes.end_of(service, lease, started, outcome)

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
        now_s = self._clock()
        limit = limit_of(service, now_s)
        exchange = await self._upstream.send(
            lease.replica,
            "POST",
            call.route,
            call.headers,
            call.body,
            limit=limit,
            doubt_at_s=doubt_at_s(lease, now_s),
            sent=service.record.sent,
            is_again=is_again,
        )
        return Started(lease, exchange, seam, limit)

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
                self._outcomes.end_of(service, rival.lease, rival, Outcome.OUTRUN)
            if winner is not None and winner is not first:
                failure = None if own.cancelled() else own.result()
                outcome = Outcome.OUTRUN
                if isinstance(failure, RouterError):
                    outcome = self._outcomes.failed(service, first.lease, failure)
                self._outcomes.end_of(service, first.lease, first, outcome)

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
            judge(service.call, started)
        except RouterError as error:
            self._outcomes.failed(service, started.lease, error)
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
            judge(service.call, started)
            return started
        except BaseException as error:
            outcome = Outcome.OUTRUN
            if isinstance(error, RouterError):
                outcome = self._outcomes.failed(service, lease, error)
                service.record.hedge_failed(self._clock(), lease.replica.id, error)
            self._outcomes.end_of(service, lease, started, outcome)
            raise

    # ---- after an attempt ----

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


def _budget(service: Service) -> RetryBudget:
    """It covers what the loss of one replica may cost."""
    budget, pool = service.dispatcher.budget, service.dispatcher.pool
    budget.cover(max((replica.room.requests for replica in pool), default=0))
    return budget
