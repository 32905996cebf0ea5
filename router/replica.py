"""One running model server as the router sees it.

Who writes what: the dispatcher `load`, `room`, `idle_since_s` and `alone`, and by its `Speeds` what
was learned of its speed; the prober `canary_s`;
whoever hears of the replica `pace`; the pool everything else. Policies and the admin page only
read.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from router.call import Cost
from router.health import Health
from router.pace import Pace
from router.room import Load, Room

if TYPE_CHECKING:
    from router.dialects.base import Dialect, EngineInfo


class Admin(Enum):
    """What an operator wants of a replica."""

    ACTIVE = "active"
    DRAINING = "draining"


COMING = frozenset({"", "pending", "starting", "loading", "ready", "draining"})
"""Phases in which a replica serves or may soon; "" when nobody tells (the router is alone)."""
LEAVING = "draining"
"""The launcher is about to stop it: it finishes what it has."""


@dataclass(slots=True)
class Speed:
    """What its calls have told lately, in the measure of `router.speed`."""

    seconds: float = 0.0
    tokens: float = 0.0
    is_news: bool = False
    each_s: float = 0.0
    """What a token takes it, without a crowd; 0.0 while nobody has looked."""


@dataclass(eq=False, slots=True)
class Replica:
    """Identity object: two replicas are never equal, whatever their fields."""

    id: str
    generation: int
    host: str
    port: int
    model: str
    dialect: "Dialect"
    health: Health
    room: Room = field(default_factory=Room)
    load: Load = field(default_factory=Load)
    admin: Admin = Admin.ACTIVE
    phase: str = ""
    info: "EngineInfo | None" = None
    joined_s: float = 0.0
    has_started: bool = False
    """It was healthy in this generation: from then on it takes calls, or would."""
    fault: str = ""
    """What is wrong with its GPU, as the launcher says."""
    slowed: str = ""
    """Why its GPU is slower than it could be, as the launcher says."""
    has_served: bool = False
    """It was healthy before, in this generation or an earlier one."""
    is_gone: bool = False
    """No longer in the list, or replaced by a later generation of itself."""
    pace: Pace = field(default_factory=Pace)
    """How long it is normally silent, and when it last spoke."""
    idle_since_s: float = 0.0
    """When it last had a call; kept by the dispatcher."""
    canary_s: float = 0.0
    """When the router's own call was last served; kept by the prober."""
    alone: bool = False
    """It runs a suspect call and takes nothing beside it."""
    is_usable: bool = False
    """May be sent calls as far as health and operator go; kept by the pool. Room is another
    question."""
    reason: str = ""
    """Why it is in the state it is in."""
    served: int = 0
    failed: int = 0
    speed: Speed = field(default_factory=Speed)
    rank: float = 0.0
    """The least would be done with a call first."""
    crowd: float = 0.0
    """Its load, in calls of a usual length."""

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}" if self.port else ""

    @property
    def is_coming(self) -> bool:
        """Serves, or may serve again without anybody's doing."""
        return self.admin is Admin.ACTIVE and self.phase in COMING

    def takes(self, cost: Cost) -> bool:
        """An idle one takes any call: the engine judges. Else it must fit beside the rest."""
        if not self.is_usable or self.alone:
            return False
        room, held = self.room, self.load.requests
        if not held or room.is_paused:
            return not room.is_paused
        return (
            held + cost.requests <= room.requests
            and self.load.tokens + cost.reserve_tokens <= room.tokens
        )

    def __repr__(self) -> str:
        return (
            f"<Replica {self.id} g{self.generation} {self.health.state.value} "
            f"requests={self.load.requests} tokens={self.load.tokens}>"
        )
