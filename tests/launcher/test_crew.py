"""All keepers together: a changed config is followed without ever taking out more than it must.

The runtime starts nothing, and notes what must never be: two replicas on one GPU, one replica
twice. Health is a real HTTP server; a test says which configs come up.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from launcher.config import RuntimeConfig
from launcher.crew import Crew
from launcher.instance import Phase
from launcher.plan import make_plan
from launcher.runtimes import Exit, Handle
from router.errors import StopError

FAST = {"base_s": 0.001, "max_s": 0.002}
RUNTIME = RuntimeConfig(stop_grace_s=7.0, max_loading=9, restart=FAST)


@dataclass(eq=False)
class FakeRuntime:
    """Every step is in `log`: `+id/config`, `-id/config`; `wrong` must stay empty."""

    url: str
    log_folder: object
    broken: set[str] = field(default_factory=set)
    """Configs with which a replica ends as soon as it runs."""
    unstoppable: set[str] = field(default_factory=set)
    stops: asyncio.Event = field(default_factory=asyncio.Event)
    fetches: asyncio.Event = field(default_factory=asyncio.Event)
    alive: dict[Handle, "asyncio.Future[Exit]"] = field(default_factory=dict)
    exits: dict[Handle, "asyncio.Future[Exit]"] = field(default_factory=dict)
    generations: Counter = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    graces: dict[Handle, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def run(self, spec, generation: int = 1) -> Handle:
        self.generations[spec.id] = max(self.generations[spec.id], generation)
        url = f"{self.url}/{spec.id}/{spec.fingerprint}"
        ref = f"{spec.id}.{generation}"
        made = Handle("fake", spec.id, generation, ref, url, spec.fingerprint, 1, spec.devices)
        for other in self.alive:
            if other.replica_id == spec.id or set(other.devices) & set(spec.devices):
                self.wrong.append(f"{made.ref} beside {other.ref}")
        self.exits[made] = self.alive[made] = asyncio.get_running_loop().create_future()
        return made

    async def fetch(self, spec, say) -> None:
        await self.fetches.wait()

    async def start(self, spec, generation: int, say) -> Handle:
        self.log.append(f"+{spec.id}/{spec.fingerprint}")
        handle = self.run(spec, generation)
        if spec.fingerprint in self.broken:
            self.end(handle)
        return handle

    def end(self, handle: Handle) -> None:
        self.alive.pop(handle).set_result(Exit(code=1, detail="exited with code 1"))

    async def wait(self, handle: Handle) -> Exit:
        return await asyncio.shield(self.exits[handle])

    async def poll(self, handle: Handle) -> Exit | None:
        return self.exits[handle].result() if self.exits[handle].done() else None

    async def stop(self, handle: Handle, grace_s: float) -> None:
        await self.stops.wait()
        if handle.fingerprint in self.unstoppable:
            raise StopError(f"{handle.ref} survives everything")
        if handle in self.alive:
            self.log.append(f"-{handle.replica_id}/{handle.fingerprint}")
            self.graces[handle] = grace_s
            self.end(handle)

    async def is_serving_itself(self, handle: Handle) -> bool:
        return True

    def last_generation(self, replica_id: str) -> int:
        return self.generations[replica_id]

    def log_path(self, replica_id: str):
        return self.log_folder / f"{replica_id}.log"

    @property
    def now(self) -> list[str]:
        """What runs, as `id/config`."""
        return sorted(f"{handle.replica_id}/{handle.fingerprint}" for handle in self.alive)


class World:
    def __init__(self, runtime: FakeRuntime, session: aiohttp.ClientSession) -> None:
        self.runtime = runtime
        self.runtime.stops.set()
        self.runtime.fetches.set()
        self.sick: set[str] = set()
        """Configs that never become ready."""
        self.drains = asyncio.Event()
        self.drains.set()
        self.files_are_here = True
        self.told: list[dict[str, tuple[Phase, str | None]]] = []
        self._news = asyncio.Event()
        self.router_takes = asyncio.Event()
        self.router_takes.set()
        self.crew = Crew(
            runtime,
            session,
            self._drained,
            self._admitted,
            lambda _: self.files_are_here,
            self._tell,
        )

    async def _drained(self, replica_id: str) -> None:
        self.runtime.log.append(f"drain {replica_id}")
        await self.drains.wait()

    async def _admitted(self, replica_id: str, generation: int) -> None:
        await self.router_takes.wait()

    def _tell(self) -> None:
        """What the supervisor would publish and push at this moment."""
        keepers = list(self.crew)
        ids = [keeper.spec.id for keeper in keepers]
        if len(set(ids)) != len(ids):
            self.runtime.wrong.append(f"told twice: {ids}")
        self.told.append({k.spec.id: (k.instance.phase, k.instance.url) for k in keepers})
        self._news.set()

    @asynccontextmanager
    async def keeping(self, specs, owned=(), runtime=RUNTIME) -> AsyncIterator[None]:
        """From `begin` to nobody's working on, as the supervisor does it."""
        plan = make_plan(specs, owned)
        self.crew.hire(specs, runtime, plan, lambda _: None)
        async with asyncio.TaskGroup() as group:
            self.crew.begin(group, plan)
            try:
                yield
            finally:
                self.crew.dismiss()
        assert self.runtime.wrong == []

    async def holds(self, what: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(10):
                while not what():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            phases = {k.spec.id: (k.instance.phase, k.instance.reason) for k in self.crew}
            pytest.fail(f"{phases}, running {self.runtime.now}, so far {self.runtime.log}")

    async def ready(self, specs) -> None:
        """All as `specs` says, and nothing else."""
        wanted = {spec.id: spec.fingerprint for spec in specs}
        running = sorted(f"{name}/{config}" for name, config in wanted.items())

        def is_so() -> bool:
            found = {
                k.spec.id: k.instance.handle.fingerprint
                for k in self.crew
                if k.instance.phase is Phase.READY and k.instance.handle
            }
            is_told = found == wanted and len(list(self.crew)) == len(wanted)
            return is_told and self.runtime.now == running  # a death may not be noticed yet

        await self.holds(is_so)

    async def started(self, what: str) -> None:
        await self.holds(lambda: f"+{what}" in self.runtime.log)

    def phase(self, replica_id: str) -> Phase:
        return next(k.instance.phase for k in self.crew if k.spec.id == replica_id)


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    async def health(request: web.Request) -> web.Response:
        return web.Response(status=503 if request.match_info["config"] in made.sick else 200)

    app = web.Application()
    app.router.add_get("/{id}/{config}/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        made = World(FakeRuntime(url, tmp_path), session)
        yield made
    await runner.cleanup()


@pytest.fixture
def some(make_spec):
    """Replicas r-0, r-1 ... of one model; `config` is their fingerprint."""

    def some(count: int, config: str = "a", gpus=None, first: int = 0, **fields):
        return [
            make_spec(
                f"r-{n}", config, devices=(f"GPU-{gpus[n - first] if gpus else n}",), **fields
            )
            for n in range(first, first + count)
        ]

    return some


# ---- what does not change


async def test_what_is_unchanged_is_not_touched(world, some) -> None:
    specs = some(3)
    async with world.keeping(specs):
        await world.ready(specs)
        before = list(world.crew)
        world.runtime.log.clear()
        world.told.clear()
        changed = [*specs[:2], *some(1, "b", first=2)]
        await world.crew.change(changed, RUNTIME)
        await world.ready(changed)
        assert list(world.crew)[:2] == before[:2]
        assert world.runtime.log == ["drain r-2", "-r-2/a", "+r-2/b"]
        url = world.runtime.url
        for told in world.told:  # a list without it would cut its streams
            assert told["r-0"] == (Phase.READY, f"{url}/r-0/a")
            assert told["r-1"] == (Phase.READY, f"{url}/r-1/a")


async def test_whoever_is_told_while_a_change_takes_its_time_hears_of_all(world, some) -> None:
    specs = some(2)
    world.sick = {"b"}
    async with world.keeping(specs):
        await world.ready(specs)
        await world.crew.change([specs[0], *some(1, "b", first=1)], RUNTIME)
        await world.started("r-1/b")
        world.runtime.stops.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(world.crew.change([specs[0], *some(1, "c", first=1)], RUNTIME))
            for _ in range(10):
                await asyncio.sleep(0)
                assert {keeper.spec.id for keeper in world.crew} == {"r-0", "r-1"}
            world.runtime.stops.set()
        await world.ready([specs[0], *some(1, "c", first=1)])


async def test_a_name_is_changed_without_a_restart(world, some) -> None:
    async with world.keeping(some(1)):
        await world.ready(some(1))
        renamed = some(1, model="chat", start_timeout_s=99.0)
        await world.crew.change(renamed, RUNTIME)
        (keeper,) = world.crew
        assert (keeper.instance.model, keeper.spec) == ("chat", renamed[0])
        assert world.runtime.log == ["+r-0/a"]


async def test_later_starts_follow_the_new_rules(world, some) -> None:
    async with world.keeping(some(1)):
        await world.ready(some(1))
        rules = {"stop_grace_s": 3.0, "restart": {**FAST, "max_failures": 1}}
        await world.crew.change(some(1), RuntimeConfig(**rules))
        world.runtime.broken.add("a")
        world.runtime.end(next(iter(world.runtime.alive)))
        await world.holds(lambda: world.phase("r-0") is Phase.FAILED)
    await world.crew.stop_all()


# ---- what changes


async def test_changed_ones_are_replaced_one_at_a_time(world, some) -> None:
    async with world.keeping(some(3)):
        await world.ready(some(3))
        world.runtime.log.clear()
        world.told.clear()
        await world.crew.change(some(3, "b"), RUNTIME)
        await world.ready(some(3, "b"))
        steps = [[f"drain r-{n}", f"-r-{n}/a", f"+r-{n}/b"] for n in range(3)]
        assert world.runtime.log == [*steps[0], *steps[1], *steps[2]]
        for told in world.told:
            assert sum(phase is Phase.READY for phase, _ in told.values()) >= 2
        assert {world.runtime.graces[h] for h in world.runtime.graces} == {7.0}


async def test_nobody_goes_out_before_the_router_has_taken_in_the_one_before(world, some) -> None:
    async with world.keeping(some(3)):
        await world.ready(some(3))
        await world.holds(lambda: all(one.instance.is_admitted for one in world.crew))
        world.router_takes.clear()
        world.runtime.log.clear()
        await world.crew.change(some(3, "b"), RUNTIME)
        await world.started("r-0/b")
        await world.holds(lambda: world.phase("r-0") is Phase.READY)
        await asyncio.sleep(0.05)
        assert world.runtime.log == ["drain r-0", "-r-0/a", "+r-0/b"]
        world.router_takes.set()
        await world.ready(some(3, "b"))


async def test_models_do_not_wait_for_each_others_turns(world, make_spec) -> None:
    def both(config: str):
        return [
            make_spec(name, config, model=name, devices=(f"GPU-{name}",)) for name in ("m-0", "n-0")
        ]

    world.sick = {"b"}
    async with world.keeping(both("a")):
        await world.ready(both("a"))
        await world.crew.change(both("b"), RUNTIME)
        await world.started("m-0/b")
        await world.started("n-0/b")
    await world.crew.stop_all()


async def test_a_change_that_does_not_work_takes_out_one_replica(world, some) -> None:
    world.runtime.broken = {"b", "c"}
    async with world.keeping(some(3)):
        await world.ready(some(3))
        await world.crew.change(some(3, "b"), RUNTIME)
        await world.holds(lambda: world.runtime.log.count("+r-0/b") >= 3)
        assert world.runtime.now == ["r-1/a", "r-2/a"]
        # Neither does the next try, which the dead one has to prove first.
        await world.crew.change(some(3, "c"), RUNTIME)
        await world.holds(lambda: world.runtime.log.count("+r-0/c") >= 3)
        assert world.runtime.now == ["r-1/a", "r-2/a"]
        await world.crew.change(some(3, "d"), RUNTIME)
        await world.ready(some(3, "d"))


async def test_back_to_the_config_that_worked(world, some) -> None:
    world.runtime.broken = {"b"}
    async with world.keeping(some(2)):
        await world.ready(some(2))
        await world.crew.change(some(2, "b"), RUNTIME)
        await world.holds(lambda: world.runtime.log.count("+r-0/b") >= 2)
        await world.crew.change(some(2), RUNTIME)
        await world.ready(some(2))
        assert "-r-1/a" not in world.runtime.log


async def test_a_launcher_that_comes_anew_lets_the_dead_prove_the_config_first(world, some) -> None:
    world.runtime.broken = {"b"}
    old = some(3)
    owned = [world.runtime.run(spec) for spec in old[1:]]
    async with world.keeping(some(3, "b"), owned):
        await world.holds(lambda: world.runtime.log.count("+r-0/b") >= 3)
        assert world.runtime.now == ["r-1/a", "r-2/a"]
        await world.crew.change(some(3, "c"), RUNTIME)
        await world.ready(some(3, "c"))


async def test_one_that_loads_is_stopped_at_once_and_no_other_goes_out(world, some) -> None:
    world.sick = {"b"}
    async with world.keeping(some(2)):
        await world.ready(some(2))
        await world.crew.change(some(2, "b"), RUNTIME)
        await world.started("r-0/b")
        world.runtime.log.clear()
        await world.crew.change(some(2, "c"), RUNTIME)
        await world.ready(some(2, "c"))
        first, second = ["-r-0/b", "+r-0/c"], ["drain r-1", "-r-1/a", "+r-1/c"]
        assert world.runtime.log == [*first, *second]
        graces = {handle.fingerprint: grace_s for handle, grace_s in world.runtime.graces.items()}
        assert graces == {"a": 7.0, "b": 0.0}  # it served nobody yet


async def test_one_that_is_drained_serves_on_when_the_config_comes_back(world, some) -> None:
    async with world.keeping(some(2)):
        await world.ready(some(2))
        world.drains.clear()
        await world.crew.change(some(2, "b"), RUNTIME)
        await world.holds(lambda: world.phase("r-0") is Phase.DRAINING)
        await world.crew.change(some(2), RUNTIME)
        await world.ready(some(2))
        assert world.runtime.log == ["+r-0/a", "+r-1/a", "drain r-0"]


async def test_one_that_is_drained_is_not_cut_by_the_next_change(world, some) -> None:
    async with world.keeping(some(2)):
        await world.ready(some(2))
        world.drains.clear()
        await world.crew.change(some(2, "b"), RUNTIME)
        await world.holds(lambda: world.phase("r-0") is Phase.DRAINING)
        await world.crew.change(some(2, "c"), RUNTIME)
        await world.holds(lambda: world.runtime.log.count("drain r-0") == 2)
        assert world.runtime.now == ["r-0/a", "r-1/a"]
        world.drains.set()
        await world.ready(some(2, "c"))
        assert set(world.runtime.graces.values()) == {7.0}


async def test_a_new_keeper_waits_for_the_turn_of_one_that_goes_on(world, some) -> None:
    """The second change is for one replica alone, while the first still loads."""
    world.sick = {"b"}
    async with world.keeping(some(2)):
        await world.ready(some(2))
        await world.crew.change([*some(1, "b"), *some(1, first=1)], RUNTIME)
        await world.started("r-0/b")
        await world.crew.change([*some(1, "b"), *some(1, "c", first=1)], RUNTIME)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.phase("r-1") is Phase.READY
        assert "drain r-1" not in world.runtime.log
        world.sick.clear()
        await world.ready([*some(1, "b"), *some(1, "c", first=1)])


async def test_one_that_was_given_up_is_tried_again(world, some) -> None:
    runtime = RuntimeConfig(max_loading=9, restart={**FAST, "max_failures": 2})
    world.runtime.broken = {"a"}
    async with world.keeping(some(1), runtime=runtime):
        await world.holds(lambda: world.phase("r-0") is Phase.FAILED)
        world.runtime.broken.clear()
        await world.crew.change(some(1), runtime)
        await world.ready(some(1))


async def test_nobody_goes_out_before_what_replaces_it_is_here(world, some) -> None:
    async with world.keeping(some(2)):
        await world.ready(some(2))
        world.runtime.fetches.clear()
        world.runtime.log.clear()
        await world.crew.change(some(2, "b"), RUNTIME)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (world.phase("r-0"), world.phase("r-1")) == (Phase.READY, Phase.READY)
        assert world.runtime.log == []
        world.runtime.fetches.set()
        await world.ready(some(2, "b"))


async def test_nobody_goes_out_before_it_may_load(world, make_spec, some) -> None:
    """Another model loads for long, and only one may load at a time."""
    world.sick = {"slow"}
    one = RuntimeConfig(max_loading=1, restart=FAST)
    slow = make_spec("n-0", "slow", model="n", model_id="n", devices=("GPU-9",))
    async with world.keeping(some(1), runtime=one):
        await world.ready(some(1))
        await world.crew.change([*some(1), slow], one)
        await world.started("n-0/slow")
        await world.crew.change([*some(1, "b"), slow], one)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.phase("r-0") is Phase.READY
        world.sick.clear()
        await world.ready([*some(1, "b"), slow])


async def test_one_that_waits_to_be_tried_again_is_tried_at_once_when_asked(world, some) -> None:
    """Nothing was edited: somebody has seen to it, and says `up` again."""
    slow = RuntimeConfig(restart={"first_s": 300, "base_s": 300})
    world.runtime.broken = {"a"}
    async with world.keeping(some(1), runtime=slow):
        await world.holds(lambda: "restart 1 in 300 s" in next(iter(world.crew)).instance.reason)
        world.runtime.broken.clear()
        await world.crew.change(some(1), slow)
        await world.ready(some(1))


async def test_one_that_cannot_be_stopped_holds_up_nobody(world, some, caplog) -> None:
    world.sick, world.runtime.unstoppable = {"b"}, {"b"}
    async with world.keeping(some(1, "b", gpus=[5])):
        await world.started("r-0/b")
        await world.crew.change(some(1, first=1), RUNTIME)
        await world.holds(lambda: world.phase("r-1") is Phase.READY)
        assert "r-0.1 survives everything" in caplog.text
        await world.holds(lambda: world.phase("r-0") is Phase.DRAINING)
        world.runtime.unstoppable.clear()
        await world.ready(some(1, first=1))


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.READY])
async def test_nothing_starts_where_one_cannot_be_stopped(world, some, phase: Phase) -> None:
    world.runtime.unstoppable = {"a"}
    world.sick = {"a"} if phase is Phase.STARTING else set()
    async with world.keeping(some(1)):
        await world.holds(lambda: world.runtime.now == ["r-0/a"] and world.phase("r-0") is phase)
        after = some(1, "n", gpus=[0], first=7)
        await world.crew.change(after, RUNTIME)
        what = "cannot be stopped: r-0.1 survives everything"
        waits = f"waits until its GPU is free: r-0 {what}"
        await world.holds(
            lambda: (
                [(k.instance.phase, k.instance.reason) for k in world.crew]
                == [(Phase.PENDING, waits), (Phase.DRAINING, what)]
            )
        )
        await world.holds(lambda: all(k.instance.history.is_stuck for k in world.crew))
        assert world.runtime.now == ["r-0/a"]
        # Nor with the next change, be it of the same replica.
        await world.crew.change(some(1, "m"), RUNTIME)
        await world.holds(lambda: [k.spec.id for k in world.crew] == ["r-0"])
        assert world.runtime.now == ["r-0/a"]
        world.runtime.unstoppable.clear()
        await world.ready(some(1, "m"))


