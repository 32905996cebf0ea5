"""Calls of a replica that fell silent: another one is asked too, and who answers first counts."""

import asyncio
import json

import pytest

from router.apis import GENERATION_APIS
from router.health import Event
from router.replica import Admin

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
QUIET = {"interval_s": 1000}


@pytest.fixture
def hung(app, wire, until):
    """`rig, silent, other = await hung()`: a call of a client is with `silent`, which is suspect.

    `first` are its steps, `then` the other's.
    """

    async def make(first, *, then, path="/generate", count=2, **options):
        rig = await app(count, health=QUIET, **options)
        for replica in rig.replicas:
            replica.say(*first)
            replica.otherwise = then
        client = await rig.client()
        client.post(path, GENERATE)
        await until(lambda: any(replica.requests for replica in rig.replicas))
        silent = next(one for one in rig.replicas if one.requests)
        others = [one for one in rig.replicas if one is not silent]
        for other in others:
            other.forget_scripts()
        return rig, client, silent, others

    return make


def suspect(rig, replica):
    rig.dispatcher.pool.on_event(rig[replica.name], Event.SUSPECTED, "nothing comes")


def outcomes(rig):
    of = rig.metric
    return {one: of("hedges_total", model="default", outcome=one) for one in ("won", "kept")}


async def test_a_call_of_a_silent_replica_is_answered_by_another(hung, wire):
    rig, client, silent, _ = await hung([wire.STALL], then=[wire.reply(wire.generated("other"))])
    suspect(rig, silent)
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, wire.generated("other"))
    assert reply.get("x-fleet-attempts") == "2"
    assert reply.get("x-fleet-replica") != silent.name
    async with asyncio.timeout(5):
        await silent.requests[0].gone.wait()
    assert outcomes(rig) == {"won": 1, "kept": 0}
    line = await rig.line()
    assert (line["replica"], line["attempts"]) == (reply.get("x-fleet-replica"), 2)


async def test_the_first_may_still_be_the_one_that_answers(hung, wire):
    gate = asyncio.Event()
    first = [gate, wire.reply(wire.generated("late"))]
    rig, client, silent, [other] = await hung(first, then=[wire.STALL])
    suspect(rig, silent)
    await other.request()
    gate.set()
    reply = await client.reply()
    assert reply.body == wire.generated("late")
    assert reply.get("x-fleet-replica") == silent.name
    async with asyncio.timeout(5):
        await other.requests[0].gone.wait()
    assert outcomes(rig) == {"won": 0, "kept": 1}
    assert rig.metric("attempts_total", replica=other.name, outcome="outrun") == 1


async def test_a_first_that_dies_meanwhile_leaves_it_to_the_second(hung, wire):
    gate, last = asyncio.Event(), asyncio.Event()
    then = [last, wire.reply(wire.generated("second"))]
    rig, client, silent, [other] = await hung([gate, wire.RST], then=then)
    suspect(rig, silent)
    await other.request()
    gate.set()
    async with asyncio.timeout(5):
        await silent.requests[0].gone.wait()
    last.set()
    assert (await client.reply()).body == wire.generated("second")
    assert (rig[silent.name].failed, rig[other.name].served) == (1, 1)


async def test_a_second_that_fails_leaves_it_to_the_first(hung, wire, until):
    gate = asyncio.Event()
    fault = wire.reply(wire.error("CUDA", "generation"), "424 Failed Dependency")
    first = [gate, wire.reply(wire.generated("late"))]
    rig, client, silent, [other] = await hung(first, then=[fault])
    suspect(rig, silent)
    await other.request()
    await until(lambda: rig[other.name].failed == 1)
    gate.set()
    assert (await client.reply()).body == wire.generated("late")


async def test_when_both_fail_the_call_is_tried_again_as_after_any_failure(hung, wire):
    gate = asyncio.Event()
    fault = wire.reply(wire.error("CUDA", "generation"), "424 Failed Dependency")
    rig, client, silent, [other] = await hung([gate, wire.CUT], then=[fault])
    suspect(rig, silent)
    await other.request()
    other.otherwise = [wire.reply(wire.generated("third"))]
    gate.set()
    assert (await client.reply()).body == wire.generated("third")


async def test_with_nobody_else_the_first_is_waited_for(hung, wire):
    gate = asyncio.Event()
    first = [gate, wire.reply(wire.generated("late"))]
    rig, client, silent, _ = await hung(first, then=[wire.CUT], count=1)
    suspect(rig, silent)
    gate.set()
    reply = await client.reply()
    assert (reply.body, reply.get("x-fleet-attempts")) == (wire.generated("late"), "1")
    assert outcomes(rig) == {"won": 0, "kept": 0}


async def test_a_second_that_waits_for_room_is_given_up_with_the_first_answer(hung, wire, until):
    gate, busy = asyncio.Event(), asyncio.Event()
    first = [gate, wire.reply(wire.generated("late"))]
    slow = [busy, wire.reply(wire.generated("busy"))]
    rig, client, silent, [other] = await hung(first, then=slow, entries={"max_requests": 1})
    beside = await rig.client()
    beside.post("/generate", GENERATE)
    await other.request()
    suspect(rig, silent)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    gate.set()
    assert (await client.reply()).body == wire.generated("late")
    assert len(rig.dispatcher.queue) == 0
    busy.set()
    assert (await beside.reply()).status == 200


