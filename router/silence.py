"""Notices that a busy replica says nothing any more: neither to its calls nor to a question.

    a word, or a first call -> silent for as long as is normal -> asked (a probe, one at a time)
                            -> silent for as long again        -> suspect, until its next word

One timer per replica, armed while it has calls and moved on lazily: it costs nothing per call and
nothing while idle. What is normal the replica's pace tells; what a suspicion means, its health.
"""

import asyncio
from collections.abc import Callable
from math import inf

from router.health import Event, State
from router.pace import nobody
from router.pool import Pool
from router.replica import Replica

OWN_STALL_S = 0.1
"""A timer so late means that the router itself stood still: what came meanwhile is not read yet."""


class SilenceWatch:
    """One replica's; the prober owns it, asks for it, and tells it of every question it sends."""

    def __init__(self, pool: Pool, replica: Replica, ask: Callable[[], None]) -> None:
        self._pool = pool
        self._replica = replica
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asked_s = -inf
        self._silent_since_s = 0.0
        replica.pace.stirred = self._stirred

    def busy(self) -> None:
        """It gets a call after having had none."""
        self._replica.pace.busy_since_s = now_s = self._loop.time()
        if self._timer is None:
            self._arm(now_s + self._replica.pace.silence_allowed_s(now_s))

    def asked(self) -> None:
        """A question went out that any answer will do for."""
        self._asked_s = self._loop.time()

    def not_asked(self) -> None:
        """It did not: for want of our own."""
        self._asked_s = -inf

    def close(self) -> None:
        self._replica.pace.stirred = nobody
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at_s: float) -> None:
        self._timer = self._loop.call_at(at_s, self._look, at_s)

    def _look(self, due_s: float) -> None:
        self._timer = None
        if self._replica.load.requests:
            self._arm(self._next_s(self._loop.time(), due_s))

    def _next_s(self, now_s: float, due_s: float) -> float:
        """Does what is due, and says when to look again:

        1. the router was late itself, or the replica is not in use: later;
        2. it spoke not long ago: when that will be long;
        3. nothing was asked since: asks;
        4. the question is young: when it is not;
        5. else it is suspect.
        """
        pace = self._replica.pace
        allowed_s, since_s = pace.silence_allowed_s(now_s), pace.silent_since_s()
        if now_s - due_s > OWN_STALL_S:
            return now_s + OWN_STALL_S
        if self._replica.health.state is not State.HEALTHY:
            return now_s + allowed_s
        if now_s < since_s + allowed_s:
            return since_s + allowed_s
        if self._asked_s <= since_s:
            self.asked()
            self._ask()
        elif now_s >= self._asked_s + allowed_s:
            calls, self._silent_since_s = self._replica.load.requests, since_s
            reason = f"silent for {now_s - since_s:.1f} s, to a probe too, with {calls} calls"
            self._pool.on_event(self._replica, Event.SUSPECTED, reason)
            return now_s + allowed_s
        return self._asked_s + allowed_s

    def _stirred(self) -> None:
        if self._replica.health.is_suspect:
            now_s = self._loop.time()
            self._replica.pace.excuse(now_s, now_s - self._silent_since_s)
            self._pool.on_event(self._replica, Event.HEARD, "it speaks again")
