"""How calls come in: methods, headers, versions, connections; all over a real socket."""

import asyncio
import gzip
import json
import re

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
BODY = json.dumps(GENERATE).encode()
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


# ---- headers ----


async def test_replies_name_replica_wait_and_attempts(app):
    rig = await app()
    reply = await rig.post("/generate", GENERATE)
    assert reply.get("x-fleet-replica") == "r0"
    assert reply.get("x-fleet-attempts") == "1"
    assert re.fullmatch(r"\d+", reply.get("x-fleet-queue-ms"))


async def test_hop_by_hop_fields_of_a_replica_stop_here(app, wire):
    rig = await app()
    fields = (
        "connection: keep-alive, x-hop\r\nkeep-alive: timeout=5\r\nx-hop: 1\r\nx-stays: 2\r\n"
        "proxy-authenticate: a\r\nserver: uvicorn\r\naccess-control-allow-origin: http://evil\r\n"
    )
    rig.replicas[0].say(wire.reply(wire.generated("a"), fields=fields))
    reply = await rig.post("/generate", GENERATE)
    for name in ("keep-alive", "x-hop", "proxy-authenticate", "server", "connection"):
        assert reply.get(name) is None, name
    assert reply.get("x-stays") == "2"
    assert reply.all("access-control-allow-origin") == ["*"]


async def test_a_replica_cannot_speak_for_the_router(app, wire):
    """Its own x-request-id or x-fleet-* would stand beside ours, with another value."""
    rig = await app()
    fields = "x-request-id: theirs\r\nX-Fleet-Replica: other\r\nx-fleet-attempts: 9\r\n"
    rig.replicas[0].otherwise = [wire.reply(b"{}", fields=fields)]
    for path in ("/generate", "/tokenize"):
        reply = await rig.post(path, GENERATE, "x-request-id: ours")
        assert reply.all("x-request-id") == ["ours"]
        assert reply.all("x-fleet-replica") == ["r0"]
        assert reply.all("x-fleet-attempts") in (["1"], [])


