"""Every call has one line in the log and one count, with its real time, however it ended."""

import asyncio
import logging

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
MEGABYTE = 1024**2


def counts(rig):
    """Calls counted, by route and status."""
    [family] = [f for f in rig.app.metrics.registry.collect() if f.name == "fleet_calls"]
    return {
        (sample.labels["route"], int(sample.labels["status"])): sample.value
        for sample in family.samples
        if sample.name == "fleet_calls_total"
    }


async def only_line(rig, until, route, status):
    """The one call's line, once nothing runs any more; the metrics must say the same."""
    await rig.line()
    await until(lambda: not rig.app.handlers.calls_running)
    [line] = rig.lines()
    assert (line["route"], line["status"]) == (route, status)
    assert counts(rig) == {(route, status): 1}
    assert rig.metric("call_seconds_count", route=route) == 1
    seconds = rig.metric("call_seconds_sum", route=route)
    assert seconds == pytest.approx(line["total_ms"] / 1000, abs=0.001)
    return line


# ---- served ----


@pytest.mark.parametrize(
    "path", ["/", "/generate", "/v1/chat/completions", "/v1/completions", "/invocations"]
)
async def test_a_served_call(app, until, path):
    rig = await app()
    body = {**GENERATE, "messages": CHAT["messages"], "prompt": "x"}
    assert (await rig.post(path, body)).status == 200
    line = await only_line(rig, until, path, 200)
    assert (line["error"], line["replica"], line["attempts"]) == (None, "r0", 1)


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize"])
async def test_a_tokenizer_call(app, until, path):
    rig = await app()
    assert (await rig.post(path, {**GENERATE, **CHAT})).status == 200
    line = await only_line(rig, until, path, 200)
    assert (line["replica"], line["attempts"]) == ("r0", 1)


async def test_a_call_served_at_the_second_attempt(app, wire, until):
    rig = await app()
    error = wire.error("x", "generation")
    rig.replicas[0].say(wire.reply(error, "500 Internal Server Error"))
    assert (await rig.post("/generate", GENERATE)).status == 200
    line = await only_line(rig, until, "/generate", 200)
    assert (line["error"], line["attempts"]) == (None, 2)


# ---- refused before any replica was asked ----

REFUSED = {
    "no valid ask": ("/generate", b'{"inputs":""}', [], 422),
    "no JSON": ("/tokenize", b"{", [], 422),
    "no such model": ("/v1/chat/completions", {**CHAT, "model": "other"}, [], 404),
    "no such model to tokenize": ("/tokenize", {**GENERATE, "model": "other"}, [], 404),
    "too large": ("/generate", b" " * 3000, [], 413),
    "not JSON by its type": ("/generate_stream", b"a=b", ["Content-Type: text/plain"], 415),
    "does not unpack": ("/generate", b"no gzip at all", ["Content-Encoding: gzip"], 422),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_call_refused_for_what_it_is(app, until, what):
    path, body, fields, status = REFUSED[what]
    rig = await app(max_body_bytes=2048, entries={"models": ("m",)})
    assert (await rig.post(path, body, *fields)).status == status
    line = await only_line(rig, until, path, status)
    assert line["error"]
    assert (line["replica"], line["attempts"]) == (None, 0)
    assert rig.replicas[0].requests == []


async def test_a_body_that_does_not_come(app, until):
    rig = await app(timeouts={"body_s": 0.15})
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10\r\n\r\n{"
    )
    assert (await client.reply()).status == 408
    line = await only_line(rig, until, "/generate", 408)
    assert line["total_ms"] >= 150


# ---- refused for load ----


async def test_a_call_that_waited_in_vain(app, wire, until):
    rig = await app(1, is_up=False, is_deaf=True, queue={"timeout_s": 0.2})
    assert (await rig.post("/generate", GENERATE)).status == 503
    line = await only_line(rig, until, "/generate", 503)
    assert line["total_ms"] >= 200
    assert (line["error_type"], line["attempts"]) == ("overloaded", 0)
    assert rig.metric("sheds_total", reason="queue_timeout") == 1


async def test_a_call_that_may_not_wait(app, wire, until):
    rig = await app(1, is_up=False, is_deaf=True, queue={"timeout_s": 0})
    assert (await rig.post("/generate", GENERATE)).status == 429
    await only_line(rig, until, "/generate", 429)
    assert rig.metric("sheds_total", reason="no_room") == 1


@pytest.mark.parametrize("path", ["/generate", "/tokenize"])
async def test_a_call_to_a_router_without_replicas(app, until, path):
    rig = await app([], is_up=False)
    assert (await rig.post(path, GENERATE)).status == 503
    await only_line(rig, until, path, 503)


async def test_each_waiting_call_that_is_refused_is_counted(app, wire, until):
    rig = await app(1, is_up=False, is_deaf=True)
    clients = [await rig.client() for _ in range(5)]
    for client in clients:
        client.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 5)
    gone = rig.listed(epoch=2, phase="failed")
    rig.app.fleet.accept(gone)
    assert [(await client.reply()).status for client in clients] == [503] * 5
    await until(lambda: not rig.app.handlers.calls_running)
    assert rig.metric("sheds_total", reason="no_replica") == 5
    assert counts(rig) == {("/generate", 503): 5}
    assert len(rig.lines()) == 5
    assert len({line["id"] for line in rig.lines()}) == 5