async def test_one_that_ends_and_cannot_be_cleared_away_is_not_replaced_yet(world, some) -> None:
    async with world.keeping(some(1)):
        await world.ready(some(1))
        world.runtime.unstoppable = {"a"}
        next(iter(world.crew)).report("GPU-0 fell off the bus")
        await world.holds(lambda: world.phase("r-0") is Phase.DRAINING)
        await world.crew.change(some(1, "b"), RUNTIME)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.runtime.now == ["r-0/a"]
        world.runtime.unstoppable.clear()
        await world.ready(some(1, "b"))


async def test_a_stray_that_cannot_be_stopped_keeps_its_gpu(world, some) -> None:
    stray = world.runtime.run(some(1, "x", gpus=[0], first=9)[0])
    world.runtime.unstoppable = {"x"}
    async with world.keeping(some(1), [stray]):
        why = "waits until its GPU is free: r-9 cannot be stopped: r-9.1 survives everything"
        await world.holds(lambda: next(iter(world.crew)).instance.reason == why)
        world.runtime.unstoppable.clear()
        await world.ready(some(1))


# ---- what goes


def named(make_spec, names, config: str = "a", **fields):
    """One of a model on each GPU, by another name than `some`'s."""
    return [make_spec(n, config, devices=(f"GPU-{i}",), **fields) for i, n in enumerate(names)]


