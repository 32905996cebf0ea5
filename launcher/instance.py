"""The life of one replica as the launcher sees it.

A replica is *pending* while it waits for its turn or for a back-off to pass, *starting* from the
spawn until it shows a sign of life, *loading* while it reads weights, *ready* once `/health` says
so, *draining* while it is asked to stop, and *stopped* after. *failed* means that nobody tries
again. An adopted one enters at loading or ready. The table below holds every allowed step; anything
else is a bug and raises. An `Instance` is written by its keeper alone.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum

from launcher.restarts import History
from launcher.runtimes.base import Handle


class Phase(StrEnum):
    """The words operators read, in `status` and in its JSON."""

    PENDING = "pending"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset(
        {Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING, Phase.STOPPED, Phase.FAILED}
    ),
    Phase.STARTING: frozenset(
        {Phase.LOADING, Phase.READY, Phase.PENDING, Phase.DRAINING, Phase.FAILED}
    ),
    Phase.LOADING: frozenset({Phase.READY, Phase.PENDING, Phase.DRAINING, Phase.FAILED}),
    Phase.READY: frozenset({Phase.PENDING, Phase.DRAINING, Phase.FAILED}),
    Phase.DRAINING: frozenset({Phase.STOPPED, Phase.PENDING, Phase.FAILED}),
    Phase.STOPPED: frozenset({Phase.PENDING}),
    Phase.FAILED: frozenset({Phase.PENDING, Phase.STOPPED}),
}


class IllegalStep(Exception):
    """A phase change outside the table: a bug in the keeper."""


@dataclass(slots=True, eq=False)
class Instance:
    """One replica's present. `restarts` counts starts after the first; times are monotonic."""

    replica_id: str
    model: str
    dialect: str
    phase: Phase = Phase.PENDING
    handle: Handle | None = None
    generation: int = 0
    restarts: int = 0
    progress: str = ""  # what it is doing, in the engine's words
    reason: str = ""  # why it is in this phase
    since_s: float = field(default_factory=time.monotonic)
    started_at: float | None = None  # wall clock, to print only
    max_tokens: int | None = None  # token room the engine announced at its start
    history: History = field(default_factory=History)
    is_admitted: bool = False  # the router has taken it in, in this generation
    resists: bool = False  # it was asked to end and has not: nobody else may have its GPU

    @property
    def url(self) -> str | None:
        return self.handle.base_url if self.handle else None

    @property
    def pid(self) -> int | None:
        return self.handle.pid if self.handle else None

    def take_over(self, before: "Instance") -> None:
        """Of the same replica: what outlives a change of its spec."""
        self.handle, self.generation = before.handle, before.generation
        self.restarts, self.started_at = before.restarts, before.started_at
        self.max_tokens = self.max_tokens or before.max_tokens

    def move(self, phase: Phase, reason: str, now_s: float) -> bool:
        """Enter a phase; False when it is in it already. Raises IllegalStep off the table."""
        if phase is self.phase:
            self.reason = reason
            return False
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalStep(f"{self.replica_id}: {self.phase} -> {phase} ({reason})")
        self.phase, self.reason, self.since_s = phase, reason, now_s
        if phase is not Phase.LOADING:
            self.progress = ""
        return True
