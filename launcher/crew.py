"""All replicas' keepers and their tasks: begun from a plan, and changed while they run.

Owned by the supervisor. What the config still wants as it is keeps its keeper, and is not touched;
what changed gets a new keeper that replaces it in its turn; what is gone is drained and stopped.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from launcher.config import RuntimeConfig
from launcher.engines import ENGINES
from launcher.instance import Instance, Phase
from launcher.keeper import Drained, ReplicaKeeper, Rules, Surroundings
from launcher.placement import ReplicaSpec
from launcher.plan import Plan
from launcher.restarts import RestartPolicy
from launcher.runtimes.base import Handle, Runtime
from launcher.turns import LoadGate, ReplaceTurn
from router.errors import OperatorError

log = logging.getLogger("launcher")

Restore = Callable[[Instance], None]
IsHere = Callable[[ReplicaSpec], bool]
"""Whether a model's files need no download."""


@dataclass(eq=False, slots=True)
class _Kept:
    keeper: ReplicaKeeper
    task: "asyncio.Task[None] | None" = None


@dataclass(eq=False, slots=True)
class _Leaving:
    """One that is on its way out, and the GPUs that are free once it is."""

    devices: tuple[str, ...]
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Crew:
    """`begin` once, `change` any number of times, `dismiss`, then `stop_all`."""

    def __init__(
        self,
        runtime: Runtime,
        session: aiohttp.ClientSession,
        drained: Drained,
        is_here: IsHere,
        changed: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._drained = drained
        self._is_here = is_here
        self._changed = changed
        self._kept: dict[str, _Kept] = {}
        self._leaving: list[_Leaving] = []
        self._retiring: list[ReplicaKeeper] = []
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules = Rules(RestartPolicy(), 0.0)

    def __iter__(self) -> Iterator[ReplicaKeeper]:
        """In the config's order, then those that leave."""
        yield from (kept.keeper for kept in self._kept.values())
        yield from self._retiring

    @property
    def handles(self) -> list[Handle]:
        """What runs of the wanted replicas."""
        found = (kept.keeper.instance.handle for kept in self._kept.values())
        return [handle for handle in found if handle is not None]

    # ---- acting

    def hire(
        self, specs: Sequence[ReplicaSpec], runtime: RuntimeConfig, plan: Plan, restore: Restore
    ) -> None:
        """Make the keepers, with what is known of what runs; nothing is begun yet."""
        self._follow(runtime)
        running = {spec.id: handle for spec, handle in (*plan.adopt, *plan.replace)}
        makers = self._makers(specs, runtime)
        for spec in specs:
            keeper = makers[spec.model](spec)
            if handle := running.get(spec.id):
                keeper.instance.handle, keeper.instance.generation = handle, handle.generation
                restore(keeper.instance)
            self._kept[spec.id] = _Kept(keeper)

    def begin(self, group: asyncio.TaskGroup, plan: Plan) -> None:
        """Let them work, as tasks of `group`."""
        self._group = group
        for stray in plan.strays:
            leaving = _Leaving(stray.devices)
            self._leaving.append(leaving)
            self._spawn(self._stop_stray(stray, leaving))
        adopt = {spec.id: handle for spec, handle in plan.adopt}
        outdated = {spec.id: handle for spec, handle in plan.replace}
        for name, kept in self._kept.items():
            self._set_to_work(kept, adopt.get(name), outdated.get(name))

    async def change(self, specs: Sequence[ReplicaSpec], runtime: RuntimeConfig) -> None:
        """Follow a new config: what it does not change goes on undisturbed."""
        self._follow(runtime)
        makers = self._makers(specs, runtime)
        before, self._kept = self._kept, {}
        wanted = {spec.id: spec for spec in specs}
        for name, kept in before.items():
            if name not in wanted:
                await _cancel(kept)
                self._retire(kept.keeper)
        for spec in specs:
            old = before.get(spec.id)
            if old is not None and old.keeper.spec.fingerprint == spec.fingerprint:
                self._kept[spec.id] = old
            else:
                self._kept[spec.id] = await self._succeed(old, makers[spec.model](spec))
        self._changed()

    async def _succeed(self, old: _Kept | None, keeper: ReplicaKeeper) -> _Kept:
        """A keeper with a new spec takes over what the old one had running."""
        kept, handle, was_ready = _Kept(keeper), None, False
        if old is not None:
            await _cancel(old)
            before = old.keeper.instance
            handle, was_ready = before.handle, before.phase is Phase.READY
            keeper.instance.take_over(before)
        if handle is not None and not was_ready:
            await self._stop_quietly(handle, 0.0)  # it served nobody yet
            keeper.instance.handle = handle = None
        is_same = handle is not None and handle.fingerprint == keeper.spec.fingerprint
        self._set_to_work(kept, handle if is_same else None, None if is_same else handle)
        return kept

    def _set_to_work(self, kept: _Kept, adopted: Handle | None, outdated: Handle | None) -> None:
        kept.task = self._spawn(self._work(kept.keeper, adopted, outdated))

    async def _work(
        self, keeper: ReplicaKeeper, adopted: Handle | None, outdated: Handle | None
    ) -> None:
        if adopted is None:
            await self._until_free(keeper.spec.devices)
        await keeper.run(adopted=adopted, outdated=outdated)

    async def _until_free(self, devices: Iterable[str]) -> None:
        """Until nothing that leaves holds one of these GPUs."""
        needed = set(devices)
        for leaving in list(self._leaving):
            if needed.intersection(leaving.devices):
                await leaving.gone.wait()

    def _retire(self, keeper: ReplicaKeeper) -> None:
        leaving = _Leaving(keeper.spec.devices)
        self._leaving.append(leaving)
        self._retiring.append(keeper)
        self._spawn(self._see_off(keeper, leaving))

    async def _see_off(self, keeper: ReplicaKeeper, leaving: _Leaving) -> None:
        try:
            await keeper.retire()
        except OperatorError as exc:
            log.error("%s", exc)
        self._retiring.remove(keeper)
        self._let_go(leaving)

    async def _stop_stray(self, stray: Handle, leaving: _Leaving) -> None:
        log.info("%s generation=%d: not wanted, stopped", stray.replica_id, stray.generation)
        await self._stop_quietly(stray, self._rules.stop_grace_s)
        self._let_go(leaving)

    def _let_go(self, leaving: _Leaving) -> None:
        leaving.gone.set()
        self._leaving.remove(leaving)
        self._changed()

    async def _stop_quietly(self, handle: Handle, grace_s: float) -> None:
        try:
            await self._runtime.stop(handle, grace_s)
        except OperatorError as exc:
            log.error("%s", exc)

    def _follow(self, runtime: RuntimeConfig) -> None:
        self._rules.policy = RestartPolicy(**runtime.restart.model_dump())
        self._rules.stop_grace_s = runtime.stop_grace_s

    def _makers(
        self, specs: Sequence[ReplicaSpec], runtime: RuntimeConfig
    ) -> Mapping[str, Callable[[ReplicaSpec], ReplicaKeeper]]:
        """By model, what makes a keeper: its replicas share their gate and their turn."""
        on_gpu = asyncio.Semaphore(runtime.max_loading)
        elsewhere = asyncio.Semaphore(max(1, len(specs)))
        makers: dict[str, Callable[[ReplicaSpec], ReplicaKeeper]] = {}
        for spec in specs:
            if spec.model not in makers:
                slots = on_gpu if spec.devices else elsewhere
                gate = LoadGate(slots, is_open=self._is_here(spec))
                makers[spec.model] = self._maker(gate, ReplaceTurn())
        return makers

    def _maker(self, gate: LoadGate, turn: ReplaceTurn) -> Callable[[ReplicaSpec], ReplicaKeeper]:
        around = Surroundings(
            self._runtime, self._session, self._rules, gate, turn, self._drained, self._changed
        )
        return lambda spec: ReplicaKeeper(spec, ENGINES[spec.engine_name], around)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        assert self._group is not None, "begin() comes first"
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- stopping

    def dismiss(self) -> None:
        """Nobody works on; what runs goes on running."""
        for task in self._tasks:
            task.cancel()

    async def stop_all(self) -> None:
        """End every replica; raises nothing, what resists is logged. After the tasks are over."""
        async with asyncio.TaskGroup() as group:
            for keeper in self:
                group.create_task(self._stop(keeper))

    async def _stop(self, keeper: ReplicaKeeper) -> None:
        try:
            await keeper.stop(self._rules.stop_grace_s)
        except OperatorError as exc:
            log.error("%s", exc)


async def _cancel(kept: _Kept) -> None:
    if kept.task is not None:
        kept.task.cancel()
        await asyncio.wait([kept.task])
