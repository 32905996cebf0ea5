"""What to do about each replica, from what is wanted and what runs. Pure.

Asked by the supervisor when it begins. What runs and is wanted unchanged is adopted; what runs
under an outdated fingerprint is replaced; what nobody wants is stopped. It touches nothing itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.placement import ReplicaSpec
from launcher.runtimes.base import Handle


@dataclass(frozen=True, slots=True)
class Plan:
    """One entry per replica id in exactly one of the first three; `strays` may hold any."""

    start: tuple[ReplicaSpec, ...]
    adopt: tuple[tuple[ReplicaSpec, Handle], ...]
    replace: tuple[tuple[ReplicaSpec, Handle], ...]
    strays: tuple[Handle, ...]


def make_plan(wanted: Sequence[ReplicaSpec], owned: Iterable[Handle]) -> Plan:
    """Decide for every wanted replica and every running one."""
    by_id: dict[str, list[Handle]] = {}
    for handle in sorted(owned, key=lambda handle: handle.generation, reverse=True):
        by_id.setdefault(handle.replica_id, []).append(handle)
    start, adopt, replace, strays = [], [], [], []
    for spec in wanted:
        running = by_id.pop(spec.id, [])
        same = next((h for h in running if h.fingerprint == spec.fingerprint), None)
        # 1. One of its starts is what is wanted: keep the newest such.
        if same is not None:
            adopt.append((spec, same))
            strays += [handle for handle in running if handle is not same]
        # 2. Only outdated ones run: the newest serves until its turn to be replaced comes.
        elif running:
            replace.append((spec, running[0]))
            strays += running[1:]
        # 3. Nothing runs.
        else:
            start.append(spec)
    strays += [handle for handles in by_id.values() for handle in handles]
    return Plan(tuple(start), tuple(adopt), tuple(replace), tuple(strays))
