"""Which replicas the router has taken in: a replica that is up for us may not be for clients yet.

Between an engine's first good health check and the first call it gets, the router asks it, too, and
makes a call of its own. Until that was served the replica is loading, for whoever waits. It is told
once: what becomes of its health later is another matter (`status.overlay`), and so is a new router
that has yet to ask.
"""

import asyncio
from dataclasses import replace
from typing import Any

from launcher.instance import Phase
from launcher.router_client import replica_states
from launcher.status import ReplicaStatus

_GIVEN_UP = "ejected"  # its first call failed: waiting would not help, and its health is shown


class Admissions:
    """Fed with what the router tells; asked for what to show, and waited for."""

    def __init__(self) -> None:
        self._admitted: set[tuple[str, int]] = set()
        self._last: dict[str, dict[str, Any]] = {}
        self._before: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()

    def learn(self, router_state: dict[str, Any]) -> None:
        """Takes in a `/admin/state`; replicas it no longer has are forgotten."""
        self._before, self._last = self._last, replica_states(router_state)
        seen = {(id_, int(one.get("generation", 0))): one for id_, one in self._last.items()}
        fresh = {key for key, one in seen.items() if one.get("admitted", True)}
        self._admitted = {key for key in self._admitted if key in seen} | fresh
        self._news.set()
        self._news = asyncio.Event()

    async def until_in(self, replica_id: str, generation: int) -> None:
        """However long it takes: one whose first call fails is not in."""
        while (replica_id, generation) not in self._admitted:
            await self._news.wait()

    def shown(self, replica: ReplicaStatus) -> ReplicaStatus:
        """A ready one that the router has not taken in is loading; before it told, all are."""
        if not self.awaits(replica):
            return replica
        return replace(replica, phase=Phase.LOADING, progress=self._progress(replica), reason="")

    def awaits(self, replica: ReplicaStatus) -> bool:
        """Whether the router is about to take it in."""
        is_in = (replica.id, replica.generation) in self._admitted
        is_given_up = self._seen(replica).get("health") == _GIVEN_UP
        return replica.phase is Phase.READY and not is_in and not is_given_up

    def _seen(self, replica: ReplicaStatus) -> dict[str, Any]:
        """What the router last said of it, rather than of the one before it."""
        seen = self._last.get(replica.id, {})
        return seen if seen.get("generation") == replica.generation else {}

    def _progress(self, replica: ReplicaStatus) -> str:
        # What the router found before it was told that the engine is up says nothing, and it may
        # tell that once more before it has looked again.
        told = (self._before.get(replica.id, {}), self._seen(replica))
        if all((one.get("phase"), one.get("health")) == (Phase.READY, "unhealthy") for one in told):
            return f"it is up, and the router does not reach it: {told[-1].get('reason')}"
        return "it is up; the router makes its first call"
