"""What a replica's log may do to it: nothing by a client's words, much by the engine's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from launcher import keeper as keeper_module
from launcher.engines import ENGINES
from launcher.instance import Phase
from launcher.keeper import ReplicaKeeper
from launcher.restarts import RestartPolicy
from launcher.runtimes import Exit, Handle
from launcher.surroundings import Rules, Surroundings
from launcher.turns import LoadGate, ReplaceTurn

LOST = (
    "2026-11-20T10:00:00.123456Z ERROR text_generation_launcher: RuntimeError: CUDA error: "
    "an illegal memory access was encountered\n"
)
BAD_FLAG = (
    "2026-11-20T10:00:00.123456Z ERROR text_generation_launcher: error: unexpected argument '-x'\n"
)
NO_ACCESS = "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n"


@dataclass
class OneProcess:
    """A runtime of starts that end when the test says so."""

    log: Path
    url: str = ""
    name: str = "fake"
    is_watched: asyncio.Event = field(default_factory=asyncio.Event)
    starts: list["asyncio.Future[Exit]"] = field(default_factory=list)

    async def fetch(self, spec, say) -> None:
        pass

    async def start(self, spec, generation: int, say) -> Handle:
        self.starts.append(asyncio.get_running_loop().create_future())
        ref, pid = str(len(self.starts) - 1), 1
        return Handle("fake", spec.id, generation, ref, self.url, spec.fingerprint, pid)

    async def wait(self, handle: Handle) -> Exit:
        self.is_watched.set()
        return await asyncio.shield(self.starts[int(handle.ref)])

    async def poll(self, handle: Handle) -> Exit | None:
        future = self.starts[int(handle.ref)]
        return future.result() if future.done() else None

    async def stop(self, handle: Handle, grace_s: float) -> None:
        pass

    async def is_serving_itself(self, handle: Handle) -> bool:
        return True

    def last_generation(self, replica_id: str) -> int:
        return len(self.starts)

    def log_path(self, replica_id: str) -> Path:
        return self.log


class Replica:
    """A keeper of a text-generation-inference, whose health and log are the test's."""

    def __init__(self, runtime: OneProcess, session: aiohttp.ClientSession, spec) -> None:
        self.runtime = runtime
        self.status = 200
        self.asked = 0
        self._news = asyncio.Event()
        self.keeper = ReplicaKeeper(
            spec,
            ENGINES["tgi"],
            Surroundings(
                runtime,
                session,
                Rules(RestartPolicy(base_s=0.001, max_s=0.002), 7.0),
                LoadGate(asyncio.Semaphore(1)),
                ReplaceTurn(),
                self._at_once,
                self._at_once,
                self._at_once,
                self._news.set,
            ),
        )

    async def _at_once(self, *_: object) -> None:
        pass

    async def health(self, request: web.Request) -> web.Response:
        self.asked += 1
        self._news.set()
        return web.Response(status=self.status)

    def says(self, line: str) -> None:
        with self.runtime.log.open("a") as log:
            log.write(line)

    async def holds(self, what) -> None:
        async with asyncio.timeout(10):
            while not what():
                self._news.clear()
                await self._news.wait()

    async def until(self, phase: Phase) -> None:
        await self.holds(lambda: self.keeper.instance.phase is phase)

    async def serves(self) -> None:
        """Its end is waited for, and its log is read from here on."""
        await self.until(Phase.READY)
        await asyncio.wait_for(self.runtime.is_watched.wait(), 10)

    @asynccontextmanager
    async def kept(self, adopted: Handle | None = None) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.keeper.run(adopted))
            try:
                yield
            finally:
                running.cancel()


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(keeper_module, "_FAULT_LOOK_S", 0.01)


@pytest.fixture
async def replica(tmp_path, make_spec) -> AsyncIterator[Replica]:
    runtime, app = OneProcess(tmp_path / "replica-0.log"), web.Application()
    runtime.log.touch()
    async with aiohttp.ClientSession() as session:
        made = Replica(runtime, session, make_spec())
        app.router.add_get("/health", made.health)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runtime.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    await runner.cleanup()


async def test_its_log_alone_does_not_end_a_replica_that_is_well(replica) -> None:
    async with replica.kept():
        await replica.serves()
        asked = replica.asked
        replica.says(LOST)
        await replica.holds(lambda: replica.asked > asked)
        assert replica.keeper.instance.phase is Phase.READY
        replica.says(LOST)
        await replica.holds(lambda: replica.asked > asked + 1)
        assert len(replica.runtime.starts) == 1


async def test_one_that_is_late_to_say_that_it_is_well_goes_on(replica) -> None:
    async with replica.kept():
        await replica.serves()
        replica.status, asked = 503, replica.asked
        replica.says(LOST)
        await replica.holds(lambda: replica.asked == asked + 2)
        replica.status = 200
        await replica.holds(lambda: replica.asked == asked + 3)
        replica.says(LOST)
        await replica.holds(lambda: replica.asked == asked + 4)
        assert len(replica.runtime.starts) == 1


async def test_one_whose_log_and_health_agree_is_started_anew(replica) -> None:
    async with replica.kept():
        await replica.serves()
        replica.status = 503
        replica.says(LOST)
        await replica.holds(lambda: len(replica.runtime.starts) == 2)
        assert replica.keeper.instance.history.deaths == 1


async def test_what_it_got_over_while_it_loaded_is_no_reason_to_give_it_up_later(replica) -> None:
    replica.status = 503
    async with replica.kept():
        await replica.holds(lambda: replica.asked > 0)
        replica.says(BAD_FLAG)
        await replica.until(Phase.LOADING)
        replica.status = 200
        await replica.serves()
        replica.runtime.starts[0].set_result(Exit(signal=9, detail="killed by SIGKILL"))
        await replica.holds(lambda: len(replica.runtime.starts) == 2)


async def test_an_adopted_one_is_not_given_up_for_what_its_log_says(replica, make_handle) -> None:
    handle = await replica.runtime.start(replica.keeper.spec, 1, print)
    replica.says(BAD_FLAG)
    replica.status = 503
    async with replica.kept(adopted=handle):
        await replica.until(Phase.LOADING)
        replica.runtime.starts[0].set_result(Exit(code=1, detail="exited with code 1"))
        await replica.holds(lambda: len(replica.runtime.starts) == 2)


async def test_one_without_access_is_tried_again_though_rarely(replica) -> None:
    replica.status = 503
    async with replica.kept():
        for count in (1, 2):
            await replica.holds(lambda count=count: len(replica.runtime.starts) == count)
            replica.says(NO_ACCESS)
            detail = "exited with code 1"
            replica.runtime.starts[-1].set_result(Exit(code=1, detail=detail))
        await replica.holds(lambda: replica.keeper.instance.history.is_stuck)
        await replica.holds(lambda: len(replica.runtime.starts) == 3)


async def test_the_same_words_of_a_start_are_believed(replica) -> None:
    replica.status = 503
    async with replica.kept():
        await replica.holds(lambda: replica.asked > 0)
        replica.says(BAD_FLAG)
        replica.runtime.starts[0].set_result(Exit(code=2, detail="exited with code 2"))
        await replica.until(Phase.FAILED)
