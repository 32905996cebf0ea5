"""Streams that break off in mid-answer: through a whole router the client sees one that did not."""

import asyncio
import json

import pytest

from router.resume import MAX_RAW_BYTES
from router.retry import PROGRESS_EVENTS

INPUTS = {"inputs": "hello", "parameters": {"max_new_tokens": 40}}
CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 9}
FAILED = ("Request failed during generation: CUDA", "generation")
PATH = "/generate_stream"
CHAT_PATH = "/v1/chat/completions"


def events_of(body):
    return [json.loads(event[5:]) for event in body.split(b"\n\n") if event.startswith(b"data:")]


def texts_of(body):
    return "".join(event["token"]["text"] for event in events_of(body))


def tokens(wire, count, first=1, last=None):
    """Some tokens; with `last` the final one holds that text."""
    made = [wire.token(number, f" {number}") for number in range(first, first + count)]
    if last is not None:
        made[-1] = wire.token(first + count - 1, f" {first + count - 1}", last=last)
    return made


def rest(wire, count):
    """A continuation of so many tokens, as the next replica numbers them."""
    return wire.streamed(*[wire.token(i, f" r{i}") for i in range(1, count)], final(wire, count))


def final(wire, count):
    return wire.token(count, f" r{count}", last="".join(f" r{i}" for i in range(1, count + 1)))


def in_turn(rig, *scripts, then):
    """The replicas' answers to calls, whoever of them is asked: these in order, then that."""
    left = iter(scripts)

    def script_for(request, aside):
        return next(left, then) if request.path in ("/generate_stream", CHAT_PATH) else aside

    for replica in rig.replicas:
        scripted = replica.script_for
        replica.script_for = lambda request, scripted=scripted: script_for(
            request, scripted(request)
        )


async def broken_then_whole(rig, wire, steps, body=INPUTS):
    """The first replica asked breaks off with these steps, the next one gives the rest."""
    in_turn(rig, steps, then=[rest(wire, 3)])
    return await rig.post(PATH, body)


def requests_of(rig, path=PATH):
    return [one for replica in rig.replicas for one in replica.requests if one.path == path]


def prompt_length(request):
    return len(json.loads(request.body)["inputs"])


ENDINGS = ("CUT", "RST", "half", "garbage", "clean", "error", "error and more")


def ending(wire, how):
    return {
        "CUT": [wire.CUT],
        "RST": [wire.RST],
        "half": [wire.chunk(wire.token(3)[:25]), wire.CUT],
        "garbage": [b"zz\r\n"],
        "clean": [wire.LAST_CHUNK],
        "error": [wire.chunk(wire.error_event(*FAILED)) + wire.LAST_CHUNK],
        "error and more": [wire.chunk(wire.token(3, " 3") + wire.error_event(*FAILED)), wire.STALL],
    }[how]


@pytest.mark.parametrize("how", ENDINGS)
async def test_however_a_stream_breaks_off_another_replica_goes_on(app, wire, how):
    rig = await app(2)
    gate = asyncio.Event()
    steps = [wire.stream_head(), *map(wire.chunk, tokens(wire, 2)), gate, *ending(wire, how)]
    in_turn(rig, steps, then=[rest(wire, 3)])
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    body = await client.chunk()
    gate.set()
    while piece := await client.chunk():
        body += piece
    had = 3 if how == "error and more" else 2
    events = events_of(body)
    assert [event["index"] for event in events] == list(range(1, had + 4))
    before = "".join(f" {number}" for number in range(1, had + 1))
    assert events[-1]["generated_text"] == before + " r1 r2 r3" == texts_of(body)
    first, second = sorted(requests_of(rig), key=prompt_length)
    assert json.loads(first.body) == INPUTS
    assert json.loads(second.body)["inputs"] == "hello" + before
    assert json.loads(second.body)["parameters"]["max_new_tokens"] == 40 - had
    line = await rig.line()
    assert (line["status"], line["attempts"], line["error"]) == (200, 2, None)
    assert line["generated_tokens"] == had + 3
    assert rig.metric("resumes_total", model="default", outcome="resumed") == 1


async def test_the_client_never_notices_by_the_head_either(app, wire):
    rig = await app(2)
    steps = [wire.stream_head("x-compute-type: one\r\n"), wire.chunk(wire.token(1)), wire.RST]
    reply = await broken_then_whole(rig, wire, steps)
    assert reply.all("content-type") == ["text/event-stream"]
    assert reply.get("x-compute-type") == "one"
    assert reply.is_whole


async def test_a_stream_that_falls_silent_goes_on_elsewhere(app, wire):
    rig = await app(2, timeouts={"between_events_s": 0.1})
    steps = [wire.stream_head(), wire.chunk(wire.token(1, " 1")), wire.STALL]
    reply = await broken_then_whole(rig, wire, steps)
    assert texts_of(reply.body) == " 1 r1 r2 r3"
    silent = min(requests_of(rig), key=prompt_length)
    async with asyncio.timeout(5):
        await silent.gone.wait()


