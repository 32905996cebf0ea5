"""Calls that wait for a replica: order, bounds, who may pass whom and who gives way. Pure.

A waiting call belongs to no replica. The order, from the top:

 1. calls whose replica died, or was full, go first, whoever sent them, in their order;
 2. high before normal before low; but the next call of each goes before all others once it was
    passed by `PASSES` times as many tokens as its own, so that none waits for ever;
 3. within a priority the tenant that was served the fewest tokens (`fairness`);
 4. within a tenant first come, first served.

A head that fits nowhere may be passed by smaller calls, but only for a while: then a replica is
kept free for it (the dispatcher does that; `blocked_s` tells since when it has waited at the head).

The places are shared, too: when all are taken, a tenant that holds fewer than its share gets one
from the tenant that holds the most for its weight.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from math import inf
from typing import TYPE_CHECKING

from router.call import Call, Cost, Priority
from router.deadlines import Place
from router.fairness import Account, charge_of
from router.lanes import Lanes

if TYPE_CHECKING:
    from router.lease import Lease

LOOK_AHEAD = 16
"""How many calls behind a blocked head may be tried; bounds the work per decision."""
PASSES = 8.0
"""A priority that waits gets a ninth of the tokens at least."""
MAX_GIVING_WAY = 16
"""So many small bodies may give way to a large one."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A call's place in the queue. `grant` gets its lease; it may be cancelled at any time."""

    call: Call
    cost: Cost
    enqueued_s: float
    grant: "asyncio.Future[Lease]"
    account: Account
    excluded: frozenset[str] = field(default_factory=frozenset)
    """Replicas that failed this call: asked again only if there is no other."""
    alone: bool = False
    """A suspect: gets a replica to itself, one that has passed a probe since the ticket is here."""
    is_retry: bool = False
    """It was admitted before, and gives way to nobody."""
    blocked_s: float | None = None
    deadline_s: float = inf
    """So long it may wait."""
    deadline_place: Place | None = None
    patient_until_s: float | None = None
    """So long it waits for a faster replica than the one that has room; None: none was slow."""
    tokens: float = field(init=False)
    """What its turn will be charged."""

    def __post_init__(self) -> None:
        self.tokens = charge_of(self.cost)


@dataclass(slots=True)
class Places:
    """What one tenant holds of the queue."""

    weight: float
    calls: list[int] = field(default_factory=lambda: [0] * len(Priority))
    """By priority."""
    accounts: list[Account | None] = field(default_factory=lambda: [None] * len(Priority))
    body_bytes: int = 0

    @property
    def count(self) -> int:
        return sum(self.calls)