@pytest.mark.parametrize("given", ["abc-1", "0af7651916cd43dd", "user@host/1:2+3=4._-"])
async def test_a_good_request_id_is_taken_returned_and_passed_on(app, given):
    rig = await app()
    reply = await rig.post("/generate", GENERATE, f"X-Request-Id: {given}")
    assert reply.all("x-request-id") == [given]
    assert (await rig.replicas[0].request()).get("x-request-id") == [given]
    assert (await rig.line())["id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, '"quoted"', "\xe9"])
async def test_a_bad_request_id_is_replaced(app, given):
    rig = await app()
    reply = await rig.post("/generate", GENERATE, f"X-Request-Id: {given}")
    made = reply.get("x-request-id")
    assert re.fullmatch(r"[0-9a-f]{24}", made)
    assert (await rig.replicas[0].request()).get("x-request-id") == [made]


async def test_made_request_ids_differ(app):
    rig = await app()
    ids = {(await rig.post("/generate", GENERATE)).get("x-request-id") for _ in range(5)}
    assert len(ids) == 5


async def test_trace_context_is_passed_on_when_well_formed(app):
    rig = await app()
    await rig.post("/generate", GENERATE, f"traceparent: {TRACE}", "tracestate: a=1")
    request = await rig.replicas[0].request(1)
    assert (request.get("traceparent"), request.get("tracestate")) == ([TRACE], ["a=1"])
    await rig.post("/generate", GENERATE, "traceparent: 00-zz", "tracestate: a=1")
    request = await rig.replicas[0].request(2)
    assert (request.get("traceparent"), request.get("tracestate")) == ([], [])


async def test_credentials_never_reach_a_replica(app):
    rig = await app(engine_api_key="engine-key")
    secrets = ["Authorization: Bearer client-key", "Cookie: s=client-key", "X-Api-Key: client-key"]
    secrets += ["Proxy-Authorization: client-key", "X-Forwarded-For: client-key"]
    for path in ("/generate", "/tokenize"):
        await rig.post(path, GENERATE, *secrets)
    for request in rig.replicas[0].requests:
        assert request.get("authorization") == ["Bearer engine-key"]
        assert b"client-key" not in request.raw_head


async def test_without_an_engine_key_no_authorization_is_sent(app):
    rig = await app()
    await rig.post("/generate", GENERATE, "Authorization: Bearer client-key")
    assert (await rig.replicas[0].request()).get("authorization") == []


# ---- versions and connections ----


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_http_1_0_clients_get_no_chunks_and_a_closed_connection(app, wire, path):
    rig = await app()
    events = wire.token(1) + wire.token(2, last="x")
    if path == "/generate_stream":
        rig.replicas[0].say(wire.streamed(events))
    client = await rig.client()
    client.post(path, BODY, version="1.0")
    head = await client.head()
    assert head.get("transfer-encoding") is None
    assert head.get("connection") == "close"
    assert await client.rest() == (events if "stream" in path else wire.generated("ok"))


async def test_a_connection_serves_call_after_call(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.reply(wire.generated("1")))
    rig.replicas[0].say(wire.streamed(wire.token(1, last="2")))
    rig.replicas[0].say(wire.reply(wire.generated("3")))
    client = await rig.client()
    for path, answer in (
        ("/generate", wire.generated("1")),
        ("/generate_stream", wire.token(1, last="2")),
        ("/generate", wire.generated("3")),
    ):
        client.post(path, BODY)
        reply = await client.reply()
        assert (reply.body, reply.get("connection")) == (answer, None)


async def test_pipelined_calls_are_answered_in_order(app, wire):
    rig = await app()
    for text in ("1", "2", "3"):
        rig.replicas[0].say(wire.reply(wire.generated(text)))
    client = await rig.client()
    for _ in range(3):
        client.post("/generate", BODY)
    client.ask("GET", "/ping")
    bodies = [(await client.reply()).body for _ in range(4)]
    assert bodies == [*(wire.generated(text) for text in ("1", "2", "3")), b""]


async def test_connection_close_is_honoured(app):
    rig = await app()
    client = await rig.client()
    client.post("/generate", BODY, "Connection: close")
    reply = await client.reply()
    assert reply.get("connection") == "close"
    assert await client.is_closed()


async def test_a_connection_without_a_whole_head_is_closed_in_time(app):
    """Half-open and slow clients do not hold a connection for ever."""
    rig = await app(timeouts={"idle_s": 0.2})
    silent, slow = await rig.client(), await rig.client()
    slow.write(b"POST /generate HTTP/1.1\r\nHost: a\r\nX-")
    await silent.rest()
    await slow.rest()


async def test_an_idle_connection_is_closed_in_time(app):
    rig = await app(timeouts={"idle_s": 0.2})
    client = await rig.client()
    client.post("/generate", BODY)
    assert (await client.reply()).status == 200
    assert await client.is_closed()


async def test_a_connection_may_be_older_than_the_idle_time(app, wire):
    """The idle time counts silence between calls, not the time that a call takes."""
    rig = await app(timeouts={"idle_s": 0.05})
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("late")))
    client = await rig.client()
    client.post("/generate", BODY)
    await rig.replicas[0].request()
    asyncio.get_running_loop().call_later(0.3, gate.set)
    assert (await client.reply()).body == wire.generated("late")


# ---- methods and routes ----


@pytest.mark.parametrize("path", ["/", "/health", "/ping", "/info", "/metrics", "/v1/models"])
async def test_head_answers_like_get_without_a_body(app, path):
    rig = await app()
    client = await rig.client()
    client.ask("HEAD", path)
    head = await client.reply(to_head=True)
    client.ask("GET", path)
    reply = await client.reply()
    assert (head.status, reply.status) == (200, 200)
    assert head.get("content-type") == reply.get("content-type")


