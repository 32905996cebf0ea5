"""The replicas of one model: who belongs to it, who may be used, what it has learned.

The pool is the only writer of a replica's health, admin state and membership. It never chooses a
replica and never counts load: that is the dispatcher's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from router.call import Ask, Cost
from router.config import HealthConfig
from router.dialects import DIALECTS, EngineInfo
from router.estimates import Estimates
from router.health import Event, Health, State
from router.pace import Pace
from router.replica import LEAVING, Admin, Replica

FIRST_START_S = 15.0
"""How long a start takes, until one was seen."""
START_WEIGHT = 0.3
LOSSES = frozenset({Event.LOST, Event.SUSPECTED})
STARTING = frozenset({"pending", "starting", "loading"})
SERVING = frozenset({State.HEALTHY, State.SUSPECT})
ANSWERED = frozenset({State.HEALTHY, State.SUSPECT, State.UNHEALTHY})
UNUSABLE = 9
UNNAMED = "default"
"""The pool of replicas given by URL alone."""


@dataclass(frozen=True, slots=True)
class Member:
    """One replica as the launcher, or the command line, tells of it."""

    id: str
    generation: int
    host: str
    port: int
    """0 while it is not known yet."""
    model: str
    dialect: str = "tgi"
    phase: str = ""
    max_requests: int | None = None
    max_tokens: int | None = None
    fault: str = ""
    slowed: str = ""


StateChange = Callable[[Replica, State, State, str], None]


class Pool:
    def __init__(
        self,
        model: str,
        config: HealthConfig,
        clock: Callable[[], float],
        on_state_change: StateChange,
    ) -> None:
        self.model = model
        self.dialect = DIALECTS["tgi"]
        """All its replicas speak the same one; a first list says which."""
        self.estimates = Estimates()
        self.changed: Callable[[], None] = lambda: None
        """Called when a replica may have become usable, or the last hope is gone."""
        self.can_come = False
        """Whether waiting for a replica makes sense at all."""
        self.start_s = FIRST_START_S
        """How long a replica takes from its start to its first passed probe, learned."""
        self.look: Callable[[Replica], None] = lambda replica: None
        """Called when a probe is wanted at once: it tells whether the replica lives."""
        self.busy: Callable[[Replica], None] = lambda replica: None
        """Called when a replica gets a call after having had none."""
        self.suspected: Callable[[Replica], None] = lambda replica: None
        """Called when a replica turned suspect, and again when another one comes that could serve
        instead: its calls may be better off elsewhere."""
        self.word_since_s = -inf
        """Somebody waits for probes that began then or later."""
        self._config = config
        self._clock = clock
        self._on_state_change = on_state_change
        self._replicas: dict[str, Replica] = {}
        self._info = EngineInfo()
        self._lost_s: dict[str, float] = {}
        """When each replica, by id, last died or lost a connection."""

    def use(self, config: HealthConfig) -> None:
        """What each replica has passed and failed so far still counts."""
        self._config = config
        for replica in self:
            replica.health.config = config
            replica.pace.use(config.timeout_s)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, replica_id: str) -> Replica | None:
        return self._replicas.get(replica_id)

    @property
    def info(self) -> EngineInfo:
        """What the engines told last; replicas of one pool run the same model and engine."""
        return self._info

    @property
    def served_name(self) -> str:
        """What clients are told: the engine's own model id where nobody named the pool."""
        return (self._info.model_id if self.model == UNNAMED else None) or self.model

    @property
    def names(self) -> list[str]:
        """All that clients may call it: the served name, then the engine's other ones."""
        return list(dict.fromkeys((self.served_name, *self._info.aliases)))

    @property
    def is_named(self) -> bool:
        """Whether it can be told which names mean this pool: its engines may have to say first."""
        return self.model != UNNAMED or self._info.model_id is not None

    @property
    def can_serve(self) -> bool:
        return any(replica.is_usable for replica in self)

    @property
    def has_place(self) -> bool:
        """A cheap look before the costs of waiting calls are compared."""
        for replica in self._replicas.values():  # at each turn of each waiting call
            room = replica.room
            if (
                replica.load.requests < room.requests
                and replica.is_usable
                and not replica.alone
                and not room.is_paused
            ):
                return True
        return False

    @property
    def idle(self) -> int:
        """Replicas that could serve and have nothing to do."""
        idle = 0
        for replica in self._replicas.values():
            if not replica.load.requests and replica.is_usable and not replica.room.is_paused:
                idle += 1
        return idle

    @property
    def is_well(self) -> bool:
        """A replica serves, or one is starting; those that say nothing do neither, though they get
        the calls where nobody else is left."""
        return any(
            (replica.is_usable and replica.health.state is not State.UNHEALTHY)
            or (replica.phase != "" and replica.is_coming and _is_starting(replica))
            for replica in self
        )

    @property
    def slots(self) -> int:
        """Requests all replicas could hold at the very most."""
        return sum(replica.room.capacity.ceiling for replica in self)

    def cost(self, ask: Ask) -> Cost:
        return self.dialect.cost(ask, self._info, self.estimates)

    def sync(self, members: list[Member], draining: frozenset[str]) -> list[Replica]:
        """Takes the full list; gives the replicas that are new. Known ones keep what they hold."""
        before, self._replicas = self._replicas, {}
        fresh: list[Replica] = []
        for member in members:
            self.dialect = DIALECTS[member.dialect]
            replica = before.get(member.id)
            if replica is None or not _is_same(replica, member):
                has_served = replica is not None and replica.has_served
                replica = self._make(member, draining)
                replica.has_served = has_served
                fresh.append(replica)
            elif replica.phase != member.phase:
                # Its launcher sees it come up, say: the last look may have been long ago.
                self.look(replica)
            replica.phase = member.phase
            replica.fault, replica.slowed = member.fault, member.slowed
            replica.room.fix(member.max_requests, member.max_tokens, is_slowed=bool(member.slowed))
            self._replicas[member.id] = replica
        for replica in before.values():
            replica.is_gone = self._replicas.get(replica.id) is not replica
            replica.is_usable = replica.is_usable and not replica.is_gone
        self._refresh()
        self.changed()
        return fresh

    def _make(self, member: Member, draining: frozenset[str]) -> Replica:
        return Replica(
            id=member.id,
            generation=member.generation,
            host=member.host,
            port=member.port,
            model=member.model,
            dialect=DIALECTS[member.dialect],
            health=Health(self._config),
            pace=Pace(self._config.timeout_s),
            joined_s=self._clock(),
            admin=Admin.DRAINING if member.id in draining else Admin.ACTIVE,
        )

    def learn(self, replica: Replica, info: EngineInfo) -> None:
        """The engine told its limits; one that tells none changes nothing for the others."""
        replica.info = info
        if info.told or not self._info.told:
            self._info = info
        replica.room.told(info.capacity)
        self.changed()

    def set_admin(self, replica: Replica, admin: Admin) -> None:
        replica.admin = admin
        self._refresh()
        self.changed()

    def on_event(
        self, replica: Replica, event: Event, reason: str, began_s: float | None = None
    ) -> None:
        """Takes a health event in; a call's failure never ejects where that would hurt more."""
        health = replica.health
        if event is Event.CALL_FAIL and health.would_eject and not self._may_eject(replica):
            return
        before, known = health.state, self._known(health)
        after = health.on(event, self._clock(), began_s)
        is_lost = event in LOSSES or (event is Event.REFUSED and before in SERVING)
        if is_lost:
            self._lost_s[replica.id] = self._clock()
        if event is Event.LOST:
            self.look(replica)
        if before is after and known == self._known(health):
            return
        self._refresh()
        if before is not after:
            replica.reason = reason
            self._readmit(replica, before)
            self._time_start(replica)
            self._on_state_change(replica, before, after, reason)
        self.changed()
        if before is not after and after is State.SUSPECT:
            self.suspected(replica)

    def _known(self, health: Health) -> tuple[bool, bool, bool]:
        """What matters of it beside its state."""
        return health.is_silent, health.is_doubted, health.confirmed_s >= self.word_since_s

    def ask_all(self) -> None:
        """Wants to know of every replica whether it lives from now on; `changed` tells."""
        self.word_since_s = self._clock()
        for replica in self:
            self.look(replica)

    def lost_since(self, since_s: float) -> frozenset[str]:
        """The replicas that died, lost a connection or fell silent since then."""
        return frozenset(name for name, at_s in self._lost_s.items() if at_s >= since_s)

    def _refresh(self) -> None:
        """Who is usable; kept on the replicas, because it is read at every decision.

        The best there are:

        1. the healthy ones that are not in doubt;
        2. of these, those with a faulty GPU;
        3. those that answer and have yet to give their first token;
        4. those of which all that is known is that they are silent, be it to probes or altogether:
           under load engines answer late, and the last one standing gets everybody's load;
        5. those that were ejected: calls failed on them, but here nobody else is left.
        """
        self.can_come = any(replica.is_coming for replica in self)
        active = [replica for replica in self if _may_take(replica)]
        best = min((_rank(replica) for replica in active), default=UNUSABLE)
        usable = {r for r in active if best < UNUSABLE and _rank(r) == best}
        is_help = any(not replica.is_usable for replica in usable)
        for replica in self:
            replica.is_usable = replica in usable
            if is_help and (replica.health.is_suspect or replica.health.is_silent):
                self.suspected(replica)
        if all(replica.room.is_slow for replica in usable):  # nobody is there to take the rest
            for replica in usable:
                replica.room.start_fully()

    def _readmit(self, replica: Replica, before: State) -> None:
        """One that comes back while others serve starts slowly; a suspect was never away."""
        if replica.health.state is not State.HEALTHY or before in SERVING:
            return
        has_others = any(other.health.is_sure for other in self if other is not replica)
        if replica.has_served and has_others and self._config.slow_start:
            replica.room.start_slowly()
        replica.has_served = True

    def _time_start(self, replica: Replica) -> None:
        """Once per generation, and only if the launcher tells when it started it."""
        if replica.health.state is State.HEALTHY and not replica.has_started:
            replica.has_started = True
            if replica.phase:
                took_s = self._clock() - replica.joined_s
                self.start_s += START_WEIGHT * (took_s - self.start_s)

    def _may_eject(self, replica: Replica) -> bool:
        """Never the last usable one, and never more than the configured share."""
        others = sum(other.is_usable for other in self if other is not replica)
        ejected = sum(other.health.state is State.EJECTED for other in self)
        return others > 0 and ejected + 1 <= self._config.max_ejected_share * len(self)


def _may_take(replica: Replica) -> bool:
    """Neither an operator nor the launcher is taking it out."""
    is_leaving = replica.phase == LEAVING
    return replica.admin is Admin.ACTIVE and replica.port != 0 and not is_leaving


def _rank(replica: Replica) -> int:
    """Lower is better; see `Pool._refresh`."""
    health = replica.health
    if health.is_sure:
        return 2 if replica.fault else 1
    if health.state is State.WARMING:
        return 3
    if health.is_suspect or (health.is_silent and health.state in ANSWERED):
        return 4
    return 5 if health.state is State.EJECTED else UNUSABLE


def _is_starting(replica: Replica) -> bool:
    """As its launcher tells, or as far as this router knows."""
    return replica.phase in STARTING or replica.health.state is State.UNKNOWN


def _is_same(replica: Replica, member: Member) -> bool:
    return (replica.generation, replica.host, replica.port, replica.dialect.name) == (
        member.generation,
        member.host,
        member.port,
        member.dialect,
    )
