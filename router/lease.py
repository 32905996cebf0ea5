"""The right to make one attempt at one replica, and how such an attempt ends."""

from enum import Enum
from typing import NamedTuple

from router.call import Call, Cost
from router.fairness import Account
from router.replica import Replica


class Outcome(Enum):
    """How an attempt ended. Only FAILED counts against the replica."""

    DONE = "done"
    FAILED = "failed"
    SHED = "shed"  # the replica said it is full
    ABANDONED = "abandoned"  # the client left, or its deadline passed
    OUTRUN = "outrun"  # another replica, asked as well, answered first
    UNUSED = "unused"  # it came too late: no attempt was made


class Lease:
    """Made and ended by the dispatcher only."""

    __slots__ = (
        *("account", "alone", "call", "cost", "generation", "granted_s", "is_open", "replica"),
        *("tokens", "waited_s"),
    )

    def __init__(
        self,
        replica: Replica,
        call: Call,
        cost: Cost,
        account: Account,
        tokens: float,
        granted_s: float,
        waited_s: float,
    ) -> None:
        """`account`: the tenant's, which was charged `tokens` for it."""
        self.replica = replica
        self.generation = replica.generation
        self.call = call
        self.cost = cost
        self.account = account
        self.tokens = tokens
        self.granted_s = granted_s
        self.waited_s = waited_s
        self.alone = False
        self.is_open = True


class Report(NamedTuple):
    """What an attempt taught: None where the replica did not tell."""

    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    engine_wait_s: float | None = None
    """Time inside the engine before its first step: its queue time, else time to first token."""
    first_token_s: float | None = None
    between_tokens_s: float | None = None


NOTHING_TOLD = Report()
