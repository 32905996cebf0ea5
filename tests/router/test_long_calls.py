"""In a fleet of unequal replicas a long call rather waits for a fast one; nobody is worse off."""

import asyncio

import pytest

from router.choosing import OVERTAKE_SHARE
from router.lease import Report
from router.policies import POLICIES
from router.request_queue import LOOK_AHEAD
from router.retry import Attempts

pytestmark = pytest.mark.virtual_time

USUAL, LONG = 100, 400
FAST_S, SLOW_S = 0.01, 0.02
"""Per token."""


class Mixed:
    """Two fast replicas and one at half speed, which have served usual calls for a while."""

    def __init__(self, one, each_s):
        self.one = one
        self.each_s = each_s

    async def call(self, tokens=USUAL):
        """Who served it."""
        lease = await self.one.acquire(new_tokens=tokens)
        await asyncio.sleep(tokens * self.each_s[lease.replica.id])
        self.one.end(lease, report=Report(generated_tokens=tokens))
        return lease.replica.id

    async def learn(self, calls=400, at_a_time=12):
        left = iter(range(calls))

        async def client():
            for _ in left:
                await self.call()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_a_time):
                tasks.create_task(client())

    async def fill(self, *names):
        """Calls that hold all places of these; the leases, by replica."""
        held = {name: [] for name in self.each_s}
        others = [one for one in self.one.pool if one.id not in names]
        for other in others:
            other.room.is_paused = True
        for _ in range(sum(self.one[name].room.requests for name in names)):
            lease = await self.one.acquire(new_tokens=USUAL)
            held[lease.replica.id].append(lease)
        for other in others:
            other.room.is_paused = False
        assert {name for name in held if held[name]} == set(names)
        return held


@pytest.fixture
def mixed(world):
    async def make(*, slow_s=SLOW_S, slots=4, policy="expected_finish"):
        one = world(policy=policy)
        one.add("f0", "f1", "slow", requests=slots)
        made = Mixed(one, {"f0": FAST_S, "f1": FAST_S, "slow": slow_s})
        await made.learn(at_a_time=3 * slots)
        return made

    return make


async def is_granted(task, settle):
    await settle()
    return task.done()


async def test_a_long_call_waits_for_a_fast_replica(mixed, settle):
    fleet = await mixed()
    held = await fleet.fill("f0", "f1")
    long = fleet.one.waiting(new_tokens=LONG)
    assert not await is_granted(long, settle)
    fleet.one.end(held["f1"].pop())
    assert await is_granted(long, settle)
    assert (await long).replica.id == "f1"


async def test_a_usual_one_does_not(mixed):
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    assert (await fleet.one.acquire(new_tokens=USUAL)).replica.id == "slow"


async def test_a_usual_one_goes_before_a_long_one_that_waits(mixed, settle):
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    long, usual = fleet.one.waiting(new_tokens=LONG), fleet.one.waiting(new_tokens=USUAL)
    assert await is_granted(usual, settle)
    assert (await usual).replica.id == "slow"
    assert not long.done()


async def test_it_waits_for_a_part_of_a_service_time_at_the_most(mixed, settle):
    """No fast replica gets free; nothing else happens that would have anybody look."""
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    began_s = fleet.one.clock()
    lease = await fleet.one.acquire(new_tokens=LONG)
    assert lease.replica.id == "slow"
    most_s = OVERTAKE_SHARE * fleet.one.dispatcher.service_s
    assert 0.0 < fleet.one.clock() - began_s <= most_s + 0.05


async def test_where_no_fast_one_will_soon_be_free_it_does_not_wait(mixed):
    """Two calls run on them: it takes half a call's time till one of them ends."""
    fleet = await mixed(slots=1)
    await fleet.fill("f0", "f1")
    assert (await fleet.one.acquire(new_tokens=LONG)).replica.id == "slow"


async def test_when_the_fast_ones_are_lost_it_waits_no_longer(mixed, settle):
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    long = fleet.one.waiting(new_tokens=LONG)
    assert not await is_granted(long, settle)
    fleet.one.down("f0")
    fleet.one.down("f1")
    assert await is_granted(long, settle)
    assert (await long).replica.id == "slow"


async def test_a_queue_of_long_calls_does_not_leave_the_slow_one_idle(mixed, settle):
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    waiting = [fleet.one.waiting(new_tokens=LONG) for _ in range(LOOK_AHEAD)]
    await settle()
    assert not any(task.done() for task in waiting)
    more = [fleet.one.waiting(new_tokens=LONG) for _ in range(4)]
    await settle()
    done = [task for task in (*waiting, *more) if task.done()]
    assert len(done) == 4, "as many as it has places"
    assert done == waiting[:4]
    for task in (*waiting, *more):
        task.cancel()
    await settle()


@pytest.mark.parametrize("slow_s", [FAST_S, 1.1 * FAST_S])
async def test_among_equals_nobody_waits(mixed, slow_s):
    fleet = await mixed(slow_s=slow_s)
    await fleet.fill("f0", "f1")
    assert (await fleet.one.acquire(new_tokens=50 * LONG)).replica.id == "slow"


