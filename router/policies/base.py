"""The one question a policy answers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from router.call import Call
from router.replica import Replica


class Policy(Protocol):
    """Chooses; holds at most a cursor of its own and never writes to a replica."""

    weighs_speed: bool
    """A long call may wait for a faster replica than the one that has room."""

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        """One of the candidates, all of which have room, or None: rather wait."""
        ...


class Turns:
    """Starts each comparison one further on, so that equals are taken in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def least(self, candidates: Sequence[Replica], key: Callable[[Replica], Any]) -> Replica | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        self._turn += 1
        start = self._turn % len(candidates)
        return min((*candidates[start:], *candidates[:start]), key=key)