async def test_the_only_replica_goes_on_itself_once_it_is_back(app, wire, until):
    rig = await app(1)
    replica = rig.replicas[0]
    replica.say(wire.stream_head(), wire.chunk(wire.token(1, " 1")), wire.STALL)
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    body = await client.chunk()
    await replica.die()
    await until(lambda: not rig["r0"].is_usable)
    replica.otherwise = [rest(wire, 2)]
    await replica.start()
    while piece := await client.chunk():
        body += piece
    assert texts_of(body) == " 1 r1 r2"


async def test_a_stream_survives_replica_after_replica(app, wire):
    """Each gets it further, so it is to blame for none of them."""
    rig = await app(3, health={"eject_after": 1000})
    legs = [
        [wire.token(i, f" {leg}.{i}") for i in range(1, PROGRESS_EVENTS + 1)] for leg in range(3)
    ]
    scripts = [[wire.stream_head(), *map(wire.chunk, leg), wire.RST] for leg in legs]
    in_turn(rig, *scripts, then=[rest(wire, 2)])
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 1000}}
    reply = await rig.post(PATH, body)
    events = events_of(reply.body)
    assert [event["index"] for event in events] == list(range(1, 3 * PROGRESS_EVENTS + 3))
    assert events[-1]["generated_text"] == texts_of(reply.body)
    assert (await rig.line())["attempts"] == 4


async def test_what_kills_each_replica_at_once_is_refused_in_mid_answer_too(app, wire):
    rig = await app(4, health={"interval_s": 1000})
    for replica in rig.replicas:
        replica.otherwise = [wire.stream_head(), wire.chunk(wire.token(1, " 1")), wire.RST]
    reply = await rig.post(PATH, INPUTS)
    *told, error = events_of(reply.body)
    assert [event["index"] for event in told] == [1, 2, 3]
    assert error["error_type"] == "validation"
    assert "3 replicas died" in error["error"]
    assert (await rig.line())["attempts"] == 3


async def test_a_suspect_is_alone_only_until_it_gets_further(app, wire, until):
    rig = await app(1, entries={"max_requests": 4}, health={"interval_s": 1000})
    replica, gate = rig.replicas[0], asyncio.Event()
    several = [wire.token(i, f" {i}") for i in range(1, PROGRESS_EVENTS + 1)]
    for _ in range(2):
        replica.say(wire.stream_head(), wire.chunk(wire.token(1, " x")), wire.RST)
    last = wire.chunk(wire.token(9, " end", last="x")) + wire.LAST_CHUNK
    replica.say(
        wire.stream_head(),
        *map(wire.chunk, several[:-1]),
        gate,
        wire.chunk(several[-1]),
        gate,
        last,
    )
    client = await rig.client()
    client.post(PATH, INPUTS)
    await replica.request(3)
    assert rig["r0"].alone
    other = await rig.client()
    other.post("/generate", INPUTS)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    gate.set()
    assert (await other.reply()).status == 200
    assert (await client.reply()).is_whole


async def test_while_it_waits_for_another_replica_comments_keep_the_stream_open(app, wire, until):
    rig = await app(1, timeouts={"stream_open_after_s": 0.05})
    replica = rig.replicas[0]
    replica.say(wire.stream_head(), wire.chunk(wire.token(1, " 1")), wire.STALL)
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    assert await client.chunk() == wire.token(1, " 1")
    await replica.die()
    assert await client.chunk() == b":\n\n"
    replica.otherwise = [rest(wire, 1)]
    await replica.start()
    body = b""
    while piece := await client.chunk():
        body += piece
    assert texts_of(body) == " r1"


async def test_a_client_that_leaves_while_its_stream_is_continued_leaves_nothing(app, wire, until):
    rig = await app(2)
    in_turn(rig, [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST], then=[wire.STALL])
    client = await rig.client()
    client.post(PATH, INPUTS)
    await client.head()
    await until(lambda: len(requests_of(rig)) == 2)
    client.leave()
    await rig.at_rest()
    assert rig.metric("cancellations_total", phase="prefill") == 1


# ---- what is left of the end ----


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_an_end_that_is_out_is_completed_by_the_router(app, wire, cut):
    """The finish reason has come; usage and [DONE] may not have: nothing is generated again."""
    rig = await app(2)
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    extra = {"id": "", "object": "chat.completion.chunk", "created": 1, "choices": []}
    sent = [
        wire.delta(" a"),
        wire.delta(" b", "stop"),
        as_event({**extra, "usage": usage}),
        wire.DONE,
    ]
    counted = json.dumps({"tokenize_response": [[0]] * 5, "templated_text": ""}).encode()
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(counted)]
    in_turn(rig, [wire.stream_head(), *map(wire.chunk, sent[: cut + 1]), wire.RST], then=[wire.CUT])
    body = {**CHAT, "stream_options": {"include_usage": True}}
    reply = await rig.post(CHAT_PATH, body)
    assert reply.is_whole
    assert events_of(reply.body.replace(wire.DONE, b"")) == events_of(b"".join(sent[:-1]))
    assert reply.body.endswith(wire.DONE)
    assert len(requests_of(rig, CHAT_PATH)) == 1
    line = await rig.line()
    assert (line["status"], line["error"]) == (200, None)


