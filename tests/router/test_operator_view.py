"""What somebody reads who has to find out why: messages, log lines, counts."""

import pytest

from router.health import Event

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True}


async def test_what_a_replica_refused_is_in_the_log_in_its_own_words(app, wire):
    rig = await app()
    refusal = wire.error("Input validation error: `top_p` must be > 0.0", "validation")
    rig.replicas[0].say(wire.reply(refusal, "422 Unprocessable Entity"))
    reply = await rig.post("/generate", GENERATE)
    assert reply.body == refusal, "the client sees it as it was sent"
    line = await rig.line()
    assert line["error"] == "Input validation error: `top_p` must be > 0.0"
    assert line["error_type"] == "validation"
    assert rig.replicas[0].name == line["replica"]
    assert rig.app.fleet.find(None).pool.get("r0").served == 1


async def test_a_client_that_left_is_no_failed_generation_in_the_log(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    client.leave()
    line = await rig.line()
    assert (line["status"], line["error_type"]) == (499, "client_gone")


@pytest.mark.parametrize(
    "usage", [b"", b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n']
)
async def test_done_and_usage_are_no_tokens(app, wire, usage):
    rig = await app()
    events = wire.delta("a"), wire.delta("b", "length"), usage, b"data: [DONE]\n\n"
    rig.replicas[0].say(wire.streamed(*filter(None, events)))
    await rig.post("/v1/chat/completions", CHAT)
    assert (await rig.line())["generated_tokens"] == 2
    assert rig.metric("generated_tokens_total", model="default") == 2


async def test_a_wrong_method_says_which_is_right(app):
    rig = await app()
    assert "use POST" in (await rig.get("/generate")).json()["error"]
    assert "use GET" in (await rig.post("/info", {})).json()["error"]


async def test_a_slash_too_many_is_recognised(app):
    rig = await app()
    assert "did you mean /generate?" in (await rig.post("/generate/", GENERATE)).json()["error"]
    assert "/docs" in (await rig.get("/nothing")).json()["error"]


async def test_a_replica_that_loads_is_not_reported_as_down(app):
    """Whoever starts it says that it loads; a line per replica and start is a false alarm."""
    rig = await app(is_up=False, entries={"phase": "loading"})
    await rig.replicas[0].stop_listening()
    pool = rig.app.fleet.find(None).pool
    before = len(rig.lines("health"))
    pool.on_event(pool.get("r0"), Event.REFUSED, "test")
    assert pool.get("r0").health.state.value == "unhealthy"
    assert len(rig.lines("health")) == before


async def test_pages_do_not_tell_what_they_are_built_with(app):
    rig = await app()
    for path in ("/health", "/info", "/metrics"):
        assert (await rig.get(path)).get("server") == "gpu-fleet"
