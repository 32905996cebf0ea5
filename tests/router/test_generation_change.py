"""A replica that was started again fails its calls over at once; one that is removed finishes."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.fixture
async def replaced(app, wire):
    """A rig of one replica whose socket has gone silent, and `await change()`: it starts anew."""
    rig = await app(health={"interval_s": 1000})
    rig.replicas[0].otherwise = [wire.STALL]
    listed = rig.listed(epoch=2)
    successor = wire.ScriptedReplica("r0")
    await successor.start()

    def change():
        entry = listed.replicas[0].model_copy(update={"generation": 2, "url": successor.url})
        rig.app.fleet.accept(listed.model_copy(update={"replicas": [entry]}))
        rig.replicas.append(successor)

    yield rig, successor, change
    await successor.close()


async def test_a_call_in_flight_is_served_by_the_next_generation(replaced, wire):
    rig, successor, change = replaced
    client = await rig.client()
    client.post("/generate", GENERATE)
    request = await rig.replicas[0].request()
    change()
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, wire.generated("ok"))
    assert (reply.get("x-fleet-replica"), reply.get("x-fleet-attempts")) == ("r0", "2")
    assert len(successor.requests) == 1
    assert rig.metric("retries_total", reason="ReplicaLost") == 1
    async with asyncio.timeout(5):
        await request.gone.wait()  # the old engine learns that nobody waits


async def test_a_stream_without_an_event_yet_moves_on_unseen(replaced, wire):
    rig, successor, change = replaced
    rig.replicas[0].say(wire.stream_head(), wire.STALL)
    whole = wire.token(1) + wire.token(2, last="x")
    successor.otherwise = [wire.streamed(whole)]
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await rig.replicas[0].request()
    change()
    reply = await client.reply()
    assert (reply.status, reply.body, reply.is_whole) == (200, whole, True)


async def test_a_stream_that_has_begun_goes_on_with_the_next_generation(replaced, wire):
    rig, successor, change = replaced
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1, " one")), wire.STALL)
    successor.otherwise = [
        wire.streamed(wire.token(1, " two"), wire.token(2, " three", last=" two three"))
    ]
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1, " one")
    change()
    read = b""
    while piece := await client.chunk():
        read += piece
    events = [json.loads(event.removeprefix(b"data: ")) for event in read.split(b"\n\n")[:-1]]
    assert [event["index"] for event in events] == [2, 3]
    assert events[-1]["generated_text"] == " one two three"
    assert json.loads(successor.requests[0].body)["inputs"] == "hello one"


async def test_a_tokenizer_call_ends_with_its_generation_too(replaced, wire):
    rig, _, change = replaced
    client = await rig.client()
    client.post("/tokenize", GENERATE)
    await rig.replicas[0].request()
    change()
    reply = await client.reply()
    assert reply.status == 502
    assert (await rig.line())["status"] == 502


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_removed_replica_finishes_what_it_has(app, wire, until, path):
    rig = await app(2, health={"interval_s": 1000})
    gate = asyncio.Event()
    is_stream = path == "/generate_stream"
    whole = wire.token(1, last="x") if is_stream else wire.generated("x")
    answer = wire.streamed(whole) if is_stream else wire.reply(whole)
    for replica in rig.replicas:
        replica.otherwise = [gate, answer]
    client = await rig.client()
    client.post(path, GENERATE)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    [busy] = [replica for replica in rig.replicas if replica.requests]
    listed = rig.listed(epoch=2)
    left = [entry for entry in listed.replicas if entry.id != busy.name]
    rig.app.fleet.accept(listed.model_copy(update={"replicas": left}))
    assert [replica.id for replica in rig.all()] == [left[0].id]
    gate.set()
    reply = await client.reply()
    assert (reply.status, reply.get("x-fleet-replica")) == (200, busy.name)
    assert reply.get("x-fleet-attempts") == "1"
    assert reply.body == whole
