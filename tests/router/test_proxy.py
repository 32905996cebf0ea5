"""A call through a real router over a real socket: what goes in, what comes out, byte for byte."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


async def test_unary_body_arrives_and_returns_unchanged(app, wire):
    rig = await app()
    body = b'{"inputs":"h\\u00e9llo",  "parameters":{"seed":null},"unknown":[1.0]}'
    answer = b'{"generated_text":"  spaced\\n", "extra": {"a": 1.50}}'
    rig.replicas[0].say(wire.reply(answer))
    reply = await rig.post("/generate", body)
    request = await rig.replicas[0].request()
    assert (reply.status, reply.body) == (200, answer)
    assert reply.get("content-length") == str(len(answer))
    assert (request.method, request.path, request.body) == ("POST", "/generate", body)


@pytest.mark.parametrize("space", [b"", b" "], ids=["before 2.1", "from 2.1"])
async def test_both_eras_of_event_framing_are_relayed_unchanged(app, wire, space):
    rig = await app()
    events = [wire.token(1), wire.token(2), wire.token(3, last=" a a a")]
    events = [b"data:" + space + event.removeprefix(b"data: ") for event in events]
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/generate_stream", GENERATE)
    assert reply.body == b"".join(events)
    assert reply.is_whole
    assert reply.get("content-type") == "text/event-stream"
    assert reply.get("transfer-encoding") == "chunked"
    assert reply.get("content-length") is None


async def test_crlf_events_comments_and_unknown_fields_are_relayed_unchanged(app, wire):
    rig = await app()
    last = wire.token(2, last="x").replace(b"\n", b"\r\n")
    events = [b":\n\n", b"id: 4\nretry: 10\ndata: {}\n\n", b": hi\n\n", last]
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/generate_stream", GENERATE)
    assert reply.body == b"".join(events)


async def test_chunk_boundaries_inside_events_do_not_reach_the_client(app, wire):
    """However the replica cuts its bytes, every chunk to the client holds whole events."""
    rig = await app()
    whole = wire.token(1) + wire.token(2) + wire.token(3, last="x")
    pieces = [wire.chunk(whole[i : i + 7]) for i in range(0, len(whole), 7)]
    rig.replicas[0].say(wire.stream_head(), *pieces, wire.LAST_CHUNK)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    chunks = []
    while piece := await client.chunk():
        chunks.append(piece)
    assert b"".join(chunks) == whole
    assert all(piece.endswith(b"\n\n") for piece in chunks)


async def test_each_event_is_passed_on_at_once(app, wire):
    """No event waits for the next one: the client reads one before the replica sends another."""
    rig = await app()
    gates = [asyncio.Event() for _ in range(3)]
    events = [wire.token(1), wire.token(2), wire.token(3, last="x")]
    steps = [wire.stream_head()]
    for gate, event in zip(gates, events, strict=True):
        steps += [gate, wire.chunk(event)]
    rig.replicas[0].say(*steps, wire.LAST_CHUNK)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    gates[0].set()
    await client.head()
    assert await client.chunk() == events[0]
    for gate, event in zip(gates[1:], events[1:], strict=True):
        gate.set()
        assert await client.chunk() == event
    assert await client.chunk() == b""


async def test_openai_stream_is_relayed_with_its_done(app, wire):
    rig = await app()
    events = [wire.delta("a"), wire.delta("b", "length"), wire.DONE]
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert reply.body == b"".join(events)


async def test_openai_stream_of_an_early_engine_ends_without_done(app, wire):
    rig = await app()
    events = [wire.delta("a"), wire.delta("b", "length")]
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert reply.body == b"".join(events)
    assert reply.is_whole


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", {**GENERATE, "stream": True}),
        ("/invocations", {**GENERATE, "stream": True}),
        ("/generate_stream", GENERATE),
    ],
)
async def test_a_comment_after_the_last_event_does_not_make_an_answer_broken(app, wire, path, body):
    rig = await app()
    gate = asyncio.Event()
    last = wire.token(1, last="x")
    rig.replicas[0].say(
        wire.stream_head(), wire.chunk(last), gate, wire.chunk(b":\n\n"), wire.LAST_CHUNK
    )
    client = await rig.client()
    client.post(path, body)
    await client.head()
    assert await client.chunk() == last
    gate.set()
    assert await client.chunk() == b":\n\n"
    assert await client.chunk() == b""


@pytest.mark.parametrize("done", [True, False])
async def test_invocations_streams_chat_like_the_route_it_stands_for(app, wire, done):
    rig = await app()
    events = [wire.delta("a"), wire.delta("b", "stop")] + [wire.DONE] * done
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/invocations", {**CHAT, "stream": True})
    assert reply.body == b"".join(events)
    line = await rig.line()
    assert (line["status"], line["error"]) == (200, None)


async def test_reply_without_length_ends_with_its_connection(app, wire):
    rig = await app()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    rig.replicas[0].say(head + wire.generated("abc"), wire.CUT)
    reply = await rig.post("/generate", GENERATE)
    assert reply.body == wire.generated("abc")


async def test_a_reply_too_large_to_hold_is_streamed_through(app, wire):
    rig = await app()
    answer = wire.generated("x" * (9 * 1024**2))
    rig.replicas[0].say(wire.reply(answer))
    reply = await rig.post("/generate", GENERATE)
    assert reply.body == answer
    assert reply.is_whole


async def test_a_large_reply_that_breaks_is_cut_and_never_ended_as_if_whole(app, wire):
    """Its head and half its JSON are out: an unfinished chunked body is the honest sign."""
    rig = await app()
    whole = wire.reply(wire.generated("x" * (9 * 1024**2)))
    rig.replicas[0].say(whole[:-100], wire.CUT)
    reply = await rig.post("/generate", GENERATE)
    assert not reply.is_whole
    assert b"error" not in reply.body
    assert (await rig.line())["error"]


async def test_refusals_of_the_engine_are_passed_on_as_sent(app, wire):
    rig = await app()
    body = b'{"error":"Input validation error: x","error_type":"validation"}'
    rig.replicas[0].say(wire.reply(body, "422 Unprocessable Entity", fields="x-odd: 1\r\n"))
    reply = await rig.post("/generate", GENERATE)
    assert (reply.status, reply.body, reply.get("x-odd")) == (422, body, "1")
    assert len(rig.replicas[0].requests) == 1


async def test_two_pools_are_chosen_by_model(app):
    rig = await app(2, entries={"models": ("alpha", "beta")})
    for model, replica in (("beta", rig.replicas[1]), ("alpha", rig.replicas[0])):
        reply = await rig.post("/v1/chat/completions", {**CHAT, "model": model})
        assert reply.status == 200
        assert reply.get("x-fleet-replica") == replica.name
    reply = await rig.post("/generate", GENERATE, "X-Fleet-Model: beta")
    assert reply.get("x-fleet-replica") == "r1"
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 404
    assert "alpha" in reply.json()["error"]
    assert "beta" in reply.json()["error"]


@pytest.mark.parametrize("model", [None, "", "tgi", "default", "scripted/model"])
async def test_with_one_pool_these_names_mean_it(app, model):
    rig = await app()
    body = CHAT if model is None else {**CHAT, "model": model}
    assert (await rig.post("/v1/chat/completions", body)).status == 200


async def test_an_unknown_model_is_404_in_the_shape_of_the_api(app):
    rig = await app()
    chat = await rig.post("/v1/chat/completions", {**CHAT, "model": "nobody/none"})
    assert chat.status == 404
    assert "nobody/none" in chat.json()["error"]["message"]
    plain = await rig.post("/generate", {**GENERATE, "model": "nobody/none"})
    assert plain.status == 404
    assert plain.json()["error_type"] == "validation"
    assert rig.replicas[0].requests == []


async def test_tokenizer_routes_need_no_room(app, wire, until):
    """A replica whose only slot is taken still counts tokens."""
    rig = await app(entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    rig.replicas[0].say(wire.reply(b"[]"))
    reply = await rig.post("/tokenize", {"inputs": "hello"})
    assert (reply.status, reply.body) == (200, b"[]")
    assert reply.get("x-fleet-replica") == "r0"


async def test_tokenizer_call_goes_on_to_a_replica_that_answers(app, wire):
    rig = await app(2)
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(b"[1]")]
    await rig.replicas[0].stop_listening()
    for peer in list(rig.replicas[0].open):
        peer.act(wire.RST)
    replies = [await rig.post("/tokenize", {"inputs": "a"}) for _ in range(4)]
    assert [reply.body for reply in replies] == [b"[1]"] * 4


async def test_one_log_line_per_call_tells_what_happened(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.streamed(wire.token(1), wire.token(2, last="x")))
    reply = await rig.post("/generate_stream", GENERATE, "X-Request-Id: mine-1")
    assert reply.status == 200
    line = await rig.line()
    told = {key: line[key] for key in ("id", "route", "status", "replica", "attempts", "stream")}
    assert told == {
        "id": "mine-1",
        "route": "/generate_stream",
        "status": 200,
        "replica": "r0",
        "attempts": 1,
        "stream": True,
    }
    assert "hello" not in json.dumps(line)


async def test_a_prompt_counted_in_the_stream_s_details_is_logged(app, wire):
    rig = await app()
    event = json.loads(wire.token(2, last="x").removeprefix(b"data: "))
    event["details"] = {"generated_tokens": 2, "input_length": 11, "finish_reason": "length"}
    last = b"data: " + json.dumps(event).encode() + b"\n\n"
    rig.replicas[0].say(wire.streamed(wire.token(1), last))
    await rig.post("/generate_stream", GENERATE)
    line = await rig.line()
    assert (line["prompt_tokens"], line["generated_tokens"]) == (11, 2)
