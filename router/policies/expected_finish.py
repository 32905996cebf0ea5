"""The replica that would be done with the call first, going by what each was seen to take.

Those that differ by less than can be known are equal, and the one that has the least to do gets it.
"""

from collections.abc import Sequence
from operator import attrgetter

from router.call import Call
from router.policies.base import Turns
from router.replica import Replica
from router.speed import NEARLY

RANK, CROWD = attrgetter("rank"), attrgetter("crowd")


class ExpectedFinish:
    weighs_speed = True

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        bound = min(map(RANK, candidates)) * NEARLY
        return self._turns.least([one for one in candidates if one.rank <= bound], CROWD)
