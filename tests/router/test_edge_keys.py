"""Keys at the endpoint: what asks for one, what a refusal looks like, who sees which models."""

import asyncio
from hashlib import sha256

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
CALLS = ["/generate", "/generate_stream", "/", "/invocations", "/vertex", "/v1/chat/completions"]
CALLS += ["/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank"]
CALLS += ["/v1/score", "/completion", "/infill", "/tokenize", "/chat_tokenize", "/detokenize"]
CALLS += ["/v1/messages/count_tokens"]
SECRET = "sk-" + "5" * 40
BEARER = f"Authorization: Bearer {SECRET}"


def key(name="a", secret=SECRET, **limits):
    return {"name": name, "hash": f"sha256:{sha256(secret.encode()).hexdigest()}", **limits}


async def open_gate(rig, wire):
    """A first call that runs until the gate opens."""
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("late")))
    client = await rig.client()
    client.post("/generate", GENERATE, BEARER)
    await rig.replicas[0].request(len(rig.replicas[0].requests) + 1)
    return client, gate


# ---- who ----


@pytest.mark.parametrize("field", [None, "Authorization: Bearer wrong", "x-api-key: wrong"])
async def test_every_call_without_a_good_key_is_401_in_its_routes_shape(app, field):
    rig = await app(keys=[key()])
    client = await rig.client()
    for path in CALLS:
        client.post(path, GENERATE, *([field] if field else []))
        reply = await client.reply()
        assert (reply.status, reply.get("www-authenticate")) == (401, "Bearer"), path
        told = reply.json()
        if path.startswith("/v1/messages"):
            assert told["error"]["type"] == "authentication_error"
        elif path.startswith("/v1/") or path in ("/completion", "/infill", "/detokenize"):
            assert told["error"]["code"] == "unauthorized"
        else:
            assert told["error_type"] == "unauthorized"
        assert "wrong" not in reply.body.decode().replace("the API key is wrong", "")
    assert rig.replicas[0].requests == []
    assert {line["key"] for line in rig.lines()} == {None}


async def test_pages_that_tell_of_models_need_a_key_and_the_others_do_not(app):
    rig = await app(keys=[key()])
    for path in ("/info", "/v1/models", "/metrics"):
        assert (await rig.get(path)).status == 401, path
        assert (await rig.get(path, BEARER)).status == 200, path
    for path in ("/", "/health", "/ping", "/docs", "/api-doc/openapi.json"):
        assert (await rig.get(path)).status == 200, path
    client = await rig.client()
    client.ask("HEAD", "/info")
    assert (await client.reply(to_head=True)).status == 401
    assert (await rig.get("/info/")).status == 404
    preflight = await rig.client()
    preflight.ask("OPTIONS", "/generate", "Access-Control-Request-Method: POST", "Origin: http://a")
    allowed = (await preflight.reply()).get("access-control-allow-headers").split(",")
    assert {"authorization", "x-api-key", "content-type"} <= set(allowed)


@pytest.mark.parametrize(
    "field", [BEARER, f"X-Api-Key: {SECRET}", f"authorization: bearer {SECRET}"]
)
async def test_a_good_key_is_served_logged_by_name_and_not_passed_on(app, field):
    rig = await app(keys=[key("team-a")])
    reply = await rig.post("/generate", GENERATE, field, "Cookie: a=b")
    assert reply.status == 200
    assert (await rig.line())["key"] == "team-a"
    request = await rig.replicas[0].request()
    assert SECRET.encode() not in request.raw_head + request.body
    assert SECRET.encode() not in rig.out.getvalue()


async def test_a_body_without_a_key_is_not_read(app):
    """Nor asked for; and the connection ends, as what follows is that body."""
    rig = await app(keys=[key()])
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: 30000000\r\n\r\n"
    )
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (401, "close")


# ---- how much ----


async def test_calls_over_the_rate_are_429_in_the_routes_shape(app):
    rig = await app(keys=[key(requests_per_minute=1)])
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 200
    for path in ("/generate", "/v1/chat/completions", "/v1/messages", "/tokenize"):
        reply = await rig.post(path, {**GENERATE, **CHAT}, BEARER)
        assert reply.status == 429, path
        assert 55 <= int(reply.get("retry-after")) <= 60
        error = reply.json()["error"]
        told = error if path.startswith("/v1/") else reply.json()
        assert told.get("error_type", told.get("type")) in ("rate_limited", "rate_limit_error")
    assert rig.metric("key_refusals_total", key="a", limit="requests") == 4
    assert len(rig.replicas[0].requests) == 1
    assert (await rig.get("/v1/models", BEARER)).status == 200, "pages are no calls"


async def test_calls_at_a_time(app, wire):
    rig = await app(keys=[key(max_concurrent=1), key("b", "other")])
    first, gate = await open_gate(rig, wire)
    reply = await rig.post("/generate", GENERATE, BEARER)
    assert (reply.status, reply.get("retry-after")) == (429, "1")
    assert (await rig.post("/generate", GENERATE, "x-api-key: other")).status == 200
    gate.set()
    assert (await first.reply()).status == 200
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 200


async def test_a_client_that_leaves_gives_its_place_back(app, wire, until):
    rig = await app(keys=[key(max_concurrent=1)])
    first, _ = await open_gate(rig, wire)
    first.reset()
    await until(lambda: not rig.app.handlers.calls_running)
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 200


