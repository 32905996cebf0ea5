"""An engine whose scheduler hangs while its HTTP side goes on sending comments."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True}
COMMENT = b":\n\n"


def dripping(wire, first, again, every_s=0.04, count=75):
    """A stream: `first`, then `again` over and over; gives its steps and the last one's gate."""
    loop = asyncio.get_running_loop()
    gates = [asyncio.Event() for _ in range(count)]
    for number, gate in enumerate(gates, 1):
        loop.call_later(number * every_s, gate.set)
    steps = [wire.stream_head(), wire.chunk(first)]
    for gate in gates:
        steps += [gate, wire.chunk(again)]
    return [*steps, wire.STALL], gates[-1]


async def test_comments_alone_do_not_keep_a_tgi_stream_alive(app, wire):
    rig = await app(
        timeouts={"between_events_s": 0.25}, health={"interval_s": 1000}, resume={"enabled": False}
    )
    steps, last = dripping(wire, wire.token(1), COMMENT)
    rig.replicas[0].say(*steps)
    reply = await rig.post("/generate_stream", GENERATE)
    assert not last.is_set(), "it was ended while comments still came"
    assert reply.is_whole
    events = [part for part in reply.body.split(b"\n\n") if part.startswith(b"data:")]
    assert events[0] + b"\n\n" == wire.token(1)
    error = json.loads(events[-1].removeprefix(b"data: "))
    assert error["error_type"] == "generation"
    assert "silent" in error["error"]
    line = await rig.line()
    assert (line["status"], line["error"]) == (200, error["error"])
    assert rig["r0"].failed == 1


async def test_comments_alone_do_not_keep_a_chat_stream_alive(app, wire):
    rig = await app(
        timeouts={"between_events_s": 0.25}, health={"interval_s": 1000}, resume={"enabled": False}
    )
    steps, last = dripping(wire, wire.delta("a"), COMMENT)
    rig.replicas[0].say(*steps)
    reply = await rig.post("/v1/chat/completions", CHAT)
    assert not last.is_set()
    assert reply.is_whole
    assert b'"error"' in reply.body
    assert b"silent" in reply.body


async def test_events_keep_a_stream_alive_however_long_it_takes(app, wire):
    rig = await app(timeouts={"between_events_s": 0.25}, health={"interval_s": 1000})
    steps, last = dripping(wire, wire.token(1), wire.token(2), count=15)
    steps[-1] = wire.chunk(wire.token(3, last="x")) + wire.LAST_CHUNK
    rig.replicas[0].say(*steps)
    reply = await rig.post("/generate_stream", GENERATE)
    assert last.is_set()
    assert b"error" not in reply.body
    assert (await rig.line())["total_ms"] > 500


@pytest.mark.parametrize(("again", "state"), [(COMMENT, "unhealthy"), (None, "healthy")])
async def test_only_tokens_excuse_a_probe_that_is_not_answered(app, wire, until, again, state):
    """`/health` of a busy engine answers late; one that only sends comments is not busy."""
    rig = await app(health={"interval_s": 0.02, "timeout_s": 0.15, "fall": 2})
    replica = rig.replicas[0]
    steps, last = dripping(wire, wire.token(1), again or wire.token(2))
    replica.say(*steps)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    assert (await client.head()).status == 200
    replica.health = [wire.STALL]
    before = replica.connections
    if state == "unhealthy":
        await until(lambda: rig["r0"].health.state.value == "unhealthy")
    else:
        await until(lambda: replica.connections >= before + 4)  # a late probe closes its own
    assert not last.is_set()
    assert rig["r0"].health.state.value == state
