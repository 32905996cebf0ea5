"""Which pool a call goes to: the body's model, the header, and names not known yet."""

import asyncio

import pytest

CHAT = {"messages": [{"role": "user", "content": "x"}]}
HEADER = "x-fleet-model: beta"


@pytest.mark.parametrize(
    ("model", "replica"),
    [("tgi", "r1"), ("", "r1"), (None, "r1"), ("alpha", "r0"), ("beta", "r1")],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/tokenize"])
async def test_the_header_stands_where_the_body_names_no_model(app, path, model, replica):
    rig = await app(2, entries={"models": ("alpha", "beta")})
    body = {**CHAT, "inputs": "x"} | ({} if model is None else {"model": model})
    reply = await rig.post(path, body, HEADER)
    assert (reply.status, reply.get("x-fleet-replica")) == (200, replica)


async def test_a_header_that_names_nothing_served_is_404(app):
    rig = await app(2, entries={"models": ("alpha", "beta")})
    reply = await rig.post("/v1/chat/completions", {**CHAT, "model": "tgi"}, "x-fleet-model: no")
    assert reply.status == 404
    assert "'alpha', 'beta'" in reply.json()["error"]["message"]


async def test_a_call_by_the_engine_s_own_name_waits_until_the_engine_has_told_it(app, wire, until):
    """Right after a start, when nobody named the pool: not a 404 for a name that is right."""
    replica, gate = wire.ScriptedReplica("r0"), asyncio.Event()
    replica.info = [gate, *replica.info]
    await replica.start()
    rig = await app([replica], is_up=False)
    client = await rig.client()
    client.post("/v1/chat/completions", {**CHAT, "model": "scripted/model"})
    await until(lambda: len(rig.dispatcher.queue) == 1)
    gate.set()
    assert (await client.reply()).status == 200
    reply = await rig.post("/v1/chat/completions", {**CHAT, "model": "another/model"})
    assert reply.status == 404, "now the names are known"
    assert "scripted/model" in reply.json()["error"]["message"]


async def test_a_named_pool_knows_its_names_from_the_start(app, wire):
    replica, gate = wire.ScriptedReplica("r0"), asyncio.Event()
    replica.info = [gate, *replica.info]
    await replica.start()
    rig = await app([replica], is_up=False, entries={"models": ("alpha",)})
    assert (await rig.post("/generate", {"inputs": "x", "model": "beta"})).status == 404
    gate.set()