async def test_a_client_that_leaves_ends_both(hung, wire, until):
    rig, client, silent, [other] = await hung([wire.STALL], then=[wire.STALL])
    suspect(rig, silent)
    await other.request()
    client.leave()
    await rig.at_rest()
    async with asyncio.timeout(5):
        await silent.requests[0].gone.wait()
        await other.requests[0].gone.wait()
    assert rig.metric("gpu_seconds_saved_total", model="default") > 0


async def test_without_budget_nobody_else_is_asked(hung, wire):
    gate = asyncio.Event()
    first = [gate, wire.reply(wire.generated("late"))]
    rig, client, silent, [other] = await hung(first, then=[wire.CUT])
    budget = rig.dispatcher.budget
    budget.cover(1000)  # nothing comes on top any more
    while budget.spend():
        pass
    rig.app.upstream.doubt(rig[silent.name])  # late, but its replica answers others
    await asyncio.sleep(0)
    gate.set()
    assert (await client.reply()).body == wire.generated("late")
    assert not other.requests


async def test_a_stream_without_an_event_yet_is_asked_of_another_too(hung, wire):
    whole = wire.token(1) + wire.token(2, last=" a a")
    rig, client, silent, _ = await hung(
        [wire.stream_head(), wire.STALL], then=[wire.streamed(whole)], path="/generate_stream"
    )
    suspect(rig, silent)
    reply = await client.reply()
    assert (reply.status, reply.body, reply.is_whole) == (200, whole, True)


async def test_a_stream_that_fell_silent_in_mid_answer_goes_on_before_the_configured_silence(
    hung, wire
):
    """By what its replica normally does: the config's minute is the most there may be."""
    rest = wire.streamed(wire.token(1, " c", last=" c"))
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL]
    rig, client, silent, _ = await hung(steps, then=[rest], path="/generate_stream")
    await client.head()
    assert await client.chunk() == wire.token(1)
    pace = rig[silent.name].pace
    pace._seen, pace.heard_s = 1000, 0.0  # its normal pace is known, and it has been silent
    silent.health = [wire.STALL]
    suspect(rig, silent)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert b'" a c"' in await client.chunk()
    assert loop.time() - began_s < 6


async def test_many_calls_of_a_silent_replica_all_come_back(app, wire, until):
    rig = await app(2, health=QUIET, entries={"max_requests": 32})
    first, other = rig.replicas
    gate = asyncio.Event()
    first.otherwise, other.otherwise = [wire.STALL], [gate, wire.reply(wire.generated("ok"))]
    calls = [rig.post("/generate", GENERATE) for _ in range(20)]
    tasks = [asyncio.get_running_loop().create_task(call) for call in calls]
    await until(lambda: len(first.requests) + len(other.requests) == 20)
    assert len(first.requests) >= 4
    suspect(rig, first)
    gate.set()
    replies = await asyncio.gather(*tasks)
    assert {reply.status for reply in replies} == {200}
    assert {reply.get("x-fleet-replica") for reply in replies} == {other.name}


async def test_a_call_of_a_silent_replica_goes_to_one_that_becomes_usable_later(app, wire, until):
    rig = await app(2, health=QUIET)
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    client = await rig.client()
    client.post("/generate", GENERATE)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    silent, other = sorted(rig.replicas, key=lambda replica: not replica.requests)
    silent.health = [wire.STALL]
    rig.dispatcher.pool.set_admin(rig[other.name], Admin.DRAINING)
    suspect(rig, silent)
    await asyncio.sleep(0)
    other.otherwise = [wire.reply(wire.generated("other"))]
    rig.dispatcher.pool.set_admin(rig[other.name], Admin.ACTIVE)
    assert (await client.reply()).body == wire.generated("other")


async def test_a_call_whose_second_replica_falls_silent_as_well_goes_to_a_third(app, wire, until):
    rig = await app(3, health=QUIET)
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    client = await rig.client()
    client.post("/generate", GENERATE)
    for count in (1, 2):
        await until(lambda count=count: sum(bool(one.requests) for one in rig.replicas) == count)
        asked = [one for one in rig.replicas if one.requests]
        last = next(one for one in asked if not rig[one.name].health.is_suspect)
        last.health = [wire.STALL]
        for replica in rig.replicas:
            if count == 2 and not replica.requests:
                replica.otherwise = [wire.reply(wire.generated("third"))]
        suspect(rig, last)
    assert (await client.reply()).body == wire.generated("third")


async def test_a_hedged_call_is_charged_once(hung, wire):
    rig, client, silent, _ = await hung([wire.STALL], then=[wire.reply(wire.generated("other"))])
    suspect(rig, silent)
    assert (await client.reply()).status == 200
    kinds = ("prompt", "generated")
    used = {kind: rig.metric("tenant_tokens_total", tenant="", kind=kind) for kind in kinds}
    cost = rig.dispatcher.pool.cost
    assert used["prompt"] == cost(ask_of(GENERATE)).input_tokens
    assert used["generated"] <= cost(ask_of(GENERATE)).expected_tokens


def ask_of(body):
    return GENERATION_APIS["/generate"].parse("/generate", json.dumps(body).encode())


async def test_when_both_say_nothing_the_one_that_was_asked_first_is_blamed(app, wire, until):
    rig = await app(2, health=QUIET, timeouts={"first_event_s": 0.5}, retries={"max_attempts": 1})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    silent, other = sorted(rig.replicas, key=lambda replica: not replica.requests)
    rig.app.upstream.doubt(rig[silent.name])
    assert (await client.reply()).status == 504
    fails = [rig[one.name].health.call_fails for one in (silent, other)]
    assert fails == [1, 0]
