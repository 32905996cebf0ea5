"""What engines answer at the edges of the protocol: passed on, retried, or counted as failed."""

import asyncio

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
VERTEX = {"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 3}}]}
ERROR_500 = "500 Internal Server Error"


# ---- /vertex answers 500 to everything ----


async def test_a_wrong_vertex_call_is_told_once_and_ejects_nobody(app, wire):
    rig = await app(2, health={"eject_after": 2})
    body = wire.error("Input validation error: `temperature` must be positive", "validation")
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(body, ERROR_500)]
    replies = [await rig.post("/vertex", VERTEX) for _ in range(8)]
    assert {(reply.status, reply.body) for reply in replies} == {(500, body)}
    assert {reply.get("x-fleet-attempts") for reply in replies} == {"1"}
    assert sum(len(replica.requests) for replica in rig.replicas) == 8
    assert [replica.health.state.value for replica in rig.all()] == ["healthy"] * 2
    assert [replica.failed for replica in rig.all()] == [0, 0]


@pytest.mark.parametrize("error_type", ["generation", "incomplete_generation"])
async def test_a_vertex_call_that_failed_inside_the_engine_is_retried(app, wire, error_type):
    rig = await app(2, policy="round_robin")
    rig.replicas[0].otherwise = [wire.reply(wire.error("CUDA error", error_type), ERROR_500)]
    replies = [await rig.post("/vertex", VERTEX) for _ in range(2)]
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    tries = sum(int(reply.get("x-fleet-attempts")) for reply in replies)
    assert rig["r0"].failed == len(rig.replicas[0].requests) == tries - 2 >= 1


async def test_overload_on_vertex_is_overload(app, wire):
    rig = await app(2, policy="round_robin", health={"eject_after": 1})
    body = wire.error("Model is overloaded", "overloaded")
    rig.replicas[0].otherwise = [wire.reply(body, ERROR_500)]
    replies = [await rig.post("/vertex", VERTEX) for _ in range(2)]
    assert {reply.status for reply in replies} == {200}
    assert rig["r0"].failed == 0
    assert rig["r0"].health.state.value == "healthy"


# ---- statuses that are the client's business ----


@pytest.mark.parametrize(
    ("status", "content_type"),
    [
        ("451 Unavailable For Legal Reasons", "text/html"),
        ("451 Unavailable For Legal Reasons", "application/json"),
        ("402 Payment Required", "application/json"),
        ("409 Conflict", "text/plain"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions"])
async def test_other_refusals_pass_through_untouched(app, wire, status, content_type, path):
    rig = await app(2, health={"eject_after": 1})
    body = b"<h1>not here</h1>"
    refusal = wire.reply(body, status, content_type=content_type, fields="x-law: 451\r\n")
    for replica in rig.replicas:
        replica.otherwise = [refusal]
    asked = {**GENERATE, "messages": [{"role": "user", "content": "x"}]}
    for _ in range(3):
        reply = await rig.post(path, asked)
        assert (reply.status, reply.body) == (int(status[:3]), body)
        assert (reply.get("content-type"), reply.get("x-law")) == (content_type, "451")
        assert reply.get("x-fleet-attempts") == "1"
    assert sum(len(replica.requests) for replica in rig.replicas) == 3
    assert [replica.health.state.value for replica in rig.all()] == ["healthy"] * 2
    assert [replica.failed for replica in rig.all()] == [0, 0]


# ---- errors inside a stream that has begun ----

FAULT = b'{"error":{"message":"Request failed during generation: CUDA","http_status_code":422}}'


@pytest.mark.parametrize("together", [True, False])
async def test_an_error_counts_as_a_failure_wherever_its_done_comes(app, wire, together):
    rig = await app(resume={"enabled": False})
    gate = asyncio.Event()
    error = wire.chunk(b"data: " + FAULT + b"\n\n")
    done = wire.chunk(wire.DONE) + wire.LAST_CHUNK
    tail = [error + done] if together else [error, gate, done]
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.delta("a")), *tail)
    client = await rig.client()
    body = {"stream": True, "messages": [{"role": "user", "content": "x"}]}
    client.post("/v1/chat/completions", body)
    assert (await client.head()).status == 200
    read = b""
    while FAULT not in read:
        read += await client.chunk()
    gate.set()
    while piece := await client.chunk():
        read += piece
    assert read == wire.delta("a") + b"data: " + FAULT + b"\n\n" + wire.DONE
    line = await rig.line()
    assert "CUDA" in line["error"]
    assert line["status"] == 200
    assert (rig["r0"].failed, rig["r0"].served) == (1, 0)
    assert rig.metric("attempts_total", replica="r0", outcome="failed") == 1


# ---- numbers nobody can mean ----


@pytest.mark.parametrize("field", ["x-queue-time", "x-prompt-tokens", "x-time-per-token"])
async def test_a_number_of_5000_digits_in_a_header_is_ignored(app, wire, caplog, field):
    rig = await app()
    odd = f"{field}: {'9' * 5000}\r\n"
    rig.replicas[0].say(wire.reply(wire.generated("one"), fields=odd))
    client = await rig.client()
    for text in ("one", "ok"):
        client.post("/generate", GENERATE)
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, wire.generated(text))
    assert [line["error"] for line in rig.lines()] == [None, None]
    assert rig["r0"].served == 2
    assert not caplog.records
