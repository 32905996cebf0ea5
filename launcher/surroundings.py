"""What all keepers share, and what each asks of those around it.

Made by the crew, one for each keeper; the values in `Rules` are changed by it alone. Nothing here
decides or acts.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from launcher.restarts import RestartPolicy
from launcher.runtimes.base import Runtime
from launcher.turns import LoadGate, ReplaceTurn

if TYPE_CHECKING:
    from launcher.keeper import ReplicaKeeper

Drained = Callable[[str], Coroutine[Any, Any, None]]
"""Returns once no call is in flight at a replica that leaves, or waiting longer makes no sense."""

Admitted = Callable[[str, int], Coroutine[Any, Any, None]]
"""Returns once the router has taken in a replica, of that generation."""

Free = Callable[["ReplicaKeeper"], Coroutine[Any, Any, None]]
"""Returns once nothing that is to go is still on the GPUs that the keeper's replica wants."""


@dataclass(slots=True, eq=False)
class Rules:
    """What a change of the config changes for all keepers at once; written by the crew."""

    policy: RestartPolicy
    stop_grace_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What keepers share. `gate` says who may load, `turn` who is replaced; `changed` is called on
    news."""

    runtime: Runtime
    session: aiohttp.ClientSession
    rules: Rules
    gate: LoadGate
    turn: ReplaceTurn
    drained: Drained
    admitted: Admitted
    free: Free
    changed: Callable[[], None]
