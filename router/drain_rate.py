"""How fast one key's calls finish, and so when its next one may come. Pure.

What a whole pool works off, `work_rate` tells.
"""

from math import ceil, exp

TIME_CONSTANT_S = 10.0
MAX_RETRY_AFTER_S = 600


class DrainRate:
    """Calls finished per second, older ones counting less (exponential, 10 s)."""

    def __init__(self, now_s: float) -> None:
        self._weight = 0.0
        self._updated_s = now_s
        self._started_s = now_s

    def finished(self, now_s: float, calls: int = 1) -> None:
        self._decay(now_s)
        self._weight += calls

    def per_s(self, now_s: float) -> float:
        """0.0 while nothing has finished lately."""
        self._decay(now_s)
        seen = 1.0 - exp(-(now_s - self._started_s) / TIME_CONSTANT_S)
        return self._weight / TIME_CONSTANT_S / seen if seen > 0.01 else 0.0

    def retry_after_s(self, ahead: int, now_s: float, *, unknown_s: float) -> int:
        """Whole seconds until `ahead` calls have finished; `unknown_s` when nothing finishes."""
        rate = self.per_s(now_s)
        wait_s = ahead / rate if rate > 0.001 else unknown_s
        return max(1, min(MAX_RETRY_AFTER_S, ceil(wait_s)))

    def _decay(self, now_s: float) -> None:
        self._weight *= exp(-(now_s - self._updated_s) / TIME_CONSTANT_S)
        self._updated_s = now_s
