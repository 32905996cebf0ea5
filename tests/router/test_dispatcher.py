"""Who gets which replica and when: order, late binding, bounds, deadlines, cancellation."""

import asyncio
import contextlib
import random

import pytest

from router.config import QueueConfig
from router.deadlines import LATE_SHARE
from router.errors import NoReplica, QueueFull, QueueTimeout, RouterError, ShuttingDown
from router.lease import Outcome, Report
from router.replica import Admin
from router.retry import Attempts

pytestmark = pytest.mark.virtual_time


def tried(*ids, alone=False):
    return Attempts(count=len(ids), excluded=frozenset(ids), alone=alone)


async def done(task, limit_s=1e6):
    async with asyncio.timeout(limit_s):
        return await task


# ---- order ----


async def test_with_room_a_call_gets_its_lease_at_once(world):
    one = world()
    one.add("a")
    lease = await one.acquire()
    assert lease.replica is one["a"]
    assert lease.waited_s == 0.0
    assert one["a"].load.requests == 1
    one.check()


async def test_calls_are_served_first_come_first_served(world, settle):
    one = world()
    one.add("a", requests=1)
    first = await one.acquire()
    order = []

    async def take(name):
        lease = await one.acquire()
        order.append(name)
        one.end(lease)

    async with asyncio.TaskGroup() as tasks:
        for name in range(20):
            tasks.create_task(take(name))
            await settle()
        one.end(first)
    assert order == list(range(20))


async def test_a_new_call_does_not_pass_those_that_wait(world, settle):
    one = world()
    one.add("a", requests=1)
    first = await one.acquire()
    waiting = one.waiting()
    await settle()
    one.end(first)  # the lease is granted to the one that waits, who has not run yet
    late = one.waiting()
    lease = await done(waiting)
    await settle()
    assert not late.done()
    one.end(lease)
    await done(late)


async def test_a_waiting_call_belongs_to_no_replica(world, settle):
    """Late binding: whichever replica has room first takes it."""
    one = world()
    one.add("a", "b", "c", requests=1)
    held = {lease.replica.id: lease for lease in [await one.acquire() for _ in range(3)]}
    waiting = [one.waiting() for _ in range(3)]
    await settle()
    for name in "bca":
        one.end(held[name])
    assert [(await done(task)).replica.id for task in waiting] == ["b", "c", "a"]


async def test_the_wait_is_measured(world, settle):
    one = world()
    one.add("a", requests=1)
    first, waiting = await one.acquire(), one.waiting()
    await asyncio.sleep(7.0)
    one.end(first)
    assert (await done(waiting)).waited_s == pytest.approx(7.0)
    assert one.seen.waits == pytest.approx([0.0, 7.0])


async def test_releasing_twice_counts_once(world):
    one = world()
    one.add("a")
    lease, other = await one.acquire(), await one.acquire()
    for _ in range(3):
        one.end(lease)
    assert one.dispatcher.open_leases == 1
    one.check()
    one.end(other)


async def test_room_is_counted_in_tokens_and_in_requests(world, settle):
    one = world()
    one.add("a", requests=3, tokens=100)
    await one.acquire(input_tokens=30, new_tokens=30)
    big = one.waiting(input_tokens=30, new_tokens=30)
    await settle()
    assert not big.done()
    assert one["a"].load.tokens == 60
    big.cancel()
    for _ in range(2):
        await one.acquire(input_tokens=5, new_tokens=5)
    small = one.waiting(input_tokens=1, new_tokens=1)
    await settle()
    assert not small.done(), "three requests are held, that is all it takes"
    small.cancel()
    await settle()


# ---- cancellation ----