async def test_renamed_ones_follow_each_other_one_at_a_time(world, some, make_spec) -> None:
    after = named(make_spec, ["s-0", "s-1", "s-2"])
    async with world.keeping(some(3)):
        await world.ready(some(3))
        world.runtime.log.clear()
        world.told.clear()
        await world.crew.change(after, RUNTIME)
        await world.ready(after)
        steps = [[f"drain r-{n}", f"-r-{n}/a", f"+s-{n}/a"] for n in range(3)]
        assert world.runtime.log == [*steps[0], *steps[1], *steps[2]]
        for told in world.told:
            assert sum(phase is Phase.READY for phase, _ in told.values()) >= 2


async def test_renamed_ones_that_do_not_come_up_take_out_one(world, some, make_spec) -> None:
    world.runtime.broken = {"b"}
    async with world.keeping(some(3)):
        await world.ready(some(3))
        await world.crew.change(named(make_spec, ["s-0", "s-1", "s-2"], "b"), RUNTIME)
        await world.holds(lambda: world.runtime.log.count("+s-0/b") >= 3)
        assert world.runtime.now == ["r-1/a", "r-2/a"]
        # And back again: those that serve still are not touched.
        await world.crew.change(some(3), RUNTIME)
        await world.ready(some(3))
        assert {"-r-1/a", "-r-2/a"}.isdisjoint(world.runtime.log)


