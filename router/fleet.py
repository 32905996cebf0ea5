"""All pools by model: takes the full list of replicas, finds the pool for a model.

Level-triggered: each accepted list replaces the one before; an older epoch is refused. The last one
accepted is kept in the state folder and is what a router starts from.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from router.config import DialectName, RouterConfig
from router.config.models import parse_base_url
from router.deadlines import Deadlines
from router.dispatcher import Dispatcher, Observer
from router.errors import ModelNotFound, NoReplica, RouteNotServed
from router.policies import POLICIES
from router.pool import Member, Pool, StateChange
from router.replica import Admin, Replica
from router.retry import RetryBudget

STATE_FILE = "replicas.json"
PROTOCOL = 1
MAX_NUMBER = 2**63 - 1
"""What can be kept; epochs are nanoseconds since 1970."""
ANY_MODEL = frozenset({"", "tgi"})
"""What clients write when there is only one model."""


class ReplicaEntry(BaseModel):
    """One replica in a pushed list."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    generation: int = Field(ge=0, le=MAX_NUMBER)
    url: str | None = None
    model: str = Field(min_length=1, max_length=512)
    dialect: DialectName = "tgi"
    phase: str = ""
    max_requests: int | None = Field(None, ge=1, le=MAX_NUMBER)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NUMBER)
    fault: str | None = None
    """What is wrong with a GPU of it: it is used only where no other serves."""
    slowed: str | None = None
    """Why a GPU of it runs slower than it could: it is given less."""

    def member(self) -> Member:
        host, port = split_url(self.url)
        return Member(
            id=self.id,
            generation=self.generation,
            host=host,
            port=port,
            model=self.model,
            dialect=self.dialect,
            phase=self.phase,
            max_requests=self.max_requests,
            max_tokens=self.max_tokens,
            fault=self.fault or "",
            slowed=self.slowed or "",
        )


class ReplicaList(BaseModel):
    """A whole list, as pushed and as kept."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    protocol: Literal[1]
    cluster: str = Field(min_length=1, max_length=64)
    epoch: int = Field(ge=0, le=MAX_NUMBER)
    replicas: list[ReplicaEntry]
    draining: list[str] = []
    """Only in the kept file: the router owns this flag, the launcher does not know it."""

    @model_validator(mode="after")
    def each_id_once(self) -> "ReplicaList":
        ids = [entry.id for entry in self.replicas]
        twice = next((one for one, count in Counter(ids).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"each replica's own id: {twice!r} stands twice")
        return self

    @model_validator(mode="after")
    def one_dialect_per_model(self) -> "ReplicaList":
        spoken = {entry.model: entry.dialect for entry in self.replicas}
        odd = next((one for one in self.replicas if one.dialect != spoken[one.model]), None)
        if odd is not None:
            both = " and ".join(sorted({odd.dialect, spoken[odd.model]}))
            raise ValueError(
                f"one dialect for all replicas of a model: those of {odd.model!r} have {both}"
            )
        return self


class StaleList(Exception):
    """An older epoch than the one in force, or another cluster's."""