async def test_a_cancelled_waiter_leaves_the_queue(world, settle):
    one = world()
    one.add("a", requests=1)
    first = await one.acquire()
    waiting = [one.waiting() for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    assert len(one.dispatcher.queue) == 2
    one.check()
    one.end(first)
    one.end(await done(waiting[1]))
    await done(waiting[2])


@pytest.mark.parametrize("order", ["grant then cancel", "cancel then grant"])
async def test_a_lease_granted_in_the_tick_of_the_cancel_is_given_back(world, settle, order):
    one = world()
    one.add("a", requests=1)
    for _ in range(500):
        holder = await one.acquire()
        waiting = one.waiting()
        await settle(3)
        if order == "grant then cancel":
            one.end(holder)
            waiting.cancel()
        else:
            waiting.cancel()
            one.end(holder)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert one.dispatcher.open_leases == 0
        assert one["a"].load.requests == 0
        one.check()


async def test_the_lease_of_a_cancelled_waiter_goes_to_the_next_one(world, settle):
    one = world()
    one.add("a", requests=1)
    holder = await one.acquire()
    gone, next_one = one.waiting(), one.waiting()
    await settle()
    one.end(holder)
    gone.cancel()
    lease = await done(next_one, 0.001)
    assert lease.replica.id == "a"
    one.check()


async def test_a_lease_granted_in_the_tick_of_the_deadline_is_not_lost(world, settle):
    one = world()
    one.add("a", requests=1)
    for _ in range(100):
        holder = await one.acquire()
        waiting = one.waiting(wait_s=5.0)
        await settle()
        asyncio.get_running_loop().call_later(5.0, one.end, holder)
        with contextlib.suppress(QueueTimeout):
            one.end(await done(waiting))
        await settle()
        assert one.dispatcher.open_leases == 0
        one.check()


async def test_hundreds_that_leave_at_once_leave_nothing_behind(world, settle):
    one = world(queue=QueueConfig(max_calls=1000))
    one.add("a", requests=2)
    held = [await one.acquire() for _ in range(2)]
    waiting = [one.waiting() for _ in range(500)]
    await settle()
    for task in waiting[::2]:
        task.cancel()
    one.end(held[0])
    await settle()
    assert len(one.dispatcher.queue) == 249
    one.check()
    for task in waiting:
        task.cancel()
    await settle()
    one.check()


# ---- deadlines and bounds ----


async def test_a_call_waits_until_its_deadline_and_no_longer(world):
    one = world()
    one.add("a", requests=1)
    await one.acquire()
    started_s = one.clock()
    with pytest.raises(QueueTimeout) as caught:
        await one.acquire(wait_s=60.0)
    assert 60.0 <= one.clock() - started_s <= 60.0 * (1 + LATE_SHARE)
    assert caught.value.status == 503
    assert 1 <= caught.value.retry_after_s <= 600
    assert one.seen.sheds == ["queue_timeout"]
    one.check()


async def test_without_queueing_a_call_that_finds_no_room_is_refused_at_once(world):
    one = world()
    one.add("a", requests=1)
    await one.acquire(wait_s=0.0)
    started_s = one.clock()
    with pytest.raises(QueueFull) as caught:
        await one.acquire(wait_s=0.0)
    assert one.clock() == started_s
    assert caught.value.status == 429
    assert caught.value.retry_after_s >= 1


async def test_the_queue_is_bounded_in_calls(world, settle):
    one = world(queue=QueueConfig(max_calls=2))
    one.add("a", requests=1)
    await one.acquire()
    waiting = [one.waiting() for _ in range(2)]
    await settle()
    with pytest.raises(QueueFull) as caught:
        await one.acquire()
    assert "2" in caught.value.message
    assert caught.value.retry_after_s >= 1
    waiting[0].cancel()
    await settle()
    waiting.append(one.waiting())
    await settle()
    assert len(one.dispatcher.queue) == 2
    for task in waiting:
        task.cancel()
    await settle()


async def test_the_bound_follows_the_slots_known_and_is_64_at_least(world, settle):
    one = world()
    one.add("a", requests=1)
    await one.acquire()
    waiting = [one.waiting() for _ in range(65)]
    await settle()
    assert len(one.dispatcher.queue) == 64
    one.add("b", up=False, requests=99)
    waiting += [one.waiting() for _ in range(400)]
    await settle()
    assert len(one.dispatcher.queue) == 4 * 100
    for task in waiting:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(result, QueueFull) for result in results) == 65


async def test_the_queue_is_bounded_in_bytes(world, settle):
    one = world(queue=QueueConfig(max_bytes=100))
    one.add("a", requests=1)
    await one.acquire(body=b"x" * 500)
    waiting = [one.waiting(body=b"x" * 60), one.waiting(body=b"x" * 40)]
    await settle()
    assert one.dispatcher.queue.waiting_bytes == 100
    with pytest.raises(QueueFull):
        await one.acquire(body=b"x")
    for task in waiting:
        task.cancel()
    await settle()
    assert one.dispatcher.queue.waiting_bytes == 0