@pytest.mark.parametrize("policy", ["least_requests", "least_tokens", "round_robin"])
async def test_other_policies_take_whoever_has_room(mixed, policy):
    fleet = await mixed(policy=policy)
    await fleet.fill("f0", "f1")
    assert (await fleet.one.acquire(new_tokens=LONG)).replica.id == "slow"


async def test_so_long_it_waits_whoever_waits_before_it(mixed, settle):
    """Each of several has its own patience, from when it first could have had the slow one."""
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    began_s = fleet.one.clock()
    leases = await asyncio.gather(*(fleet.one.waiting(new_tokens=LONG) for _ in range(4)))
    assert {lease.replica.id for lease in leases} == {"slow"}
    most_s = OVERTAKE_SHARE * fleet.one.dispatcher.service_s
    assert 0.0 < fleet.one.clock() - began_s <= most_s + 0.05


async def test_a_retry_does_not_wait_for_those_that_failed_it(mixed):
    fleet = await mixed()
    held = await fleet.fill("f0", "f1")
    fleet.one.end(held["f0"].pop())
    fleet.one.end(held["f1"].pop())
    tried = Attempts(count=2, excluded=frozenset({"f0", "f1"}))
    lease = await fleet.one.acquire(attempts=tried, is_retry=True, new_tokens=LONG)
    assert lease.replica.id == "slow"


async def test_while_little_is_known_nobody_waits(world):
    """Neither how long calls usually are, nor who is how fast."""
    one = world(policy="expected_finish")
    one.add("f0", "f1", "slow", requests=4)
    leases = [await one.acquire(new_tokens=LONG) for _ in range(8)]
    for lease in leases:
        await asyncio.sleep(2.0)
        one.end(lease)
    for _ in range(12):
        lease = await asyncio.wait_for(one.acquire(new_tokens=50 * LONG), 1e-3)
        assert lease.waited_s == 0.0


async def test_a_replica_that_just_came_is_not_taken_for_slow(mixed):
    fleet = await mixed()
    await fleet.fill("f0", "f1", "slow")
    fleet.one.add("new")
    assert (await fleet.one.acquire(new_tokens=LONG)).replica.id == "new"


async def test_a_suspect_is_put_beside_nobody_however_many_wait(mixed, settle):
    """The slow one is kept for it until that is empty, though it has room before."""
    fleet = await mixed()
    held = await fleet.fill("f0", "f1", "slow")
    alone = Attempts(count=2, excluded=frozenset({"x"}), alone=True)
    suspect = fleet.one.waiting(attempts=alone, is_retry=True)
    await settle()
    others = [fleet.one.waiting(new_tokens=LONG) for _ in range(LOOK_AHEAD + 4)]
    await settle()
    kept = fleet.one.dispatcher.choosing.kept
    kept = kept[1].id if kept is not None else "slow"
    for lease in held[kept][1:]:
        fleet.one.end(lease)
    assert not await is_granted(suspect, settle)
    fleet.one.end(held[kept][0])
    fleet.one.pool.ask_all()
    await settle()
    assert suspect.done()
    assert fleet.one[kept].load.requests == 1
    for task in others:
        task.cancel()
    await settle()


async def test_a_call_that_waits_so_takes_the_slow_one_when_the_policy_is_changed(mixed, settle):
    fleet = await mixed()
    held = await fleet.fill("f0", "f1")
    long = fleet.one.waiting(new_tokens=LONG)
    assert not await is_granted(long, settle)
    fleet.one.dispatcher.choosing.policy = POLICIES["least_requests"]()
    fleet.one.dispatcher.pump()
    assert await is_granted(long, settle)
    assert (await long).replica.id == "slow"
    assert len(held["f0"]) == 4


async def test_of_a_full_fleet_the_last_call_is_done_sooner_for_it(mixed):
    """What it is for: the longest call is not still running on the slowest replica."""
    lengths = [20, 60, 100, 40, 400, 30, 80, 120, 50, 300] * 12
    took_s = {}
    for is_patient in (False, True):
        fleet = await mixed()
        fleet.one.dispatcher.choosing.policy.weighs_speed = is_patient
        left = iter(lengths)

        async def client(left=left, fleet=fleet):
            for tokens in left:
                await fleet.call(tokens)

        began_s = fleet.one.clock()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(client())
        took_s[is_patient] = fleet.one.clock() - began_s
    assert took_s[True] < 0.95 * took_s[False]


async def test_its_story_says_what_it_waits_for(mixed, settle):
    fleet = await mixed()
    await fleet.fill("f0", "f1")
    told = []
    call = fleet.one.call(new_tokens=LONG)
    waits = fleet.one.dispatcher.acquire(call, Attempts(), queued=lambda *why: told.append(why))
    task = asyncio.get_running_loop().create_task(waits)
    await settle()
    [(_, position, why)] = told
    assert (position, why) == (1, "a faster replica will soon have room")
    task.cancel()
    await settle()
