"""The first of several: the others are over when it returns, and no cancellation gets lost."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from launcher.races import first_of


def spawn(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(work)


class Runner:
    """Waits for ever unless told to end, and says how it was ended."""

    def __init__(self, result: object = None, error: Exception | None = None) -> None:
        self.result, self.error = result, error
        self.started, self.go = asyncio.Event(), asyncio.Event()
        self.was_cancelled = False

    async def run(self) -> object:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self.error:
            raise self.error
        return self.result


async def test_the_first_result_counts_and_the_others_have_ended() -> None:
    slow, fast = Runner("slow"), Runner("fast")
    fast.go.set()
    assert await first_of(slow.run(), fast.run()) == "fast"
    assert slow.was_cancelled
    assert len(asyncio.all_tasks()) == 1


async def test_of_several_at_the_same_time_the_first_in_order_counts() -> None:
    runners = [Runner(n) for n in range(3)]
    for runner in runners:
        runner.go.set()
    assert await first_of(*(runner.run() for runner in runners)) == 0


async def test_what_is_false_is_a_result_too() -> None:
    runner, never = Runner(None), Runner("never")
    runner.go.set()
    assert await first_of(runner.run(), never.run()) is None


async def test_what_one_raises_is_raised() -> None:
    failing, other = Runner(error=ValueError("bad")), Runner()
    failing.go.set()
    with pytest.raises(ValueError, match="bad"):
        await first_of(other.run(), failing.run())
    assert other.was_cancelled


async def test_cancelled_it_ends_all_and_says_so() -> None:
    runners = [Runner(), Runner()]
    race = spawn(first_of(*(runner.run() for runner in runners)))
    for runner in runners:
        await runner.started.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert [runner.was_cancelled for runner in runners] == [True, True]


async def test_an_error_in_the_same_moment_does_not_hide_a_cancellation() -> None:
    """Its task would go on, and who cancelled it would wait for ever."""
    failing, other = Runner(error=ValueError("bad")), Runner()
    race = spawn(first_of(other.run(), failing.run()))
    await failing.started.wait()
    failing.go.set()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race


async def test_an_error_while_clearing_up_does_not_hide_a_cancellation() -> None:
    started = asyncio.Event()

    async def clumsy() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("cannot clear up") from None

    race = spawn(first_of(clumsy()))
    await started.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race


async def test_an_error_that_was_caught_leaves_the_task_usable() -> None:
    async def careless() -> str:
        failing, other = Runner(error=ValueError("bad")), Runner()
        failing.go.set()
        with pytest.raises(ValueError, match="bad"):
            await first_of(other.run(), failing.run())
        await asyncio.sleep(0)  # no cancellation is left over
        return "went on"

    assert await spawn(careless()) == "went on"