async def test_those_that_are_too_many_serve_until_a_changed_one_is_back(world, some) -> None:
    world.sick = {"b"}
    async with world.keeping(some(3)):
        await world.ready(some(3))
        await world.crew.change(some(1, "b"), RUNTIME)
        await world.started("r-0/b")
        assert world.runtime.now == ["r-0/b", "r-1/a", "r-2/a"]
        told = {k.spec.id: (k.instance.phase, k.instance.reason) for k in world.crew}
        reason = "no longer in the config; serves until others of its model do"
        assert told["r-1"] == told["r-2"] == (Phase.READY, reason)
        world.router_takes.clear()
        world.sick.clear()
        await world.holds(lambda: world.phase("r-0") is Phase.READY)
        await asyncio.sleep(0.05)
        assert world.runtime.now == ["r-0/b", "r-1/a", "r-2/a"]  # it is not back for clients yet
        world.router_takes.set()
        await world.ready(some(1, "b"))


async def test_those_that_are_too_many_go_at_once_where_nothing_else_changes(world, some) -> None:
    """Also where what stays has been dead before."""
    async with world.keeping(some(3)):
        await world.ready(some(3))
        world.sick = {"a"}
        world.runtime.end(next(h for h in world.runtime.alive if h.replica_id == "r-0"))
        await world.holds(lambda: world.phase("r-0") is not Phase.READY)
        await world.crew.change(some(1), RUNTIME)
        await world.holds(lambda: len(list(world.crew)) == 1)
        world.sick.clear()
        await world.ready(some(1))


