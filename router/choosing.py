"""Whose turn it is, and which replica's. Decides only: leases are the dispatcher's.

Each call that comes in while nobody waits is one question here, and each time that room appears.
What is remembered: for which head a replica is kept, and on tickets, since when they are passed.
"""

from collections.abc import Callable

from router.call import Call, Cost
from router.config import QueueConfig
from router.policies import Policy
from router.pool import Pool
from router.replica import Replica
from router.request_queue import LOOK_AHEAD, RequestQueue, Ticket
from router.speed import Speeds
from router.work_rate import WorkRate

OVERTAKE_SHARE = 0.25
"""Of a service time: then a kept replica has time to empty, and all is over within two of them."""


class Choosing:
    """One per dispatcher; what it remembers is the replica that is kept for a head."""

    def __init__(
        self,
        pool: Pool,
        queue: RequestQueue,
        policy: Policy,
        speeds: Speeds,
        work: WorkRate,
        config: QueueConfig,
        look_again: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """`look_again` is told when an answer will be another one by the time alone."""
        self.policy = policy
        self.kept: tuple[Ticket, Replica] | None = None
        """A replica that takes nobody but that head."""
        self._pool = pool
        self._queue = queue
        self._speeds = speeds
        self._work = work
        self._config = config
        self._look_again = look_again
        self._clock = clock

    def use(self, config: QueueConfig) -> None:
        self._config = config

    def at_once(self, call: Call, cost: Cost, excluded: frozenset[str]) -> Replica | None:
        """The replica for a call that comes in while nobody waits; None: it has to."""
        choice, free = self._choice(call, cost, excluded)
        return None if not excluded and self._is_too_long(choice, free, cost) else choice

    def next(self) -> tuple[Ticket, Replica] | None:
        """
        1. the head, when a replica has room for it;
        2. else one of the few behind it, on any replica that is not kept for the head;
        3. the head after all, when these had all rather wait for a faster one: it shall not idle.
        """
        if not self._queue.count or not self._pool.has_place:
            return None
        head = self._queue.head
        assert head is not None
        if replica := self._for_head(head):
            return head, replica
        kept = self._kept_for(head)
        for ticket in self._queue.behind_head():
            if replica := self._for(ticket, ticket.excluded, kept):
                return ticket, replica
        if not head.alone and self._queue.count > LOOK_AHEAD and self._are_patient:
            replica, _ = self._choice(head.call, head.cost, head.excluded)
            return (head, replica) if replica is not None else None
        return None

    def keeps_for_no_more(self, ticket: Ticket) -> None:
        """It has its turn, or has left."""
        if self.kept is not None and self.kept[0] is ticket:
            self.kept = None

    def _for_head(self, head: Ticket) -> Replica | None:
        if head.alone:
            idle = [r for r in self._pool if r.is_usable and not r.load.requests]
            alive = [r for r in idle if r.health.confirmed_s >= head.enqueued_s]
            return alive[0] if alive else None
        is_patient = head.blocked_s is None or not self._is_overdue(head)
        return self._for(head, head.excluded if is_patient else frozenset[str]())

    def _for(
        self, ticket: Ticket, excluded: frozenset[str], kept: Replica | None = None
    ) -> Replica | None:
        choice, free = self._choice(ticket.call, ticket.cost, excluded, kept)
        may_wait = not (ticket.is_retry or excluded)  # it has, or there are few to wait for
        if not may_wait or not self._is_too_long(choice, free, ticket.cost):
            return choice
        if ticket.patient_until_s is None:
            ticket.patient_until_s = self._clock() + self._overtake_s
            self._look_again(ticket.patient_until_s)
        return choice if self._clock() >= ticket.patient_until_s else None

    def _choice(
        self, call: Call, cost: Cost, excluded: frozenset[str], kept: Replica | None = None
    ) -> tuple[Replica | None, list[Replica]]:
        """The best for the call, and all that have room for it now.

        `excluded`: those that have failed it; `kept`: the one that is there for somebody else.
        """
        free = [r for r in self._pool if r is not kept and r.takes(cost)]
        if excluded:
            fresh = [r for r in free if r.id not in excluded]
            if not fresh and any(r.is_usable and r.id not in excluded for r in self._pool):
                return None, free  # one that has not failed this call will have room
            free = fresh or free
        return self.policy.choose(call, free, self._clock()) if free else None, free

    def _is_too_long(self, choice: Replica | None, free: list[Replica], cost: Cost) -> bool:
        """For that replica; it had better wait a while for a faster one."""
        if choice is None or not self.policy.weighs_speed:
            return False
        usual_tokens = self._work.usual_tokens
        return self._speeds.is_too_long(choice, free, cost.expected_tokens, usual_tokens)

    @property
    def _are_patient(self) -> bool:
        """Somebody may be left to wait while a replica has room."""
        return self.policy.weighs_speed and self._speeds.are_mixed

    def _kept_for(self, head: Ticket) -> Replica | None:
        """The replica that is kept free for a head which has been passed for long enough."""
        if head.blocked_s is None:
            head.blocked_s = self._clock()
        ticket, kept = self.kept or (None, None)
        if kept and ticket is head and kept.is_usable and self._pool.get(kept.id) is kept:
            return kept
        if not head.alone and not self._is_overdue(head):
            return None
        usable = [r for r in self._pool if r.is_usable]
        if not usable:
            return None
        fresh = [r for r in usable if r.id not in head.excluded]
        emptiest = min(fresh or usable, key=lambda r: (r.load.tokens, r.load.requests))
        self.kept = (head, emptiest)
        return emptiest

    def _is_overdue(self, head: Ticket) -> bool:
        """It has stood at the head for as long as others may pass it."""
        since_s = head.blocked_s if head.blocked_s is not None else self._clock()
        return self._clock() - since_s >= self._overtake_s

    @property
    def _overtake_s(self) -> float:
        return min(self._config.max_overtake_s, self._work.lately_s * OVERTAKE_SHARE)