async def test_tokens_are_charged_as_the_engine_reports_them(app, wire):
    rig = await app(keys=[key(tokens_per_minute=1000)])
    counts = "x-prompt-tokens: 100\r\nx-generated-tokens: 500\r\n"
    rig.replicas[0].say(wire.reply(wire.generated("x"), fields=counts))
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 200
    long = {"inputs": "x", "parameters": {"max_new_tokens": 700}}
    reply = await rig.post("/generate", long, BEARER)
    assert reply.status == 429
    assert 1 <= int(reply.get("retry-after")) <= 60
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 200


async def test_a_stream_that_breaks_off_is_charged_by_its_events(app, wire):
    rig = await app(keys=[key(tokens_per_minute=1000)])
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.CUT)
    stream = {"inputs": "a" * 40, "parameters": {"max_new_tokens": 800}}
    await rig.post("/generate_stream", stream, BEARER)
    account = rig.app.keys.account({"x-api-key": SECRET})
    used = 1000 - account.tokens.left(rig.app.keys._clock())
    assert 10 <= used <= 12


async def test_a_call_that_every_attempt_failed_costs_no_tokens(app, wire):
    rig = await app(keys=[key(tokens_per_minute=1000)])
    fault = wire.reply(wire.error("x", "generation"), "500 Internal Server Error")
    rig.replicas[0].otherwise = [fault]
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 500
    account = rig.app.keys.account({"x-api-key": SECRET})
    assert account.tokens.left(rig.app.keys._clock()) == 1000


# ---- which models ----


@pytest.fixture
async def two_models(app, wire):
    async def make(keys):
        replicas = [wire.ScriptedReplica(f"r{i}") for i in range(2)]
        for replica in replicas:
            await replica.start()
        return await app(replicas, entries={"models": ["public", "secret"]}, keys=keys)

    return make


async def test_a_key_for_one_model_sees_and_reaches_no_other(two_models):
    rig = await two_models([key(models=["public"]), key("all", "all")])
    told = [model["id"] for model in (await rig.get("/v1/models", BEARER)).json()["data"]]
    assert told == ["public"]
    assert (await rig.get("/info", BEARER)).json()["models"] == ["public"]
    assert (await rig.get("/info?model=secret", BEARER)).status == 404
    assert (await rig.get("/metrics", BEARER)).status == 403
    assert (await rig.get("/metrics", "x-api-key: all")).status == 200
    hidden = await rig.post("/v1/chat/completions", {**CHAT, "model": "secret"}, BEARER)
    unknown = await rig.post("/v1/chat/completions", {**CHAT, "model": "nowhere"}, BEARER)
    assert hidden.status == unknown.status == 404
    assert hidden.body == unknown.body.replace(b"nowhere", b"secret")
    by_header = await rig.post("/generate", GENERATE, BEARER, "x-fleet-model: secret")
    assert (by_header.status, by_header.body.count(b"secret")) == (404, 1)
    assert (await rig.post("/tokenize", {**GENERATE, "model": "secret"}, BEARER)).status == 404
    assert rig.replicas[1].requests == []
    for body in (GENERATE, {**GENERATE, "model": "tgi"}, {**GENERATE, "model": "public"}):
        assert (await rig.post("/generate", body, BEARER)).status == 200, "the only one it may use"
    reply = await rig.post("/generate", {**GENERATE, "model": "secret"}, "x-api-key: all")
    assert (reply.status, reply.get("x-fleet-replica")) == (200, "r1")


async def test_a_key_for_a_model_that_is_not_there_gets_nothing(two_models):
    rig = await two_models([key(models=["gone"])])
    for model in ("gone", "public", "tgi", ""):
        assert (await rig.post("/generate", {**GENERATE, "model": model}, BEARER)).status == 404
    assert (await rig.get("/v1/models", BEARER)).json()["data"] == []
    assert (await rig.get("/info", BEARER)).status == 404


async def test_a_key_for_a_model_is_none_for_its_adapters(app, openai_replicas, shapes):
    made = await openai_replicas(1)
    made[0].pages["/v1/models"] = [shapes.models("base", "lora")]
    keys = [key(models=["base"]), key("lora", "lora", models=["lora"]), key("all", "all")]
    rig = await app(made, entries={"dialect": "openai"}, keys=keys)

    async def statuses(field):
        bodies = [{**CHAT, "model": model} for model in ("base", "lora", "")]
        return [(await rig.post("/v1/chat/completions", body, field)).status for body in bodies]

    assert await statuses(BEARER) == [200, 404, 200]
    assert await statuses("x-api-key: lora") == [404, 200, 404]
    assert await statuses("x-api-key: all") == [200, 200, 200]


# ---- another list ----


async def test_another_list_of_keys_takes_over_without_touching_calls(app, wire):
    from router.config import RouterConfig

    rig = await app(keys=[key()])
    first, gate = await open_gate(rig, wire)
    rig.app.keys.replace(RouterConfig.model_validate({"keys": [key("b", "other")]}).keys)
    assert (await rig.post("/generate", GENERATE, BEARER)).status == 401
    assert (await rig.post("/generate", GENERATE, "x-api-key: other")).status == 200
    gate.set()
    assert (await first.reply()).status == 200
