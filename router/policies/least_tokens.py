"""The replica that holds the fewest tokens, as a share of its budget where it has one."""

from collections.abc import Sequence

from router.call import Call
from router.policies.base import Turns
from router.replica import Replica


def token_load(replica: Replica) -> tuple[float, int]:
    """Comparable between replicas of one pool: share of the budget, else tokens; then requests."""
    budget = replica.room.capacity.tokens
    tokens = replica.load.tokens
    return (tokens / budget if budget else float(tokens), replica.load.requests)


class LeastTokens:
    weighs_speed = False

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        return self._turns.least(candidates, token_load)