async def test_a_retried_call_passes_the_bounds_and_goes_first(world, settle):
    one = world(queue=QueueConfig(max_calls=1, max_bytes=1))
    one.add("a", "b", requests=1)
    held = {lease.replica.id: lease for lease in [await one.acquire() for _ in range(2)]}
    waiting = one.waiting()
    await settle()
    retried = one.waiting(attempts=tried("b"), is_retry=True)
    await settle()
    one.end(held["a"])
    await done(retried)
    assert not waiting.done()
    one.end(held["b"])
    await done(waiting)


async def test_a_retried_call_waits_to_its_own_deadline(world):
    one = world()
    one.add("a", requests=1)
    await one.acquire()
    started_s = one.clock()
    with pytest.raises(QueueTimeout):
        await one.acquire(attempts=tried(), is_retry=True, wait_s=60.0)
    assert 1800.0 <= one.clock() - started_s <= 1800.0 * (1 + LATE_SHARE)


async def test_a_refused_call_is_told_when_to_come_back(world, settle):
    """Ten calls ahead, one a second: about eleven seconds."""
    one = world(queue=QueueConfig(max_calls=10))
    one.add("a", requests=1)
    for _ in range(60):
        lease = await one.acquire()
        await asyncio.sleep(1.0)
        one.end(lease)
    await one.acquire()
    waiting = [one.waiting() for _ in range(10)]
    await settle()
    with pytest.raises(QueueFull) as caught:
        await one.acquire()
    assert 9 <= caught.value.retry_after_s <= 14
    for task in waiting:
        task.cancel()
    await settle()


# ---- no replica ----


async def test_with_no_replica_configured_a_call_is_refused_at_once(world):
    one = world()
    with pytest.raises(NoReplica) as caught:
        await one.acquire()
    assert caught.value.status == 503
    assert caught.value.retry_after_s >= 1


@pytest.mark.parametrize("phase", ["failed", "stopped"])
async def test_with_none_on_its_way_a_call_is_refused_at_once(world, phase):
    one = world()
    one.sync(one.member("a", phase=phase))
    with pytest.raises(NoReplica):
        await one.acquire()


@pytest.mark.parametrize("phase", ["pending", "starting", "loading", "ready", ""])
async def test_while_one_is_coming_calls_wait_for_it(world, settle, phase):
    one = world()
    one.sync(one.member("a", phase=phase))
    waiting = one.waiting()
    await asyncio.sleep(30.0)
    assert not waiting.done()
    one.up("a")
    assert (await done(waiting)).waited_s == pytest.approx(30.0)


