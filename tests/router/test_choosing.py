"""Whose turn it is where calls pass each other, and which replica's: kept, excluded, suspects."""

import asyncio

import pytest

from router.config import QueueConfig
from router.lease import Outcome
from router.replica import Admin
from router.retry import Attempts

pytestmark = pytest.mark.virtual_time


def tried(*ids, alone=False):
    return Attempts(count=len(ids), excluded=frozenset(ids), alone=alone)


async def done(task, limit_s=1e6):
    async with asyncio.timeout(limit_s):
        return await task


# ---- who may pass whom ----


async def test_an_idle_replica_takes_the_head_whatever_its_estimate(world):
    one = world()
    one.add("a", requests=4, tokens=100)
    lease = await one.acquire(input_tokens=10_000, new_tokens=10_000, sequences=50)
    assert lease.replica.id == "a"


async def test_small_calls_pass_a_head_that_does_not_fit_for_a_while_only(world, settle):
    one = world(queue=QueueConfig(max_overtake_s=2.0))
    one.dispatcher._work.lately_s = 100.0
    one.add("a", requests=50, tokens=100)
    await one.acquire(input_tokens=25, new_tokens=25)
    big = one.waiting(input_tokens=80, new_tokens=20)
    await settle()
    passed = [one.waiting(input_tokens=5, new_tokens=5, wait_s=60.0) for _ in range(2)]
    await settle()
    assert all(task.done() for task in passed)
    await asyncio.sleep(2.1)
    late = one.waiting(input_tokens=5, new_tokens=5)
    await settle()
    assert not late.done(), "the replica is kept for the head now"
    one.end_all()
    assert (await done(big)).replica.id == "a"
    one.end_all()
    await done(late)


async def test_the_overtaking_time_shrinks_with_the_service_time(world, settle):
    one = world(queue=QueueConfig(max_overtake_s=2.0))
    one.dispatcher._work.lately_s = 0.2
    one.add("a", requests=50, tokens=100)
    await one.acquire(input_tokens=25, new_tokens=25)
    big = one.waiting(input_tokens=80, new_tokens=20)
    small = one.waiting(input_tokens=5, new_tokens=5)
    await settle()
    assert small.done()
    await asyncio.sleep(0.15)
    late = one.waiting(input_tokens=5, new_tokens=5)
    await settle()
    assert not late.done()
    big.cancel()
    await settle()
    assert late.done(), "the head left: nothing is kept for it any more"


async def test_the_work_per_decision_is_bounded(world, settle):
    """Sixteen calls behind the head may be tried, no more."""
    one = world(queue=QueueConfig(max_overtake_s=1000.0))
    one.dispatcher._work.lately_s = 10_000.0
    one.add("a", requests=90, tokens=100)
    await one.acquire(input_tokens=25, new_tokens=25)
    big = [one.waiting(input_tokens=80, new_tokens=20) for _ in range(17)]
    small = one.waiting(input_tokens=5, new_tokens=5)
    await settle()
    assert not small.done()
    big[3].cancel()
    await settle()
    assert small.done()
    for task in big:
        task.cancel()
    await settle()


async def keep_for_head(one, settle, **big):
    """A head too big for what is free, blocked for so long that a replica is kept for it."""
    one.dispatcher._work.lately_s = 1.0
    task = one.waiting(input_tokens=80, new_tokens=20, **big)
    await settle()
    await asyncio.sleep(3.0)
    one.dispatcher.pump()
    return task


@pytest.mark.parametrize("how", ["leaves", "starts again", "drains", "goes down"])
async def test_another_replica_is_kept_when_the_kept_one_goes(world, settle, how):
    one = world()
    one.add("a", "b", requests=50, tokens=100)
    await one.acquire(input_tokens=20, new_tokens=20)  # 40 on one
    await one.acquire(input_tokens=25, new_tokens=25)  # 50 on the other: "a" or "b"
    emptier = min(one.pool, key=lambda replica: replica.load.tokens).id
    fuller = "b" if emptier == "a" else "a"
    big = await keep_for_head(one, settle)
    if how == "leaves":
        one.sync(one.member(fuller, requests=50, tokens=100))
    elif how == "starts again":
        fields = {"requests": 50, "tokens": 100}
        again = one.member(emptier, generation=2, **fields)
        one.sync(again, one.member(fuller, **fields))
    elif how == "drains":
        one.pool.set_admin(one[emptier], Admin.DRAINING)
    else:
        one.down(emptier)
    small = one.waiting(input_tokens=5, new_tokens=5)
    await settle()
    assert not small.done(), "what is left must be kept for the head"
    for lease in list(one.leases):
        one.end(lease)
    assert (await done(big, 1.0)).replica.id == fuller
    one.end_all()
    await done(small)


# ---- excluded and suspect calls ----


