"""Replicas that are vLLM or llama-server: what comes through, and what is tried again."""

import asyncio
import json

import pytest

# ---- what comes through ----


@pytest.mark.parametrize("engine", ["vllm", "llama"])
async def test_a_unary_call_comes_through_unchanged_both_ways(openai_app, engine, shapes):
    one = await openai_app(1, engine)
    body = json.dumps({**shapes.CHAT, "chat_template_kwargs": {"x": [1, "é"]}}).encode()
    reply = await one.post(shapes.PATH, body)
    assert (reply.status, reply.json()) == (200, shapes.answer())
    assert reply.get("x-fleet-replica") == "r0"
    asked = one.replicas[0].requests[0]
    assert (asked.path, asked.body) == (shapes.PATH, body)
    line = await one.line()
    assert (line["prompt_tokens"], line["generated_tokens"]) == (6, 4)


@pytest.mark.parametrize("engine", ["vllm", "llama"])
async def test_a_stream_comes_through_unchanged_and_is_counted(openai_app, wire, engine, shapes):
    one = await openai_app(1, engine)
    events = shapes.whole_stream()
    one.replicas[0].otherwise = [wire.streamed(*events)]
    reply = await one.post(shapes.PATH, shapes.STREAM)
    assert (reply.status, reply.body, reply.is_whole) == (200, b"".join(events), True)
    line = await one.line()
    assert (line["prompt_tokens"], line["generated_tokens"], line["error"]) == (6, 4, None)


@pytest.mark.parametrize("shape", ["flat", "nested"])
async def test_a_refusal_is_passed_on_as_sent_and_harms_nobody(openai_app, shape, shapes):
    one = await openai_app(2, router={"health": {"eject_after": 1}})
    error = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
    body = {"object": "error", **error} if shape == "flat" else {"error": error}
    for replica in one.replicas:
        replica.otherwise = [shapes.as_json(body, "400 Bad Request")]
    reply = await one.post(shapes.PATH, shapes.CHAT)
    assert (reply.status, reply.json(), reply.get("x-fleet-attempts")) == (400, body, "1")
    assert (await one.line())["error"] == "too long"
    assert [replica.health.state.value for replica in one.all()] == ["healthy"] * 2


# ---- the engine is full, or not there yet ----


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_full_engine_is_left_for_another(openai_app, wire, shapes, stream):
    one = await openai_app(2, router={"policy": "round_robin", "health": {"eject_after": 1}})
    good = b"".join(shapes.whole_stream())
    one.replicas[0].otherwise = [shapes.as_json(shapes.QUEUE_FULL, shapes.UNAVAILABLE)]
    one.replicas[1].otherwise = [wire.streamed(good) if stream else shapes.as_json(shapes.answer())]
    body = {**shapes.CHAT, "stream": stream}
    replies = [await one.post(shapes.PATH, body) for _ in range(2)]
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    assert "2" in {reply.get("x-fleet-attempts") for reply in replies}
    assert one["r0"].health.state.value == "healthy"
    assert one["r0"].failed == 0


async def test_the_only_engine_is_asked_again_when_it_was_full(openai_app, shapes):
    one = await openai_app()
    one.replicas[0].say(shapes.as_json(shapes.QUEUE_FULL, shapes.UNAVAILABLE))
    reply = await one.post(shapes.PATH, shapes.CHAT)
    assert (reply.status, reply.get("x-fleet-attempts")) == (200, "2")


async def test_one_that_loads_its_model_again_is_left_until_it_is_there(openai_app, until, shapes):
    one = await openai_app(2, "llama", router={"policy": "round_robin"})
    first = one.replicas[0]
    first.otherwise = first.health = [shapes.as_json(shapes.LOADING, shapes.UNAVAILABLE)]
    replies = [await one.post(shapes.PATH, shapes.CHAT) for _ in range(4)]
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    assert len(first.requests) == 1, "once it said so it counts as down"
    assert one["r0"].health.state.value == "unhealthy"
    first.health = [shapes.as_json({"status": "ok"})]
    first.otherwise = [shapes.as_json(shapes.answer())]
    await until(lambda: one["r0"].is_usable)


async def test_a_call_waits_for_the_only_one_while_it_loads(openai_app, until, shapes):
    one = await openai_app(1, "llama")
    replica = one.replicas[0]
    replica.say(shapes.as_json(shapes.LOADING, shapes.UNAVAILABLE))
    replica.health = [shapes.as_json(shapes.LOADING, shapes.UNAVAILABLE)]
    client = await one.client()
    client.post(shapes.PATH, shapes.CHAT)
    await until(lambda: one["r0"].health.state.value == "unhealthy")
    replica.health = [shapes.as_json({"status": "ok"})]
    reply = await client.reply()
    assert (reply.status, reply.json()) == (200, shapes.answer())


async def test_a_server_is_not_used_before_its_model_is_there(app, openai_replicas, until, shapes):
    made = await openai_replicas(1, "llama")
    made[0].health = [shapes.as_json(shapes.LOADING, shapes.UNAVAILABLE)]
    one = await app(made, entries={"dialect": "openai"}, is_up=False)
    await until(lambda: one["r0"].health.state.value == "unhealthy" or one["r0"].health.fails)
    assert not one["r0"].is_usable
    made[0].health = [shapes.as_json({"status": "ok"})]
    await one.is_up()