async def test_one_that_waits_to_leave_is_no_trouble_for_how_it_once_came_up(world, some) -> None:
    world.runtime.broken = {"a"}
    async with world.keeping(some(2)):
        await world.holds(lambda: world.runtime.log.count("+r-1/a") > 3)
        world.runtime.broken.clear()
        await world.ready(some(2))
        assert list(world.crew)[1].instance.history.failed_starts >= 3
        world.sick = {"b"}
        await world.crew.change(some(1, "b"), RUNTIME)
        await world.started("r-0/b")
        assert list(world.crew)[1].instance.history.failed_starts == 0


async def test_one_that_waits_to_leave_is_watched(world, some) -> None:
    world.sick = {"b"}
    async with world.keeping(some(2)):
        await world.ready(some(2))
        await world.crew.change(some(1, "b"), RUNTIME)
        await world.started("r-0/b")
        world.runtime.end(next(h for h in world.runtime.alive if h.replica_id == "r-1"))
        await world.holds(lambda: [k.spec.id for k in world.crew] == ["r-0"])
        assert "drain r-1" not in world.runtime.log


async def test_a_model_that_goes_waits_for_nobody(world, some, make_spec) -> None:
    world.sick = {"n"}
    after = named(make_spec, ["n-0"], "n", model="n")
    async with world.keeping(some(2)):
        await world.ready(some(2))
        await world.crew.change(after, RUNTIME)
        await world.started("n-0/n")
        await world.holds(lambda: world.runtime.now == ["n-0/n"])


