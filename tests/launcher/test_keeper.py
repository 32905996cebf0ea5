"""One replica's keeper over a runtime that fails as told; its health is a real HTTP server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from launcher.engines import ENGINES
from launcher.instance import Phase
from launcher.keeper import ReplicaKeeper
from launcher.restarts import RestartPolicy
from launcher.runtimes import Exit, Handle
from launcher.surroundings import Rules, Surroundings
from launcher.turns import LoadGate, ReplaceTurn
from router.errors import StartError, StopError

FAST = RestartPolicy(base_s=0.001, max_s=0.002, max_failures=3)


@dataclass
class FakeRuntime:
    """Starts nothing; the test says when a start ends. Checked by the keeper's use of it alone."""

    url: str
    log_folder: object
    fetch_errors: list[Exception] = field(default_factory=list)
    start_errors: list[Exception] = field(default_factory=list)
    stop_errors: list[Exception] = field(default_factory=list)
    ends_at_once: bool = False
    serves_itself: list[bool] = field(default_factory=list)
    name: str = "fake"
    started: list[Handle] = field(default_factory=list)
    stopped: list[tuple[Handle, float]] = field(default_factory=list)
    exits: dict[Handle, "asyncio.Future[Exit]"] = field(default_factory=dict)

    async def fetch(self, spec, say) -> None:
        say("pulling the image")
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)

    async def start(self, spec, generation: int, say) -> Handle:
        say("fetching what it needs")
        if self.start_errors:
            raise self.start_errors.pop(0)
        handle = Handle(
            "fake", spec.id, generation, f"{generation}", self.url, spec.fingerprint, generation
        )
        self.started.append(handle)
        self.know(handle)
        if self.ends_at_once:
            self.end(handle, Exit(code=1, detail="exited with code 1"))
        return handle

    def know(self, handle: Handle) -> None:
        self.exits[handle] = asyncio.get_running_loop().create_future()

    def end(self, handle: Handle, found: Exit) -> None:
        self.exits[handle].set_result(found)

    async def wait(self, handle: Handle) -> Exit:
        return await asyncio.shield(self.exits[handle])

    async def poll(self, handle: Handle) -> Exit | None:
        return self.exits[handle].result() if self.exits[handle].done() else None

    async def stop(self, handle: Handle, grace_s: float) -> None:
        self.stopped.append((handle, grace_s))
        if self.stop_errors:
            raise self.stop_errors.pop(0)

    async def owned(self) -> list[Handle]:
        return []

    async def is_serving_itself(self, handle: Handle) -> bool:
        return self.serves_itself.pop(0) if self.serves_itself else True

    def last_generation(self, replica_id: str) -> int:
        return 4

    def log_path(self, replica_id: str):
        return self.log_folder / f"{replica_id}.log"


