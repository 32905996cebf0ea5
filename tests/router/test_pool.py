"""Membership, what engines told, and what a call will cost in this pool."""

import asyncio
from dataclasses import replace

import pytest

from router.call import Ask
from router.config import HealthConfig
from router.dialects import DIALECTS, EngineInfo
from router.errors import NoReplica
from router.health import Event, State
from router.replica import Admin
from router.room import Capacity

pytestmark = pytest.mark.virtual_time


async def test_the_list_is_the_whole_truth(world):
    one = world()
    fresh = one.sync(one.member("a"), one.member("b"))
    assert [replica.id for replica in fresh] == ["a", "b"]
    assert one.sync(one.member("b")) == []
    assert [replica.id for replica in one.pool] == ["b"]
    one.sync()
    assert len(one.pool) == 0


@pytest.mark.parametrize("change", [{"generation": 2}, {"port": 81}])
async def test_a_new_start_or_place_is_a_new_replica(world, change):
    one = world()
    [before] = one.add("a")
    [after] = one.sync(one.member("a", **change))
    assert after is one["a"] is not before
    assert after.health.state is State.UNKNOWN
    assert not after.is_usable


async def test_a_phase_is_followed_without_a_new_replica(world):
    one = world()
    [replica] = one.add("a")
    for phase in ("starting", "loading", "failed", "ready"):
        one.sync(one.member("a", phase=phase))
        assert one["a"] is replica
        assert replica.phase == phase


async def test_one_that_has_come_up_is_looked_at_again(world):
    one = world()
    one.add("a", "b")
    looked = []
    one.pool.look = lambda replica: looked.append(replica.id)
    one.sync(one.member("a", phase="loading"), one.member("b"))
    one.sync(one.member("a", phase="ready"), one.member("b"))
    one.sync(one.member("a", phase="ready"), one.member("b"))
    assert looked == ["a", "a"]


async def test_one_that_the_launcher_is_about_to_stop_gets_no_more_calls(world):
    one = world()
    [replica] = one.add("a")
    one.pool.on_event(replica, Event.PROBE_OK, "")
    assert replica.is_usable
    one.sync(one.member("a", phase="draining"))
    assert not replica.is_usable
    assert one.pool.can_come  # its successor will serve: calls wait
    one.sync(one.member("a", phase="ready"))
    assert replica.is_usable


async def test_what_the_launcher_learned_later_is_taken_over(world):
    """The token budget stands in the start-up log, which ends after the port is known."""
    one = world()
    [replica] = one.add("a", requests=None)
    assert replica.room.capacity.tokens is None
    one.sync(one.member("a", requests=None, tokens=9000))
    assert one["a"] is replica
    assert replica.room.capacity.tokens == 9000


async def test_a_replica_is_usable_when_healthy_active_and_placed(world):
    one = world()
    one.add("a", "b", port=0)
    assert not any(replica.is_usable for replica in one.pool)
    one.sync(one.member("a"), one.member("b"))
    for name in "ab":
        one.up(name)
        assert one[name].is_usable
    one.pool.set_admin(one["a"], Admin.DRAINING)
    assert not one["a"].is_usable
    one.pool.set_admin(one["a"], Admin.ACTIVE)
    assert one["a"].is_usable
    one.down("a")
    assert not one["a"].is_usable


async def test_one_in_doubt_that_answers_late_is_used_when_there_is_no_other(world):
    """A busy engine lost one connection: it may be the last one standing."""
    one = world()
    one.add("a", "b")
    one.down("b")
    one.lose("a")
    assert not one["a"].is_usable
    one.pool.on_event(one["a"], Event.PROBE_LATE, "test")
    assert one["a"].is_usable
    one.up("b")
    assert not one["a"].is_usable


async def test_the_pool_remembers_for_a_while_who_died(world):
    one = world()
    one.add("a", "b", "c", "d")
    began_s = one.clock()
    one.lose("a")
    one.down("b")
    one.pool.on_event(one["c"], Event.PROBE_FAIL, "test")
    one.sync(one.member("a", generation=2), one.member("b"), one.member("c"), one.member("d"))
    assert one.pool.lost_since(began_s) == {"a", "b"}
    await asyncio.sleep(1.0)
    one.down("b")
    assert one.pool.lost_since(began_s + 0.5) == set(), "down is no news"


async def test_health_goes_on_while_it_drains(world):
    one = world()
    one.add("a", "b")
    one.pool.set_admin(one["a"], Admin.DRAINING)
    one.down("a")
    one.pool.set_admin(one["a"], Admin.ACTIVE)
    assert not one["a"].is_usable
    one.up("a")
    assert one["a"].is_usable


