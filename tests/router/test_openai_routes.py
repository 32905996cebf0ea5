"""Routes: what an OpenAI engine has is passed on, what it has not is refused with what there is."""

import json

import pytest

from router.fleet import ReplicaEntry, ReplicaList

PASSED_ON = {
    "/v1/completions": {"prompt": [1, 2, 3]},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
    "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/completion": {"prompt": "a", "n_predict": 4},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
}


@pytest.mark.parametrize("path", PASSED_ON)
async def test_the_engines_other_routes_are_passed_on(openai_app, path, shapes):
    one = await openai_app()
    value = {"served": "by the engine"}
    one.replicas[0].otherwise = [shapes.as_json(value)]
    body = json.dumps({"model": "served", **PASSED_ON[path]}).encode()
    reply = await one.post(path, body)
    assert (reply.status, reply.json(), reply.get("x-fleet-replica")) == (200, value, "r0")
    asked = one.replicas[0].requests[0]
    assert (asked.path, asked.body) == (path, body)
    assert (await one.line())["route"] == path


async def test_responses_are_relayed_as_a_stream(openai_app, wire, shapes):
    one = await openai_app()
    done = {"type": "response.completed", "response": {"usage": {"output_tokens": 2}}}
    events = [
        shapes.event({"type": "response.created", "response": {"error": None}}, "response.created"),
        shapes.event(
            {"type": "response.output_text.delta", "delta": "a"}, "response.output_text.delta"
        ),
        shapes.event(done, "response.completed"),
    ]
    one.replicas[0].otherwise = [wire.streamed(*events)]
    reply = await one.post("/v1/responses", {"input": "hi", "stream": True})
    assert (reply.status, reply.body, reply.is_whole) == (200, b"".join(events), True)
    line = await one.line()
    assert (line["generated_tokens"], line["error"]) == (2, None)


async def test_messages_that_break_off_end_with_an_error_that_its_client_reads(
    openai_app, wire, shapes
):
    one = await openai_app()
    start = shapes.event({"type": "message_start", "message": {}}, "message_start")
    one.replicas[0].otherwise = [wire.streamed(start)]
    body = {"messages": shapes.CHAT["messages"], "max_tokens": 4, "stream": True}
    reply = await one.post("/v1/messages", body)
    assert reply.body.startswith(start + b"event: error\ndata: ")
    assert json.loads(reply.body.split(b"data: ")[-1])["error"]["type"] == "api_error"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/invocations"])
async def test_tgis_routes_are_refused_with_those_that_there_are(openai_app, path, shapes):
    one = await openai_app()
    reply = await one.post(path, {"inputs": "hello"})
    assert (reply.status, reply.json()["error_type"]) == (404, "not_found")
    message = reply.json()["error"]
    assert f"'served' has no {path};" in message
    assert shapes.PATH in message
    assert one.replicas[0].requests == []


@pytest.mark.parametrize("path", ["/vertex", "/chat_tokenize"])
async def test_tgis_other_routes_too(openai_app, path, shapes):
    one = await openai_app()
    body = {"instances": [{"inputs": "a"}], "messages": shapes.CHAT["messages"]}
    reply = await one.post(path, body)
    assert (reply.status, reply.json()["error_type"]) == (404, "not_found")


async def test_a_tgi_pool_has_no_embeddings(app, shapes):
    one = await app()
    reply = await one.post("/v1/embeddings", {"input": "a"})
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (404, "not_found")
    assert "/generate_stream" in error["message"]
    assert one.replicas[0].requests == []


# ---- pools of either kind side by side ----


@pytest.fixture
async def both(app, openai_replicas, wire, shapes):
    """A pool `t` of TGI and a pool `o` of vLLM behind one router."""
    tgi = wire.ScriptedReplica("tgi")
    await tgi.start()
    [vllm] = await openai_replicas(1, "vllm", first=1, name="org/real")
    one = await app([tgi, vllm], is_up=False, entries={"models": ["t", "o"]})
    entries = [
        ReplicaEntry(id="tgi", generation=1, url=tgi.url, model="t"),
        ReplicaEntry(id="r1", generation=1, url=vllm.url, model="o", dialect="openai"),
    ]
    one.app.fleet.apply(ReplicaList(protocol=1, cluster="test", epoch=1, replicas=entries))
    await one.is_up()
    return one


async def test_the_model_list_and_the_limits_show_both_kinds(both, shapes):
    listed = (await both.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == ["t", "o"]
    info = (await both.get("/info?model=o")).json()
    assert (info["model_id"], info["max_total_tokens"]) == ("org/real", 4096)
    assert info["max_batch_total_tokens"] == 1_600_000


async def test_each_model_is_reached_on_its_own_routes(both, shapes):
    chat = shapes.CHAT
    for model, replica in (("o", "r1"), ("org/real", "r1"), ("t", "tgi")):
        reply = await both.post(shapes.PATH, {**chat, "model": model})
        assert reply.get("x-fleet-replica") == replica
    refused = await both.post("/generate", {"inputs": "a", "model": "o"})
    assert refused.status == 404


async def test_without_a_model_the_only_pool_with_the_route_is_meant(both, shapes):
    assert (await both.post("/generate", {"inputs": "a"})).get("x-fleet-replica") == "tgi"
    embedded = await both.post("/v1/embeddings", {"input": "a"})
    assert embedded.get("x-fleet-replica") == "r1"
    assert (await both.post(shapes.PATH, {"messages": shapes.CHAT["messages"]})).status == 404


async def test_adapters_are_listed_and_reached(app, openai_replicas, shapes):
    made = await openai_replicas(1)
    made[0].pages["/v1/models"] = [shapes.models("base", "adapter")]
    one = await app(made, entries={"dialect": "openai"})
    listed = (await one.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == ["base", "adapter"]
    assert (await one.post(shapes.PATH, {**shapes.CHAT, "model": "adapter"})).status == 200
    assert (await one.post(shapes.PATH, {**shapes.CHAT, "model": "nobody"})).status == 404
