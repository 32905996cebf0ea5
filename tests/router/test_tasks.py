"""Every background task has an owner that ends it, and none fails in silence."""

import asyncio
import logging

import pytest

from router.tasks import Tasks

pytestmark = pytest.mark.virtual_time


async def test_a_task_that_ends_is_let_go(settle):
    tasks = Tasks()

    async def work():
        return 7

    assert await tasks.spawn(work(), "work") == 7
    await settle()
    assert len(tasks) == 0


async def test_closing_cancels_and_waits_for_what_is_left():
    tasks, ended = Tasks(), []

    async def work(name):
        try:
            await asyncio.sleep(1000.0)
        finally:
            await asyncio.sleep(1.0)  # tidying up takes time
            ended.append(name)

    for name in "abc":
        tasks.spawn(work(name), name)
    await asyncio.sleep(0.1)
    await tasks.close()
    assert sorted(ended) == ["a", "b", "c"]
    assert len(tasks) == 0
    await tasks.close()


async def test_a_failure_is_logged_with_the_tasks_name(settle, caplog):
    tasks = Tasks()

    async def work():
        raise ValueError("no good")

    task = tasks.spawn(work(), "probe replica-3")
    await settle()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "probe replica-3" in record.getMessage()
    assert "no good" in caplog.text
    assert task.done()


async def test_a_cancelled_task_is_no_failure(settle, caplog):
    tasks = Tasks()
    tasks.spawn(asyncio.sleep(1000.0), "nap").cancel()
    await settle()
    assert caplog.records == []
    assert len(tasks) == 0


async def test_a_task_that_fails_while_it_is_cancelled_does_not_stop_the_others(settle):
    tasks = Tasks()

    async def stubborn():
        try:
            await asyncio.sleep(1000.0)
        finally:
            raise ValueError("while ending")

    tasks.spawn(stubborn(), "stubborn")
    other = tasks.spawn(asyncio.sleep(1000.0), "other")
    await settle()
    await tasks.close()
    assert other.cancelled()