async def test_a_drained_one_that_starts_again_stays_drained(world):
    one = world()
    one.sync(one.member("a", generation=2), draining={"a"})
    one.up("a")
    assert one["a"].admin is Admin.DRAINING
    assert not one["a"].is_usable


@pytest.mark.parametrize(
    ("phase", "admin", "is_coming"),
    [
        ("", Admin.ACTIVE, True),
        ("pending", Admin.ACTIVE, True),
        ("starting", Admin.ACTIVE, True),
        ("loading", Admin.ACTIVE, True),
        ("ready", Admin.ACTIVE, True),
        ("stopped", Admin.ACTIVE, False),
        ("failed", Admin.ACTIVE, False),
        ("ready", Admin.DRAINING, False),
    ],
)
async def test_whether_waiting_for_it_makes_sense(world, phase, admin, is_coming):
    one = world()
    one.sync(one.member("a", phase=phase))
    one.pool.set_admin(one["a"], admin)
    assert one.pool.can_come is is_coming


async def test_costs_follow_what_the_engine_told_last(world):
    one = world()
    one.add("a")
    ask = Ask(input_chars=100, new_tokens=2000)
    assert one.pool.cost(ask).reserve_tokens == 2100
    info = EngineInfo(version=(3, 3, 5), max_total_tokens=4096)
    one.pool.learn(one["a"], info)
    assert one.pool.cost(ask).reserve_tokens == 1124
    assert one["a"].info is info


async def test_a_pool_without_replicas_still_prices_a_call(world):
    one = world()
    assert one.pool.cost(Ask(input_chars=10)).requests == 1
    with pytest.raises(NoReplica):
        await one.acquire()


async def test_learned_limits_let_waiting_calls_in(world, settle):
    one = world()
    one.add("a", requests=None)
    leases = [await one.acquire() for _ in range(one["a"].room.requests)]
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    one.pool.learn(one["a"], EngineInfo(capacity=Capacity(requests=64, tokens=10**6)))
    await settle()
    assert waiting.done()
    assert len(leases) < 64


async def test_clients_are_told_the_engines_name_where_nobody_gave_one(world):
    one = world()
    one.add("a")
    one.pool.learn(one["a"], EngineInfo(model_id="org/model"))
    assert one.pool.served_name == "m"
    one.pool.model = "default"
    assert one.pool.served_name == "org/model"


async def test_the_start_time_is_learned_from_starts_that_were_seen(world, settle):
    one = world()
    before_s = one.pool.start_s
    for generation in range(1, 20):
        one.sync(one.member("a", generation=generation, phase="loading"))
        await asyncio.sleep(120.0)
        one.up("a")
    assert one.pool.start_s > 100 > before_s


async def test_events_for_a_replica_that_left_harm_nobody(world):
    one = world()
    [gone] = one.add("a")
    one.sync(one.member("b"))
    for event in Event:
        one.pool.on_event(gone, event, "late")
    assert one["b"].health.state is State.UNKNOWN


async def test_all_replicas_of_a_pool_speak_a_listed_dialect(world):
    one = world()
    [replica] = one.add("a")
    assert replica.dialect is DIALECTS["tgi"]


# ---- when the signals themselves are stale ----


def stop_answering(one, *names):
    for name in names:
        for _ in range(3):
            one.pool.on_event(one[name], Event.PROBE_LATE, "test")


async def test_when_no_replica_answers_its_probes_they_are_used_rather_than_none(world, settle):
    """The probes may be what is wrong: engines answer them late under load."""
    one = world()
    one.add("a", "b", requests=1)
    stop_answering(one, "a")
    assert [replica.id for replica in one.pool if replica.is_usable] == ["b"]
    held = await one.acquire()
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    stop_answering(one, "b")
    assert all(replica.is_usable for replica in one.pool)
    assert (await waiting).replica.id == "a"
    one.end(held)


async def test_one_that_answers_ends_the_guessing(world):
    one = world()
    one.add("a", "b", "c")
    stop_answering(one, "a", "b", "c")
    one.up("b")
    assert [replica.id for replica in one.pool if replica.is_usable] == ["b"]


@pytest.mark.parametrize("event", [Event.REFUSED, Event.PROBE_FAIL])
async def test_what_is_known_to_be_down_is_not_used(world, event):
    one = world()
    one.add("a", "b")
    stop_answering(one, "a", "b")
    for _ in range(3):
        one.pool.on_event(one["a"], event, "test")
    assert not one["a"].is_usable
    one.pool.on_event(one["b"], event, "test")
    assert not one["b"].is_usable