async def test_models_that_change_places_do_not_wait_for_each_other(world, make_spec) -> None:
    before = [
        *named(make_spec, ["m-0", "m-1"], model="m"),
        make_spec("n-0", "a", model="n", devices=("GPU-2",)),
    ]
    after = [
        make_spec("n-1", "a", model="n", devices=("GPU-1",)),
        make_spec("m-2", "a", model="m", devices=("GPU-2",)),
    ]
    async with world.keeping(before):
        await world.ready(before)
        await world.crew.change(after, RUNTIME)
        await world.ready(after)


# ---- GPUs that change hands


async def test_a_removed_one_is_drained_and_gone_before_another_gets_its_gpu(world, some) -> None:
    async with world.keeping(some(2)):
        await world.ready(some(2))
        world.drains.clear()
        world.runtime.log.clear()
        after = [some(1)[0], *some(1, "n", gpus=[1], first=7)]
        await world.crew.change(after, RUNTIME)
        await world.holds(lambda: world.runtime.log == ["drain r-1"])
        assert world.phase("r-1") is Phase.DRAINING
        assert world.phase("r-7") is Phase.PENDING
        assert next(iter(world.crew)).spec.id == "r-0"
        world.drains.set()
        await world.ready(after)
        assert world.runtime.log == ["drain r-1", "-r-1/a", "+r-7/n"]