class World:
    """A keeper, its runtime, its replica's health, and the phases it has been through."""

    def __init__(self, session: aiohttp.ClientSession, runtime: FakeRuntime, spec) -> None:
        self.runtime = runtime
        self.healthy = True
        self.phases: list[Phase] = []
        self._news = asyncio.Event()
        self.slots = asyncio.Semaphore(1)
        self.gate = LoadGate(self.slots)
        self.turn = ReplaceTurn()
        self.draining: list[str] = []
        self.is_drained = asyncio.Event()
        self.is_drained.set()
        self.router_takes_it = asyncio.Event()
        self.router_takes_it.set()
        self.is_free = asyncio.Event()
        self.is_free.set()
        rules = Rules(FAST, 7.0)
        around = Surroundings(
            runtime,
            session,
            rules,
            self.gate,
            self.turn,
            self._drained,
            self._admitted,
            self._free,
            self._changed,
        )
        self.keeper = ReplicaKeeper(spec, ENGINES["simulator"], around)

    async def _drained(self, replica_id: str) -> None:
        self.draining.append(replica_id)
        await self.is_drained.wait()

    async def _admitted(self, replica_id: str, generation: int) -> None:
        assert (replica_id, generation) == (self.keeper.spec.id, self.keeper.instance.generation)
        await self.router_takes_it.wait()

    async def _free(self, keeper: ReplicaKeeper) -> None:
        await self.is_free.wait()

    def _changed(self) -> None:
        phase = self.keeper.instance.phase
        if not self.phases or self.phases[-1] is not phase:
            self.phases.append(phase)
        self._news.set()

    async def until(self, phase: Phase) -> None:
        await self.holds(lambda: self.keeper.instance.phase is phase)

    async def holds(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not what():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def world(tmp_path, make_spec) -> AsyncIterator[World]:
    async def health(request: web.Request) -> web.Response:
        return web.Response(status=200 if made.healthy else 503)

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        made = World(session, FakeRuntime(url, tmp_path), make_spec())
        yield made
    await runner.cleanup()


async def test_it_starts_and_becomes_ready(world) -> None:
    async with keeping(world):
        await world.until(Phase.READY)
        instance = world.keeper.instance
        assert (instance.generation, instance.restarts, instance.pid) == (5, 0, 5)
        assert world.phases == [Phase.STARTING, Phase.READY]
        assert not world.slots.locked()  # a ready replica loads no more


async def test_it_shows_what_the_engine_says_while_it_loads(world) -> None:
    world.healthy = False
    async with keeping(world):
        await world.until(Phase.STARTING)
        assert world.slots.locked()
        log = world.runtime.log_path("replica-0")
        log.write_text("INFO Starting shard\nSetting max batch total tokens to 4242\n")
        await world.holds(lambda: world.keeper.instance.max_tokens == 4242)
        await world.until(Phase.LOADING)
        assert world.keeper.instance.progress == "warmed up"
        world.healthy = True
        await world.until(Phase.READY)


async def test_it_is_started_again_after_a_death(world) -> None:
    async with keeping(world):
        await world.until(Phase.READY)
        first = world.runtime.started[0]
        world.runtime.end(first, Exit(signal=9, detail="killed by SIGKILL"))
        await world.holds(lambda: len(world.runtime.started) == 2)
        await world.until(Phase.READY)
        assert world.phases[-3:] == [Phase.PENDING, Phase.STARTING, Phase.READY]
        assert (first, 0.0) in world.runtime.stopped  # what it left behind is cleared away
        assert world.keeper.instance.restarts == 1
        assert world.runtime.started[1].generation == 6


async def test_it_is_given_up_after_too_many_failed_starts(world) -> None:
    world.runtime.ends_at_once = True
    world.healthy = False
    world.runtime.log_path("replica-0").write_text("Error: no such model\n")
    await asyncio.wait_for(world.keeper.run(), 10)
    instance = world.keeper.instance
    assert instance.phase is Phase.FAILED
    assert len(world.runtime.started) == 3
    assert "exited with code 1 (its log says: Error: no such model)" in instance.reason
    assert not world.slots.locked()


async def test_what_cannot_be_started_is_tried_once(world) -> None:
    world.runtime.start_errors = [StartError("no such program", recoverable=False)]
    await asyncio.wait_for(world.keeper.run(), 10)
    assert world.keeper.instance.phase is Phase.FAILED
    assert world.runtime.started == []


async def test_what_somebody_has_to_see_to_first_is_not_started(world) -> None:
    world.keeper.spec = replace(world.keeper.spec, trouble="cuda:1 is lost")
    async with keeping(world):
        await world.holds(lambda: world.keeper.instance.history.is_stuck)
        assert "cuda:1 is lost" in world.keeper.instance.reason
        world.keeper.spec = replace(world.keeper.spec, trouble="")
        await world.until(Phase.READY)
    assert len(world.runtime.started) == 1


async def test_what_runs_is_adopted_whatever_would_keep_it_from_starting(
    world, make_handle
) -> None:
    handle = running(world, make_handle, 6)
    world.keeper.spec = replace(world.keeper.spec, trouble="cuda:1 is lost")
    async with keeping(world, adopted=handle):
        await world.until(Phase.READY)
    assert world.runtime.stopped == []


async def test_trouble_that_may_pass_is_tried_again(world) -> None:
    world.runtime.start_errors = [StartError("disk full"), RuntimeError("a bug")]
    async with keeping(world):
        await world.until(Phase.READY)
        assert world.keeper.instance.restarts == 2


async def test_another_programs_answer_does_not_make_it_ready(world) -> None:
    world.runtime.serves_itself = [False, True]
    async with keeping(world):
        await world.holds(lambda: len(world.runtime.started) == 2)
        await world.until(Phase.READY)
        assert Phase.READY not in world.phases[:-1]
        assert world.runtime.stopped == [(world.runtime.started[0], 0.0)]


async def test_a_start_that_takes_too_long_is_stopped(world, make_spec) -> None:
    world.healthy = False
    world.keeper.spec = make_spec(start_timeout_s=0.01)
    await asyncio.wait_for(world.keeper.run(), 10)
    assert "not ready in time (engine.start_timeout_s, 0.01 s)" in world.keeper.instance.reason
    assert [handle for handle, _ in world.runtime.stopped] == world.runtime.started


async def test_an_adopted_replica_is_not_started(world, make_handle) -> None:
    adopted = running(world, make_handle, generation=3)
    async with keeping(world, adopted=adopted):
        await world.until(Phase.READY)
        assert world.runtime.started == []
        assert world.keeper.instance.generation == 3
        world.runtime.end(adopted, Exit(detail="ended"))
        await world.holds(lambda: bool(world.runtime.started))
        assert world.runtime.started[0].generation == 5


async def test_an_outdated_replica_serves_until_its_turn(world, make_handle) -> None:
    outdated = running(world, make_handle, generation=3)
    await world.turn.take("another one that is being replaced")
    async with keeping(world, outdated=outdated):
        await world.until(Phase.READY)
        assert world.runtime.stopped == []
        world.turn.give_back("another one that is being replaced")
        await world.holds(lambda: bool(world.runtime.started))
        await world.until(Phase.READY)
        assert world.runtime.stopped == [(outdated, 7.0)]
        assert Phase.DRAINING in world.phases
        assert world.keeper.instance.restarts == 0


async def test_it_is_stopped_only_when_its_calls_are_done(world, make_handle) -> None:
    world.is_drained.clear()
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: world.draining == ["replica-0"])
        assert world.keeper.instance.phase is Phase.DRAINING
        assert world.runtime.stopped == []
        world.is_drained.set()
        await world.until(Phase.READY)


