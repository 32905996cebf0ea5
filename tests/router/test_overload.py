"""More calls than can be served: who is served, who is refused, and when to come back.

All on the virtual clock: a replica is a number of places, a call a time for which it holds one.
"""

import asyncio
import random
from collections import Counter

import pytest

from router.call import Priority
from router.config import QueueConfig
from router.errors import NoReplica, QueueFull, QueueTimeout, RouterError, TooLate
from router.lease import Outcome, Report
from router.retry import Attempts

pytestmark = pytest.mark.virtual_time


class Crowd:
    """Clients in front of a world whose calls take `service_s` each, more or less."""

    def __init__(self, one, *, service_s=1.0, vary=0.0, seed=0):
        self.one = one
        self.service_s = service_s
        self.vary = vary
        self.rng = random.Random(seed)
        self.refused = []
        self.served = Counter()
        self.served_tokens = Counter()
        self.late = 0
        self.waits = []

    async def warm_up(self, slots):
        """Calls that never wait: their times are known afterwards."""
        for _ in range(12):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(slots):
                    tasks.create_task(self.call())
        self.served.clear()
        self.served_tokens.clear()

    async def call(self, *, tenant="", limit_s=1800.0, new_tokens=10, **fields):
        """One call, served unless refused; one that is not done in time ends in vain."""
        until_s = self.one.clock() + limit_s
        lease = await self.one.acquire(
            tenant=tenant, limit_s=limit_s, new_tokens=new_tokens, **fields
        )
        self.waits.append(lease.waited_s)
        service_s = self.service_s * new_tokens / 10
        service_s *= self.rng.uniform(1 - self.vary, 1 + self.vary)
        left_s = until_s - self.one.clock()
        await asyncio.sleep(min(service_s, max(0.0, left_s)))
        is_in_time = service_s <= left_s
        self.one.end(lease, Outcome.DONE if is_in_time else Outcome.ABANDONED)
        self.served[tenant] += is_in_time
        self.served_tokens[tenant] += is_in_time * (10 + 2 * new_tokens)
        self.late += not is_in_time

    async def one_call(self, **fields):
        try:
            await self.call(**fields)
        except RouterError as error:
            self.refused.append(error)

    async def coming_back(self, **fields):
        """A client that does as it is told; gives how often it was refused."""
        for times in range(100):
            try:
                await self.call(**fields)
            except RouterError as error:
                self.refused.append(error)
                await asyncio.sleep(error.retry_after_s)
            else:
                return times
        raise AssertionError("never served")

    async def arriving(self, per_s, until_s, **fields):
        """Calls at random times, whatever becomes of those before them."""
        async with asyncio.TaskGroup() as tasks:
            while self.one.clock() < until_s:
                await asyncio.sleep(self.rng.expovariate(per_s))
                tasks.create_task(self.one_call(**fields))


def started(call):
    return asyncio.get_running_loop().create_task(call)