async def test_a_stray_is_gone_before_its_gpu_is_used(world, some) -> None:
    stray = world.runtime.run(some(1, "x", gpus=[0], first=9)[0])
    world.runtime.stops.clear()
    async with world.keeping(some(1), [stray]):
        await world.holds(lambda: bool(world.told) or world.phase("r-0") is Phase.PENDING)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.runtime.log == []
        world.runtime.stops.set()
        await world.ready(some(1))


async def test_one_that_comes_back_while_it_leaves_waits_until_it_has_left(world, some) -> None:
    """Two of one id would be refused by the router, and with them the whole list."""
    async with world.keeping(some(2, gpus=[0, 1])):
        await world.ready(some(2))
        world.drains.clear()
        await world.crew.change(some(1), RUNTIME)
        await world.holds(lambda: "drain r-1" in world.runtime.log)
        await world.crew.change(some(2, gpus=[0, 5]), RUNTIME)  # on another GPU, so not for that
        for _ in range(20):
            await asyncio.sleep(0)
        assert [keeper.spec.id for keeper in world.crew] == ["r-0", "r-1"]
        assert world.phase("r-1") is Phase.DRAINING
        world.drains.set()
        await world.ready(some(2, gpus=[0, 5]))


async def test_replicas_move_up_when_a_gpu_is_taken_out(world, some) -> None:
    async with world.keeping(some(2, gpus=[0, 1])):
        await world.ready(some(2))
        await world.crew.change(some(2, "b", gpus=[1, 2]), RUNTIME)
        await world.ready(some(2, "b"))
        moves = [["drain r-1", "-r-1/a", "+r-1/b"], ["drain r-0", "-r-0/a", "+r-0/b"]]
        assert world.runtime.log[2:] == [*moves[0], *moves[1]]


async def test_a_newcomer_waits_for_the_gpu_that_another_leaves(world, some) -> None:
    async with world.keeping(some(1, gpus=[0])):
        await world.ready(some(1))
        after = some(2, "b", gpus=[1, 0])
        await world.crew.change(after, RUNTIME)
        await world.ready(after)
        assert world.runtime.log[-1] == "+r-1/b"
        newcomer = list(world.crew)[1].instance
        assert (newcomer.reason, newcomer.history.is_stuck) == ("answers /health", False)


async def test_replicas_that_change_places_leave_first(world, some) -> None:
    async with world.keeping(some(3)):
        await world.ready(some(3))
        after = [*some(2, "b", gpus=[1, 0]), some(3)[2]]
        await world.crew.change(after, RUNTIME)
        await world.ready(after)
        steps = world.runtime.log[3:]
        assert sorted(steps[:4]) == ["-r-0/a", "-r-1/a", "drain r-0", "drain r-1"]
        assert sorted(steps[4:]) == ["+r-0/b", "+r-1/b"]


async def test_one_that_waits_for_a_gpu_and_one_that_then_wants_its_own_change_places(
    world, some
) -> None:
    world.sick = {"c"}
    before = some(3)
    async with world.keeping(before):
        await world.ready(before)
        # r-0 is to go where r-1 is, which cannot leave before r-2 is back.
        first = [*some(1, "b", gpus=[1]), *some(1, "b", gpus=[5], first=1), *some(1, "c", first=2)]
        await world.crew.change([*before[:2], first[2]], RUNTIME)
        await world.started("r-2/c")
        await world.crew.change(first, RUNTIME)
        await world.holds(lambda: "waits until its GPU" in next(iter(world.crew)).instance.reason)
        last = [first[0], *some(1, "d", gpus=[0], first=1), first[2]]
        await world.crew.change(last, RUNTIME)
        world.sick.clear()
        await world.ready(last)


async def test_replicas_that_were_to_change_places_when_the_launcher_died_do(world, some) -> None:
    owned = [world.runtime.run(spec) for spec in some(3)]
    after = [*some(2, "b", gpus=[1, 0]), some(3)[2]]
    async with world.keeping(after, owned):
        await world.ready(after)
        assert "drain r-2" not in world.runtime.log


