"""Each replica in its turn, by id; one without room is passed over."""

from collections.abc import Sequence

from router.call import Call
from router.replica import Replica


class RoundRobin:
    weighs_speed = False

    def __init__(self) -> None:
        self._last_id = ""

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        if not candidates:
            return None
        later = [replica for replica in candidates if replica.id > self._last_id]
        chosen = min(later or candidates, key=lambda replica: replica.id)
        self._last_id = chosen.id
        return chosen