async def test_the_turn_is_kept_until_the_successor_is_taken_in(world, make_handle) -> None:
    world.healthy = False
    world.router_takes_it.clear()
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: bool(world.runtime.started))
        assert world.turn.owner is world.keeper
        world.runtime.end(world.runtime.started[0], Exit(code=1, detail="exited with code 1"))
        await world.holds(lambda: len(world.runtime.started) == 2)
        assert world.turn.owner is world.keeper  # others must not follow into the same trouble
        world.healthy = True
        await world.until(Phase.READY)
        await asyncio.sleep(0.05)
        assert world.turn.owner is world.keeper  # for clients it is not back yet
        assert not world.keeper.instance.is_admitted
        world.router_takes_it.set()
        await world.holds(lambda: world.keeper.instance.is_admitted)
        assert world.turn.owner is None


async def test_one_that_dies_before_it_is_taken_in_keeps_the_turn(world, make_handle) -> None:
    world.router_takes_it.clear()
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: bool(world.runtime.started))
        await world.until(Phase.READY)
        world.runtime.end(world.runtime.started[0], Exit(code=1, detail="exited with code 1"))
        await world.holds(lambda: len(world.runtime.started) == 2)
        assert world.turn.owner is world.keeper
        world.router_takes_it.set()
        await world.holds(lambda: world.keeper.instance.is_admitted)


async def test_each_start_is_taken_in_anew(world) -> None:
    async with keeping(world):
        await world.holds(lambda: world.keeper.instance.is_admitted)
        world.router_takes_it.clear()
        world.runtime.end(world.runtime.started[0], Exit(code=1, detail="exited with code 1"))
        await world.holds(lambda: len(world.runtime.started) == 2)
        await world.until(Phase.READY)
        assert not world.keeper.instance.is_admitted


async def test_what_cannot_be_fetched_takes_nobody_out(world, make_handle) -> None:
    world.runtime.fetch_errors = [StartError(f"no such image {n}") for n in range(2)]
    outdated = running(world, make_handle, generation=3)
    seen = []
    told = world.keeper._around.changed

    def note() -> None:
        instance = world.keeper.instance
        seen.append((instance.phase, instance.reason, instance.history.failed_starts))
        told()

    world.keeper._around = replace(world.keeper._around, changed=note)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: len(seen) > 0 and "no such image 0" in seen[-1][1])
        assert world.turn.owner is None  # others may go on, or be refused the same
        assert world.keeper.instance.handle is outdated
        await world.holds(lambda: bool(world.runtime.started))
        await world.until(Phase.READY)
    assert (Phase.READY, "runs with an older config; to be replaced", 0) in seen
    told_of = [reason for phase, reason, _ in seen if phase is Phase.READY]
    assert "runs with an older config; what replaces it cannot start: no such image 1" in told_of
    assert world.runtime.stopped == [(outdated, 7.0)]
    assert world.keeper.instance.history.failed_starts == 0