async def test_a_call_is_not_sent_again_to_a_replica_that_failed_it(world):
    one = world()
    one.add("a", "b", "c")
    for _ in range(10):
        assert (await one.acquire(attempts=tried("a", "c"))).replica.id == "b"
        one.end_all()


async def test_it_rather_waits_for_one_that_has_not_failed_it(world, settle):
    one = world()
    one.add("a", "b", requests=1)
    held = await one.acquire(attempts=tried("a"))
    assert held.replica.id == "b"
    waiting = one.waiting(attempts=tried("a"), is_retry=True)
    await settle()
    assert not waiting.done(), "a is idle, but it failed this call"
    other = await done(one.waiting(), 0.001)
    assert other.replica.id == "a", "an idle replica does not wait for the head's sake"
    one.end(held)
    assert (await done(waiting)).replica.id == "b"


async def test_it_goes_back_when_there_is_no_other(world, settle):
    one = world()
    one.add("a", "b", requests=1)
    assert (await one.acquire(attempts=tried("a", "b"))).replica.id in "ab"
    one.end_all()
    held = await one.acquire(attempts=tried("a"))
    waiting = one.waiting(attempts=tried("a"), is_retry=True)
    await settle()
    one.down(held.replica.id)
    assert (await done(waiting)).replica.id == "a"


async def test_a_suspect_runs_alone(world, settle):
    one = world()
    one.add("a", requests=8)
    holders = [await one.acquire() for _ in range(2)]
    suspect = one.waiting(attempts=tried(alone=True), is_retry=True)
    await settle()
    one.end(holders[0])
    await settle()
    assert not suspect.done()
    one.end(holders[1])
    lease = await done(suspect)
    assert lease.alone
    assert one["a"].alone
    beside = one.waiting()
    await settle()
    assert not beside.done(), "nothing runs beside a suspect"
    one.check()
    one.end(lease, Outcome.FAILED)
    assert not one["a"].alone
    await done(beside)


async def test_a_suspect_s_replica_has_shown_that_it_lives_since_the_suspect_waits(world, settle):
    """Each may be dead unnoticed, and its death would be held against the call."""
    one = world()
    one.add("a", "b", "c")
    one.deaf = {"a", "b", "c"}
    await asyncio.sleep(1.0)
    suspect = one.waiting(attempts=tried(alone=True), is_retry=True)
    await settle()
    others = [await one.acquire() for _ in range(3)]
    assert not suspect.done()
    one.check()
    one.deaf = {"a", "b"}
    one.end_all()
    one.up("c")
    assert (await done(suspect)).replica.id == "c"
    assert others[0].replica.id != "c" or others[1].replica.id != "c"


async def test_one_that_lost_a_connection_gets_no_calls_until_it_has_passed_a_probe(world, settle):
    one = world()
    one.add("a", "b", requests=8)
    one.deaf = {"a", "b"}
    one.lose("a")
    for _ in range(8):
        assert (await one.acquire()).replica.id == "b"
    one.lose("b")
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    one.up("a")
    assert (await done(waiting)).replica.id == "a"
    one.check()


@pytest.mark.parametrize("failed_at", [(), ("a",), ("a", "b")])
async def test_a_suspect_gets_its_turn_under_endless_load(world, failed_at):
    """Also when every replica there is has failed it before: they were restarted."""
    one = world()
    one.add("a", "b", requests=4)
    stop = asyncio.Event()

    async def client():
        while not stop.is_set():
            lease = await one.acquire()
            await asyncio.sleep(1.0)
            one.end(lease)

    async with asyncio.TaskGroup() as tasks:
        for position in range(12):
            tasks.create_task(client())
            await asyncio.sleep(position / 100)
        started_s = one.clock()
        lease = await one.acquire(attempts=tried(*failed_at, alone=True), is_retry=True)
        waited_s = one.clock() - started_s
        assert lease.replica.load.requests == 1
        await asyncio.sleep(1.0)
        assert lease.replica.load.requests == 1
        one.end(lease)
        stop.set()
    assert waited_s < 5.0


@pytest.mark.parametrize("failed_at", [("a",), ("a", "b")])
async def test_a_large_retried_call_gets_its_turn_under_endless_load(world, failed_at):
    one = world()
    one.add("a", "b", requests=20, tokens=100)
    stop = asyncio.Event()

    async def client():
        while not stop.is_set():
            lease = await one.acquire(input_tokens=5, new_tokens=5)
            await asyncio.sleep(1.0)
            one.end(lease)

    async with asyncio.TaskGroup() as tasks:
        for position in range(30):
            tasks.create_task(client())
            await asyncio.sleep(position / 100)
        call = one.call(input_tokens=80, new_tokens=15)
        started_s = one.clock()
        one.end(await one.acquire(call, tried(*failed_at), is_retry=True))
        assert one.clock() - started_s < 5.0
        stop.set()
