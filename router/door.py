"""Which calls may wait at all, who gives way to them, and when the refused ones should come back.

Called by the dispatcher for a call that found no room; never gives or takes a lease. A refusal says
whose doing it is: 429 when more is sent than fits (the queue is full), 503 when the call would not
be served in time, or nothing serves.

`Retry-After` is when what is ahead of the call will have had its turn, as the tenant's share and
the call's priority have it. Clients refused together are asked back one after the other: each finds
the place that the one before it has left.
"""

from collections.abc import Callable
from math import ceil
from typing import Protocol

from router.call import Call
from router.config import QueueConfig
from router.errors import NoReplica, QueueFull, QueueTimeout, RouterError, TooLate
from router.pool import Pool
from router.request_queue import RequestQueue, Ticket
from router.work_rate import WorkRate

MIN_QUEUE_CALLS = 64
MAX_QUEUE_CALLS = 100_000
QUEUE_CALLS_PER_SLOT = 4
MAX_RETRY_AFTER_S = 600
WAIT_MARGIN = 1.25
"""By this factor an estimated wait has to be over the longest allowed to count against a call."""
SERVICE_MARGIN = 1.25
"""Time kept for a call's service, over what such calls usually take: they are not all alike."""
WAIT_SLACK = 1.1
"""By this factor a wait may come out longer than estimated before the service's time is cut."""
VAIN_SHARE = 0.9
"""Of the time such calls usually take: with less time left, hardly any would be done."""
MAX_SERVICE_SHARE = 0.9
MAX_GUESSED_SHARE = 0.5
"""Of the time a call has; a length that the client has not told shall not forbid a short wait."""


class Refusals(Protocol):
    """What the metrics need to know of the door."""

    def shed(self, reason: str, tenant: str) -> None: ...


class Door:
    def __init__(
        self,
        pool: Pool,
        queue: RequestQueue,
        work: WorkRate,
        config: QueueConfig,
        observer: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._queue = queue
        self._work = work
        self._config = config
        self._observer = observer
        self._clock = clock

    def use(self, config: QueueConfig) -> None:
        self._config = config

    def admit(self, ticket: Ticket) -> None:
        """Raises what the client is told if the call may not wait; else there is a place for it."""
        call = ticket.call
        if not self._pool.can_come:
            raise self.no_replica(call)
        if call.deadline_s <= self._clock():
            words = "the call's time was over before a replica had room"
            raise self._refused(TooLate, "too_late", words, ticket)
        if call.queue_deadline_s <= self._clock():
            words = "no replica has room and queueing is off (queue.timeout_s is 0)"
            raise self._refused(QueueFull, "no_room", words, ticket)
        self._queue.max_calls = self._max_calls()
        reason, giving_way = self._queue.refusal(call), list[Ticket]()
        if reason:
            giving_way = self._queue.giving_way(call, ticket.account)
            if not giving_way:
                raise self._refused(QueueFull, "queue_full", f"the queue is full: {reason}", ticket)
        if late := self._too_late(ticket):
            raise self._refused(TooLate, "too_late", late, ticket)
        for other in giving_way:
            self._give_way(other)

    def is_in_vain(self, ticket: Ticket) -> bool:
        """Whether a replica would work on the call until its deadline, for nothing.

        Where the client told no length, the answer may be short: then only what no call takes less
        than counts.
        """
        expected_tokens = ticket.cost.expected_tokens
        needed_s = self._work.least_service_s(expected_tokens)
        if isinstance(ticket.call.ask.new_tokens, int):
            needed_s = max(needed_s, VAIN_SHARE * self._work.service_s(expected_tokens))
        return self._clock() + needed_s > ticket.call.deadline_s

    def timed_out(self, ticket: Ticket) -> RouterError:
        call, now_s = ticket.call, self._clock()
        words = f"no replica had room within {now_s - ticket.enqueued_s:.1f} s"
        if now_s < min(call.deadline_s, call.queue_deadline_s):
            words += (
                f", and the {call.deadline_s - now_s:.1f} s left are less than serving it takes"
            )
        return self._refused(QueueTimeout, "queue_timeout", words, ticket)

    def no_replica(self, call: Call) -> RouterError:
        self._observer.shed("no_replica", call.tenant)
        return NoReplica(
            f"no replica of {self._pool.model!r} serves and none is starting",
            retry_after_s=ceil(self._pool.start_s),
        )

    def _max_calls(self) -> int:
        if self._config.max_calls is not None:
            return self._config.max_calls
        bound = QUEUE_CALLS_PER_SLOT * self._pool.slots
        return min(max(MIN_QUEUE_CALLS, bound), MAX_QUEUE_CALLS)

    def _give_way(self, ticket: Ticket) -> None:
        self._queue.leave(ticket)
        if not ticket.grant.done():
            words = (
                "the queue is full, and this call's place went to a tenant that holds fewer, "
                "or to a more urgent call"
            )
            ticket.grant.set_exception(self._refused(QueueFull, "gave_way", words, ticket))

    def _refused(
        self, kind: type[RouterError], reason: str, words: str, ticket: Ticket
    ) -> RouterError:
        self._observer.shed(reason, ticket.call.tenant)
        return kind(words, retry_after_s=self._retry_after_s(ticket))

    # ---- estimates ----

    def _too_late(self, ticket: Ticket) -> str | None:
        """Why the call cannot be served in time, where that is known well enough."""
        rate, call, now_s = self._work.tokens_per_s, ticket.call, self._clock()
        if not rate or not self._queue.count or not self._work.is_known:
            return None
        left_s = call.deadline_s - now_s
        service_s = SERVICE_MARGIN * self._work.service_s(ticket.cost.expected_tokens)
        is_told = isinstance(call.ask.new_tokens, int)
        most_s = left_s * (MAX_SERVICE_SHARE if is_told else MAX_GUESSED_SHARE)
        in_time_s = (left_s - min(service_s, most_s)) / WAIT_SLACK
        bound_s = min(WAIT_MARGIN * (call.queue_deadline_s - now_s), in_time_s)
        if self._queue.waiting_tokens / rate <= bound_s:
            return None
        wait_s = self._queue.tokens_ahead(call, ticket.account, ticket.tokens) / rate
        if wait_s <= bound_s:
            return None
        allowed_s = min(left_s, call.queue_deadline_s - now_s)
        return f"about {wait_s:.1f} s of other calls are ahead, and it has {allowed_s:.1f} s"

    def _retry_after_s(self, ticket: Ticket) -> int:
        rate, now_s, account = self._work.tokens_per_s, self._clock(), ticket.account
        start_s = 0.0 if self._pool.can_serve else self._pool.start_s
        if not rate:
            return _whole_seconds(self._pool.start_s)
        ahead = self._queue.tokens_ahead(ticket.call, account, ticket.tokens)
        due_s = start_s + (ahead + ticket.tokens) / rate
        share = self._queue.share(account)
        next_s = account.promised_s + ticket.tokens / (rate * share)
        promised_s = max(now_s + due_s, next_s)
        if promised_s > now_s + 2.0 * due_s:  # not for ever later for clients that never wait
            promised_s = now_s + due_s
        account.promised_s = promised_s
        return _whole_seconds(promised_s - now_s)


def _whole_seconds(seconds: float) -> int:
    return max(1, min(MAX_RETRY_AFTER_S, ceil(seconds)))
