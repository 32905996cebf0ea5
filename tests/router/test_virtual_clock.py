"""The virtual clock itself: other tests lean on it."""

import asyncio
import time

import pytest

pytestmark = pytest.mark.virtual_time


async def test_an_hour_passes_at_once():
    loop, began_s = asyncio.get_running_loop(), time.monotonic()
    started_s = loop.time()
    await asyncio.sleep(3600.0)
    assert loop.time() - started_s == pytest.approx(3600.0)
    assert time.monotonic() - began_s < 1.0


async def test_timers_run_in_their_order_and_at_their_time():
    loop, seen = asyncio.get_running_loop(), []
    started_s = loop.time()
    for delay_s in (5.0, 0.5, 60.0, 0.0):
        loop.call_later(delay_s, lambda: seen.append(loop.time() - started_s))
    await asyncio.sleep(100.0)
    assert seen == pytest.approx([0.0, 0.5, 5.0, 60.0])


async def test_time_stands_still_while_something_is_ready(settle):
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await settle(1000)
    assert loop.time() == started_s


async def test_a_time_out_fires():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30.0):
            await asyncio.get_running_loop().create_future()


async def test_a_thread_can_report_back():
    assert await asyncio.to_thread(lambda: 7) == 7
