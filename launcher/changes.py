"""What differs between the config that runs and the one that was written: shown, and handed over.

`launcher up` beside a running launcher shows the difference, leaves a request in the state folder
and wakes the launcher, which reads the config itself. Pure, except for that one file.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.config import ClusterConfig
from launcher.placement import ReplicaSpec
from launcher.state import StateFolder
from router.errors import PlacementError, StateError

_RECORD = "change.json"
_NOT_SHOWN = frozenset({"id", "fingerprint", "env"})
_MOST_CHARS = 60


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
        else:
            same.append(spec.id)
    for spec in before:
        if spec.id not in wanted:
            yield Change("-", spec.id, "drained, then stopped")
    if same:
        yield Change("=", ", ".join(same), "unchanged")


def router_changes(before: ClusterConfig, after: ClusterConfig) -> Iterator[Change]:
    """Only what a new router is needed for."""
    differing = list(_flat_differences(before.router.model_dump(), after.router.model_dump()))
    if differing:
        detail = "; ".join(differing) + "; a new router takes over, the old one finishes its calls"
        yield Change("~", "router", detail)


def require_possible(running: Cluster, wanted: Cluster) -> None:
    """Refuse what a running launcher cannot follow. Raises PlacementError."""
    for key, before, after in (
        ("cluster", running.config.cluster, wanted.config.cluster),
        ("runtime.state_dir", running.folder.path, wanted.folder.path),
        ("runtime.name", running.config.runtime.name, wanted.config.runtime.name),
        ("runtime.docker.url", *(c.config.runtime.docker.url for c in (running, wanted))),
    ):
        if before != after:
            raise PlacementError(
                f"{key}: found {after}, but {before} runs; that cannot change under way: "
                f"`{running.command('down')}` first"
            )


def _differences(old: ReplicaSpec, new: ReplicaSpec) -> Iterator[str]:
    for one in fields(ReplicaSpec):
        before, after = getattr(old, one.name), getattr(new, one.name)
        if before == after or one.name in _NOT_SHOWN:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _flat_differences(before, after, one.name)
        else:
            yield f"{one.name}: {_shown(before)} -> {_shown(after)}"
    if dict(old.env) != dict(new.env):  # values may be secret
        names = [n for n in {**old.env, **new.env} if old.env.get(n) != new.env.get(n)]
        yield f"env: {', '.join(sorted(names))} changed"


def _flat_differences(
    before: dict[str, Any], after: dict[str, Any], place: str = ""
) -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        path = f"{place}.{key}" if place else str(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _flat_differences(old, new, path)
        else:
            yield f"{path}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(one, str) for one in value):
        value = ", ".join(value)
    text = "none" if value in (None, "", ()) else str(value)
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."


# ---- handing it over


def ask(folder: StateFolder, path: Path) -> ChangeRequest:
    """Leave a request for the running launcher, which has to be woken then."""
    request = ChangeRequest(secrets.token_hex(8), path.absolute())
    folder.write_record(_RECORD, {"id": request.id, "path": str(request.path)})
    return request


def read(folder: StateFolder) -> ChangeRequest | None:
    """The request that was left; None when there is none. Raises StateError for a broken one."""
    record = folder.read_record(_RECORD)
    if record is None:
        return None
    try:
        return ChangeRequest(str(record["id"]), Path(record["path"]))
    except (KeyError, TypeError) as exc:
        broken = json.dumps(record)[:_MOST_CHARS]
        raise StateError(f"{folder.path}/{_RECORD}: found {broken}, no request") from exc


def forget(folder: StateFolder) -> None:
    """One that was left for a launcher that has ended since."""
    folder.remove(_RECORD)