class Fleet:
    def __init__(
        self,
        config: RouterConfig,
        observer: Observer,
        on_state_change: StateChange,
        clock: Callable[[], float],
        state_dir: Path | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.cluster = ""
        self.epoch = 0
        self.state_error: str | None = None
        """Why the list could not be kept, if it could not."""
        self.joined: Callable[[Pool, Replica], None] = lambda pool, replica: None
        self.left: Callable[[Replica, bool], None] = lambda replica, is_replaced: None
        """Called with whether a later generation of the same replica took its place: then this one
        is dead. One that is only known by another address now still answers what it was asked."""
        self._config = config
        self._observer = observer
        self._on_state_change = on_state_change
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._state_file = state_dir / STATE_FILE if state_dir else None
        self._dispatchers: dict[str, Dispatcher] = {}
        self._draining: frozenset[str] = frozenset()
        self._list: ReplicaList | None = None

    def use(self, config: RouterConfig) -> None:
        """For all pools, those to come included. A policy that stays keeps what it knows."""
        is_other_policy = config.policy != self._config.policy
        self._config = config
        for dispatcher in self:
            dispatcher.pool.use(config.health)
            dispatcher.use(config.queue, self._weights)
            dispatcher.budget.share = config.retries.budget_share
            if is_other_policy:
                dispatcher.choosing.policy = POLICIES[config.policy]()

    def __iter__(self) -> Iterator[Dispatcher]:
        return iter(self._dispatchers.values())

    @property
    def _weights(self) -> dict[str, float]:
        """By tenant."""
        return {name: tenant.weight for name, tenant in self._config.tenants.items()}

    def replicas(self) -> Iterator[Replica]:
        for dispatcher in self:
            yield from dispatcher.pool

    @property
    def ids(self) -> dict[str, str]:
        """Each replica's, by its URL as it was told."""
        entries = self._list.replicas if self._list is not None else []
        return {entry.url: entry.id for entry in entries if entry.url}

    @property
    def models(self) -> list[str]:
        return [name for dispatcher in self for name in dispatcher.pool.names]

    @property
    def is_told(self) -> bool:
        """Whether a list has come yet, be it an empty one."""
        return self._list is not None

    @property
    def can_serve(self) -> bool:
        """A call would be served now, or as soon as a replica that is starting is there."""
        return any(dispatcher.pool.is_well for dispatcher in self)

    def names_for(self, allowed: frozenset[str] | None) -> list[str]:
        """The models that somebody may use who is `allowed` these; None: all."""
        return [name for name in self.models if allowed is None or name in allowed]

    def find(
        self, model: str | None, route: str = "", allowed: frozenset[str] | None = None
    ) -> Dispatcher:
        """The dispatcher of the model's pool; with a route, one whose engines have that route.

        Who is allowed only some names finds nothing by another, and nothing without a name but
        what is served by one of them.

        Raises ModelNotFound or RouteNotServed, listing what there is, or NoReplica while nothing
        is known.
        """
        if not self._dispatchers:
            raise NoReplica("no replica is configured yet", retry_after_s=1)
        dispatcher = self._meant(model or "", route, allowed)
        pool = dispatcher.pool
        if route and route not in pool.dialect.routes:
            raise RouteNotServed(
                f"the model {pool.served_name!r} has no {route}; it has: "
                + ", ".join(sorted(pool.dialect.routes))
            )
        return dispatcher

    def _meant(self, name: str, route: str, allowed: frozenset[str] | None) -> Dispatcher:
        """Among the pools that are allowed:

        1. the pool of that name;
        2. the only pool, if no model or `tgi` is named, or the pool's name is not known yet;
        3. the pool whose engines go by that name;
        4. with no model named, the only pool that has the route.
        """
        if allowed is not None and name not in ANY_MODEL and name not in allowed:
            raise self._unknown(name, allowed)
        if (found := self._dispatchers.get(name)) and _may_use(name, found.pool, allowed):
            return found
        pools = [one for one in self if len(one.pool) and _may_use(name, one.pool, allowed)]
        if len(pools) == 1 and (name in ANY_MODEL or not pools[0].pool.is_named):
            return pools[0]
        for dispatcher in pools:
            if name and dispatcher.pool.info.goes_by(name):
                return dispatcher
        having = [dispatcher for dispatcher in pools if route in dispatcher.pool.dialect.routes]
        if len(having) == 1 and name in ANY_MODEL:
            return having[0]
        raise self._unknown(name, allowed)

    def _unknown(self, name: str, allowed: frozenset[str] | None) -> ModelNotFound:
        names = ", ".join(map(repr, self.names_for(allowed)[:20]))
        found_text = f"the model {name[:100]!r} is not served" if name else "no model is named"
        return ModelNotFound(f"{found_text}; expected one of: {names}")

    def accept(self, pushed: ReplicaList) -> None:
        """Takes a pushed list over. Raises StaleList, ValueError."""
        if self.cluster and pushed.cluster != self.cluster:
            raise StaleList(f"this router serves cluster {self.cluster!r}, not {pushed.cluster!r}")
        if pushed.epoch < self.epoch:
            raise StaleList(f"epoch {pushed.epoch} is older than {self.epoch}")
        is_news = self._list is None or self._list.replicas != pushed.replicas
        self.apply(pushed)
        if is_news or self.state_error:
            self._keep()

    def apply(self, given: ReplicaList) -> None:
        members = [entry.member() for entry in given.replicas]
        self.cluster, self.epoch, self._list = given.cluster, given.epoch, given
        before = set(self.replicas())
        for model in dict.fromkeys([*self._dispatchers, *(member.model for member in members)]):
            mine = [member for member in members if member.model == model]
            dispatcher = self._dispatchers.get(model) or self._make(model)
            for replica in dispatcher.pool.sync(mine, self._draining):
                self.joined(dispatcher.pool, replica)
            if not mine and not dispatcher.open_leases:
                del self._dispatchers[model]
        listed = {replica.id: replica.generation for replica in self.replicas()}
        for replica in before - set(self.replicas()):
            self.left(replica, listed.get(replica.id, 0) > replica.generation)

    def _make(self, model: str) -> Dispatcher:
        pool = Pool(model, self._config.health, self._clock, self._on_state_change)
        policy = POLICIES[self._config.policy]()
        dispatcher = Dispatcher(
            pool,
            policy,
            self._config.queue,
            self._observer,
            self._clock,
            self._weights,
            RetryBudget(self._config.retries.budget_share),
            self._deadlines,
        )
        self._dispatchers[model] = dispatcher
        return dispatcher

    def set_admin(self, replica_id: str, admin: Admin) -> Replica | None:
        """Drains or undrains; remembered for as long as the replica is in the list."""
        for dispatcher in self:
            if replica := dispatcher.pool.get(replica_id):
                mine = frozenset({replica_id})
                is_drain = admin is Admin.DRAINING
                self._draining = self._draining | mine if is_drain else self._draining - mine
                dispatcher.pool.set_admin(replica, admin)
                self._keep()
                return replica
        return None

    # ---- the kept list ----

    def restore(self, cluster: str | None = None) -> bool:
        """Starts from the list kept last; a broken file counts as none and is said so.

        A list of another cluster than the one given counts as none: the folder was used before.
        """
        if self._state_file is None:
            return False
        try:
            if not self._state_file.exists():
                return False
            kept = ReplicaList.model_validate_json(self._state_file.read_bytes())
            if cluster is not None and kept.cluster != cluster:
                return False
            self._draining = frozenset(kept.draining)
            self.apply(kept)
        except (OSError, ValidationError, ValueError) as exc:
            self.state_error = f"{self._state_file} cannot be used: {exc}"
            return False
        return True

    def _keep(self) -> None:
        if self._state_file is None or self._list is None:
            return
        known = {replica.id for replica in self.replicas()}
        kept = self._list.model_copy(update={"draining": sorted(self._draining & known)})
        part = self._state_file.with_suffix(".part")
        try:
            part.write_bytes(orjson.dumps(kept.model_dump()))
            os.replace(part, self._state_file)
            self.state_error = None
        except OSError as exc:  # serving goes on; a restart would start from an older list
            self.state_error = f"{self._state_file} cannot be written: {exc.strerror}"
            with contextlib.suppress(OSError):
                part.unlink()


def _may_use(name: str, pool: Pool, allowed: frozenset[str] | None) -> bool:
    """Where no name was given, the engine takes the one it serves under."""
    return (
        allowed is None
        or pool.served_name in allowed
        or pool.model in allowed
        or name not in ANY_MODEL
    )


def split_url(url: str | None) -> tuple[str, int]:
    """Host and port of a base URL; port 0 for none yet."""
    if url is None:
        return "", 0
    host, _, port = parse_base_url(url).removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)