async def test_one_that_dies_while_it_waits_for_a_gpu_goes_on_waiting(world, some) -> None:
    """r-0 is to move to where r-1 is, which waits behind r-2, which cannot come back."""
    world.sick = {"c"}
    before = some(3)
    async with world.keeping(before):
        await world.ready(before)
        new = [*some(1, "b", gpus=[1]), *some(1, "b", gpus=[3], first=1), *some(1, "c", first=2)]
        await world.crew.change([*before[:2], new[2]], RUNTIME)
        await world.started("r-2/c")
        await world.crew.change(new, RUNTIME)
        await world.holds(lambda: "waits until its GPU" in next(iter(world.crew)).instance.reason)
        world.runtime.end(next(h for h in world.runtime.alive if h.replica_id == "r-0"))
        await world.holds(lambda: world.phase("r-0") is Phase.PENDING)
        world.sick.clear()
        await world.ready(new)


async def test_models_that_share_a_gpu_do_not_wait_for_each_other(world, make_spec) -> None:
    def both(config: str):
        return [
            make_spec("m-0", "a", model="m", devices=("GPU-0",)),
            make_spec("n-0", config, model="n", devices=("GPU-0",)),
        ]

    async with world.keeping(both("a")):
        await world.ready(both("a"))
        await world.crew.change(both("b"), RUNTIME)
        await world.ready(both("b"))
        world.runtime.wrong.clear()  # here two on one GPU is what was asked for


# ---- loading


@pytest.mark.parametrize(("files_are_here", "expected"), [(True, 2), (False, 1)])
async def test_so_many_load_at_once(world, some, files_are_here: bool, expected: int) -> None:
    world.sick, world.files_are_here = {"a"}, files_are_here
    runtime = RuntimeConfig(max_loading=2, restart=FAST)
    async with world.keeping(some(4), runtime=runtime):
        await world.holds(lambda: len(world.runtime.log) == expected)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(world.runtime.log) == expected
        await world.crew.change(some(6), runtime)  # newcomers queue behind them
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(world.runtime.log) == expected
        world.sick.clear()
        await world.ready(some(6))


# ---- ending


async def test_dismissed_and_stopped_nothing_is_left(world, some) -> None:
    async with world.keeping(some(2)):
        await world.ready(some(2))
        world.drains.clear()
        await world.crew.change([*some(1, "b"), *some(1, first=5)], RUNTIME)
        await world.holds(lambda: world.runtime.log.count("drain r-1") == 1)
    assert "r-1/a" in world.runtime.now  # dismissing stops nothing
    await world.crew.stop_all()
    assert world.runtime.now == []


async def test_one_that_resists_does_not_keep_the_others(world, some, caplog) -> None:
    specs = [*some(1, "stuck"), *some(1, first=1)]
    async with world.keeping(specs):
        await world.ready(specs)
    world.runtime.unstoppable = {"stuck"}
    await world.crew.stop_all()
    assert world.runtime.now == ["r-0/stuck"]
    assert "r-0.1 survives everything" in caplog.text


@pytest.mark.parametrize("seed", range(25))
async def test_back_and_forth_it_ends_in_the_last_config(world, some, seed: int) -> None:
    """A random walk: replicas come, go, change, die, resist and move, faster than they are
    followed."""
    chance = random.Random(seed)

    def any_config():
        count, first = chance.randrange(1, 5), chance.choice((0, 0, 2, 7))
        gpus = chance.sample(range(5), count)
        return [
            replace(spec, fingerprint=f"{chance.choice('abc')}{spec.devices[0][-1]}")
            for spec in some(count, gpus=gpus, first=first, model=chance.choice("mmmn"))
        ]

    async with world.keeping(any_config()):
        for _ in range(8):
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            if world.runtime.alive and chance.random() < 0.3:
                world.runtime.end(chance.choice(list(world.runtime.alive)))
            some_resist = chance.random() < 0.3
            world.runtime.unstoppable = {f"a{n}" for n in range(5)} if some_resist else set()
            last = any_config()
            await world.crew.change(last, RUNTIME)
        world.runtime.unstoppable.clear()
        await world.ready(last)
        if chance.random() < 0.5:
            await world.crew.change(any_config(), RUNTIME)
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
    await world.crew.stop_all()
    assert world.runtime.now == []