@pytest.mark.parametrize("path", ["/nowhere", "/info?model=none", "/generate", "/v1/completions"])
async def test_head_of_an_error_has_no_body_either(app, path):
    """A body after a HEAD would be read as the next reply on the connection."""
    rig = await app()
    client = await rig.client()
    client.ask("HEAD", path)
    assert (await client.reply(to_head=True)).status in (404, 405)
    client.ask("GET", "/ping")
    assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", {"POST"}),
        ("PUT", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/", {"GET", "HEAD", "POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("OPTIONS", "/generate", {"POST"}),
        ("PATCH", "/tokenize", {"POST"}),
    ],
)
async def test_a_wrong_method_is_405_with_what_is_allowed(app, method, path, allowed):
    rig = await app()
    client = await rig.client()
    client.ask(method, path)
    reply = await client.reply()
    assert reply.status == 405
    assert set(reply.get("allow").replace(" ", "").split(",")) == allowed
    assert "error" in reply.json()
    assert reply.get("x-request-id")


async def test_an_unknown_path_is_404_in_json(app):
    rig = await app()
    for path in ("/nowhere", "/admin/state", "/generate/", "/v1/chat", "//generate"):
        reply = await rig.get(path)
        assert reply.status == 404, path
        assert reply.get("content-type") == "application/json"
        assert reply.json()["error"]


async def test_openai_paths_answer_errors_in_openai_s_shape(app):
    rig = await app()
    reply = await rig.get("/v1/nowhere")
    assert reply.status == 404
    assert reply.json()["error"]["message"]


async def test_cors_preflight_and_replies(app):
    rig = await app()
    client = await rig.client()
    ask = ["Origin: http://page", "Access-Control-Request-Method: POST"]
    client.ask("OPTIONS", "/generate", *ask)
    reply = await client.reply()
    assert reply.status == 200
    assert reply.get("access-control-allow-origin") == "*"
    assert "POST" in reply.get("access-control-allow-methods")
    assert "content-type" in reply.get("access-control-allow-headers")
    for path in ("/ping", "/info", "/nowhere"):
        assert (await rig.get(path)).get("access-control-allow-origin") == "*"
    assert (await rig.post("/generate", b"{")).get("access-control-allow-origin") == "*"


async def test_only_listed_origins_are_allowed(app):
    rig = await app(cors_allow_origin=["http://good"])
    good = await rig.get("/ping", "Origin: http://good")
    assert good.get("access-control-allow-origin") == "http://good"
    bad = await rig.get("/ping", "Origin: http://evil")
    assert bad.get("access-control-allow-origin") is None
    assert bad.get("vary") == "origin"


# ---- bodies ----


async def test_expect_100_continue_is_answered_before_the_body(app, wire):
    rig = await app()
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    )
    assert (await client.reply()).status == 100
    client.write(BODY)
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, wire.generated("ok"))


async def test_expect_100_continue_of_a_hopeless_body_is_refused_at_once(app):
    rig = await app(max_body_bytes=1024)
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
    )
    assert (await client.reply()).status == 413


async def test_chunked_request_bodies_are_taken(app):
    rig = await app()
    client = await rig.client()
    pieces = [BODY[i : i + 5] for i in range(0, len(BODY), 5)]
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for piece in pieces:
        client.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await client.drain()
    client.write(b"0\r\n\r\n")
    assert (await client.reply()).status == 200
    request = await rig.replicas[0].request()
    assert request.body == BODY
    assert request.get("content-length") == [str(len(BODY))]


async def test_gzip_request_bodies_are_unpacked(app):
    rig = await app()
    reply = await rig.post("/generate", gzip.compress(BODY), "Content-Encoding: gzip")
    assert reply.status == 200
    request = await rig.replicas[0].request()
    assert request.body == BODY
    assert request.get("content-encoding") == []


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_json_media_types_are_taken(app, media_type):
    rig = await app()
    assert (await rig.post("/generate", BODY, f"Content-Type: {media_type}")).status == 200
