"""When it is too late for something: one timer for all of them, as nearly none is ever reached.

A wheel of spans of time, each with who is to be told once it is over. To put one in and to take it
out are each a step in a dictionary, where a timer of the loop is ten. Nobody is told early. How
late at the most: by two spans of `SPAN_S`, or by a `LATE_SHARE` of the time ahead, if that is more;
so there are at most some two thousand spans to be kept, however far off the deadlines are.
"""

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Any

SPANS_PER_S = 64
SPAN_S = 1 / SPANS_PER_S
LATE_SHARE = 1 / 128
LATE_BITS = 8
"""Of the number of spans ahead that count: the others are made zero, upwards."""

TIMER_SPANS = 0.1
"""By so much a timer of the loop may be early: they count in milliseconds."""

Place = dict[Hashable, Callable[[Any], None]]
"""Where one waits for its deadline; it is met, or given up, by being taken out."""


class Deadlines:
    """One per router, on its loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places: dict[int, Place] = {}
        """By the span that they end with."""
        self._spans: list[int] = []
        """Theirs, as a heap."""
        self._timer: asyncio.TimerHandle | None = None
        self._next_span = 0
        """The timer's."""

    def add(self, at_s: float, who: Hashable, late: Callable[[Any], None]) -> Place:
        """Calls `late(who)` once it is `at_s`; not if `who` is taken out of its place before."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        span = int(at_s * SPANS_PER_S + TIMER_SPANS) + 1
        rough = int((at_s - loop.time()) * SPANS_PER_S).bit_length() - LATE_BITS
        if rough > 0:
            span = -(-span >> rough) << rough
        place = self._places.get(span)
        if place is None:
            place = self._places[span] = {}
            heapq.heappush(self._spans, span)
            if self._timer is None or span < self._next_span:
                self._watch()
        place[who] = late
        return place

    def _watch(self) -> None:
        """The timer is the first place's."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._next_span = self._spans[0]
        self._timer = self._loop.call_at(self._next_span / SPANS_PER_S, self._over)

    def _over(self) -> None:
        """Spans are; who is still there is told, and what nobody waits in any more forgotten."""
        loop, self._timer = self._loop, None
        assert loop is not None
        span_now = int(loop.time() * SPANS_PER_S + TIMER_SPANS)
        late: list[Place] = []
        while self._spans and (self._spans[0] <= span_now or not self._places[self._spans[0]]):
            late.append(self._places.pop(heapq.heappop(self._spans)))
        if self._spans:
            self._watch()
        for place in late:
            while place:  # the one who is told may take others out
                who = next(iter(place))
                tell = place.pop(who)
                try:
                    tell(who)
                except Exception as exc:  # the others are to be told all the same
                    context = {"message": "a deadline that nobody could take", "exception": exc}
                    loop.call_exception_handler(context)