# ---- the client left ----


async def test_a_client_that_leaves_inside_its_body(app, until):
    rig = await app()
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10\r\n\r\n{"
    )
    await until(lambda: rig.app.handlers.calls_running)
    client.leave()
    await only_line(rig, until, "/generate", 499)
    assert rig.metric("cancellations_total", phase="body") == 1


async def test_a_client_that_leaves_while_its_body_is_parsed(app, until, monkeypatch):
    rig = await app()
    parsing = asyncio.Event()

    async def endless(path, body):
        parsing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(rig.app.handlers._worker, "parse", endless)
    client = await rig.client()
    client.post("/generate", {**GENERATE, "inputs": "a" * MEGABYTE})
    async with asyncio.timeout(5):
        await parsing.wait()
    client.leave()
    await only_line(rig, until, "/generate", 499)
    assert rig.metric("cancellations_total", phase="body") == 1


async def test_a_client_that_leaves_the_queue(app, until):
    rig = await app(1, is_up=False, is_deaf=True)
    client = await rig.client()
    client.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    client.leave()
    await only_line(rig, until, "/generate", 499)
    assert rig.metric("cancellations_total", phase="queue") == 1
    assert rig.metric("sheds_total", reason="queue_timeout") == 0


@pytest.mark.parametrize(
    ("path", "phase"), [("/generate", "prefill"), ("/generate_stream", "prefill")]
)
async def test_a_client_that_leaves_before_its_answer(app, wire, until, path, phase):
    rig = await app()
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post(path, GENERATE)
    await rig.replicas[0].request()
    client.leave()
    line = await only_line(rig, until, path, 499)
    assert line["replica"] == "r0"
    assert rig.metric("cancellations_total", phase=phase) == 1


async def test_a_client_that_leaves_its_stream(app, wire, until):
    rig = await app()
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    await client.chunk()
    client.leave()
    await only_line(rig, until, "/generate_stream", 499)
    assert rig.metric("cancellations_total", phase="relay") == 1


@pytest.mark.parametrize("how", ["leaves", "reads nothing"])
async def test_a_client_that_does_not_take_a_large_reply(app, wire, until, how):
    rig = await app(timeouts={"between_events_s": 0.3 if how == "reads nothing" else 60})
    size = 64 * MEGABYTE
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size
    rig.replicas[0].say(head, wire.Flood(b"x" * 65536, size // 65536))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate", GENERATE)
    await client.head()
    if how == "leaves":
        client.reset()
    line = await only_line(rig, until, "/generate", 499)
    assert line["error"]
    assert rig.metric("cancellations_total", phase="relay") == 1
    assert rig["r0"].failed == 0


async def test_a_client_that_leaves_a_tokenizer_call(app, wire, until):
    rig = await app()
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post("/tokenize", GENERATE)
    await rig.replicas[0].request()
    client.leave()
    await only_line(rig, until, "/tokenize", 499)


# ---- failed ----


async def test_an_error_in_a_stream_that_has_begun(app, wire, until):
    rig = await app(resume={"enabled": False})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.CUT)
    reply = await rig.post("/generate_stream", GENERATE)
    assert b"incomplete_generation" in reply.body
    line = await only_line(rig, until, "/generate_stream", 200)
    assert line["error_type"] == "incomplete_generation"
    assert line["first_event_ms"] is not None


async def test_a_tokenizer_that_fails_everywhere(app, wire, until):
    rig = await app(2)
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(b"x", "500 Internal Server Error")]
    assert (await rig.post("/tokenize", GENERATE)).status == 502
    line = await only_line(rig, until, "/tokenize", 502)
    assert line["attempts"] == 2


