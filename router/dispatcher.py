"""Who gets which replica, and when. The only place where a lease is made or ended.

Late binding: a call that finds no room waits in the queue and belongs to no replica; each time
room appears (`release`, a health change, a new replica) `pump` gives it to the waiting calls in
order. One dispatcher per pool, one event loop, no locks: between a check and the change it guards
there is no await.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from router.call import Call, Cost
from router.choosing import Choosing
from router.config import QueueConfig, RetryConfig
from router.deadlines import Deadlines
from router.door import MIN_QUEUE_CALLS, Door
from router.errors import RouterError
from router.fairness import Account, charge, charge_of
from router.lease import Lease, Outcome, Report
from router.policies import Policy
from router.pool import Pool
from router.replica import Replica
from router.request_queue import RequestQueue, Ticket
from router.retry import Attempts, RetryBudget
from router.speed import Speeds
from router.work_rate import WorkRate


class Observer(Protocol):
    """What the metrics need to know of the dispatcher's doings."""

    def waited(self, model: str, wait_s: float) -> None: ...
    def shed(self, reason: str, tenant: str) -> None: ...
    def idled(self, model: str, idle_s: float) -> None: ...
    def tokens(self, model: str, report: Report) -> None: ...
    def used(self, tenant: str, input_tokens: int, output_tokens: int) -> None: ...


Queued = Callable[[float, int, str], None]


