"""So much a minute: what is left of it, and when there will be enough again. Pure.

An allowance refills evenly and holds a minute's worth at most, which may be spent at once. What
a call costs is only known at its end, so an allowance may be overdrawn; nobody is let in before it
has been paid back.
"""

MINUTE_S = 60.0
NOTHING = 1e-6
"""What rounding may leave missing after the right time has passed."""


class Allowance:
    __slots__ = ("_left", "_refilled_s", "per_minute")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._refilled_s = now_s

    def left(self, now_s: float) -> float:
        """Below zero while it is overdrawn."""
        gained = (now_s - self._refilled_s) * self.per_minute / MINUTE_S
        self._left = min(float(self.per_minute), self._left + gained)
        self._refilled_s = now_s
        return self._left

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until `amount` may be taken; 0.0: now.

        More than a minute's worth is let in when the allowance is full, and overdraws it.
        """
        missing = min(amount, self.per_minute) - self.left(now_s)
        return missing * MINUTE_S / self.per_minute if missing > NOTHING else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Whatever is left; a negative amount gives back."""
        self._left = min(float(self.per_minute), self.left(now_s) - amount)

    def change(self, per_minute: int, now_s: float) -> None:
        """What was used of it stays used."""
        self._left = per_minute - (self.per_minute - self.left(now_s))
        self.per_minute = per_minute