async def test_what_cannot_be_fetched_at_all_is_tried_again_when_asked(world, make_handle) -> None:
    world.runtime.fetch_errors = [StartError("no such program", recoverable=False)]
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: world.keeper.instance.history.is_stuck)
        assert world.keeper.instance.phase is Phase.READY
        assert world.keeper.instance.reason.endswith(
            "cannot start: no such program; `launcher up` tries it again"
        )
        await asyncio.sleep(0)
        world.keeper.try_now()
        assert not world.keeper.instance.history.is_stuck  # told anew only if it fails anew
        await world.holds(lambda: bool(world.runtime.started))


async def test_it_serves_until_it_may_load(world, make_handle) -> None:
    await world.slots.acquire()  # another model downloads for half an hour
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.holds(lambda: world.turn.owner is world.keeper)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.keeper.instance.phase is Phase.READY
        assert world.runtime.stopped == []
        world.slots.release()
        await world.holds(lambda: bool(world.runtime.started))
        await world.until(Phase.READY)
    assert not world.slots.locked()


WAITS = ["turn", "gpu", "load"]


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("end", ["death", "gpu"])
async def test_an_outdated_one_is_watched_whatever_it_waits_for(
    world, make_handle, wait: str, end: str
) -> None:
    if wait == "turn":
        await world.turn.take("another one that is being replaced")
    elif wait == "gpu":
        world.is_free.clear()
    else:
        await world.slots.acquire()
    outdated = running(world, make_handle, generation=3)
    async with keeping(world, outdated=outdated):
        await world.until(Phase.READY)
        if end == "death":
            world.runtime.end(outdated, Exit(signal=9, detail="killed by SIGKILL"))
        else:
            world.keeper.report("GPU-1: XID 79, it has fallen off the bus")
        await world.until(Phase.PENDING)
        cause = "killed by SIGKILL" if end == "death" else "fallen off the bus"
        assert cause in world.keeper.instance.reason
        assert world.runtime.stopped == [(outdated, 0.0)]
        world.is_free.set()
        if wait == "load":
            world.slots.release()
        await world.until(Phase.READY)


async def test_an_outdated_one_that_dies_is_replaced_out_of_turn(world, make_handle) -> None:
    outdated = running(world, make_handle, generation=3)
    await world.turn.take("another one that is being replaced")
    async with keeping(world, outdated=outdated):
        await world.until(Phase.READY)
        world.runtime.end(outdated, Exit(signal=9, detail="killed by SIGKILL"))
        await world.holds(lambda: bool(world.runtime.started))
        await world.until(Phase.READY)
        assert world.turn.owner == "another one that is being replaced"


async def test_cancelled_in_its_turn_it_gives_the_turn_back(world, make_handle) -> None:
    world.is_drained.clear()
    async with keeping(world, outdated=running(world, make_handle, generation=3)):
        await world.holds(lambda: world.draining == ["replica-0"])
    assert world.turn.owner is None


async def test_one_whose_gpu_is_in_trouble_is_started_anew(world) -> None:
    async with keeping(world):
        await world.until(Phase.READY)
        world.keeper.report("GPU-1: XID 79, it has fallen off the bus")
        await world.holds(lambda: len(world.runtime.started) == 2)
        await world.until(Phase.READY)
        assert world.runtime.stopped == [(world.runtime.started[0], 0.0)]
        assert world.keeper.instance.restarts == 1


async def test_how_a_start_goes_is_shown_before_it_runs(world, monkeypatch) -> None:
    seen = []

    async def slowly(spec, generation: int, say) -> Handle:
        say("pulling the image: 1.2 of 9.8 GB")
        instance = world.keeper.instance
        seen.append((instance.phase, instance.progress))
        raise StartError("no such image", recoverable=False)

    monkeypatch.setattr(world.runtime, "start", slowly)
    await asyncio.wait_for(world.keeper.run(), 10)
    assert seen == [(Phase.STARTING, "pulling the image: 1.2 of 9.8 GB")]