class RequestQueue:
    """Ordered, bounded in calls and in bytes; nothing here costs more with a longer queue."""

    def __init__(
        self, max_calls: int, max_bytes: int, weights: Mapping[str, float] | None = None
    ) -> None:
        self.max_calls = max_calls
        self.max_bytes = max_bytes
        self.waiting_bytes = 0
        self.places: dict[str, Places] = {}
        """By tenant, of those that wait."""
        self._first: OrderedDict[int, Ticket] = OrderedDict()
        self._lanes = tuple(Lanes(weights or {}) for _ in Priority)
        self.count = 0
        """Of the calls that wait; `len` of the queue, for where every call looks at it."""
        self._weight = 0.0

    def use(self, max_bytes: int, weights: Mapping[str, float]) -> None:
        """Calls that wait already keep their places."""
        self.max_bytes = max_bytes
        for lanes in self._lanes:
            lanes.counters.use(weights)

    def __len__(self) -> int:
        return self.count

    def account(self, call: Call) -> Account:
        return self._lanes[call.priority].counters.account(call.tenant)

    # ---- order ----

    @property
    def head(self) -> Ticket | None:
        if self._first:
            return next(iter(self._first.values()))
        return self._turn()[1]

    def behind_head(self) -> Iterator[Ticket]:
        """The calls that may pass the head now, in order."""
        turn, _ = self._turn()
        by_turn = sorted(self._lanes, key=lambda lanes: lanes is not turn)
        in_turn = (lanes.in_turn(1 + LOOK_AHEAD) for lanes in by_turn)
        every = chain(self._first.values(), chain.from_iterable(in_turn))
        return islice((one for one in islice(every, 1, None) if not one.alone), LOOK_AHEAD)

    def _turn(self) -> tuple[Lanes | None, Ticket | None]:
        """The priority whose turn it is, and its next call."""
        turn: tuple[Lanes | None, Ticket | None] = None, None
        for lanes in self._lanes:
            if (head := lanes.head) is None:
                continue
            if turn[0] is None:
                turn = lanes, head
            elif lanes.passed_tokens >= PASSES * head.tokens:
                return lanes, head
        return turn

    def join(self, ticket: Ticket, *, at_head: bool = False) -> None:
        if at_head:
            self._first[id(ticket)] = ticket
            self.arrive(ticket.call, ticket.account)
        else:
            self._lanes[ticket.call.priority].join(ticket)
        account, size = ticket.account, len(ticket.call.body)
        account.users += 1
        places = self.places.get(account.tenant)
        if places is None:
            places = self.places[account.tenant] = Places(account.weight)
            self._weight += account.weight
        places.accounts[ticket.call.priority] = account
        places.calls[ticket.call.priority] += 1
        places.body_bytes += size
        self.waiting_bytes += size
        self.count += 1

    def leave(self, ticket: Ticket) -> bool:
        """Takes it out; false when it is out already."""
        is_first = self._first.pop(id(ticket), None) is not None
        if not is_first and not self._lanes[ticket.call.priority].leave(ticket):
            return False
        if ticket.deadline_place is not None:
            ticket.deadline_place.pop(ticket, None)
        account, size = ticket.account, len(ticket.call.body)
        account.users -= 1
        places = self.places[account.tenant]
        places.calls[ticket.call.priority] -= 1
        places.body_bytes -= size
        self.waiting_bytes -= size
        self.count -= 1
        if not places.count:
            del self.places[account.tenant]
            self._weight = self._weight - places.weight if self.places else 0.0
        return True

    # ---- turns ----

    def arrive(self, call: Call, account: Account) -> None:
        """The call has its turn at once, or before everybody else."""
        self._lanes[call.priority].counters.arrive(account)

    def take(self, ticket: Ticket) -> None:
        """The call has its turn, and passes those below it, or before it that fit nowhere."""
        own, *below = self._lanes[ticket.call.priority :]
        is_next = own.head is ticket
        own.passed_tokens = 0.0 if is_next else own.passed_tokens + ticket.tokens
        for lanes in below:
            lanes.passed_tokens += ticket.tokens
        self.leave(ticket)

    def charge(self, call: Call, account: Account, tokens: float) -> None:
        account.users += 1
        self._lanes[call.priority].counters.charge(account, tokens)

    def settle(self, call: Call, account: Account, tokens: float) -> None:
        """The call has ended, and came to so many tokens more than charged."""
        account.users -= 1
        self._lanes[call.priority].counters.settle(account, tokens)

    def tokens_ahead(self, call: Call, account: Account, tokens: float) -> float:
        """What will be charged before this call has its turn, if it joins and nobody after it."""
        own, above = self._lanes[call.priority], self._lanes[: call.priority]
        mine = own.tokens_ahead(account)
        passing = sum(lanes.waiting_tokens for lanes in above)
        first = sum(ticket.tokens for ticket in islice(self._first.values(), LOOK_AHEAD))
        return first + mine + min(passing, PASSES * (mine + tokens))

    @property
    def waiting_tokens(self) -> float:
        return sum(lanes.waiting_tokens for lanes in self._lanes)

    # ---- places ----

    def share(self, account: Account) -> float:
        """The tenant's, among those that wait and itself."""
        is_here = account.tenant in self.places
        return account.weight / (self._weight if is_here else self._weight + account.weight)

    def refusal(self, call: Call) -> str | None:
        """Why there is no place for this call, or None. Calls admitted before always have one."""
        if self.count >= self.max_calls:
            return f"{len(self)} calls wait already; the queue holds {self.max_calls}"
        if self.count and self.waiting_bytes + len(call.body) > self.max_bytes:
            return (
                f"waiting calls hold {self.waiting_bytes} bytes; "
                f"{len(call.body)} more would pass the bound of {self.max_bytes}"
            )
        return None

    def giving_way(self, call: Call, account: Account) -> list[Ticket]:
        """The calls that have to leave for this one to get a place it has a right to; else none.

        1. a tenant within its share takes from the one that holds the most for its weight, the
           newest of its least urgent calls;
        2. one that holds its share may put a call before a less urgent one of its own.
        """
        calls = self.count + 1 - self.max_calls
        size = self.waiting_bytes + len(call.body) - self.max_bytes
        tenant: str | None = account.tenant
        least = Priority(call.priority) + 1
        if self._is_within_share(call, account, is_in_calls=calls > 0, is_in_bytes=size > 0):
            tenant, least = self._heaviest(account.tenant, is_in_bytes=size > 0), Priority.HIGH
        leaving: list[Ticket] = []
        for ticket in islice(self._newest(tenant, least), MAX_GIVING_WAY):
            leaving.append(ticket)
            calls, size = calls - 1, size - len(ticket.call.body)
            if calls <= 0 and size <= 0:
                return leaving
        return []

    def _is_within_share(
        self, call: Call, account: Account, *, is_in_calls: bool, is_in_bytes: bool
    ) -> bool:
        """Whether it would be, with this call, of what there is too little of."""
        mine, share = self.places.get(account.tenant), self.share(account)
        count, size = (mine.count, mine.body_bytes) if mine else (0, 0)
        return (not is_in_calls or count + 1 <= share * self.max_calls) and (
            not is_in_bytes or size + len(call.body) <= share * self.max_bytes
        )

    def _heaviest(self, but: str, *, is_in_bytes: bool) -> str | None:
        """The tenant that holds the most for its weight."""

        def held(tenant: str) -> float:
            places = self.places[tenant]
            return (places.body_bytes if is_in_bytes else places.count) / places.weight

        return max((tenant for tenant in self.places if tenant != but), key=held, default=None)

    def _newest(self, tenant: str | None, least: int) -> Iterator[Ticket]:
        """Calls of the tenant that may give way, from LOW up to the priority `least`."""
        places = self.places.get(tenant) if tenant is not None else None
        for priority in reversed(Priority):
            account = places.accounts[priority] if places else None
            if account is None or priority < least:
                continue
            for ticket in self._lanes[priority].newest(account):
                if not ticket.is_retry:
                    yield ticket

    def __iter__(self) -> Iterator[Ticket]:
        return iter([*self._first.values(), *chain.from_iterable(self._lanes)])
