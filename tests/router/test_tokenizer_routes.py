"""Tokenizer calls: no lease, any usable replica, and none of them may hold a call for ever."""

import asyncio
import json

import pytest

TEXT = {"inputs": "hello", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
async def test_a_reply_many_times_the_request_passes(app, wire, path):
    rig = await app()
    tokens = [{"id": 1, "text": "x" * 20, "start": 0, "stop": 1}] * 180_000
    body = json.dumps(tokens).encode()
    assert len(body) > 8 * 1024**2
    rig.replicas[0].otherwise = [wire.reply(body)]
    reply = await rig.post(path, TEXT)
    assert (reply.status, len(reply.body)) == (200, len(body))
    assert reply.body == body


async def test_a_stopped_replica_does_not_hold_a_tokenizer_call(app, wire, monkeypatch):
    monkeypatch.setattr("router.tokenizer.TOKENIZE_TIMEOUT_S", 0.1)
    rig = await app(2, health={"interval_s": 1000, "eject_after": 1})
    rig.replicas[0].otherwise = [wire.STALL]
    replies = [await rig.post("/tokenize", TEXT) for _ in range(2)]
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    assert sorted(reply.get("x-fleet-attempts") for reply in replies) == ["1", "2"]
    assert rig["r0"].health.state.value == "healthy"  # its generations are judged by themselves


async def test_when_every_replica_is_stopped_that_is_a_504(app, wire, monkeypatch):
    monkeypatch.setattr("router.tokenizer.TOKENIZE_TIMEOUT_S", 0.1)
    rig = await app(2, health={"interval_s": 1000})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    reply = await rig.post("/tokenize", TEXT)
    assert reply.status == 504
    assert reply.get("x-fleet-attempts") == "2"
    assert "did not tokenize in time" in reply.json()["error"]


async def test_the_drain_bound_ends_a_tokenizer_call(app, wire, until):
    """At once, and without asking the next replica."""
    rig = await app(2, health={"interval_s": 1000}, timeouts={"drain_s": 0.1})
    for replica in rig.replicas:
        replica.otherwise = [wire.STALL]
    client = await rig.client()
    client.post("/tokenize", TEXT)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    async with asyncio.timeout(5):
        await rig.app.drain()
    reply = await client.reply()
    assert (reply.status, reply.get("retry-after")) == (503, "5")
    assert "shuts down" in reply.json()["error"]
    assert sum(len(replica.requests) for replica in rig.replicas) == 1


async def test_what_the_engine_says_of_a_wrong_call_is_passed_on(app, wire):
    rig = await app(2)
    body = wire.error("Input validation error: x", "validation")
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(body, "422 Unprocessable Entity")]
    reply = await rig.post("/tokenize", TEXT)
    assert (reply.status, reply.body) == (422, body)
    assert sum(len(replica.requests) for replica in rig.replicas) == 1