# ---- bugs ----


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/tokenize"])
async def test_a_bug_before_the_reply(app, until, monkeypatch, caplog, path):
    rig = await app()

    def broken(model):
        raise KeyError("x")

    monkeypatch.setattr(rig.app.fleet, "find", broken)
    with caplog.at_level(logging.ERROR):
        reply = await rig.post(path, GENERATE)
    assert reply.status == 500
    line = await only_line(rig, until, path, 500)
    assert line["id"] in line["error"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_bug_after_the_whole_reply_adds_no_byte_to_it(
    app, wire, until, monkeypatch, caplog, path
):
    """What came after it would be read as the next reply; so the connection ends there."""
    rig = await app()
    answer = wire.reply(wire.generated("a"))
    if path == "/generate_stream":
        answer = wire.streamed(wire.token(1, last="a"))
    rig.replicas[0].otherwise = [answer]

    def broken():
        raise KeyError("x")

    monkeypatch.setattr(rig.dispatcher.budget, "earn", broken)
    client = await rig.client()
    with caplog.at_level(logging.ERROR):
        client.post(path, GENERATE)
        reply = await client.reply()
        assert (reply.status, reply.is_whole) == (200, True)
        assert await client.is_closed()
    line = await only_line(rig, until, path, 200)
    assert line["id"] in line["error"]
    assert [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_bug_in_the_books_ends_the_call_once(app, wire, until, monkeypatch, path):
    """It has its reply; nothing of it is left running, and the next one is served."""
    rig = await app(1)
    is_stream = path == "/generate_stream"
    answer = (
        wire.streamed(wire.token(1, last="a")) if is_stream else wire.reply(wire.generated("a"))
    )
    rig.replicas[0].otherwise = [answer]

    def broken(**fields):
        raise KeyError("x")

    with monkeypatch.context() as patched:
        patched.setattr(rig.app.log, "call", broken)
        client = await rig.client()
        client.post(path, GENERATE)
        assert (await client.reply()).status == 200
        assert await client.is_closed()
        await until(lambda: not rig.app.handlers.calls_running)
    assert (await rig.post(path, GENERATE)).status == 200
    assert rig.app.handlers.calls_running == 0


# ---- what an engine says of a call it refuses ----

WORDS = {
    "Input validation error: `top_p` must be > 0.0": None,
    "This model's maximum context length is 4096 tokens, and you've asked for 5000": None,
    "1 validation error: [{'type': 'missing', 'loc': ('body', 'messages'), 'input': "
    "{'prompt': 'hunter2'}}]": "1 validation error",
    'Failed to parse messages: x; messages = [{"role": "user", "content": "hunter2"}]': (
        "Failed to parse messages: x; messages ="
    ),
    "Input should be a list input_value='hunter2', input_type=str": "Input should be a list",
    'inputs: invalid type: string "hunter2 and so on", expected u32 at line 1': (
        "inputs: invalid type: string (not shown), expected u32 at line 1"
    ),
    "the value 'hunter2, isn't it' is wrong": "the value (not shown) is wrong",
    'an open "hunter2 quote': "an open (not shown)",
    "x" * 1000: "x" * 300,
}


@pytest.mark.parametrize("said", WORDS)
async def test_a_refusal_is_logged_without_what_it_quotes_and_told_whole(app, wire, said):
    rig = await app()
    refusal = wire.error(said, "validation")
    rig.replicas[0].say(wire.reply(refusal, "422 Unprocessable Entity"))
    reply = await rig.post("/generate", GENERATE)
    assert reply.body == refusal
    line = await rig.line()
    assert line["error"] == (WORDS[said] or said)
    assert "hunter2" not in rig.out.getvalue().decode()
