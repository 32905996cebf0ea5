"""Whose turn it is: tenants share an engine's work by tokens, not by calls. Pure.

Virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024). Each
tenant has a counter of the tokens it was served, over its weight; the next turn is the least
counter's. Three rules make that fair whatever the sizes and times of calls:

 1. a turn is charged when it is given: the prompt, and the answer as long as it is expected to be.
    What the answer really came to is put right when the call ends;
 2. a tenant that comes back from having nothing to ask is lifted to the least counter of those who
    wait (nobody waits: to the counter of who left last): being idle saves nothing up;
 3. of equal counters, one that has had no turn yet since it began to wait comes first. Each
    newcomer is lifted to the least counter, so it does not wait for another's turn.

So between two tenants that both always have calls waiting, the tokens served differ by no more than
twice what one of them can have in flight at a time, for however long. A tenant that asks for less
than its share gets all it asks for, at the next turn.

There is one `TokenCounters` for each priority. Counters are few and forgettable: a tenant that has
nothing here is forgotten when others need the place, and while all places are taken, the rest
share one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice

from router.call import Cost

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""A token of an answer keeps an engine busy for longer than one of a prompt; as in the paper."""
MAX_TENANTS = 1024
OTHERS = "*"
"""No tenant can have this name."""
STALE_ENTRIES = 64
FORGET_LOOKS = 8


def charge_of(cost: Cost) -> float:
    """What a turn of this cost is charged before anybody knows how long the answer gets."""
    return charge(cost.input_tokens, cost.expected_tokens)


def charge(input_tokens: float, output_tokens: float) -> float:
    return INPUT_WEIGHT * input_tokens + OUTPUT_WEIGHT * output_tokens


@dataclass(eq=False, slots=True)
class Account:
    """One tenant's standing at one priority."""

    tenant: str
    weight: float
    counter: float = 0.0
    """Tokens charged, over the weight."""
    users: int = 0
    """Waiting calls and leases that hold on to it: it is not forgotten as long as there are any."""
    promised_s: float = 0.0
    """The latest time at which a refused client was asked back."""
    since: int = 0
    """Its place among those that wait, by when they began to."""
    had_turn: bool = False
    """Since it began to wait."""
    filed: int = 0
    """Which entry in the order is its present one; older ones are void."""

    @property
    def rank(self) -> tuple[float, bool, int]:
        """The least is next; no two that wait have the same."""
        return self.counter, self.had_turn, self.since


class TokenCounters:
    """The accounts of one priority; every operation is O(log tenants)."""

    def __init__(self, weights: Mapping[str, float], max_tenants: int = MAX_TENANTS) -> None:
        self._weights = weights
        self._max_tenants = max_tenants
        self._accounts: dict[str, Account] = {}
        self._others = Account(OTHERS, 1.0)
        self._waiting: dict[Account, None] = {}
        self._order: list[tuple[tuple[float, bool, int], int, Account]] = []
        self._left_last = self._others
        self._joined = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def use(self, weights: Mapping[str, float]) -> None:
        """A tenant has its new weight once it has nothing here any more."""
        self._weights = weights

    @property
    def waiting(self) -> Collection[Account]:
        return self._waiting.keys()

    def account(self, tenant: str) -> Account:
        """The tenant's own, or the one that is shared by those who found no place."""
        account = self._accounts.pop(tenant, None)
        if account is None:
            if len(self._accounts) >= self._max_tenants and not self._forget_one():
                return self._others
            account = Account(tenant, 1.0)
        if not account.users:
            account.weight = self._weights.get(tenant, 1.0)
        self._accounts[tenant] = account  # those used last stand last
        return account

    def arrive(self, account: Account) -> None:
        """The tenant has a call, and had none waiting: it brings no credit along."""
        account.counter = max(account.counter, self._floor())

    def join(self, account: Account) -> None:
        """The tenant's first call waits."""
        self.arrive(account)
        self._joined += 1
        account.since, account.had_turn = self._joined, False
        self._waiting[account] = None
        self._file(account)

    def leave(self, account: Account) -> None:
        """The tenant's last call waits no longer."""
        del self._waiting[account]
        self._left_last = account

    def least(self) -> Account | None:
        """Whose turn it is, of those that wait."""
        order = self._order
        while order:
            _, filed, account = order[0]
            if filed == account.filed and account in self._waiting:
                return account
            heappop(order)
        return None

    def charge(self, account: Account, tokens: float) -> None:
        """It was given a turn."""
        account.had_turn = True
        self.settle(account, tokens)
        if account not in self._waiting:
            self._left_last = account

    def settle(self, account: Account, tokens: float) -> None:
        """A turn came to more than was charged, or to less: then `tokens` is negative."""
        account.counter += tokens / account.weight
        if account in self._waiting:
            self._file(account)

    def standing(self, account: Account) -> float:
        """The counter that its next call would come with."""
        if account in self._waiting:
            return account.counter
        return max(account.counter, self._floor())

    def _floor(self) -> float:
        least = self.least()
        return least.counter if least else self._left_last.counter

    def _file(self, account: Account) -> None:
        account.filed += 1
        if len(self._order) > 2 * len(self._waiting) + STALE_ENTRIES:
            self._order = [(one.rank, one.filed, one) for one in self._waiting]
            heapify(self._order)
            return
        heappush(self._order, (account.rank, account.filed, account))

    def _forget_one(self) -> bool:
        """Of those used longest ago, one that nothing here holds on to."""
        for tenant in list(islice(self._accounts, FORGET_LOOKS)):
            if not self._accounts[tenant].users:
                del self._accounts[tenant]
                return True
        return False