async def test_a_server_that_wants_a_key_is_not_used_and_says_why(
    app, openai_replicas, until, shapes
):
    made = await openai_replicas(1)
    made[0].pages["/v1/models"] = [shapes.as_json({"error": "Unauthorized"}, "401 Unauthorized")]
    options = {"health": {"fall": 1}, "is_up": False}
    one = await app(made, entries={"dialect": "openai"}, **options)
    await until(lambda: one.lines("health"))
    [line] = one.lines("health")
    assert line["after"] == "unhealthy"
    assert "/v1/models answered 401" in line["reason"]
    assert "engine_api_key" in line["reason"]


# ---- what breaks ----


def bad_streams(wire, shapes):
    return {
        "error first": [wire.streamed(shapes.event(shapes.FAULT), shapes.DONE)],
        "flat error": [wire.streamed(shapes.event({"object": "error", "code": 400}))],
        "llama-server's own field": [wire.streamed(b'error: {"code":500,"message":"x"}\n\n')],
        "nothing": [wire.streamed()],
        "closed before an event": [wire.stream_head(), wire.CUT],
        "half an event": [wire.stream_head(), wire.chunk(shapes.chunk()[:20]), wire.RST],
        "reset": [wire.RST],
        "500": [shapes.as_json(shapes.FAULT, "500 Internal Server Error")],
        "queue full": [wire.streamed(shapes.event(shapes.QUEUE_FULL), shapes.DONE)],
        "loading": [wire.streamed(shapes.event(shapes.LOADING))],
    }


async def test_streams_that_fail_before_their_first_event_are_retried_unseen(
    openai_app, wire, shapes, until, caplog
):
    patient = {"health": {"eject_after": 1000}, "retries": {"budget_share": 1.0}}
    one = await openai_app(2, router=patient)
    good = b"".join(shapes.whole_stream())
    for name, script in bad_streams(wire, shapes).items():
        await until(lambda: one["r0"].is_usable and not one["r0"].room.is_paused)
        one.replicas[0].requests.clear()
        one.replicas[0].otherwise = script
        one.replicas[1].otherwise = [wire.streamed(good)]
        replies = await asyncio.gather(*(one.post(shapes.PATH, shapes.STREAM) for _ in range(2)))
        for reply in replies:
            assert (reply.status, reply.body, reply.is_whole) == (200, good, True), name
        assert one.replicas[0].requests, name
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("end", ["ended", "closed", "reset"])
async def test_a_stream_without_done_is_broken_however_it_ends(openai_app, wire, end, shapes):
    """The answer may be half a one: a finish reason is not the last word."""
    one = await openai_app(2, router={"resume": {"enabled": False}})
    events = [shapes.chunk(), shapes.chunk("a"), shapes.chunk("b", finish="stop")]
    script = [wire.stream_head(), *map(wire.chunk, events)]
    script += {"ended": [wire.LAST_CHUNK], "closed": [wire.CUT], "reset": [wire.RST]}[end]
    for replica in one.replicas:
        replica.otherwise = script
    reply = await one.post(shapes.PATH, shapes.STREAM)
    assert reply.status == 200
    assert reply.is_whole
    assert reply.get("x-fleet-attempts") == "1"
    *told, error, done = reply.body.split(b"\n\n")[:-1]
    assert b"".join(events).startswith(b"\n\n".join(told))
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "incomplete_generation"
    assert done == b"data: [DONE]"
    assert sum(replica.failed for replica in one.all()) == 1


async def test_an_error_inside_a_stream_is_relayed_once_and_counted(openai_app, wire, shapes):
    one = await openai_app(router={"resume": {"enabled": False}})
    events = [shapes.chunk(), shapes.chunk("a"), shapes.event(shapes.FAULT), shapes.DONE]
    one.replicas[0].otherwise = [wire.streamed(*events)]
    reply = await one.post(shapes.PATH, shapes.STREAM)
    assert (reply.status, reply.body) == (200, b"".join(events))
    assert (await one.line())["error"] == "CUDA error"
    assert (one["r0"].failed, one["r0"].served) == (1, 0)


async def test_an_error_in_llama_servers_own_field_is_relayed_and_counted(openai_app, wire, shapes):
    one = await openai_app(1, "llama", router={"resume": {"enabled": False}})
    error = b'error: {"code":500,"message":"CUDA error","type":"server_error"}\n\n'
    gate = asyncio.Event()
    first, last = wire.chunk(shapes.chunk("a")), wire.chunk(error) + wire.LAST_CHUNK
    one.replicas[0].otherwise = [wire.stream_head(), first, gate, last]
    client = await one.client()
    client.post(shapes.PATH, shapes.STREAM)
    await client.head()
    read = await client.chunk()
    gate.set()
    while piece := await client.chunk():
        read += piece
    assert read == shapes.chunk("a") + error
    assert (await one.line())["error"] == "CUDA error"


async def test_unary_faults_are_retried_unseen(openai_app, wire, shapes):
    one = await openai_app(2, router={"policy": "round_robin"})
    one.replicas[1].otherwise = [shapes.as_json(shapes.answer())]
    bad = {
        "500": shapes.as_json(shapes.FAULT, "500 Internal Server Error"),
        "half a document": shapes.as_json(shapes.answer(), length=1000),
        "no JSON": wire.reply(b"<html>"),
    }
    for name, reply in bad.items():
        one.replicas[0].otherwise = [reply, wire.CUT]
        replies = [await one.post(shapes.PATH, shapes.CHAT) for _ in range(2)]
        assert [reply.json() for reply in replies] == [shapes.answer()] * 2, name
        assert "2" in {reply.get("x-fleet-attempts") for reply in replies}, name
