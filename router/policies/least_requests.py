"""The replica with the fewest calls in flight."""

from collections.abc import Sequence

from router.call import Call
from router.policies.base import Turns
from router.replica import Replica


class LeastRequests:
    weighs_speed = False

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        return self._turns.least(candidates, lambda replica: replica.load.requests)
