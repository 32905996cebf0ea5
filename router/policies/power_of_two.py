"""Two replicas drawn at random, the less loaded one (Mitzenmacher 2001)."""

import random
from collections.abc import Sequence

from router.call import Call
from router.policies.least_tokens import token_load
from router.replica import Replica


class PowerOfTwo:
    weighs_speed = False

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        return min(self._rng.sample(candidates, 2), key=token_load)