async def test_cancelling_touches_nothing_and_stop_ends_it(world) -> None:
    async with keeping(world):
        await world.until(Phase.READY)
    assert world.runtime.stopped == []
    await world.keeper.stop(3.0)
    assert world.runtime.stopped == [(world.runtime.started[0], 3.0)]
    assert world.phases[-2:] == [Phase.DRAINING, Phase.STOPPED]
    await world.keeper.stop(3.0)
    assert len(world.runtime.stopped) == 1


async def test_it_can_be_stopped_while_it_clears_up_after_an_end(world, monkeypatch) -> None:
    clearing = asyncio.Event()

    async def never_done(handle: Handle, grace_s: float) -> None:
        clearing.set()
        await asyncio.Event().wait()

    async with keeping(world):
        await world.until(Phase.READY)
        monkeypatch.setattr(world.runtime, "stop", never_done)
        world.runtime.end(world.runtime.started[0], Exit(code=1, detail="exited with code 1"))
        await asyncio.wait_for(clearing.wait(), 10)
    monkeypatch.undo()
    await world.keeper.stop(3.0)  # what was not cleared up is stopped now
    assert world.keeper.instance.phase is Phase.STOPPED
    assert world.runtime.stopped == [(world.runtime.started[0], 3.0)]


async def test_one_that_will_not_die_is_stopped_before_it_is_started_again(world) -> None:
    stuck = [StopError("replica-0: stuck in a driver"), RuntimeError("a bug"), StopError("stuck")]
    world.runtime.stop_errors = list(stuck)
    seen = []
    async with keeping(world):
        await world.until(Phase.READY)
        first = world.runtime.started[0]
        world.runtime.end(first, Exit(code=1, detail="exited with code 1"))
        await world.until(Phase.DRAINING)
        instance = world.keeper.instance
        seen.append((instance.handle, instance.reason))
        await world.holds(lambda: len(world.runtime.started) == 2)
        assert world.runtime.stopped == [(first, 0.0)] * (len(stuck) + 1)
        assert seen == [(first, "cannot be stopped: stuck in a driver")]
        await world.until(Phase.READY)
        assert (instance.resists, instance.history.is_stuck) == (False, False)


async def test_one_that_will_not_die_is_tried_again_when_somebody_has_seen_to_it(world) -> None:
    world.keeper._around.rules.policy = RestartPolicy(first_s=300.0, base_s=300.0)
    world.runtime.stop_errors = [StopError("Docker is away")]
    async with keeping(world):
        await world.until(Phase.READY)
        world.runtime.end(world.runtime.started[0], Exit(code=1, detail="exited with code 1"))
        await world.until(Phase.DRAINING)
        await asyncio.sleep(0)
        world.keeper.try_now()
        await world.until(Phase.PENDING)
        assert "exited with code 1" in world.keeper.instance.reason
        await asyncio.sleep(0)
        world.keeper.try_now()  # nor does it wait for its restart
        await world.holds(lambda: len(world.runtime.started) == 2)


async def test_one_that_resists_is_not_forgotten_by_who_cancels_it(world) -> None:
    world.keeper._around.rules.policy = RestartPolicy(first_s=300.0)
    world.runtime.stop_errors = [StopError("Docker is away")]
    async with keeping(world):
        await world.until(Phase.READY)
        first = world.runtime.started[0]
        world.runtime.end(first, Exit(code=1, detail="exited with code 1"))
        await world.until(Phase.DRAINING)
    assert world.keeper.instance.handle is first
    await world.keeper.retire(at_once())
    assert world.keeper.instance.phase is Phase.STOPPED
    assert world.runtime.stopped[-1] == (first, 7.0)


async def at_once() -> None:
    """It may leave."""


class keeping:
    """Runs the keeper for the time of the block, then cancels it, as the supervisor does."""

    def __init__(self, world: World, **how) -> None:
        self._world, self._how = world, how

    async def __aenter__(self) -> None:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._world.keeper.run(**self._how))

    async def __aexit__(self, *exc) -> None:
        self._task.cancel()
        await self._group.__aexit__(*exc)


def running(world: World, make_handle, generation: int) -> Handle:
    handle = replace(make_handle(generation=generation), base_url=world.runtime.url)
    world.runtime.know(handle)
    return handle
