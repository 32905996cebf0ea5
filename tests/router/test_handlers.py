"""What the endpoint answers itself: health, info, models, metrics, docs; and bugs of our own."""

import json
import logging
import re

import pytest

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.health import Event

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


async def test_health_is_200_with_a_replica_and_503_without(app, until):
    rig = await app()
    assert (await rig.get("/health")).status == 200
    empty = await app([], is_up=False)
    reply = await empty.get("/health")
    assert reply.status == 503
    assert reply.json()["error_type"] == "healthcheck"


async def test_health_is_503_when_the_only_replica_is_gone_for_good(app, until):
    rig = await app(health={"interval_s": 0.05, "fall": 1})
    await rig.replicas[0].die()
    await until(lambda: not rig["r0"].is_usable)
    assert (await rig.get("/health")).status == 503


async def test_health_is_503_when_all_replicas_say_nothing_though_they_would_get_the_calls(
    app, until
):
    rig = await app(2, health={"interval_s": 1000})
    for replica in rig.all():
        for _ in range(rig.app.config.health.fall):
            rig.dispatcher.pool.on_event(replica, Event.PROBE_LATE, "no answer")
    assert all(replica.is_usable for replica in rig.all())
    reply = await rig.get("/health")
    assert (reply.status, reply.json()["error_type"]) == (503, "healthcheck")


async def test_health_is_200_while_a_replica_is_loading(app):
    """Calls wait for it, so the endpoint takes them."""
    rig = await app(1, entries={"phase": "loading"})
    await rig.replicas[0].stop_listening()
    assert (await rig.get("/health")).status == 200


async def test_info_sums_what_adds_up_and_takes_the_least_of_the_rest(app, wire):
    rig = await app(2, is_up=False)
    for replica, tokens in zip(rig.replicas, (4096, 2048), strict=True):
        replica.info = [wire.reply(json.dumps({**wire.INFO, "max_total_tokens": tokens}).encode())]
    await rig.is_up()
    told = (await rig.get("/info")).json()
    assert told["max_concurrent_requests"] == 256
    assert told["max_batch_total_tokens"] == 200_000
    assert told["max_total_tokens"] == 2048
    assert told["model_id"] == "scripted/model"
    assert (told["router"], told["replicas"]) == ("gpu-fleet", 2)


@pytest.mark.parametrize("info", [b"", b"[]", b"{", b'{"max_total_tokens": "x"}'])
async def test_a_replica_whose_info_is_unusable_still_serves(app, wire, info):
    rig = await app(is_up=False)
    rig.replicas[0].info = [wire.reply(info)]
    await rig.is_up()
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert (await rig.get("/info")).status in (200, 503)


async def test_info_names_one_pool_of_several(app):
    rig = await app(2, entries={"models": ("alpha", "beta")})
    assert (await rig.get("/info?model=beta")).json()["replicas"] == 1
    assert (await rig.get("/info")).status == 200
    reply = await rig.get("/info?model=none")
    assert reply.status == 404
    assert "alpha" in reply.json()["error"]


async def test_models_lists_every_pool(app):
    rig = await app(2, entries={"models": ("alpha", "beta")})
    listed = (await rig.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["alpha", "beta"]


async def test_metrics_count_calls_by_route_and_status(app):
    rig = await app()
    await rig.post("/generate", GENERATE)
    await rig.post("/generate", b"{")
    await rig.get("/somewhere/else")
    page = await rig.get("/metrics")
    text = page.body.decode()
    assert page.get("content-type").startswith("text/plain")
    assert 'fleet_calls_total{route="/generate",status="200"} 1.0' in text
    assert 'fleet_calls_total{route="/generate",status="422"} 1.0' in text
    assert 'fleet_calls_total{route="other",status="404"} 1.0' in text
    assert "somewhere" not in text  # labels come from bounded sets
    assert 'fleet_replica_health{model="default",replica="r0",state="healthy"} 1.0' in text


async def test_docs_and_their_document_are_served(app):
    rig = await app()
    page = await rig.get("/docs")
    assert page.get("content-type").startswith("text/html")
    document = (await rig.get("/api-doc/openapi.json")).json()
    posted = {path for path, verbs in document["paths"].items() if "post" in verbs}
    assert posted == {*GENERATION_APIS, *TOKENIZER_APIS}
    for schema in re.findall(r"#/components/schemas/(\w+)", json.dumps(document)):
        assert schema in document["components"]["schemas"]
    for name in re.findall(r"#/components/parameters/(\w+)", json.dumps(document)):
        assert name in document["components"]["parameters"]


@pytest.mark.parametrize("path", sorted({*GENERATION_APIS, *TOKENIZER_APIS}))
async def test_the_header_fields_of_a_call_are_in_the_document(app, path):
    rig = await app()
    document = (await rig.get("/api-doc/openapi.json")).json()
    known = document["components"]["parameters"]
    refs = document["paths"][path]["post"]["parameters"]
    names = {known[ref["$ref"].rpartition("/")[2]]["name"] for ref in refs}
    wanted = {"x-request-timeout"}
    if path in GENERATION_APIS:
        wanted |= {"x-fleet-priority", "x-fleet-tenant"}
    assert names == wanted


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/info"])
async def test_a_bug_in_the_router_is_500_with_the_call_s_id(app, monkeypatch, caplog, path):
    rig = await app()

    def broken(*args):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(rig.app.fleet, "find", broken)
    body = {"prompt": "a"} if path.startswith("/v1/") else GENERATE
    with caplog.at_level(logging.ERROR):
        reply = await (
            rig.get(path) if path == "/info" else rig.post(path, body, "x-request-id: me")
        )
    assert reply.status == 500
    assert reply.get("x-request-id") in reply.body.decode()
    assert b"secret detail" not in reply.body
    assert [record for record in caplog.records if record.exc_info]
