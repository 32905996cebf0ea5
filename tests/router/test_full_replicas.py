"""Replicas that refuse calls for load: paused for a moment, never excluded, and nobody starves."""

import asyncio
import json

import pytest

from router.lease import Outcome
from router.retry import Attempts

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
OVERLOADED = ("Model is overloaded", "overloaded")


def sheds(wire):
    """Every way of saying "full", with the route it is said on."""
    body = wire.error(*OVERLOADED)
    return {
        "429": ("/generate", wire.reply(body, "429 Too Many Requests")),
        "503": ("/generate", wire.reply(b"", "503 Service Unavailable")),
        "in-band": ("/generate_stream", wire.streamed(wire.error_event(*OVERLOADED))),
        "untyped": (
            "/generate_stream",
            wire.streamed(b'data: {"error":{"message":"Model is overloaded"}}\n\n'),
        ),
    }


@pytest.mark.parametrize("how", ["429", "503", "in-band", "untyped"])
async def test_a_full_replica_gets_the_call_again_when_its_pause_is_over(app, wire, until, how):
    """The other one has no room for it: exclusion would make the call wait for that."""
    rig = await app(
        2, entries={"max_requests": 1}, queue={"max_overtake_s": 3600}, policy="round_robin"
    )
    rig.dispatcher._work.lately_s = 1000.0  # a head stays patient far beyond this test's deadline
    full, busy = rig.replicas
    busy.otherwise = [wire.STALL]
    holder = await rig.client()
    for replica in rig.replicas:
        replica.say(wire.STALL)
    holder.post("/generate", GENERATE)
    await until(lambda: sum(len(replica.requests) for replica in rig.replicas) == 1)
    if full.requests:
        full, busy = busy, full
    path, shed = sheds(wire)[how]
    full.forget_scripts()
    full.otherwise = [wire.streamed(wire.token(1, last="x"))]
    if path == "/generate":
        full.otherwise = [wire.reply(wire.generated("x"))]
    full.say(shed)
    reply = await rig.post(path, GENERATE)
    assert reply.status == 200
    assert (reply.get("x-fleet-replica"), reply.get("x-fleet-attempts")) == (full.name, "2")
    assert len(busy.requests) == 1
    assert rig[full.name].failed == 0


async def test_while_one_replica_always_sheds_every_call_is_served_by_the_other(app, wire):
    rig = await app(2, entries={"max_requests": 4})
    rig.replicas[0].otherwise = [wire.reply(b"", "503 Service Unavailable")]
    replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(40)))
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    assert rig["r0"].health.state.value == "healthy"
    assert rig.metric("attempts_total", replica="r0", outcome="shed") == len(
        rig.replicas[0].requests
    )
    assert len(rig.replicas[0].requests) < 40


@pytest.mark.virtual_time
async def test_a_shed_call_that_fits_nowhere_lets_fresh_ones_pass(world, settle):
    one = world()
    one.add("a", "b", requests=4, tokens=100)
    first = await one.acquire(input_tokens=40, new_tokens=10)
    second = await one.acquire(input_tokens=40, new_tokens=10)
    assert {first.replica.id, second.replica.id} == {"a", "b"}
    one.end(first, Outcome.SHED)
    shed = one.waiting(
        attempts=Attempts(count=1, was_shed=True), is_retry=True, input_tokens=80, new_tokens=10
    )
    fresh = one.waiting(input_tokens=10, new_tokens=10)
    await settle()
    assert not shed.done(), "one replica is paused, in the other it does not fit"
    assert fresh.result().replica is second.replica
    async with asyncio.timeout(1.0):
        assert (await shed).replica is first.replica


FAULT = {
    "a fault that the call may have caused": (
        lambda wire: [wire.reply(wire.error("x", "generation"), "500 Internal Server Error")],
        "first second third first",
    ),
    "a death": (
        lambda wire: [wire.reply(wire.generated("x"))[:-3], wire.CUT],
        "first first second third",
    ),
    "a full replica": (
        lambda wire: [wire.reply(b"", "429 Too Many Requests")],
        "first first second third",
    ),
}


@pytest.mark.parametrize("what", FAULT)
async def test_where_a_failed_call_stands_in_the_queue(app, wire, until, what):
    """The place it leaves is taken by the next one at once, unless the replica is paused, or has
    to show first that it lives."""
    rig = await app(entries={"max_requests": 1}, health={"interval_s": 1000})
    steps, order = FAULT[what]
    gate = asyncio.Event()
    rig.replicas[0].say(gate, *steps(wire))
    clients = []
    for number, name in enumerate(("first", "second", "third")):
        clients.append(await rig.client())
        clients[-1].post("/generate", {"inputs": name})
        await rig.replicas[0].request()
        await until(lambda number=number: len(rig.dispatcher.queue) == number)
    gate.set()
    assert [(await client.reply()).status for client in clients] == [200, 200, 200]
    asked = [json.loads(request.body)["inputs"] for request in rig.replicas[0].requests]
    assert " ".join(asked) == order


@pytest.mark.parametrize("how", ["429", "503", "in-band"])
async def test_a_call_that_is_only_ever_shed_ends_at_its_queue_deadline(app, wire, how):
    """Not at the call's own deadline of half an hour: it waits for room like any other."""
    rig = await app(2, queue={"timeout_s": 0.3})
    path, shed = sheds(wire)[how]
    for replica in rig.replicas:
        replica.otherwise = [shed]
    reply = await rig.post(path, GENERATE)
    assert reply.status == 503
    assert reply.json()["error_type"] == "overloaded"
    assert int(reply.get("retry-after")) >= 1
    assert rig.metric("sheds_total", reason="queue_timeout") == 1
    line = await rig.line()
    assert line["status"] == 503
    assert line["total_ms"] >= 300
    assert line["attempts"] >= 2