async def crowd(world, slots=4, *, queue=None, replicas=1, weights=None, **options):
    one = world(queue=queue or QueueConfig(), weights=weights)
    one.add(*(f"r{i}" for i in range(replicas)), requests=slots // replicas)
    made = Crowd(one, **options)
    await made.warm_up(slots)
    return made


# ---- Retry-After proves right ----


@pytest.mark.parametrize("vary", [0.0, 0.4])
@pytest.mark.parametrize("clients", [25, 44, 60])
async def test_clients_that_come_back_when_told_are_served_then(world, clients, vary):
    """4 run, 20 wait, the others are refused: once. And nobody stays away for too long."""
    many = await crowd(world, queue=QueueConfig(max_calls=20), vary=vary)
    started_s = many.one.clock()
    async with asyncio.TaskGroup() as tasks:
        all_of_them = [tasks.create_task(many.coming_back()) for _ in range(clients)]
    times = Counter(task.result() for task in all_of_them)
    assert times == {0: 24, 1: clients - 24}
    assert all(type(error) is QueueFull for error in many.refused)
    took_s = many.one.clock() - started_s
    assert took_s <= 1.15 * clients / 4 + 2.0, "the replicas were left idle"


async def test_a_crowd_many_times_the_queue_is_worked_off_without_a_gap(world):
    many = await crowd(world, queue=QueueConfig(max_calls=20))
    started_s = many.one.clock()
    async with asyncio.TaskGroup() as tasks:
        all_of_them = [tasks.create_task(many.coming_back()) for _ in range(200)]
    took_s = many.one.clock() - started_s
    assert took_s <= 1.05 * 200 / 4
    assert max(task.result() for task in all_of_them) <= 8


async def test_one_client_that_never_waits_does_not_drive_the_others_away(world, settle):
    many = await crowd(world, queue=QueueConfig(max_calls=20))
    waiting = [started(many.call()) for _ in range(24)]
    await settle()
    for _ in range(1000):
        with pytest.raises(QueueFull) as caught:
            await many.one.acquire()
        assert 6 <= caught.value.retry_after_s <= 12  # 21 calls at 4 a second, twice at most
    await asyncio.gather(*waiting)


async def test_each_tenant_is_told_its_own_time(world, settle):
    """The flood's next call is behind its others; the quiet tenant's is next but one."""
    many = await crowd(world, queue=QueueConfig(max_calls=40))
    flood = [started(many.one_call(tenant="flood")) for _ in range(43)]
    mine = started(many.call(tenant="quiet"))
    await settle()
    told = {}
    for tenant, error in (("flood", QueueFull), ("quiet", TooLate)):
        with pytest.raises(error) as caught:
            await many.one.acquire(tenant=tenant, limit_s=1.3)
        told[tenant] = caught.value.retry_after_s
    assert told["flood"] >= 10
    assert told["quiet"] <= 2
    assert await many.coming_back(tenant="quiet", limit_s=4.0) == 0
    await asyncio.gather(mine, *flood)


async def test_while_all_replicas_are_gone_the_time_of_a_start_is_added(world, settle):
    many = await crowd(world, queue=QueueConfig(max_calls=4))
    waiting = [started(many.call()) for _ in range(8)]
    await settle()
    with pytest.raises(QueueFull) as before:
        await many.one.acquire()
    many.one.down("r0")
    with pytest.raises(QueueFull) as caught:
        await many.one.acquire()
    assert caught.value.retry_after_s >= before.value.retry_after_s + many.one.pool.start_s - 1
    many.one.up("r0")
    await asyncio.gather(*waiting)


# ---- goodput ----


@pytest.mark.parametrize("limit_s", [4.0, 6.0, 20.0])
async def test_three_times_what_can_be_served_takes_nothing_from_what_is_served(world, limit_s):
    """Calls of 2 s with a time limit: what is given a replica is done in time."""
    served = {}
    for load in (1.0, 2.0, 3.0, 6.0):
        many = await crowd(world, 16, replicas=2, service_s=2.0, vary=0.2)
        await many.arriving(load * 8.0, many.one.clock() + 30.0, limit_s=limit_s)
        many.served.clear()
        await many.arriving(load * 8.0, many.one.clock() + 80.0, limit_s=limit_s)
        served[load] = many.served[""] / 80.0
        assert many.late <= 0.05 * many.served[""]
    peak = max(served.values())
    assert min(served[load] for load in (2.0, 3.0, 6.0)) >= 0.95 * peak, served
    assert peak >= 7.6, served


async def test_late_calls_are_told_at_once_and_with_503(world, settle):
    many = await crowd(world)
    waiting = [started(many.call()) for _ in range(24)]
    await settle()
    started_s = many.one.clock()
    with pytest.raises(TooLate) as caught:
        await many.one.acquire(limit_s=3.0)
    assert many.one.clock() == started_s
    assert caught.value.status == 503
    assert "3.0 s" in caught.value.message
    assert many.one.seen.sheds == ["too_late"]
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("limit_s", [1.5, 3.0, 5.9])
async def test_a_call_that_can_make_it_is_not_refused(world, settle, limit_s):
    """With as many calls ahead as leave it its time, and a little more for the unlike ones."""
    many = await crowd(world)
    waiting = []
    for _ in range(4):  # one after the other, as they do not all end together
        await asyncio.sleep(0.25)
        waiting.append(started(many.call()))
    waiting += [started(many.call()) for _ in range(int(3.5 * (limit_s - 1.3)))]
    await settle()
    await many.call(limit_s=limit_s)
    assert many.late == 0
    await asyncio.gather(*waiting)


async def test_while_little_is_known_nobody_is_refused_for_being_late(world, settle):
    one = world()
    one.add("r0", requests=1)
    many = Crowd(one, service_s=5.0)
    waiting = [started(many.one_call(limit_s=12.0)) for _ in range(6)]
    await settle()
    assert many.refused == []
    await asyncio.gather(*waiting)
    assert {type(error) for error in many.refused} == {QueueTimeout}


async def test_a_call_whose_time_is_over_when_it_comes_is_late_not_too_much(world):
    """Its body took as long as it has: it may not wait, but not because queueing is off."""
    many = await crowd(world, 1)
    await many.one.acquire()
    with pytest.raises(TooLate):
        await many.one.acquire(limit_s=0.0)


async def test_with_room_no_call_is_refused_however_short_its_time(world):
    many = await crowd(world, service_s=10.0)
    await many.one_call(limit_s=0.5)
    assert many.refused == []
    assert many.late == 1, "the engine judges; nobody waited behind it"


@pytest.mark.parametrize(("limit_s", "is_served"), [(12.0, False), (15.0, True)])
async def test_a_call_without_the_time_to_be_served_gets_no_replica(
    world, settle, limit_s, is_served
):
    """Calls take 10 s; after 4 s there is a replica for it, and the next call gets that."""
    many = await crowd(world, 1, service_s=10.0)
    blocker = await many.one.acquire()
    call = many.one.call(limit_s=limit_s)
    waiting = many.one.waiting(call, Attempts(), is_retry=True)  # past the door
    following = many.one.waiting()
    await asyncio.sleep(4.0)
    many.one.end(blocker)
    await settle()
    assert following.done() is not is_served
    many.one.check()
    if is_served:
        many.one.end(await waiting)
    else:
        with pytest.raises(QueueTimeout, match=r"within 4\.0 s, and the 8\.0 s left"):
            await waiting
    await following


async def test_where_no_length_is_told_only_the_quickest_call_s_time_counts(world, settle):
    """The answer may be short: nobody knows."""
    many = await crowd(world, 1, service_s=10.0)
    await many.call(new_tokens=1)  # one second for one token
    blocker = await many.one.acquire()
    waiting = many.one.waiting(many.one.call(limit_s=200.0, new_tokens="rest"), is_retry=True)
    await asyncio.sleep(180.0)
    many.one.end(blocker)
    await settle()
    assert waiting.done()
    assert waiting.exception() is None


@pytest.mark.parametrize("factor", [1.5, 2.5])
async def test_replicas_that_slow_down_take_goodput_down_as_far_and_for_as_long(world, factor):
    """Calls at their deadlines must not make service look quick, or more of them get in."""
    many = await crowd(world, 16, service_s=1.3, vary=0.1)
    served = []
    for slowness in (1.0, factor, factor, 1.0):
        many.service_s = 1.3 * slowness
        many.served.clear()
        begun = started(many.arriving(36.0, many.one.clock() + 20.0, limit_s=5.0))
        await asyncio.sleep(20.0)
        served.append(many.served[""])
        await begun
    full, _, slow, again = served
    assert slow >= 0.85 * full / factor
    assert again >= 0.9 * full


# ---- tenants ----


async def test_two_floods_get_the_same_tokens_whatever_their_calls_sizes(world):
    many = await crowd(world, 8, vary=0.3)
    until_s = many.one.clock() + 120.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(many.arriving(24.0, until_s, tenant="short", new_tokens=5))
        tasks.create_task(many.arriving(4.0, until_s, tenant="long", new_tokens=40))
        await asyncio.sleep(120.0)
        tokens, calls = many.served_tokens.copy(), many.served.copy()
    assert tokens["long"] == pytest.approx(tokens["short"], rel=0.1)
    assert calls["short"] > 3 * calls["long"]


async def test_a_weight_of_three_gets_three_times_the_tokens(world):
    many = await crowd(world, 8, weights={"gold": 3.0})
    until_s = many.one.clock() + 120.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(many.arriving(24.0, until_s, tenant="gold"))
        tasks.create_task(many.arriving(24.0, until_s, tenant="tin"))
        await asyncio.sleep(120.0)
        served = many.served.copy()
    assert served["gold"] == pytest.approx(3 * served["tin"], rel=0.1)


async def test_a_flood_hardly_delays_a_tenant_under_its_share_and_never_locks_it_out(world):
    many = await crowd(world, 16, vary=0.3, queue=QueueConfig(max_calls=32))
    quiet = Crowd(many.one, vary=0.3, seed=1)
    until_s = many.one.clock() + 120.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(many.arriving(48.0, until_s, tenant="flood"))
        tasks.create_task(quiet.arriving(2.0, until_s, tenant="quiet"))
    assert quiet.refused == []
    assert quiet.served["quiet"] > 200
    assert sorted(quiet.waits)[int(0.99 * len(quiet.waits))] < 0.5
    assert sorted(many.waits)[len(many.waits) // 2] > 1.5, "the others' wait"
    assert len(many.refused) > 2000
    assert {error.status for error in many.refused} == {429}


async def test_whose_place_is_taken_is_told_so_and_when_to_come_back(world, settle):
    many = await crowd(world, queue=QueueConfig(max_calls=4))
    flood = [started(many.one_call(tenant="flood")) for _ in range(8)]
    await settle()
    mine = started(many.call(tenant="quiet"))
    await settle()
    [error] = many.refused
    assert type(error) is QueueFull
    assert 1 <= error.retry_after_s <= 4
    assert flood[-1].done(), "the newest"
    many.one.check()
    assert many.one.seen.sheds == ["gave_way"]
    await asyncio.gather(mine, *flood)


async def test_whose_place_is_taken_in_the_tick_it_leaves_is_quiet(world, settle):
    many = await crowd(world, queue=QueueConfig(max_calls=4))
    flood = [started(many.one_call(tenant="flood")) for _ in range(8)]
    await settle()
    mine = started(many.call(tenant="quiet"))
    flood[-1].cancel()
    await settle()
    many.one.check()
    await asyncio.gather(mine, *flood[:-1])


async def test_priorities_decide_who_waits(world):
    many = await crowd(world, 8, vary=0.3)
    urgent = Crowd(many.one, vary=0.3, seed=1)
    until_s = many.one.clock() + 60.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(many.arriving(16.0, until_s, priority=Priority.LOW))
        tasks.create_task(urgent.arriving(4.0, until_s, priority=Priority.HIGH))
    assert urgent.refused == []
    assert max(urgent.waits) < 0.8
    assert many.served[""] >= 3.5 * 60, "what is left is the others'"


async def test_a_flood_of_urgent_calls_leaves_the_others_a_ninth(world):
    many = await crowd(world, 8, vary=0.3)
    patient = Crowd(many.one, vary=0.3, seed=1)
    until_s = many.one.clock() + 200.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(many.arriving(24.0, until_s, priority=Priority.HIGH))
        tasks.create_task(patient.arriving(4.0, until_s, tenant="x", priority=Priority.LOW))
        await asyncio.sleep(200.0)
        served = patient.served["x"]
    assert served == pytest.approx(200 * 8 / 9, rel=0.15)


@pytest.mark.parametrize("priority", Priority)
async def test_a_large_call_gets_its_turn_among_small_ones_of_other_tenants(world, priority):
    """A replica is kept for it whenever it stands at the head, whoever came in between."""
    one = world()
    one.add("a", "b", requests=64, tokens=1000)
    many = Crowd(one, vary=0.5)
    waits = []

    async def large():
        for _ in range(3):
            await asyncio.sleep(4.0)
            lease = await one.acquire(
                input_tokens=700, new_tokens=200, tenant="large", wait_s=1000.0, priority=priority
            )
            waits.append(lease.waited_s)
            await asyncio.sleep(1.0)
            one.end(lease)

    async with asyncio.TaskGroup() as tasks:
        for tenant in "xyz":
            urgency = Priority.HIGH if tenant == "x" else Priority.NORMAL
            fields = {"tenant": tenant, "priority": urgency, "wait_s": 1000.0}
            tasks.create_task(many.arriving(60.0, one.clock() + 40.0, **fields))
        tasks.create_task(large())
    assert len(waits) == 3
    bound_s = {Priority.HIGH: 4.0, Priority.NORMAL: 12.0, Priority.LOW: 16.0}[priority]
    assert max(waits) < bound_s, waits


# ---- what a turn costs in the end ----


USED = [
    (Outcome.DONE, Report(prompt_tokens=7, generated_tokens=3), False, 7 + 3),
    (Outcome.DONE, Report(), False, 10 + 100),
    (Outcome.ABANDONED, Report(generated_tokens=4), True, 10 + 4),
    (Outcome.ABANDONED, Report(generated_tokens=0), True, 10),
    (Outcome.ABANDONED, Report(), False, 10 + 100),
    (Outcome.FAILED, Report(), False, 0),
    (Outcome.FAILED, Report(generated_tokens=6), True, 6),
    (Outcome.SHED, Report(), False, 0),
]


@pytest.mark.parametrize(("outcome", "report", "stream", "tokens"), USED)
async def test_a_tenant_pays_for_what_it_got(world, outcome, report, stream, tokens):
    one = world()
    one.add("a")
    lease = await one.acquire(tenant="x", input_tokens=10, new_tokens=100, stream=stream)
    assert lease.account.counter == 210.0
    one.end(lease, outcome, report)
    assert one.seen.used_tokens["x"] == tokens
    prompt = 0 if outcome is Outcome.FAILED else report.prompt_tokens or 10
    generated = tokens - prompt if tokens else 0
    assert lease.account.counter == tokens + generated


async def test_a_lease_that_came_too_late_costs_nothing(world, settle):
    one = world()
    one.add("a", requests=1)
    holder = await one.acquire()
    waiting = one.waiting(tenant="x")
    await settle()
    one.end(holder)
    waiting.cancel()
    await settle()
    assert one.seen.used_tokens["x"] == 0
    account = one.dispatcher.queue.account(one.call(tenant="x"))
    assert account.users == 0


async def test_calls_of_several_sequences_are_charged_as_they_were_estimated(world):
    one = world()
    one.add("a", requests=8)
    lease = await one.acquire(tenant="x", input_tokens=10, new_tokens=50, sequences=4)
    one.end(lease, report=Report(prompt_tokens=2, generated_tokens=3))
    assert one.seen.used_tokens["x"] == lease.cost.input_tokens + lease.cost.expected_tokens


async def test_refusals_are_counted_by_cause(world, settle):
    one = world(queue=QueueConfig(max_calls=1))
    with pytest.raises(NoReplica):
        await one.acquire()
    one.add("a", requests=1)
    await one.acquire()
    waiting = one.waiting()
    await settle()
    for fields in ({}, {"wait_s": 0.0}):
        with pytest.raises(QueueFull):
            await one.acquire(**fields)
    assert one.seen.sheds == ["no_replica", "queue_full", "no_room"]
    waiting.cancel()
    await settle()
