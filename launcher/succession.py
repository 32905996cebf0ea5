"""Who follows whom on which GPU when a config changes: the values of it, and what they imply. Pure.

Used by the crew, which does what follows from it. Nothing here waits, starts or stops.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.instance import Phase
from launcher.keeper import ReplicaKeeper
from launcher.placement import ReplicaSpec
from launcher.runtimes.base import Handle
from launcher.turns import ReplaceTurn


@dataclass(eq=False, slots=True)
class Kept:
    """A replica that the config wants."""

    keeper: ReplicaKeeper
    turn: ReplaceTurn
    task: "asyncio.Task[None] | None" = None

    @property
    def model(self) -> str:
        return self.keeper.spec.model

    @property
    def is_over(self) -> bool:
        """It was given up."""
        return self.task is not None and self.task.done()

    @property
    def leaves(self) -> set[str]:
        """GPUs it is still on, and will not be once it follows its config."""
        handle = self.keeper.instance.handle
        return set(handle.devices if handle else ()) - set(self.keeper.spec.devices)

    @property
    def is_settled(self) -> bool:
        """It serves, as the config wants it."""
        instance = self.keeper.instance
        is_in = instance.phase is Phase.READY and instance.is_admitted
        return is_in and not self.has_to_start

    @property
    def has_to_start(self) -> bool:
        """Nothing of it runs, or not as the config wants it."""
        handle = self.keeper.instance.handle
        return handle is None or handle.fingerprint != self.keeper.spec.fingerprint

    def goes_on(self, spec: ReplicaSpec | None) -> bool:
        """Unchanged; one that was given up is tried again, as somebody has just seen to it."""
        return self.is_unchanged(spec) and self.task is not None and not self.is_over

    def is_unchanged(self, spec: ReplicaSpec | None) -> bool:
        return spec is not None and self.keeper.spec.fingerprint == spec.fingerprint


@dataclass(eq=False, slots=True)
class Leaving:
    """One that is on its way out, and the GPUs that are free once it is."""

    devices: frozenset[str]
    keeper: ReplicaKeeper | None = None  # None: of no keeper, an earlier launcher started it
    task: "asyncio.Task[None] | None" = None
    waits: bool = False  # it serves until it may leave
    is_missed: bool = False  # none of its model goes on as it is
    resistance: str = ""  # why that stray could not be stopped

    @property
    def why_not(self) -> str:
        """Why it is still there, though it has been asked to end."""
        if self.keeper is not None and self.keeper.instance.resists:
            return f"{self.keeper.spec.id} {self.keeper.instance.reason}"
        return self.resistance

    def is_in_the_way_of(self, keeper: ReplicaKeeper) -> bool:
        """On one of its GPUs, or itself."""
        is_itself = self.keeper is not None and self.keeper.spec.id == keeper.spec.id
        return is_itself or not self.devices.isdisjoint(keeper.spec.devices)

    def heirs(self, kept: Sequence[Kept]) -> list[Kept]:
        """Those that cannot start before it has left."""
        return [one for one in kept if one.has_to_start and self.is_in_the_way_of(one.keeper)]


@dataclass(frozen=True, slots=True)
class Succession:
    """A new keeper, and what it begins with: at most one of the two handles."""

    kept: Kept
    adopted: Handle | None = None
    outdated: Handle | None = None
    is_out: bool = False
    """It is back where it was before only when it is ready."""


def leaves_at_once(leaving: Leaving, kept: Sequence[Kept]) -> bool:
    """Whether one that serves may leave, with no regard to whose turn it is.

    A change must not take out all of a model at once. But nobody of another model ever waits for
    that, so that no two models wait for each other.
    """
    assert leaving.keeper is not None, "a stray leaves at once"
    model = leaving.keeper.spec.model
    same_model = [one for one in kept if one.model == model]
    heirs = leaving.heirs(kept)
    # 1. The whole model goes.
    if not same_model:
        return True
    # 2. Somebody needs its GPU: of its own model one after the other, of others now.
    if heirs:
        return not any(one in same_model for one in heirs)
    # 3. Nobody does: others of its model serve, or it was not this change that took them out.
    return not leaving.is_missed or any(one.is_settled for one in same_model)


def circle(kept: Sequence[Kept]) -> list[Kept]:
    """Those that wait for each other's GPUs, and those that wait for them."""
    left = list(kept)
    while True:
        stuck = [
            one
            for one in left
            if any(set(one.keeper.spec.devices) & other.leaves for other in left if other != one)
        ]
        if len(stuck) == len(left):
            return stuck
        left = stuck
