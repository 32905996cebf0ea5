"""All replicas' keepers and their tasks: begun from a plan, and changed while they run.

Owned by the supervisor. What the config still wants as it is keeps its keeper, and is not touched;
what changed gets a new keeper that replaces it in its turn; what is gone is drained and stopped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Coroutine, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import aiohttp

from launcher.config import RuntimeConfig
from launcher.engines import ENGINES
from launcher.instance import Instance, Phase
from launcher.keeper import ReplicaKeeper
from launcher.placement import ReplicaSpec
from launcher.plan import Plan
from launcher.restarts import History, RestartPolicy
from launcher.runtimes.base import Handle, Runtime
from launcher.stopping import until_stopped
from launcher.succession import Kept, Leaving, Succession, circle, leaves_at_once
from launcher.surroundings import Admitted, Drained, Rules, Surroundings
from launcher.turns import LoadGate, ReplaceTurn
from router.errors import OperatorError

log = logging.getLogger("launcher")

_NO_BOUND = 1_000_000

Restore = Callable[[Instance], None]
IsHere = Callable[[ReplicaSpec], bool]
"""Whether a model's files need no download."""


class Crew:
    """`begin` once, `change` any number of times, `dismiss`, then `stop_all`."""

    def __init__(
        self,
        runtime: Runtime,
        session: aiohttp.ClientSession,
        drained: Drained,
        admitted: Admitted,
        is_here: IsHere,
        changed: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._drained = drained
        self._admitted = admitted
        self._is_here = is_here
        self._changed = changed
        self._kept: dict[str, Kept] = {}
        self._leaving: list[Leaving] = []
        self._gates: dict[str, tuple[tuple[object, ...], LoadGate]] = {}
        self._turns: dict[str, ReplaceTurn] = {}
        self._on_gpu = asyncio.Semaphore()
        self._elsewhere = asyncio.Semaphore(_NO_BOUND)
        self._max_loading = 1
        self._moved = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules = Rules(RestartPolicy(), 0.0)

    def __iter__(self) -> Iterator[ReplicaKeeper]:
        """In the config's order, then those that leave; each id once.

        A replica that comes back while it still leaves is told once it has left.
        """
        leaving = {one.keeper.spec.id: one.keeper for one in self._leaving if one.keeper}
        yield from (kept.keeper for name, kept in self._kept.items() if name not in leaving)
        yield from leaving.values()

    @property
    def handles(self) -> list[Handle]:
        """What runs of the wanted replicas."""
        found = (kept.keeper.instance.handle for kept in self._kept.values())
        return [handle for handle in found if handle is not None]

    @property
    def specs(self) -> list[ReplicaSpec]:
        """What is wanted; not those that leave."""
        return [kept.keeper.spec for kept in self._kept.values()]

    # ---- acting

    def hire(
        self, specs: Sequence[ReplicaSpec], runtime: RuntimeConfig, plan: Plan, restore: Restore
    ) -> None:
        """Make the keepers, with what is known of what runs; nothing is begun yet."""
        self._follow(runtime)
        running = {spec.id: handle for spec, handle in (*plan.adopt, *plan.replace)}
        for spec in specs:
            kept = self._kept[spec.id] = self._made(spec)
            if handle := running.get(spec.id):
                instance = kept.keeper.instance
                instance.handle, instance.generation = handle, handle.generation
                restore(instance)

    def begin(self, group: asyncio.TaskGroup, plan: Plan) -> None:
        """Let them work, as tasks of `group`."""
        self._group = group
        for stray in plan.strays:
            leaving = Leaving(frozenset(stray.devices))
            self._leaving.append(leaving)
            self._spawn(self._stop_stray(stray, leaving))
        adopt = {spec.id: handle for spec, handle in plan.adopt}
        outdated = {spec.id: handle for spec, handle in plan.replace}
        heirs = [
            Succession(kept, adopt.get(name), outdated.get(name), is_out=True)
            for name, kept in self._kept.items()
        ]
        self._set_to_work(list(self._out_of_circles(heirs)))

    async def change(self, specs: Sequence[ReplicaSpec], runtime: RuntimeConfig) -> None:
        """Follow a new config: what it does not change goes on undisturbed."""
        self._follow(runtime)
        wanted = {spec.id: spec for spec in specs}
        before = self._kept = self._kept | await self._called_back(wanted)
        same = {name for name, kept in before.items() if kept.goes_on(wanted.get(name))}
        await self._relieve([kept for name, kept in before.items() if name not in same])
        new = {spec.id: before[spec.id] if spec.id in same else self._made(spec) for spec in specs}
        heirs = [
            self._succession(before.get(name), kept)
            for name, kept in new.items()
            if name not in same
        ]
        # No await from here on: what is told in between would lack replicas that serve.
        self._kept = new
        for name in same:
            _update(new[name].keeper, wanted[name])
            new[name].keeper.try_now()
        for leaving in self._leaving:
            if leaving.keeper:
                leaving.keeper.try_now()
        unchanged = {
            kept.model for name, kept in before.items() if kept.is_unchanged(wanted.get(name))
        }
        for name, kept in before.items():
            if name not in wanted:
                self._retire(kept.keeper, is_missed=kept.model not in unchanged)
        self._set_to_work(list(self._out_of_circles(heirs)))
        self._note()

    async def _called_back(self, wanted: Container[str]) -> dict[str, Kept]:
        """Those that were to leave, but serve still, and are wanted again."""
        back = {
            one.keeper.spec.id: one
            for one in self._leaving
            if one.keeper is not None and one.waits and one.keeper.spec.id in wanted
        }
        tasks = [one.task for one in back.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for one in back.values():
            self._leaving.remove(one)
        keepers = {name: one.keeper for name, one in back.items() if one.keeper is not None}
        return {name: Kept(it, self._turn(it.spec)) for name, it in keepers.items()}

    async def _relieve(self, outgoing: Sequence[Kept]) -> None:
        """Keepers that end here; what they run goes on, unless it serves nobody yet."""
        tasks = [kept.task for kept in outgoing if kept.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for kept in outgoing:
            kept.turn.give_back(kept.keeper)
        async with asyncio.TaskGroup() as group:
            for kept in outgoing:
                if kept.keeper.instance.phase in (Phase.STARTING, Phase.LOADING):
                    group.create_task(self._stop_loading(kept.keeper.instance))

    async def _stop_loading(self, instance: Instance) -> None:
        if instance.handle is None:
            return
        try:
            await self._runtime.stop(instance.handle, 0.0)
        except OperatorError as exc:
            log.error("%s", exc)
            instance.resists = True
        else:
            instance.handle = None

    def _succession(self, old: Kept | None, kept: Kept) -> Succession:
        """A keeper with a new spec takes over what the old one had running."""
        if old is None:
            return Succession(kept)
        if old.keeper.instance.resists:  # nobody may go on with it, or start beside it
            self._retire(old.keeper)
            return Succession(kept, is_out=True)
        kept.keeper.instance.take_over(old.keeper.instance)
        handle = kept.keeper.instance.handle
        is_same = handle is not None and handle.fingerprint == kept.keeper.spec.fingerprint
        if is_same:
            return Succession(kept, adopted=handle, is_out=True)
        return Succession(kept, outdated=handle, is_out=handle is None)

    def _out_of_circles(self, heirs: Sequence[Succession]) -> Iterator[Succession]:
        """Replicas that change places on the same GPUs would wait for each other: all of these
        leave first, and start anew then. Those that already wait for a GPU are part of a circle,
        too; it is enough that the heirs in it leave."""
        stuck = circle(list(self._kept.values()))
        for heir in heirs:
            if heir.outdated is None or heir.kept not in stuck:
                yield heir
                continue
            self._retire(heir.kept.keeper)
            heir.kept.keeper.instance.handle = None
            yield Succession(heir.kept)

    def _set_to_work(self, heirs: Sequence[Succession]) -> None:
        """Those that are out say so before anybody else may go out."""
        for heir in heirs:
            keeper = heir.kept.keeper
            if heir.is_out and heir.outdated is None and not self._is_blocked(keeper):
                heir.kept.turn.join(keeper)
        for heir in heirs:
            keeper = heir.kept.keeper
            if heir.outdated is not None:  # it serves meanwhile, also where it waits for a GPU
                instance, reason = keeper.instance, "runs with an older config"
                instance.move(Phase.READY, f"{reason}; to be replaced", time.monotonic())
                shown = (instance.replica_id, instance.generation, reason)
                log.info("%s generation=%d: %s; to be replaced", *shown)
            heir.kept.task = self._spawn(keeper.run(heir.adopted, heir.outdated))

    async def _free(self, keeper: ReplicaKeeper) -> None:
        """Until what will go is gone. Nobody waits meanwhile for a turn that `keeper` holds."""
        if not self._is_blocked(keeper):
            return
        keeper.turn.give_back(keeper)
        was_stuck = keeper.instance.history.is_stuck
        while self._is_blocked(keeper):
            leaving = (one for one in self._leaving if one.is_in_the_way_of(keeper))
            why = next((one.why_not for one in leaving if one.why_not), "")
            what = "waits until its GPU is free"
            keeper.wait_for(f"{what}: {why}" if why else what, is_stuck=bool(why))
            await self._moved.wait()
        keeper.wait_for("waits for its turn", is_stuck=was_stuck)

    def _is_blocked(self, keeper: ReplicaKeeper) -> bool:
        """Whether something that will go is still there: on one of its GPUs, or itself."""
        others = [kept for kept in self._kept.values() if kept.keeper is not keeper]
        taken = chain.from_iterable(other.leaves for other in others)
        is_taken = not set(keeper.spec.devices).isdisjoint(taken)
        return is_taken or any(one.is_in_the_way_of(keeper) for one in self._leaving)

    def _retire(self, keeper: ReplicaKeeper, is_missed: bool | None = None) -> None:
        """`is_missed`: none of its model goes on as it is; None: it leaves at once all the same."""
        handle = keeper.instance.handle
        if handle is None:
            return
        last = self._for_the_end(keeper)
        leaving = Leaving(frozenset((*keeper.spec.devices, *handle.devices)), last)
        if is_missed is not None and last.instance.phase is Phase.READY:
            leaving.waits, leaving.is_missed = True, is_missed
            last.spec = replace(last.spec, fingerprint="")  # of no config that is followed
            last.instance.history = History()  # how it once came up is no trouble any more
        self._leaving.append(leaving)
        leaving.task = self._spawn(self._see_off(last, leaving))

    def _for_the_end(self, keeper: ReplicaKeeper) -> ReplicaKeeper:
        """One that drains what runs, wherever `keeper` was with that when it was cancelled."""
        if keeper.instance.phase is Phase.READY or keeper.instance.resists:
            return keeper
        last = self._keeper(keeper.spec, LoadGate(self._elsewhere))
        last.instance.take_over(keeper.instance)
        last.instance.move(Phase.READY, "to be stopped", time.monotonic())
        return last

    async def _see_off(self, keeper: ReplicaKeeper, leaving: Leaving) -> None:
        try:
            await keeper.retire(self._until_it_may_leave(keeper, leaving))
        except asyncio.CancelledError:
            self._turn(keeper.spec).give_back(keeper)
            raise
        self._let_go(leaving)

    async def _until_it_may_leave(self, keeper: ReplicaKeeper, leaving: Leaving) -> None:
        turn = self._turn(keeper.spec)
        while leaving.waits and not leaves_at_once(leaving, list(self._kept.values())):
            if turn.is_free and leaving.heirs(list(self._kept.values())):
                turn.join(keeper)
                break
            await self._moved.wait()
        leaving.waits = False

    async def _stop_stray(self, stray: Handle, leaving: Leaving) -> None:
        log.info("%s generation=%d: not wanted, stopped", stray.replica_id, stray.generation)

        def resists(why: str, is_lasting: bool) -> None:
            reason = f"{stray.replica_id} cannot be stopped: {why}"
            if reason != leaving.resistance:
                log.error("%s", reason)
            leaving.resistance = reason
            self._note()

        grace_s, policy = self._rules.stop_grace_s, self._rules.policy
        await until_stopped(self._runtime, stray, grace_s, policy, resists, _pause)
        self._let_go(leaving)

    def _let_go(self, leaving: Leaving) -> None:
        """Its turn passes on to those that take its place."""
        self._leaving.remove(leaving)
        if leaving.keeper is not None:
            turn = self._turn(leaving.keeper.spec)
            for heir in leaving.heirs(list(self._kept.values())):
                is_out = heir.keeper.instance.handle is None and not heir.is_over
                if heir.turn is turn and is_out and not self._is_blocked(heir.keeper):
                    turn.join(heir.keeper)
            turn.give_back(leaving.keeper)
        self._note()

    def _note(self) -> None:
        """News, for those outside and for those who wait for a GPU."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        self._changed()

    def _follow(self, runtime: RuntimeConfig) -> None:
        self._rules.policy = RestartPolicy(**runtime.restart.model_dump())
        self._rules.stop_grace_s = runtime.stop_grace_s
        if runtime.max_loading != self._max_loading:
            self._max_loading = runtime.max_loading
            self._on_gpu = asyncio.Semaphore(runtime.max_loading)

    def _made(self, spec: ReplicaSpec) -> Kept:
        return Kept(self._keeper(spec, self._gate(spec)), self._turn(spec))

    def _keeper(self, spec: ReplicaSpec, gate: LoadGate) -> ReplicaKeeper:
        around = Surroundings(
            self._runtime,
            self._session,
            self._rules,
            gate,
            self._turn(spec),
            self._drained,
            self._admitted,
            self._free,
            self._note,
        )
        return ReplicaKeeper(spec, ENGINES[spec.engine_name], around)

    def _turn(self, spec: ReplicaSpec) -> ReplaceTurn:
        """One for each model, whatever becomes of its config."""
        return self._turns.setdefault(spec.model, ReplaceTurn())

    def _gate(self, spec: ReplicaSpec) -> LoadGate:
        """A model's replicas share it as long as they load the same files."""
        slots = self._on_gpu if spec.devices else self._elsewhere
        what = (spec.model_id, spec.revision, slots)
        known = self._gates.get(spec.model)
        if known is None or known[0] != what:
            known = self._gates[spec.model] = (what, LoadGate(slots, is_open=self._is_here(spec)))
        return known[1]

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
            for keeper in self._everybody():
                group.create_task(self._stop(keeper))

    def _everybody(self) -> Iterator[ReplicaKeeper]:
        yield from (kept.keeper for kept in self._kept.values())
        yield from (leaving.keeper for leaving in self._leaving if leaving.keeper)

    async def _stop(self, keeper: ReplicaKeeper) -> None:
        try:
            await keeper.stop(self._rules.stop_grace_s)
        except OperatorError as exc:
            log.error("%s", exc)


async def _pause(delay_s: float | None) -> None:
    if delay_s is not None:
        await asyncio.sleep(delay_s)


def _update(keeper: ReplicaKeeper, spec: ReplicaSpec) -> None:
    """What can change without a restart: its model's name, how long a start may take."""
    keeper.spec = spec
    keeper.instance.model = spec.model
