"""The right to make one attempt at one replica, and how such an attempt ends."""

from dataclasses import dataclass
from enum import Enum

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


@dataclass(eq=False, slots=True)
class Lease:
    """Made and ended by the dispatcher only."""

    replica: Replica
    generation: int
    call: Call
    cost: Cost
    account: Account
    """Its tenant's, which was charged `tokens` for it."""
    tokens: float
    granted_s: float
    waited_s: float
    alone: bool = False
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt taught: None where the replica did not tell."""

    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    engine_wait_s: float | None = None
    """Time inside the engine before its first step: its queue time, else time to first token."""
    first_token_s: float | None = None
    between_tokens_s: float | None = None
