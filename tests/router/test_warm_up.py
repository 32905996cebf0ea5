"""The router's own calls of one token, on the wire: who is let back in, and who only seems well."""

import json

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


def failing(wire):
    text = "Request failed during generation: out of memory"
    return [wire.reply(wire.error(text, "generation"), "424 Failed Dependency")]


async def test_a_replica_is_asked_for_one_token_when_it_joins(app):
    rig = await app(2)
    for replica in rig.replicas:
        [request] = replica.one_token_calls
        assert (request.method, request.path) == ("POST", "/generate")
        assert json.loads(request.body)["parameters"] == {"max_new_tokens": 1}
        assert request.get("x-fleet-probe") == ["warm-up"]
        labels = {"replica": replica.name, "kind": "warm-up", "outcome": "passed"}
        assert rig.metric("one_token_calls_total", **labels) == 1
        assert replica.requests == []


async def test_an_openai_engine_is_asked_by_the_name_it_serves(openai_app):
    rig = await openai_app(1, "vllm")
    [request] = rig.replicas[0].one_token_calls
    assert request.path == "/v1/completions"
    body = json.loads(request.body)
    assert body["model"] == rig["r0"].info.model_id
    assert body["max_tokens"] == 1


async def test_a_replica_with_a_fine_health_check_whose_calls_all_fail_takes_none(app, wire, until):
    rig = await app(2, is_up=False)
    bad, good = rig.replicas
    bad.one_token = bad.otherwise = failing(wire)
    await until(lambda: rig[bad.name].health.state.value == "ejected")
    await rig.is_up(good.name)
    for _ in range(8):
        assert (await rig.post("/generate", GENERATE)).get("x-fleet-attempts") == "1"
    assert bad.requests == []
    [line] = [line for line in rig.lines("health") if line["after"] == "ejected"]
    assert line["replica"] == bad.name
    assert "out of memory" in line["reason"]
    labels = {"replica": bad.name, "kind": "warm-up", "outcome": "failed"}
    assert rig.metric("one_token_calls_total", **labels) == 1


async def test_when_all_are_so_the_calls_are_tried_all_the_same(app, wire, until):
    rig = await app(2, is_up=False)
    for replica in rig.replicas:
        replica.one_token = failing(wire)
    await until(lambda: all(r.health.state.value == "ejected" for r in rig.all()))
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_one_that_comes_back_broken_is_not_let_in_again(app, wire, until):
    rig = await app(2, health={"eject_base_s": 0.1})
    bad = rig.replicas[0]
    await bad.die()
    await until(lambda: rig[bad.name].health.state.value == "unhealthy")
    bad.one_token = bad.otherwise = failing(wire)
    await bad.start()
    await until(lambda: len(bad.one_token_calls) >= 4)
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert bad.requests == []
    bad.one_token = [wire.reply(wire.generated("a"))]
    await rig.is_up(bad.name)


async def test_a_first_call_that_hangs_holds_up_nobody(app, wire, until):
    """Kernels are being compiled; the only replica is used all the same."""
    rig = await app(1, is_up=False)
    rig.replicas[0].one_token = [wire.STALL]
    await until(lambda: rig.replicas[0].one_token_calls)
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert rig["r0"].health.state.value == "warming"
    rig.app.prober.forget(rig["r0"])


async def test_an_idle_replica_s_canary_finds_out_that_its_calls_fail(app, wire, until):
    health = {"interval_s": 0.02, "canary_idle_s": 0.02, "eject_after": 2}
    rig = await app(2, health=health)
    bad, good = rig.replicas
    bad.one_token = failing(wire)
    await until(lambda: rig[bad.name].health.state.value == "ejected")
    assert bad.one_token_calls[-1].get("x-fleet-probe") == ["canary"]
    labels = {"replica": bad.name, "kind": "canary", "outcome": "failed"}
    assert rig.metric("one_token_calls_total", **labels) >= 2
    assert "canary" in rig[bad.name].reason
    assert good.requests == []
