"""Tenants, priorities and time limits as clients write them, through a whole router."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.fixture
def busy(app, wire, until):
    """`await busy(...)`: a router whose only replica works until `gate` is set."""

    async def make(**options):
        rig = await app(1, entries={"max_requests": 1}, **options)
        rig.gate = asyncio.Event()
        rig.replicas[0].say(rig.gate, wire.reply(wire.generated("held")))
        rig.holder = await rig.client()
        rig.holder.post("/generate", GENERATE)
        await rig.replicas[0].request()

        async def waiting(text, *fields):
            client = await rig.client()
            before = len(rig.dispatcher.queue)
            client.post("/generate", {**GENERATE, "inputs": text}, *fields)
            await until(lambda: len(rig.dispatcher.queue) == before + 1)
            return client

        rig.waiting = waiting
        return rig

    return make


async def served(rig, *clients):
    """The prompts in the order in which the replica got them, once all have their answers."""
    rig.gate.set()
    for client in (rig.holder, *clients):
        assert (await client.reply()).status == 200
    return [json.loads(request.body)["inputs"] for request in rig.replicas[0].requests[1:]]


# ---- order ----


async def test_the_more_urgent_call_is_served_first(busy):
    rig = await busy()
    low = await rig.waiting("low", "X-Fleet-Priority: low")
    plain = await rig.waiting("plain")
    high = await rig.waiting("high", "X-Fleet-Priority: High")
    assert await served(rig, low, plain, high) == ["high", "plain", "low"]


async def test_tenants_take_turns(busy):
    rig = await busy()
    flood = [await rig.waiting(f"flood {i}", "X-Fleet-Tenant: flood") for i in range(4)]
    quiet = await rig.waiting("quiet", "X-Fleet-Tenant: quiet")
    order = await served(rig, *flood, quiet)
    assert order.index("quiet") <= 1
    assert order[-1] == "flood 3"


@pytest.mark.parametrize(
    ("options", "field", "is_apart"),
    [
        ({}, "X-Fleet-Tenant", True),
        ({"queue": {"tenant_header": "x-team"}}, "X-Team", True),
        ({"queue": {"tenant_header": "x-team"}}, "X-Fleet-Tenant", False),
        ({"queue": {"tenant_header": None}}, "X-Fleet-Tenant", False),
    ],
)
async def test_the_header_that_names_the_tenant_is_configured(busy, options, field, is_apart):
    rig = await busy(**options)
    waiting = [await rig.waiting(f"a {i}", f"{field}: a") for i in range(3)]
    waiting.append(await rig.waiting("b", f"{field}: b"))
    assert (len(rig.dispatcher.queue.places) == 2) is is_apart
    assert (await served(rig, *waiting)).index("b") == (1 if is_apart else 3)


async def test_a_tenant_is_no_more_urgent_than_it_may_be(busy):
    tenants = {"batch": {"max_priority": "low"}, "": {"max_priority": "normal"}}
    rig = await busy(tenants=tenants)
    first = await rig.waiting("batch", "X-Fleet-Tenant: batch", "X-Fleet-Priority: high")
    second = await rig.waiting("nobody's", "X-Fleet-Priority: high")
    third = await rig.waiting("known", "X-Fleet-Tenant: known", "X-Fleet-Priority: high")
    assert await served(rig, first, second, third) == ["known", "nobody's", "batch"]


# ---- time limits ----


async def test_a_waiting_call_is_refused_when_its_own_time_is_over(busy):
    rig = await busy()
    client = await rig.waiting("late", "X-Request-Timeout: 0.2")
    reply = await client.reply()
    assert reply.status == 503
    assert int(reply.get("retry-after")) >= 1
    assert "0.2 s" in reply.json()["error"]
    assert await served(rig) == []


async def test_a_call_at_work_ends_when_its_own_time_is_over(app, wire):
    rig = await app(1)
    rig.replicas[0].say(wire.STALL)
    reply = await rig.post("/generate", GENERATE, "X-Request-Timeout: 0.2")
    assert reply.status == 504
    assert rig["r0"].failed == 0


async def test_a_time_limit_never_lengthens_the_configured_ones(app, wire):
    rig = await app(1, timeouts={"total_s": 0.2})
    rig.replicas[0].say(wire.STALL)
    reply = await rig.post("/generate", GENERATE, "X-Request-Timeout: 3600")
    assert reply.status == 504


async def test_tokenizing_ends_in_time_as_well(app, wire):
    rig = await app(1)
    rig.replicas[0].say(wire.STALL)
    reply = await rig.post("/tokenize", {"inputs": "a"}, "X-Request-Timeout: 0.2")
    assert reply.status == 504


# ---- wrong words ----


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("X-Fleet-Priority: urgent", "high, normal or low"),
        ("X-Request-Timeout: soon", "seconds as a decimal number"),
        ("X-Request-Timeout: 0", "seconds as a decimal number"),
        ("X-Fleet-Tenant: a b", "letters, digits"),
    ],
)
async def test_a_wrong_word_is_refused_and_the_right_ones_are_named(app, field, words):
    rig = await app(1)
    client = await rig.client()
    client.post("/generate", GENERATE, field)
    reply = await client.reply()
    assert reply.status == 422
    assert reply.json()["error_type"] == "validation"
    assert words in reply.json()["error"]
    client.post("/v1/completions", {"model": "tgi", "prompt": "a"}, field)
    reply = await client.reply()
    assert reply.status == 422
    assert words in json.dumps(reply.json())
    assert rig.replicas[0].requests == []


async def test_what_concerns_the_fleet_is_not_passed_on(app):
    rig = await app(1)
    fields = ("X-Fleet-Tenant: a", "X-Fleet-Priority: high", "X-Request-Timeout: 60")
    assert (await rig.post("/generate", GENERATE, *fields)).status == 200
    [request] = rig.replicas[0].requests
    names = {name for name, _ in request.fields}
    assert not names & {"x-fleet-tenant", "x-fleet-priority", "x-request-timeout"}


# ---- bounds, and what is told ----


async def test_a_flood_does_not_lock_others_out_at_the_door(busy):
    rig = await busy(queue={"max_calls": 2})
    flood = [await rig.waiting(f"flood {i}", "X-Fleet-Tenant: flood") for i in range(2)]
    more = await rig.post("/generate", GENERATE, "X-Fleet-Tenant: flood")
    assert more.status == 429
    quiet = await rig.client()
    quiet.post("/generate", {**GENERATE, "inputs": "quiet"}, "X-Fleet-Tenant: quiet")
    refused = await flood.pop().reply()
    assert refused.status == 429
    assert int(refused.get("retry-after")) >= 1
    assert "fewer" in refused.json()["error"]
    assert set(await served(rig, *flood, quiet)) == {"flood 0", "quiet"}
    counted = {
        reason: rig.metric("tenant_sheds_total", tenant="flood", reason=reason)
        for reason in ("queue_full", "gave_way")
    }
    assert counted == {"queue_full": 1, "gave_way": 1}


async def test_who_waits_is_told_by_tenant_and_priority(busy, tmp_path):
    rig = await busy()
    waiting = [
        await rig.waiting("a", "X-Fleet-Tenant: x", "X-Fleet-Priority: low"),
        await rig.waiting("b", "X-Fleet-Tenant: x", "X-Fleet-Priority: low"),
        await rig.waiting("c", "X-Fleet-Priority: high"),
    ]
    labels = {"model": "default", "tenant": "x", "priority": "low"}
    assert rig.metric("tenant_queue_calls", **labels) == 2
    assert rig.metric("tenant_queue_calls", **{**labels, "tenant": "", "priority": "high"}) == 1
    await served(rig, *waiting)
    assert rig.metric("tenant_queue_calls", **labels) == 0


async def test_tokens_are_counted_by_tenant(app, wire):
    rig = await app(1)
    rig.replicas[0].say(
        wire.reply(wire.generated("ok"), fields="x-prompt-tokens: 7\r\nx-generated-tokens: 3\r\n")
    )
    assert (await rig.post("/generate", GENERATE, "X-Fleet-Tenant: x")).status == 200
    assert rig.metric("tenant_tokens_total", tenant="x", kind="prompt") == 7
    assert rig.metric("tenant_tokens_total", tenant="x", kind="generated") == 3


async def test_a_stream_whose_client_leaves_is_counted_as_far_as_it_went(app, wire, until):
    rig = await app(1)
    events = b"".join(wire.chunk(wire.token(i)) for i in range(1, 6))
    rig.replicas[0].say(wire.stream_head(), events, wire.STALL)
    client = await rig.client()
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 500}}
    client.post("/generate_stream", body, "X-Fleet-Tenant: x")
    assert (await client.head()).status == 200
    await until(lambda: rig.dispatcher.open_leases == 1)
    client.leave()
    await until(lambda: not rig.dispatcher.open_leases)
    assert rig.metric("tenant_tokens_total", tenant="x", kind="generated") == 5
