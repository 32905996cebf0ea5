"""How a stream ends when things go wrong near its end: once, with everything, or with a reason."""

import asyncio
import json

PATH = "/generate_stream"
CHAT_PATH = "/v1/chat/completions"
INPUTS = {"inputs": "hello", "parameters": {"max_new_tokens": 40}}
CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 40}
QUIET = {"interval_s": 1000}
TOO_LONG = b'data: {"error":{"message":"too long","http_status_code":422}}\n\n'


def in_turn(rig, *scripts, then):
    """The replicas' answers to calls, whoever of them is asked: these in order, then that."""
    left = iter(scripts)

    def script_for(request, aside):
        is_call = request.path in (PATH, CHAT_PATH) and not request.get("x-fleet-probe")
        return next(left, then) if is_call else aside

    for replica in rig.replicas:
        scripted = replica.script_for
        replica.script_for = lambda request, scripted=scripted: script_for(
            request, scripted(request)
        )


def events_of(body):
    blocks = [block for block in body.split(b"\n\n") if block.startswith(b"data:")]
    return [json.loads(block[5:]) for block in blocks if b"[DONE]" not in block]


async def test_a_refused_continuation_whose_done_comes_later_ends_in_an_error(app, wire, until):
    rig = await app(2)
    gate = asyncio.Event()
    first = [wire.stream_head(), wire.chunk(wire.delta(" a")), wire.RST]
    end = wire.chunk(wire.DONE) + wire.LAST_CHUNK
    in_turn(rig, first, [wire.stream_head(), wire.chunk(TOO_LONG), gate, end], then=[wire.CUT])
    client = await rig.client()
    client.post(CHAT_PATH, CHAT)
    await until(lambda: sum(len(replica.requests) for replica in rig.replicas) >= 2)
    gate.set()
    reply = await client.reply()
    assert "too long" in events_of(reply.body)[-1]["error"]["message"]
    assert reply.body.count(b"[DONE]") == 1


async def test_what_a_replica_sends_behind_the_router_s_own_end_is_no_failure_of_it(app, wire):
    rig = await app(2)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 40, "stop": ["XY"]}}
    first = [wire.stream_head(), wire.chunk(wire.token(1, " aX")), wire.RST]
    more = wire.token(1, "Y") + wire.token(2, " more")[:20]
    in_turn(rig, first, [wire.stream_head(), wire.chunk(more), wire.STALL], then=[wire.CUT])
    reply = await rig.post(PATH, body)
    assert events_of(reply.body)[-1]["generated_text"] == " aXY"
    await rig.line()
    assert rig.metric("resumes_total", model="default", outcome="resumed") == 1
    assert sum(replica.failed for replica in rig.all()) == 1


async def test_a_full_replica_is_waited_for_however_long_the_stream_has_run(app, wire):
    """It has had its turn: the time to wait for one is over."""
    rig = await app(2, queue={"timeout_s": 0.3}, health=QUIET)
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.4, gate.set)
    first = [wire.stream_head(), wire.chunk(wire.token(1, " 1")), gate, wire.RST]
    full = [wire.reply(wire.error("Model is overloaded", "overloaded"), "429 Too Many Requests")]
    in_turn(rig, first, full, then=[wire.streamed(wire.token(1, " r1", last=" r1"))])
    reply = await rig.post(PATH, INPUTS)
    assert events_of(reply.body)[-1].get("generated_text") == " 1 r1"


async def test_a_tokenizer_that_is_late_costs_a_number_and_not_the_stream(app, wire, monkeypatch):
    monkeypatch.setattr("router.tokenizer.QUESTION_TIMEOUT_S", 0.1)
    rig = await app(3)
    first = [wire.stream_head(), wire.chunk(wire.token(1, " 1")), wire.RST]
    in_turn(rig, first, then=[wire.streamed(wire.token(1, " r1", last=" r1"))])
    for replica in rig.replicas:
        scripted = replica.script_for
        replica.script_for = lambda request, scripted=scripted: (
            [wire.STALL] if request.path == "/tokenize" else scripted(request)
        )
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 40, "details": True}}
    reply = await rig.post(PATH, body)
    assert events_of(reply.body)[-1].get("generated_text") == " 1 r1"


async def test_no_error_follows_the_last_word_at_the_deadline(app, wire):
    rig = await app(1, timeouts={"total_s": 0.5})
    steps = [wire.stream_head(), wire.chunk(wire.delta("a", "stop")), wire.chunk(wire.DONE)]
    rig.replicas[0].say(*steps, wire.STALL)
    reply = await rig.post(CHAT_PATH, CHAT)
    assert reply.body.count(b"[DONE]") == 1
    assert b'"error"' not in reply.body


async def test_no_error_follows_the_last_word_at_the_drain_bound(app, wire):
    rig = await app(1, timeouts={"drain_s": 0.3})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1, "a", last="a")), wire.STALL)
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    body = await client.chunk()
    await rig.app.drain()
    while piece := await client.chunk():
        body += piece
    assert b'"error"' not in body


async def test_a_call_in_its_quiet_time_is_told_at_the_drain_bound(app, wire, until):
    """It is in no queue and with no replica just then."""
    rig = await app(1, timeouts={"drain_s": 0.0}, health=QUIET)
    replica = rig.replicas[0]
    for _ in range(2):
        replica.say(wire.stream_head(), wire.chunk(wire.token(1, " x")), wire.RST)
    replica.otherwise = [wire.STALL]
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    await until(lambda: len([one for one in replica.requests if one.path == PATH]) == 2)
    await rig.app.drain()
    body = b""
    while piece := await client.chunk():
        body += piece
    assert "shuts down" in events_of(body)[-1]["error"]


async def test_a_client_s_mistake_on_a_stream_is_no_stream_that_broke_off(app, wire):
    rig = await app(1)
    rig.replicas[0].say(wire.streamed(wire.error_event("Input validation error: x", "validation")))
    await rig.post(PATH, INPUTS)
    assert rig.metric("resumes_total", model="default", outcome="refused") == 0