class Dispatcher:
    def __init__(
        self,
        pool: Pool,
        policy: Policy,
        config: QueueConfig,
        observer: Observer,
        clock: Callable[[], float],
        weights: Mapping[str, float] | None = None,
        budget: RetryBudget | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        """`weights` by tenant; 1.0 where none is given. `budget`: what may be spent on retries."""
        self.pool = pool
        self.queue = RequestQueue(MIN_QUEUE_CALLS, config.max_bytes, weights)
        self.open_leases = 0
        self.budget = budget or RetryBudget(RetryConfig().budget_share)
        self._observer = observer
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._work = WorkRate()
        self._speeds = Speeds(pool)
        self._door = Door(pool, self.queue, self._work, config, observer, clock)
        self.choosing = Choosing(
            pool, self.queue, policy, self._speeds, self._work, config, self._look_again, clock
        )
        self._accounted_s = clock()
        self._is_pumping = False
        pool.changed = self.pump

    def use(self, config: QueueConfig, weights: Mapping[str, float]) -> None:
        """Calls that wait already keep their places and their deadlines."""
        self._door.use(config)
        self.choosing.use(config)
        self.queue.use(config.max_bytes, weights)

    async def acquire(
        self,
        call: Call,
        attempts: Attempts,
        *,
        is_retry: bool = False,
        at_head: bool = True,
        queued: Queued | None = None,
    ) -> Lease:
        """A lease at once, or after the call's turn; a retry was admitted before and is not again.

        `queued` is told if it has to wait: when it joined, at which place, and why.

        Raises QueueFull, TooLate, QueueTimeout or NoReplica, each with a computed `retry_after_s`.
        """
        cost, account = self.pool.cost(call.ask), self.queue.account(call)
        may_go = not attempts.alone and not self.queue.count
        if may_go and (lease := self._now(call, cost, account, attempts.excluded)):
            return lease
        ticket = self.join(call, attempts, is_retry=is_retry, at_head=at_head, queued=queued)
        try:
            return await ticket.grant
        except asyncio.CancelledError:
            self.withdraw(ticket)
            raise

    def join(
        self,
        call: Call,
        attempts: Attempts,
        *,
        is_retry: bool = False,
        at_head: bool = True,
        queued: Queued | None = None,
    ) -> Ticket:
        """A place in the queue; its `grant` tells how that ended, as `acquire` would have.

        Whoever does not wait for that has to withdraw it. Raises QueueFull, TooLate or NoReplica.
        """
        ticket = self._ticket(call, attempts, is_retry=is_retry)
        self._account()
        if not is_retry:
            self._door.admit(ticket)
        self.queue.join(ticket, at_head=is_retry and at_head)
        if queued is not None:
            position = 1 if is_retry and at_head else self.queue.count
            queued(ticket.enqueued_s, position, self._why_it_waits(ticket))
        if ticket.alone:
            self.pool.ask_all()
        ticket.deadline_s = call.deadline_s
        if not is_retry or (attempts.was_shed and not attempts.has_failed):
            ticket.deadline_s = min(call.deadline_s, call.queue_deadline_s)
        ticket.deadline_place = self._deadlines.add(ticket.deadline_s, ticket, self._too_late)
        self._pump()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for it any more; what it was granted meanwhile is given back."""
        grant = ticket.grant
        self._account()
        if not grant.done():
            grant.cancel()
        elif not grant.cancelled() and grant.exception() is None:
            self.release(grant.result(), Outcome.UNUSED, Report())
        if self._leave(ticket):
            self.pump()

    def _too_late(self, ticket: Ticket) -> None:
        """Its time is over."""
        self._account()
        if not ticket.grant.done():
            ticket.grant.set_exception(self._door.timed_out(ticket))
        if self._leave(ticket):
            self.pump()

    def _leave(self, ticket: Ticket) -> bool:
        self.choosing.keeps_for_no_more(ticket)
        return self.queue.leave(ticket)

    def _look_again(self, at_s: float) -> None:
        """Something may be decided otherwise then, though nothing else has changed."""
        self._deadlines.add(at_s, self, Dispatcher.pump)

    def release(self, lease: Lease, outcome: Outcome, report: Report) -> None:
        """Ends a lease, learns from it and lets the next calls in. A second time does nothing."""
        if not lease.is_open:
            return
        self._account()
        lease.is_open = False
        self.open_leases -= 1
        self._settle(lease, outcome, report)
        self._learn(lease, outcome, report)
        load = lease.replica.load
        lease.replica.pace.ended(lease)
        load.requests -= lease.cost.requests
        load.tokens -= lease.cost.reserve_tokens
        self._speeds.weigh(lease.replica)
        lease.replica.idle_since_s = self._clock()
        lease.replica.alone = False
        self._pump()

    def share(self, lease: Lease) -> None:
        """A suspect's replica takes others beside it again."""
        if lease.is_open and lease.alone:
            lease.alone = lease.replica.alone = False
            self.pump()

    def first_token(self, lease: Lease) -> None:
        """A stream began: the engine runs the call, so there may be room for more."""
        before, now_s = lease.replica.room.requests, self._clock()
        lease.replica.pace.first_token(lease, now_s, now_s - lease.granted_s)
        lease.replica.room.answered(None, lease.replica.load, self._work.lately_s, now_s)
        if lease.replica.room.requests > before:
            self.pump()

    def pump(self) -> None:
        """Gives room to waiting calls for as long as there is any."""
        if not self._is_pumping:
            self._account()
            self._pump()

    def _pump(self) -> None:
        """The same where the time until now is accounted for."""
        if self._is_pumping or not self.queue.count:
            return
        self._is_pumping = True
        try:
            while choice := self.choosing.next():
                self._grant_ticket(*choice)
            if not self.pool.can_come:
                for ticket in self.queue:
                    self._fail(ticket, self._door.no_replica(ticket.call))
        finally:
            self._is_pumping = False

    @property
    def service_s(self) -> float:
        """How long a replica has a call, lately."""
        return self._work.lately_s

    def fail_waiting(self, error: Callable[[], RouterError]) -> None:
        """Ends every waiting call with an error of its own."""
        for ticket in self.queue:
            self._fail(ticket, error())

    def _fail(self, ticket: Ticket, error: RouterError) -> None:
        self._leave(ticket)
        if not ticket.grant.done():
            ticket.grant.set_exception(error)

    def at_once(self, call: Call) -> Lease | None:
        """For a call that comes in: the usual case, nobody waits and some replica has room."""
        if self.queue.count:
            return None
        return self._now(call, self.pool.cost(call.ask), self.queue.account(call), frozenset())

    def _now(
        self, call: Call, cost: Cost, account: Account, excluded: frozenset[str]
    ) -> Lease | None:
        replica = self.choosing.at_once(call, cost, excluded)
        if replica is None:
            return None
        self.queue.arrive(call, account)
        return self._lease(replica, call, cost, account, 0.0)

    # ---- leases ----

    def _grant_ticket(self, ticket: Ticket, replica: Replica) -> None:
        self.queue.take(ticket)
        self.choosing.keeps_for_no_more(ticket)
        if ticket.grant.done():  # it stopped waiting and has not run yet
            return
        now_s = self._clock()
        if now_s >= ticket.deadline_s or self._door.is_in_vain(ticket):
            ticket.grant.set_exception(self._door.timed_out(ticket))
            return
        waited_s = now_s - ticket.enqueued_s
        lease = self._lease(replica, ticket.call, ticket.cost, ticket.account, waited_s)
        lease.alone = replica.alone = ticket.alone
        ticket.grant.set_result(lease)

    def _lease(
        self, replica: Replica, call: Call, cost: Cost, account: Account, waited_s: float
    ) -> Lease:
        if not replica.load.requests:
            self.pool.busy(replica)
        replica.load.requests += cost.requests
        replica.load.tokens += cost.reserve_tokens
        self._speeds.weigh(replica)
        self.open_leases += 1
        tokens = charge_of(cost)
        self.queue.charge(call, account, tokens)
        self._work.began(tokens)
        self._observer.waited(self.pool.model, waited_s)
        now_s = self._clock()
        lease = Lease(replica, call, cost, account, tokens, now_s, waited_s)
        replica.pace.granted(lease, cost.input_tokens)
        return lease

    def _settle(self, lease: Lease, outcome: Outcome, report: Report) -> None:
        """The tenant pays for what it got; what was charged was an estimate."""
        input_tokens, output_tokens = _used_tokens(lease, outcome, report)
        self._observer.used(lease.call.tenant, input_tokens, output_tokens)
        came_to = charge(input_tokens, output_tokens)
        self.queue.settle(lease.call, lease.account, came_to - lease.tokens)
        self._work.ended(lease.tokens)

    def _learn(self, lease: Lease, outcome: Outcome, report: Report) -> None:
        replica, now_s = lease.replica, self._clock()
        if outcome is Outcome.SHED:
            pause_s = replica.room.shed(replica.load, now_s)
            if pause_s is not None:
                asyncio.get_running_loop().call_later(pause_s, self._unpause, replica)
        if outcome is Outcome.FAILED:
            replica.failed += 1
            if lease.call.ask.stream:
                replica.pace.gave_up(lease, now_s, now_s - lease.granted_s)
        service_s = now_s - lease.granted_s
        is_whole, expected_tokens = outcome is Outcome.DONE, lease.cost.expected_tokens
        if is_whole or outcome is Outcome.ABANDONED:
            self._work.worked(lease.tokens, expected_tokens, service_s, is_whole=is_whole)
        if not is_whole:
            return
        replica.served += 1
        self._work.served(expected_tokens, service_s)
        replica.room.answered(report.engine_wait_s, replica.load, self._work.lately_s, now_s)
        tokens = report.generated_tokens or expected_tokens
        seconds = report.between_tokens_s * tokens if report.between_tokens_s else service_s
        self._speeds.seen(replica, seconds, tokens, now_s)
        self._learn_sizes(lease, report)

    def _learn_sizes(self, lease: Lease, report: Report) -> None:
        ask, estimates = lease.call.ask, self.pool.estimates
        self._observer.tokens(self.pool.model, report)
        if ask.sequences * ask.instances * ask.choices > 1:
            return  # engines report the counts of one sequence, or the sum
        if report.prompt_tokens and not ask.images and not ask.truncate_tokens:
            estimates.prompt_seen(ask.input_chars, report.prompt_tokens)
        if not report.generated_tokens:
            return
        if isinstance(ask.new_tokens, int):
            estimates.output_seen(ask.new_tokens, report.generated_tokens)
        else:
            estimates.open_output_seen(report.generated_tokens)

    def _unpause(self, replica: Replica) -> None:
        replica.room.is_paused = False
        self.pump()

    def _why_it_waits(self, ticket: Ticket) -> str:
        """For its story: what stood in the way when it joined."""
        if ticket.alone:
            return (
                "it is to be tried alone, on a replica that is empty and has just been seen alive"
            )
        if not self.pool.can_serve:
            return "no replica was ready"
        has_place = self.pool.has_place  # most often none has: then their rooms tell no more
        free = [replica for replica in self.pool if replica.takes(ticket.cost)] if has_place else []
        if not free:
            return "every replica was full"
        if all(replica.id in ticket.excluded for replica in free):
            return "only replicas that had failed it had room"
        if self.queue.count == 1:
            return "a faster replica will soon have room"
        return "others were waiting already"

    def _ticket(self, call: Call, attempts: Attempts, *, is_retry: bool) -> Ticket:
        return Ticket(
            call,
            self.pool.cost(call.ask),
            self._clock(),
            asyncio.get_running_loop().create_future(),
            self.queue.account(call),
            excluded=attempts.excluded,
            alone=attempts.alone,
            is_retry=is_retry,
        )

    def _account(self) -> None:
        """Adds up the seconds in which a usable replica was idle while calls waited."""
        now_s = self._clock()
        if self.queue.count and now_s > self._accounted_s and (idle := self.pool.idle):
            self._observer.idled(self.pool.model, idle * (now_s - self._accounted_s))
        self._accounted_s = now_s


def _used_tokens(lease: Lease, outcome: Outcome, report: Report) -> tuple[int, int]:
    """
    1. a call that got nothing, by no doing of its own, has used nothing; one whose replica failed
       in mid-answer has used what it got: its prompt is charged with the attempt that goes on;
    2. what the reply told, or as much of an answer as there was when it ended;
    3. where nobody can tell (a client left a call that is not streamed): as charged.
    """
    cost, ask = lease.cost, lease.call.ask
    generated = report.generated_tokens
    if outcome in (Outcome.UNUSED, Outcome.SHED, Outcome.OUTRUN):
        return 0, 0
    if outcome is Outcome.FAILED:
        return 0, generated or 0
    if ask.sequences * ask.instances * ask.choices > 1:  # told of one sequence, or of the sum
        return cost.input_tokens, cost.expected_tokens
    told = report.prompt_tokens or cost.input_tokens
    return told, cost.expected_tokens if generated is None else generated
