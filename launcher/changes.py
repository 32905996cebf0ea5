"""What differs between the config that runs and the one that was written: shown, and handed over.

`launcher up` beside a running launcher shows the difference, leaves a request in the state folder
and wakes the launcher, which reads the config itself. Pure, except for that one file.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.config import ClusterConfig
from launcher.engines import ENGINES
from launcher.placement import ReplicaSpec
from launcher.state import CHANGE_REQUEST, StateFolder
from router.config.differences import difference, flat_differences, shown
from router.errors import PlacementError, StateError

_NOT_SHOWN = frozenset({"id", "fingerprint", "env"})


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """`path` holds the config to follow; `id` is told back in the status once that is decided."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the difference. `sign`: + starts, - stops, ~ is replaced, = goes on."""

    sign: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.sign} {self.what}: {self.detail}"


# ---- the difference


def replica_changes(
    before: Sequence[ReplicaSpec], after: Sequence[ReplicaSpec]
) -> Iterator[Change]:
    """What following `after` does to each replica of `before`; unchanged ones share a line."""
    known = {spec.id: spec for spec in before}
    wanted = {spec.id for spec in after}
    same: list[str] = []
    for spec in after:
        old = known.get(spec.id)
        if old is None:
            where = f" on {', '.join(spec.devices)}" if spec.devices else ""
            yield Change("+", spec.id, f"{spec.engine_name} serving {spec.model}{where}")
        elif old.fingerprint != spec.fingerprint:
            yield Change("~", spec.id, "; ".join(_differences(old, spec)) or "runtime settings")
        elif differing := list(_differences(old, spec)):
            yield Change("~", spec.id, "; ".join(differing) + "; without a restart")
        else:
            same.append(spec.id)
    for spec in before:
        if spec.id not in wanted:
            yield Change("-", spec.id, "drained, then stopped")
    if same:
        yield Change("=", ", ".join(same), "unchanged")


def router_changes(before: ClusterConfig, after: ClusterConfig) -> Iterator[Change]:
    """Only what a new router is needed for."""
    differing = list(flat_differences(before.router.model_dump(), after.router.model_dump()))
    if differing:
        detail = "; ".join(differing) + "; a new router takes over, the old one finishes its calls"
        yield Change("~", "router", detail)


def runtime_changes(before: ClusterConfig, after: ClusterConfig) -> Iterator[Change]:
    """How replicas are started and stopped from now on; what runs with it is told of each."""
    old, new = before.runtime.model_dump(), after.runtime.model_dump()
    if differing := list(flat_differences(old, new)):
        yield Change("~", "runtime", "; ".join(differing))


def require_possible(running: Cluster, wanted: Cluster) -> None:
    """Refuse what a running launcher cannot follow. Raises PlacementError."""
    problems = [
        f"{place}: found {shown(after)}, but {shown(before)} runs; that cannot change under way"
        for place, before, after in _fixed(running, wanted)
        if before != after
    ]
    if problems:
        down = running.command("down")
        raise PlacementError("\n".join(f"{one}: `{down}` first" for one in problems))


def _fixed(running: Cluster, wanted: Cluster) -> Iterator[tuple[str, Any, Any]]:
    """Where it is in the config, what runs, and what is wanted."""
    old, new = running.config, wanted.config
    yield "cluster", old.cluster, new.cluster
    yield "runtime.state_dir", running.folder.path, wanted.folder.path
    yield "runtime.name", old.runtime.name, new.runtime.name
    yield "runtime.docker.url", old.runtime.docker.url, new.runtime.docker.url
    # The router speaks one dialect to all replicas of a model, and they change one at a time.
    engines = {model.served_name: old.engine_of(model).name for model in old.models}
    for index, model in enumerate(new.models):
        before, after = engines.get(model.served_name), new.engine_of(model).name
        if before is not None and ENGINES[before].dialect != ENGINES[after].dialect:
            place = f"models[{index}].engine.name" if model.engine else "engine.name"
            yield place, before, after


def _differences(old: ReplicaSpec, new: ReplicaSpec) -> Iterator[str]:
    for one in fields(ReplicaSpec):
        before, after = getattr(old, one.name), getattr(new, one.name)
        if before == after or one.name in _NOT_SHOWN:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from flat_differences(before, after, (one.name,))
        else:
            yield difference((one.name,), before, after)
    if dict(old.env) != dict(new.env):  # values may be secret
        names = [n for n in {**old.env, **new.env} if old.env.get(n) != new.env.get(n)]
        yield f"env: {', '.join(sorted(names))} changed"


# ---- handing it over


def ask(folder: StateFolder, path: Path) -> ChangeRequest:
    """Leave a request for the running launcher, which has to be woken then.

    It takes the place of one that was left before: only the latest counts.
    """
    request = ChangeRequest(secrets.token_hex(8), path.absolute())
    folder.write_record(CHANGE_REQUEST, {"id": request.id, "path": str(request.path)})
    return request


def read(folder: StateFolder) -> ChangeRequest | None:
    """The latest request, followed or not, that was left for the launcher that holds the lock.

    None when there is none. Raises StateError for a broken one.
    """
    record = folder.read_record(CHANGE_REQUEST)
    if record is None:
        return None
    try:
        return ChangeRequest(str(record["id"]), Path(record["path"]))
    except (KeyError, TypeError) as exc:
        keys = ", ".join(record) or "nothing"
        raise StateError(
            f"{folder.path / CHANGE_REQUEST}: found {keys}, expected id and path, as `launcher up` "
            "leaves them; run that again"
        ) from exc
