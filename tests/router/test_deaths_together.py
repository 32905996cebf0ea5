"""Replicas that die together, behind something that accepts and closes for them as Docker's proxy
does: every call looks as if it killed those it was sent to. None is lost, and a real killer is
still found.
"""

import asyncio
from collections import Counter

import pytest

from router.retry import MAX_EXCUSES

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
POISON = {"inputs": "poison", "parameters": {"max_new_tokens": 3}}
CLIENTS = 64


@pytest.fixture
def fine(wire):
    return [wire.reply(wire.generated("fine"))]


def replies_of(tasks):
    return Counter((task.result().status, task.result().body) for task in tasks)


def kills_with(replica):
    """From now on a call that says poison kills it, in the middle of what else it does."""
    scripted = replica.script_for

    def script_for(request):
        if b"poison" in request.body:
            replica.die_behind_a_proxy()
        return scripted(request)

    replica.script_for = script_for


async def test_all_die_at_once_and_no_call_is_lost(app, wire, until, fine):
    rig = await app(4, health={"interval_s": 1000}, entries={"max_requests": 16})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(rig.post("/generate", GENERATE)) for _ in range(CLIENTS)]
        await until(lambda: sum(len(r.requests) for r in rig.replicas) == CLIENTS)
        for replica in rig.replicas:
            replica.die_behind_a_proxy()
            replica.otherwise = fine
        calls += [group.create_task(rig.post("/generate", GENERATE)) for _ in range(CLIENTS)]
        await until(lambda: not any(replica.is_usable for replica in rig.all()))
        await until(lambda: rig.app.handlers.calls_running == 2 * CLIENTS)
        for replica in rig.replicas:
            replica.come_back()
    assert replies_of(calls) == {(200, wire.generated("fine")): 2 * CLIENTS}


async def test_one_dies_after_the_other_and_no_call_is_lost(app, wire, until, fine):
    """The worst case: each next one dies when it has been sent what the last one had."""
    rig = await app(4, health={"interval_s": 1000}, entries={"max_requests": 64})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(rig.post("/generate", GENERATE)) for _ in range(CLIENTS)]
        await until(lambda: sum(len(r.requests) for r in rig.replicas) == CLIENTS)
        for number, replica in enumerate(rig.replicas):
            later = rig.replicas[number + 1 :]
            held = sum(len(r.requests) for r in later)
            replica.otherwise = fine
            replica.die_behind_a_proxy()
            await until(lambda later=later, held=held: more_than(held, later))
        for replica in rig.replicas:
            replica.come_back()
    assert replies_of(calls) == {(200, wire.generated("fine")): CLIENTS}


def more_than(held, replicas):
    return not replicas or sum(len(replica.requests) for replica in replicas) > held


async def test_a_call_that_meets_two_deaths_is_not_sent_to_the_dead_that_nobody_noticed(
    app, wire, until, fine
):
    """It alone runs; the other two are idle, and nobody knows yet that they died as well."""
    rig = await app(4, health={"interval_s": 1000})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    async with asyncio.TaskGroup() as group:
        call = group.create_task(rig.post("/generate", GENERATE))
        for deaths in (1, 2):
            await until(lambda deaths=deaths: len(asked(rig)) == deaths)
            doomed = [r for r in rig.replicas if r.requests and r.on_accept is None]
            for replica in doomed if deaths == 1 else rig.replicas:
                replica.die_behind_a_proxy()
        await until(lambda: not any(replica.is_usable for replica in rig.all()))
        for replica in rig.replicas:
            replica.otherwise = fine
            replica.come_back()
    assert (call.result().status, call.result().body) == (200, wire.generated("fine"))
    assert call.result().get("x-fleet-attempts") == "3"


def asked(rig):
    return [replica for replica in rig.replicas if replica.requests]


@pytest.mark.parametrize("max_deaths", [1, 2, 3])
async def test_a_killer_is_refused_after_its_trial_and_everybody_else_is_served(
    app, wire, until, fine, max_deaths
):
    rig = await app(
        5,
        health={"interval_s": 1000},
        entries={"max_requests": 4},
        retries={"max_deaths": max_deaths},
    )
    for replica in rig.replicas:
        kills_with(replica)
        replica.otherwise = fine
    async with asyncio.TaskGroup() as group:
        poison = group.create_task(rig.post("/generate", POISON))
        others = [group.create_task(rig.post("/generate", GENERATE)) for _ in range(CLIENTS)]
    assert poison.result().status == 422
    assert poison.result().get("x-fleet-attempts") == str(max_deaths + 1)
    assert len([r for r in rig.replicas if r.on_accept is not None]) == max_deaths + 1
    assert replies_of(others) == {(200, wire.generated("fine")): CLIENTS}


async def test_a_killer_in_the_company_of_another_is_refused_as_well(app, wire, fine):
    """Each one's deaths excuse the other's, but not for ever. They come back, as they do."""
    rig = await app(4, health={"interval_s": 1000}, entries={"max_requests": 4})
    deaths = []
    later = asyncio.get_running_loop().call_later
    for replica in rig.replicas:
        kills_with(replica)
        replica.otherwise = fine
        die = replica.die_behind_a_proxy

        def die_and_come_back(replica=replica, die=die):
            die()
            deaths.append(replica.name)
            later(0.05, replica.come_back)

        replica.die_behind_a_proxy = die_and_come_back
    async with asyncio.TaskGroup() as group:
        killers = [group.create_task(rig.post("/generate", POISON)) for _ in range(2)]
        others = [group.create_task(rig.post("/generate", GENERATE)) for _ in range(12)]
    assert {task.result().status for task in killers} == {422}
    assert len(deaths) <= 2 * (2 + 1 + MAX_EXCUSES)
    assert replies_of(others) == {(200, wire.generated("fine")): 12}


async def test_a_replica_that_accepts_and_closes_is_asked_once_by_one_call(app, wire, fine):
    """Idle when it died: the first call finds out, a probe says the same, and that is all."""
    rig = await app(2, health={"interval_s": 1000})
    rig.replicas[0].die_behind_a_proxy()
    for _ in range(6):
        assert (await rig.post("/generate", GENERATE)).status == 200
    assert rig["r0"].failed == 1
    assert rig["r0"].health.state.value == "unhealthy"
    assert rig.metric("retries_total", reason="ReplicaLost") == 1


async def test_a_kept_connection_that_was_closed_puts_its_replica_in_no_doubt(app, wire, until):
    rig = await app(1, health={"interval_s": 1000})
    changes = []
    rig.dispatcher.pool.look = changes.append
    rig.replicas[0].otherwise = [wire.reply(wire.generated("a")), wire.CUT]
    for _ in range(5):
        assert (await rig.post("/generate", GENERATE)).get("x-fleet-attempts") == "1"
        assert rig["r0"].is_usable
    assert changes == []


async def test_a_replica_that_lost_one_connection_and_lives_is_back_within_a_probe(app, wire):
    rig = await app(1, health={"interval_s": 1000})
    probes = rig.replicas[0].connections
    rig.replicas[0].say(wire.RST)  # on the connection kept from the probe
    rig.replicas[0].say(wire.RST)
    reply = await rig.post("/generate", GENERATE)
    assert (reply.status, reply.get("x-fleet-attempts")) == (200, "2")
    assert rig["r0"].health.state.value == "healthy"
    assert rig["r0"].is_usable
    assert rig.replicas[0].connections - probes <= 3