def as_event(value):
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


async def test_numbers_are_asked_for_only_where_the_client_wants_them(app, wire):
    rig = await app(2)
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST]
    await broken_then_whole(rig, wire, steps)
    assert not requests_of(rig, "/tokenize")


async def test_a_tokenizer_that_dies_costs_an_attempt_and_no_more(app, wire):
    rig = await app(3)
    for replica in rig.replicas:
        scripted = replica.script_for
        replica.script_for = lambda request, scripted=scripted: (
            [wire.RST] if request.path == "/tokenize" else scripted(request)
        )
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 40, "details": True}}
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST]
    reply = await broken_then_whole(rig, wire, steps, body)
    assert events_of(reply.body)[-1]["error_type"] == "validation"  # each of them died of it


# ---- what is not continued ----


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar"),
        ({"do_sample": True, "seed": 1}, "router.resume.seeded"),
    ],
)
async def test_what_cannot_be_continued_ends_in_an_error_that_says_why(app, wire, parameters, why):
    rig = await app(2)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 9, **parameters}}
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST]
    reply = await broken_then_whole(rig, wire, steps, body)
    token, error = events_of(reply.body)
    assert token["index"] == 1
    assert error["error_type"] == "incomplete_generation"
    assert "lost" in error["error"]
    assert why in error["error"]
    assert reply.is_whole
    assert rig.metric("resumes_total", model="default", outcome="refused") == 1
    assert (await rig.line())["attempts"] == 1


async def test_what_the_engine_refuses_to_continue_is_told_in_its_words(app, wire):
    """Prompt and text so far are longer than it takes."""
    rig = await app(2)
    too_long = "Input validation error: `inputs` must have less than 9 tokens. Given: 11"
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST]
    in_turn(rig, steps, then=[wire.streamed(wire.error_event(too_long, "validation"))])
    reply = await rig.post(PATH, INPUTS)
    error = events_of(reply.body)[-1]
    assert error["error_type"] == "incomplete_generation"
    assert too_long in error["error"]


async def test_an_engine_s_error_that_cannot_be_helped_is_relayed_as_sent(app, wire):
    """Each replica fails it: the client is told what the last one said."""
    rig = await app(2)
    error = wire.error_event(*FAILED)
    for replica in rig.replicas:
        replica.otherwise = [wire.streamed(wire.token(1, " 1"), error)]
    reply = await rig.post(PATH, INPUTS)
    assert reply.body.endswith(error)
    assert reply.body.count(b'"error"') == 1
    assert [event["index"] for event in events_of(reply.body)[:-1]] == [1, 2, 3]
    line = await rig.line()
    assert (line["error"], line["attempts"]) == (FAILED[0], 3)


async def test_a_token_called_error_is_no_error(app, wire):
    rig = await app()
    sent = [wire.token(1, "error"), wire.token(2, '"error"', last='error"error"')]
    rig.replicas[0].say(wire.streamed(*sent))
    assert (await rig.post(PATH, INPUTS)).body == b"".join(sent)


async def test_after_an_event_too_large_to_keep_nothing_is_continued(app, wire):
    rig = await app(2)
    huge = wire.token(2, "x" * 1_500_000)
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.chunk(huge), wire.CUT]
    reply = await broken_then_whole(rig, wire, steps)
    assert b"too large to be kept" in reply.body[-300:]


async def test_a_long_stream_is_kept_as_text_and_continued_all_the_same(app, wire):
    rig = await app(2)
    count = 2 * MAX_RAW_BYTES // len(wire.token(100, " 100"))
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 10_000}}
    steps = [wire.stream_head(), *map(wire.chunk, tokens(wire, count)), wire.CUT]
    reply = await broken_then_whole(rig, wire, steps, body)
    events = events_of(reply.body)
    assert [event["index"] for event in events] == list(range(1, count + 4))
    assert events[-1]["generated_text"] == texts_of(reply.body)


async def test_switched_off_nothing_is_continued(app, wire):
    rig = await app(2, resume={"enabled": False})
    steps = [wire.stream_head(), wire.chunk(wire.token(1)), wire.RST]
    reply = await broken_then_whole(rig, wire, steps)
    assert "router.resume.enabled" in events_of(reply.body)[-1]["error"]
