"""Calls that wait for a replica: order, bounds and who may pass whom. Pure.

First come, first served. A waiting call belongs to no replica. Calls whose replica died go to the
head. A head that fits nowhere may be passed by smaller calls, but only for a while: then a replica
is kept free for it (the dispatcher does that; `blocked_s` tells since when it has waited at the
head).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from router.call import Call, Cost

if TYPE_CHECKING:
    from router.lease import Lease

LOOK_AHEAD = 16
"""How many calls behind a blocked head may be tried; bounds the work per decision."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A call's place in the queue. `grant` gets its lease; it may be cancelled at any time."""

    call: Call
    cost: Cost
    enqueued_s: float
    grant: "asyncio.Future[Lease]"
    excluded: frozenset[str] = field(default_factory=frozenset)
    """Replicas that failed this call: asked again only if there is no other."""
    alone: bool = False
    """A suspect: gets a replica to itself, one that has passed a probe since the ticket is here."""
    blocked_s: float | None = None


class RequestQueue:
    """Ordered, bounded in calls and in bytes; every operation is O(1)."""

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self.max_calls = max_calls
        self.max_bytes = max_bytes
        self.waiting_bytes = 0
        self._tickets: OrderedDict[int, Ticket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def head(self) -> Ticket | None:
        return next(iter(self._tickets.values()), None)

    def refusal(self, call: Call) -> str | None:
        """Why this call may not join, or None. Calls that were admitted before always may."""
        if len(self._tickets) >= self.max_calls:
            return f"{len(self)} calls wait already; the queue holds {self.max_calls}"
        if self._tickets and self.waiting_bytes + len(call.body) > self.max_bytes:
            return (
                f"waiting calls hold {self.waiting_bytes} bytes; "
                f"{len(call.body)} more would pass the bound of {self.max_bytes}"
            )
        return None

    def join(self, ticket: Ticket, *, at_head: bool = False) -> None:
        self._tickets[id(ticket)] = ticket
        self.waiting_bytes += len(ticket.call.body)
        if at_head:
            self._tickets.move_to_end(id(ticket), last=False)

    def leave(self, ticket: Ticket) -> bool:
        """Takes it out; false when it is out already."""
        if self._tickets.pop(id(ticket), None) is None:
            return False
        self.waiting_bytes -= len(ticket.call.body)
        return True

    def behind_head(self) -> Iterator[Ticket]:
        """The calls that may pass the head now, in order."""
        return islice(self._tickets.values(), 1, 1 + LOOK_AHEAD)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets.values()))