async def test_waiting_calls_are_refused_when_the_last_hope_is_gone(world, settle):
    one = world()
    one.add("a", up=False)
    waiting = [one.waiting() for _ in range(3)]
    await settle()
    one.sync(one.member("a", phase="failed"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [NoReplica] * 3
    one.check()


async def test_waiting_calls_outlast_a_crash_and_a_restart(world, settle):
    one = world()
    one.add("a", requests=1)
    lease = await one.acquire()
    waiting = one.waiting()
    await settle()
    one.down("a")
    one.end(lease, Outcome.FAILED)
    await asyncio.sleep(5.0)
    assert not waiting.done()
    one.sync(one.member("a", generation=2, requests=1))
    await asyncio.sleep(5.0)
    assert not waiting.done()
    one.up("a")
    assert (await done(waiting)).generation == 2


async def test_shutting_down_tells_every_waiting_call(world, settle):
    one = world()
    one.add("a", requests=1)
    await one.acquire()
    waiting = [one.waiting() for _ in range(3)]
    await settle()
    one.dispatcher.fail_waiting(lambda: ShuttingDown("bye"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ShuttingDown] * 3
    one.check()


async def test_a_waiter_that_leaves_in_the_tick_of_its_refusal_is_quiet(world, settle):
    one = world()
    one.add("a", requests=1)
    await one.acquire()
    waiting = one.waiting()
    await settle()
    one.dispatcher.fail_waiting(lambda: ShuttingDown("bye"))
    waiting.cancel()
    with pytest.raises((asyncio.CancelledError, RouterError)):
        await waiting
    one.check()


# ---- generations, drain ----


async def test_a_new_generation_owes_nothing_for_the_old_one(world, settle):
    one = world()
    one.add("a", requests=1)
    old = await one.acquire()
    waiting = one.waiting()
    await settle()
    one.sync(one.member("a", generation=2, requests=1))
    one.up("a")
    lease = await done(waiting)
    assert lease.replica is one["a"] is not old.replica
    assert (old.generation, lease.generation) == (1, 2)
    one.end(old, Outcome.FAILED)
    assert one["a"].load.requests == 1, "the old generation's lease is not the new one's"
    one.check()


async def test_a_list_that_says_the_same_changes_nothing(world):
    one = world()
    one.add("a", "b")
    lease = await one.acquire()
    before = list(one.pool)
    assert one.sync(*(one.member(name) for name in "ab")) == []
    assert list(one.pool) == before
    assert lease.replica.load.requests == 1


async def test_a_draining_replica_finishes_what_it_has_and_gets_nothing_new(world, settle):
    one = world()
    one.add("a", "b", requests=2)
    leases = [await one.acquire() for _ in range(4)]
    one.pool.set_admin(one["a"], Admin.DRAINING)
    waiting = [one.waiting() for _ in range(2)]
    await settle()
    for lease in leases:
        one.end(lease)
    assert {(await done(task)).replica.id for task in waiting} == {"b"}
    assert one["a"].load.requests == 0
    late = one.waiting()
    await settle()
    one.pool.set_admin(one["a"], Admin.ACTIVE)
    assert (await done(late)).replica.id == "a"


# ---- sheds ----


async def test_a_replica_that_sheds_is_left_alone_and_never_hammered(world):
    one = world()
    one.add("a", requests=8)
    attempts, until_s = 0, one.clock() + 60.0
    while one.clock() < until_s:
        lease = await one.acquire(attempts=tried(), is_retry=True)
        attempts += 1
        one.end(lease, Outcome.SHED)
    assert 20 <= attempts <= 90, "about once a second after the first few"


async def test_while_one_sheds_the_others_serve(world, settle):
    one = world()
    one.add("a", "b", requests=1)
    lease = await one.acquire()
    one.end(lease, Outcome.SHED)
    other = "b" if lease.replica.id == "a" else "a"
    assert (await one.acquire(attempts=tried(lease.replica.id), is_retry=True)).replica.id == other
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    assert (await done(waiting, 1.0)).replica is lease.replica, "the pause is short"


async def test_a_shed_does_not_hurt_health(world):
    one = world()
    one.add("a")
    for _ in range(20):
        one.end(await one.acquire(attempts=tried(), is_retry=True), Outcome.SHED)
    assert one["a"].is_usable
    assert one["a"].failed == 0


async def test_many_sheds_at_once_do_not_shorten_the_pause(world, settle):
    """Eight calls refused together: one pause, at its end the replica is asked again."""
    one = world()
    one.add("a", requests=8)
    leases = [await one.acquire() for _ in range(8)]
    for lease in leases:
        one.end(lease, Outcome.SHED)
    longest_s = max(
        timer.when() - one.clock()
        for timer in asyncio.get_running_loop()._scheduled
        if not timer.cancelled()
    )
    waiting = one.waiting()
    await asyncio.sleep(longest_s * 0.9)
    assert not waiting.done()
    await done(waiting, 1.0)


# ---- idle while waiting ----


async def test_nothing_is_idle_while_every_replica_works(world, settle):
    one = world()
    one.add("a", "b", requests=1)
    held = [await one.acquire() for _ in range(2)]
    waiting = [one.waiting() for _ in range(6)]
    for _ in range(3):
        await asyncio.sleep(2.0)
        for lease in held:
            one.end(lease)
        await settle()
        held = list(one.leases)
    await asyncio.gather(*waiting)
    assert one.seen.idle_s == 0.0


async def test_a_replica_left_idle_while_a_call_waits_is_counted(world, settle):
    """A call that failed on the idle one waits for the other: five seconds of idleness."""
    one = world()
    one.add("a", "b", requests=1)
    held = await one.acquire(attempts=tried("a"))
    waiting = one.waiting(attempts=tried("a"), is_retry=True)
    await asyncio.sleep(5.0)
    one.end(held)
    await done(waiting)
    await asyncio.sleep(100.0)
    one.end_all()
    assert one.seen.idle_s == pytest.approx(5.0)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_idling_counts_to_the_end_of_a_wait_that_leads_to_nothing(world, is_cancelled):
    """A suspect is tried on a replica that has just been seen alive, and this one is not."""
    one = world()
    one.add("a")
    one.deaf.add("a")
    await asyncio.sleep(1.0)
    waiting = one.waiting(attempts=tried(alone=True), is_retry=True, limit_s=20.0)
    await asyncio.sleep(5.0)
    if is_cancelled:
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError if is_cancelled else QueueTimeout):
        await waiting
    assert one.seen.idle_s == pytest.approx(5.0 if is_cancelled else 20.0, rel=0.02)


async def test_an_idle_fleet_without_calls_is_not_counted(world):
    one = world()
    one.add("a", "b")
    await asyncio.sleep(1000.0)
    one.end(await one.acquire())
    assert one.seen.idle_s == 0.0


# ---- fairness ----


@pytest.mark.parametrize("seed", range(8))
async def test_a_large_call_among_endless_small_ones_waits_two_service_times_at_most(world, seed):
    """3,500 tokens where a replica holds 4,000 and small calls never stop coming."""
    rng = random.Random(seed)
    one = world()
    one.add("a", "b", "c", "d", requests=64, tokens=4000)
    times, stop = [], asyncio.Event()

    async def client():
        await asyncio.sleep(rng.uniform(0.0, 2.0))
        while not stop.is_set():
            lease = await one.acquire(input_tokens=100, new_tokens=rng.choice([50, 100, 150]))
            service_s = rng.uniform(0.5, 1.5)
            times.append(service_s)
            await asyncio.sleep(service_s)
            one.end(lease)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(96):
            tasks.create_task(client())
        waits = []
        for _ in range(5):
            await asyncio.sleep(10.0)
            lease = await one.acquire(input_tokens=2500, new_tokens=1000)
            waits.append(lease.waited_s)
            await asyncio.sleep(1.0)
            one.end(lease)
        stop.set()
    mean_s = sum(times) / len(times)
    assert max(waits) <= 2.0 * mean_s
    assert len(times) > 1000
    assert one.seen.idle_s < 0.01 * one.clock()


# ---- learned room ----


async def test_a_first_token_may_make_room_for_a_call_that_waits(world, settle):
    """Long streams end late; the engine has shown that it runs them."""
    one = world()
    one.add("a", requests=None)
    leases = [await one.acquire() for _ in range(one["a"].room.requests)]
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    one.dispatcher.first_token(leases[0])
    await settle()
    assert waiting.done()
    one.check()


async def test_several_sequences_take_several_places(world, settle):
    one = world()
    one.add("a", requests=4)
    await one.acquire(sequences=3)
    waiting = one.waiting(sequences=2)
    await settle()
    assert not waiting.done()
    assert (await done(one.waiting(), 0.001)).replica.load.requests == 4
    waiting.cancel()
    await settle()


async def test_what_replies_tell_makes_the_next_estimate(world):
    one = world()
    one.add("a")
    for _ in range(50):
        report = Report(prompt_tokens=50, generated_tokens=20)
        one.end(await one.acquire(input_tokens=100, new_tokens=80), report=report)
    assert one.pool.estimates.chars_per_token == pytest.approx(2.0, rel=0.1)
    assert one.pool.estimates.output_share == pytest.approx(0.25, rel=0.2)


async def test_calls_of_several_sequences_and_failures_teach_no_sizes(world):
    one = world()
    one.add("a", requests=50)
    report = Report(prompt_tokens=5, generated_tokens=1)
    for _ in range(50):
        one.end(await one.acquire(sequences=4), report=report)
        one.end(await one.acquire(), Outcome.FAILED, report)
        one.end(await one.acquire(), Outcome.ABANDONED, report)
    assert one.pool.estimates.chars_per_token == 1.0
    assert one.pool.estimates.output_share == 1.0


@pytest.mark.parametrize("count", [3, 17])
async def test_many_suspects_do_not_keep_a_pool_from_everybody(world, settle, count):
    one = world()
    one.add("a", "b", requests=4)
    held = [await one.acquire() for _ in range(2)]  # nobody is idle: suspects wait
    assert {lease.replica.id for lease in held} == {"a", "b"}
    alone = [
        one.waiting(attempts=Attempts(count=2, alone=True), is_retry=True) for _ in range(count)
    ]
    await settle()
    other = one.waiting()
    await settle()
    assert other.done()  # three places are free on the replica that is not kept for the head
    for task in alone:
        task.cancel()
    await settle()


async def test_calls_that_lost_their_replica_keep_their_order(world, settle):
    one = world()
    one.add("a", requests=1)
    held = await one.acquire()
    first = one.waiting(attempts=Attempts(count=1), is_retry=True)
    await settle()
    second = one.waiting(attempts=Attempts(count=1), is_retry=True)
    await settle()
    one.end(held)
    await settle()
    assert first.done()
    assert not second.done()
    second.cancel()
    await settle()
