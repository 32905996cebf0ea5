"""Who may load, and who may be replaced: no turn is lost however somebody's waiting ends."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from launcher.turns import LoadGate, ReplaceTurn

DEADLINE_S = 10


def spawn(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(work)


class Loader:
    """One that loads: it says when it is in, and ends when told."""

    def __init__(self, gate: LoadGate) -> None:
        self._gate = gate
        self.is_in = asyncio.Event()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        async with self._gate.turn():
            self.is_in.set()
            await self._end

    def end(self, error: Exception | None = None) -> None:
        self._end.set_exception(error) if error else self._end.set_result(None)


@asynccontextmanager
async def loading(gate: LoadGate, count: int) -> AsyncIterator[tuple[list[Loader], list]]:
    loaders = [Loader(gate) for _ in range(count)]
    tasks = [spawn(loader.run()) for loader in loaders]
    await settle()
    yield loaders, tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def settle() -> None:
    """Every task goes as far as it can by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def who_is_in(loaders: list[Loader]) -> list[int]:
    return [index for index, loader in enumerate(loaders) if loader.is_in.is_set()]


async def test_the_first_loads_alone_and_all_follow_once_the_files_are_there() -> None:
    gate = LoadGate(asyncio.Semaphore(9), is_open=False)
    async with loading(gate, 4) as (loaders, _):
        assert who_is_in(loaders) == [0]
        loaders[0].end()
        gate.open()  # as its keeper does: without a moment in between
        await settle()
        assert who_is_in(loaders) == [0, 1, 2, 3]


async def test_who_fails_first_leaves_the_lead_to_the_next() -> None:
    async with loading(LoadGate(asyncio.Semaphore(9), is_open=False), 3) as (loaders, tasks):
        loaders[0].end(RuntimeError("no such model"))
        await settle()
        assert who_is_in(loaders) == [0, 1]
        tasks[1].cancel()
        await settle()
        assert who_is_in(loaders) == [0, 1, 2]


async def test_one_that_waits_and_is_cancelled_takes_nobodys_place() -> None:
    async with loading(LoadGate(asyncio.Semaphore(9), is_open=False), 3) as (loaders, tasks):
        tasks[1].cancel()
        loaders[0].end()
        await settle()
        assert who_is_in(loaders) == [0, 2]


async def test_where_the_files_are_known_nobody_waits_but_for_a_slot() -> None:
    gate = LoadGate(asyncio.Semaphore(2), is_open=True)
    assert gate.is_open
    async with loading(gate, 3) as (loaders, _):
        assert who_is_in(loaders) == [0, 1]
        loaders[1].end()
        await settle()
        assert who_is_in(loaders) == [0, 1, 2]


async def test_slots_are_for_all_models_together() -> None:
    slots = asyncio.Semaphore(1)
    async with loading(LoadGate(slots), 1) as (one, _), loading(LoadGate(slots), 1) as (two, _):
        assert (who_is_in(one), who_is_in(two)) == ([0], [])
        one[0].end()
        await settle()
        assert who_is_in(two) == [0]
    assert not slots.locked()


# ---- replacing


async def test_turns_are_taken_in_order_and_given_back_by_the_owner_alone() -> None:
    turn = ReplaceTurn()
    await turn.take("a")
    waiting = [spawn(turn.take(name)) for name in "bc"]
    await settle()
    turn.give_back("b")
    turn.give_back("nobody")
    await settle()
    assert (turn.owner, [task.done() for task in waiting]) == ("a", [False, False])
    turn.give_back("a")
    await settle()
    assert (turn.owner, [task.done() for task in waiting]) == ("b", [True, False])
    turn.give_back("a")  # a second time
    turn.give_back("b")
    await settle()
    assert (turn.owner, turn.is_free) == ("c", False)
    turn.give_back("c")
    assert (turn.owner, turn.is_free) == (None, True)


async def test_nobody_follows_those_that_are_out_already() -> None:
    turn = ReplaceTurn()
    turn.join("dead")
    turn.join("loading")
    waiting = spawn(turn.take("next"))
    for name in ("loading", "dead"):
        await settle()
        assert not waiting.done()
        turn.give_back(name)
    await waiting
    assert turn.owner == "next"


async def test_one_may_join_while_another_has_its_turn() -> None:
    turn = ReplaceTurn()
    await turn.take("a")
    turn.join("died meanwhile")
    turn.give_back("a")
    waiting = spawn(turn.take("b"))
    await settle()
    assert (turn.owner, waiting.done()) == ("died meanwhile", False)
    turn.give_back("died meanwhile")
    await waiting


@pytest.mark.parametrize("moment", ["waiting", "granted", "granted and seen"])
async def test_a_cancelled_waiter_loses_no_turn(moment: str) -> None:
    turn = ReplaceTurn()
    await turn.take("a")
    cancelled = spawn(turn.take("cancelled"))
    following = spawn(turn.take("following"))
    await settle()
    if moment != "waiting":
        turn.give_back("a")
    if moment == "granted and seen":
        await cancelled
        turn.give_back("cancelled")
    cancelled.cancel()
    turn.give_back("a")
    async with asyncio.timeout(DEADLINE_S):
        await following
    assert turn.owner == "following"


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_whatever_is_cancelled_when(seed: int) -> None:
    """A random walk: every taker ends some way, and the turn is free in the end."""
    chance, turn, out = random.Random(seed), ReplaceTurn(), []

    async def replace(name: int) -> None:
        await turn.take(name)
        out.append(name)
        assert turn.owner == name
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            out.remove(name)
            turn.give_back(name)

    tasks = [spawn(replace(name)) for name in range(30)]
    while not all(task.done() for task in tasks):
        assert len(out) <= 1
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert turn.owner is None
    await asyncio.wait_for(turn.take("last"), DEADLINE_S)