async def test_a_drained_one_is_not_used_even_then(world):
    one = world()
    one.add("a", "b")
    one.pool.set_admin(one["a"], Admin.DRAINING)
    stop_answering(one, "a", "b")
    assert [replica.id for replica in one.pool if replica.is_usable] == ["b"]


async def test_waiting_calls_go_out_as_soon_as_silence_is_all_that_is_known(world, settle):
    """The replica's state stays the same; that it may be used is what changed."""
    one = world()
    one.add("a")
    for _ in range(3):
        one.pool.on_event(one["a"], Event.PROBE_FAIL, "test")
    waiting = one.waiting()
    await settle()
    assert not waiting.done()
    one.pool.on_event(one["a"], Event.PROBE_LATE, "test")
    await settle()
    assert waiting.done()


# ---- coming back beside others ----


def limits(one):
    return {replica.id: replica.room.requests for replica in one.pool}


async def test_one_that_comes_back_while_others_serve_starts_slowly(world):
    one = world()
    one.add("a", "b", requests=32)
    one.down("a")
    one.up("a")
    assert limits(one) == {"a": 2, "b": 32}


async def test_a_new_generation_is_one_that_comes_back(world):
    one = world()
    one.add("a", "b", requests=32)
    members = one.member("a", generation=2, requests=32), one.member("b", requests=32)
    one.sync(*members)
    one.up("a")
    assert limits(one) == {"a": 2, "b": 32}


async def test_at_the_first_start_nobody_starts_slowly(world):
    one = world()
    one.add("a", "b", "c", requests=32)
    assert set(limits(one).values()) == {32}


async def test_the_only_one_does_not_start_slowly(world):
    one = world()
    one.add("a", "b", requests=32)
    one.down("a")
    one.down("b")
    one.up("a")
    assert one["a"].room.requests == 32


async def test_one_that_is_left_alone_meanwhile_takes_all(world):
    one = world()
    one.add("a", "b", requests=32)
    one.down("a")
    one.up("a")
    one.down("b")
    assert one["a"].room.requests == 32


async def test_a_suspect_was_never_away(world):
    one = world()
    one.add("a", "b", requests=32)
    one.pool.on_event(one["a"], Event.SUSPECTED, "test")
    one.pool.on_event(one["a"], Event.HEARD, "test")
    assert one["a"].room.requests == 32


async def test_slow_start_can_be_switched_off(world):
    one = world(health=HealthConfig(slow_start=False, warm_up=False))
    one.add("a", "b", requests=32)
    one.down("a")
    one.up("a")
    assert one["a"].room.requests == 32


async def test_calls_that_wait_come_to_it_in_growing_numbers(world, settle):
    one = world()
    one.add("a", "b", requests=8)
    one.down("a")
    held = [await one.acquire() for _ in range(8)]
    waiting = [one.waiting() for _ in range(20)]
    one.up("a")
    await settle()

    def mine():
        return [task.result() for task in waiting if task.done() and task.result().is_open]

    for most in (2, 4, 8):
        assert len(mine()) == one["a"].load.requests == most
        for lease in mine():
            one.end(lease)
        await settle()
    for lease in (*held, *mine()):
        one.end(lease)


# ---- what the launcher says of its GPU ----


def told(one, **faults):
    """The list again, with what is wrong with some."""
    one.sync(*(replace(member, **faults.get(name, {})) for name, member in one._members.items()))


async def test_a_replica_on_a_faulty_gpu_is_used_only_where_no_other_serves(world):
    one = world()
    one.add("a", "b", "c")
    told(one, a={"fault": "XID 48: uncorrectable memory error"})
    assert [replica.id for replica in one.pool if replica.is_usable] == ["b", "c"]
    one.down("b")
    one.down("c")
    assert one["a"].is_usable
    one.up("c")
    assert not one["a"].is_usable
    told(one, a={"fault": ""})
    assert one["a"].is_usable


async def test_when_all_gpus_are_faulty_all_are_used(world):
    one = world()
    one.add("a", "b")
    told(one, a={"fault": "x"}, b={"fault": "y"})
    assert all(replica.is_usable for replica in one.pool)


async def test_a_throttled_gpu_is_given_less(world):
    one = world()
    one.add("a", "b", requests=8)
    told(one, a={"slowed": "heat (hardware)"})
    assert limits(one) == {"a": 4, "b": 8}
    assert one["a"].is_usable
    told(one, a={"slowed": ""})
    assert limits(one) == {"a": 8, "b": 8}
