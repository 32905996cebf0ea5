"""When it is too late: never early, a span late at the most, and not at all once taken out."""

import asyncio
import logging
import random

import pytest

from router.deadlines import LATE_SHARE, SPAN_S, Deadlines

SLACK_S = 1e-6


class Told:
    """Keeps who was told, and when."""

    def __init__(self):
        self.at_s = {}

    def __call__(self, who):
        self.at_s[who] = asyncio.get_running_loop().time()


def most_late_s(ahead_s):
    """How late one may be told that lies so far ahead."""
    return 2 * SPAN_S + LATE_SHARE * ahead_s


@pytest.mark.virtual_time
async def test_nobody_is_told_early_nor_much_too_late():
    deadlines, told, random_ = Deadlines(), Told(), random.Random(5)
    began_s = asyncio.get_running_loop().time()
    ahead = {
        f"one {n}": random_.choice((0.05, 5, 100, 2000)) * random_.random() for n in range(500)
    }
    for who, ahead_s in ahead.items():
        deadlines.add(began_s + ahead_s, who, told)
    await asyncio.sleep(2100)
    assert set(told.at_s) == set(ahead)
    for who, ahead_s in ahead.items():
        late_s = told.at_s[who] - began_s - ahead_s
        assert -SLACK_S <= late_s <= most_late_s(ahead_s), who


@pytest.mark.virtual_time
async def test_who_was_taken_out_is_not_told():
    deadlines, told = Deadlines(), Told()
    loop = asyncio.get_running_loop()
    places = {n: deadlines.add(loop.time() + 1 + n / 10, n, told) for n in range(100)}
    for n in range(0, 100, 2):
        del places[n][n]
    await asyncio.sleep(20)
    assert list(told.at_s) == list(range(1, 100, 2))


@pytest.mark.virtual_time
async def test_one_that_comes_sooner_than_all_others_is_told_in_time():
    deadlines, told = Deadlines(), Told()
    now_s = asyncio.get_running_loop().time()
    for who, ahead_s in (("late", 500.0), ("later", 900.0), ("soon", 3.0), ("now", 0.0)):
        deadlines.add(now_s + ahead_s, who, told)
    await asyncio.sleep(1)
    deadlines.add(now_s + 2.0, "sooner", told)
    await asyncio.sleep(1000)
    assert list(told.at_s) == ["now", "sooner", "soon", "late", "later"]
    assert told.at_s["sooner"] - now_s == pytest.approx(2.0, abs=2 * SPAN_S)


@pytest.mark.virtual_time
async def test_who_is_told_may_take_others_out_and_put_itself_in_again():
    deadlines, told = Deadlines(), Told()
    loop, places = asyncio.get_running_loop(), {}

    def again(who):
        told(who)
        places["other"].pop("other", None)
        if len(told.at_s) < 3:
            deadlines.add(loop.time() + 1.0, who + "'", again)

    at_s = loop.time() + 1.0
    places["one"] = deadlines.add(at_s, "one", again)
    places["other"] = deadlines.add(at_s, "other", told)
    await asyncio.sleep(10)
    assert list(told.at_s) == ["one", "one'", "one''"]


@pytest.mark.virtual_time
async def test_one_that_fails_keeps_nobody_else_from_being_told(caplog):
    deadlines, told = Deadlines(), Told()

    def broken(who):
        raise ValueError(f"{who} cannot take it")

    at_s = asyncio.get_running_loop().time() + 1.0
    deadlines.add(at_s, "broken", broken)
    deadlines.add(at_s, "well", told)
    deadlines.add(at_s + 5.0, "later", told)
    with caplog.at_level(logging.ERROR, "asyncio"):
        await asyncio.sleep(10)
    assert list(told.at_s) == ["well", "later"]
    assert "broken cannot take it" in caplog.text


@pytest.mark.virtual_time
async def test_nothing_is_kept_of_deadlines_that_were_met():
    """Nor does a timer go off for them: calls by the thousand leave one timer."""
    deadlines, told = Deadlines(), Told()
    loop = asyncio.get_running_loop()
    for n in range(2000):
        place = deadlines.add(loop.time() + 600.0, n, told)
        await asyncio.sleep(0.5)
        del place[n]
    last = deadlines.add(loop.time() + 1.0, "last", told)
    await asyncio.sleep(5)
    assert list(told.at_s) == ["last"]
    assert not last
    assert not deadlines._places
    assert not deadlines._spans
    assert deadlines._timer is None


@pytest.mark.virtual_time
@pytest.mark.parametrize("ahead_s", [30.0, 1800.0, 1e6])
async def test_little_is_kept_while_a_nearer_one_waits(ahead_s):
    """Calls come and go, one that will be looked at soon is always there."""
    deadlines, told = Deadlines(), Told()
    loop = asyncio.get_running_loop()
    most = 0
    for n in range(20_000):
        near = deadlines.add(loop.time() + 5.0, "near", told)
        del deadlines.add(loop.time() + ahead_s, n, told)[n]
        await asyncio.sleep(0.1)
        most = max(most, len(deadlines._places))
        near.pop("near")
    assert not told.at_s
    assert most < 2500


async def test_on_a_real_loop_it_is_the_same():
    deadlines, told, all_told = Deadlines(), Told(), asyncio.Event()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for n in range(20):
        deadlines.add(began_s + n / 100, n, told)
    deadlines.add(began_s + 0.5, "last", lambda who: all_told.set())
    async with asyncio.timeout(10):
        await all_told.wait()
    assert set(told.at_s) == set(range(20))
    for n, at_s in told.at_s.items():
        assert at_s >= began_s + n / 100 - SLACK_S
