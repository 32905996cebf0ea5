"""When no replica is known to be well: one that merely did not answer its probes is used."""

import pytest

from router.health import Event

pytestmark = pytest.mark.virtual_time


def silence(one, name):
    for _ in range(one.pool._config.fall):
        one.pool.on_event(one[name], Event.PROBE_LATE, "test")


def refuse(one):
    one.down("a")


def eject(one):
    for _ in range(one.pool._config.eject_after):
        one.pool.on_event(one["a"], Event.CALL_FAIL, "test")
    assert one["a"].health.state.value == "ejected"


def unheard(one):
    others = [one.member(r.id, requests=1) for r in one.pool if r.id != "a"]
    one.sync(one.member("a", generation=2, requests=1), *others)
    assert one["a"].health.state.value == "unknown"


BAD = [refuse, eject, unheard]


@pytest.mark.parametrize("spoil", BAD)
async def test_the_silent_one_serves_when_the_other_is_known_to_be_worse(world, settle, spoil):
    one = world()
    one.add("a", "b", requests=1)
    spoil(one)
    held = await one.acquire()
    assert held.replica.id == "b"
    waiting = one.waiting()
    silence(one, "b")
    assert [replica.id for replica in one.pool if replica.is_usable] == ["b"]
    one.end(held)
    await settle()
    assert waiting.result().replica.id == "b"


@pytest.mark.parametrize("spoil", [refuse, unheard])
async def test_waiting_calls_go_out_at_the_news_that_the_last_well_one_is_gone(
    world, settle, spoil
):
    one = world()
    one.add("a", "b", requests=1)
    silence(one, "b")
    held = await one.acquire()
    assert held.replica.id == "a"
    waiting = one.waiting()
    await settle()
    assert not waiting.done(), "a healthy one is waited for"
    spoil(one)
    await settle()
    assert waiting.result().replica.id == "b"


@pytest.mark.parametrize("spoil", BAD)
async def test_a_silent_one_is_never_used_beside_a_healthy_one(world, settle, spoil):
    one = world()
    one.add("a", "b", "c", requests=1)
    spoil(one)
    silence(one, "b")
    held = await one.acquire()
    waiting = one.waiting()
    await settle()
    assert held.replica.id == "c"
    assert not waiting.done(), "it waits for the healthy one"
    one.end(held)
    await settle()
    assert waiting.result().replica.id == "c"


async def test_the_silent_one_is_left_again_when_another_is_well(world, settle):
    one = world()
    one.add("a", "b")
    one.down("a")
    silence(one, "b")
    assert (await one.acquire()).replica.id == "b"
    one.up("a")
    assert [replica.id for replica in one.pool if replica.is_usable] == ["a"]
    assert (await one.acquire()).replica.id == "a"
