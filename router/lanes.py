"""The waiting calls of one priority: each tenant's in order, and whose comes next. Pure."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from heapq import heappop, heappush, nsmallest
from typing import TYPE_CHECKING

from router.fairness import Account, TokenCounters

if TYPE_CHECKING:
    from router.request_queue import Ticket

Lane = OrderedDict[int, "Ticket"]


class Lanes:
    """A lane for each tenant that waits; within it first come, first served."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.counters = TokenCounters(weights)
        self.waiting_tokens = 0.0
        """What all these calls will be charged."""
        self.passed_tokens = 0.0
        """Charged to calls that went before the next one here since its turn came."""
        self._lanes: dict[Account, Lane] = {}
        self._tokens: dict[Account, float] = {}

    def join(self, ticket: "Ticket") -> None:
        account = ticket.account
        if not self._lanes:
            self.passed_tokens = 0.0
        lane = self._lanes.get(account)
        if lane is None:
            lane = self._lanes[account] = OrderedDict()
            self._tokens[account] = 0.0
            self.counters.join(account)
        lane[id(ticket)] = ticket
        self._tokens[account] += ticket.tokens
        self.waiting_tokens += ticket.tokens

    def leave(self, ticket: "Ticket") -> bool:
        """Takes it out; false when it is out already."""
        lane = self._lanes.get(ticket.account)
        if lane is None or lane.pop(id(ticket), None) is None:
            return False
        self._tokens[ticket.account] -= ticket.tokens
        self.waiting_tokens -= ticket.tokens
        if not lane:
            del self._lanes[ticket.account], self._tokens[ticket.account]
            self.counters.leave(ticket.account)
        if not self._lanes:
            self.waiting_tokens = 0.0
        return True

    @property
    def head(self) -> "Ticket | None":
        account = self.counters.least() if self._lanes else None
        return next(iter(self._lanes[account].values())) if account else None

    def in_turn(self, count: int) -> Iterator["Ticket"]:
        """The next so many calls, in the order in which they would get their turns."""
        first = nsmallest(count, self._lanes, key=lambda account: account.rank)
        turns = [(one.rank, one, iter(self._lanes[one].values())) for one in first]
        while turns and count > 0:
            (counter, _, since), account, lane = heappop(turns)  # sorted, so it is a heap
            if (ticket := next(lane, None)) is None:
                continue
            yield ticket
            count -= 1
            rank = counter + ticket.tokens / account.weight, True, since
            heappush(turns, (rank, account, lane))

    def newest(self, account: Account) -> Iterator["Ticket"]:
        """The tenant's calls here, those that came last first."""
        return reversed(self._lanes.get(account, _EMPTY).values())

    def tokens_ahead(self, account: Account) -> float:
        """What will be charged before a call of this tenant that joins now has its turn.

        As if turns were infinitely small: the counters of all who wait rise together, up to where
        this tenant's will be when its own calls have had theirs.
        """
        mine = self._tokens.get(account, 0.0)
        level = self.counters.standing(account) + mine / account.weight
        return sum(
            min(tokens, max(0.0, level - other.counter) * other.weight)
            for other, tokens in self._tokens.items()
        )

    def __iter__(self) -> Iterator["Ticket"]:
        for lane in self._lanes.values():
            yield from lane.values()


_EMPTY: Lane = OrderedDict()
