"""The judge takes what a simulator really sends, and nothing that differs from it anywhere."""

import itertools
import json
import random
from dataclasses import replace

import pytest

from launcher.simulator.generation import Sequence
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel
from launcher.simulator.wire import TgiStream, UnaryBody
from launcher.simulator.wire_openai import ChatStream, CompletionStream, chat_body, completion_body
from tests.campaign.asks import CHAT, ERA, SAMPLED, SEEDED, TGI, mixed
from tests.campaign.http_reply import Reply
from tests.campaign.oracle import Kind, Oracle

MODEL = TextModel(0.004)
ORACLE = Oracle(MODEL, is_stable=True)
ASKS = list(itertools.islice(mixed("oracle", MODEL), 300))
STREAMS = [ask for ask in ASKS if ask.is_stream]
LONG = [ask for ask in STREAMS if ask.new_tokens > 20 and not ask.stop]


class Nobody:
    def token(self, sequence, token): ...
    def fail(self, error): ...


def generated(ask, model=MODEL):
    """What the engine has after the call, and each token on the way."""
    seed = 12_345 if ask.draw == SAMPLED else ask.seed
    real = ask.engine_ask.parameters
    checked = replace(
        ask.engine_ask,
        input_tokens=model.count(ask.prompt),
        parameters=replace(real, details=ask.wants_details or ask.api != TGI),
    )
    return Sequence(checked, seed, model, ERA, Nobody())


def events_of(ask, model=MODEL):
    """The events of a stream, and its end, as the simulator writes them."""
    form = {
        TGI: lambda: TgiStream(ERA, False),
        CHAT: lambda: ChatStream(ERA, "m", ask.wants_usage, False),
    }.get(ask.api, lambda: CompletionStream(ERA, "m", 0))()
    sequence, events = generated(ask, model), []
    while sequence.finish_reason is None:
        data = form.token(sequence, sequence.advance())
        events += [part + b"\n\n" for part in data.split(b"\n\n") if part]
    return events + [form.end()] * bool(form.end())


def body_of(ask):
    sequence = generated(ask)
    while sequence.finish_reason is None:
        sequence.advance()
    if ask.api == TGI:
        body = UnaryBody(MODEL, False).generated(sequence, [], False)
        return [body] if ask.path == "/" else body
    if ask.api == CHAT:
        return chat_body(ERA, "m", sequence, False)
    return completion_body(ERA, "m", [sequence])


def reply(ask, pieces, status=200, content_type=None, id=None):
    content_type = content_type or ("text/event-stream" if ask.is_stream else "application/json")
    fields = {"x-request-id": id or ask.id, "content-type": content_type}
    return Reply(status, fields, [piece for piece in pieces if piece], is_whole=True)


def judged(ask, pieces, **head):
    return ORACLE.judge(ask, reply(ask, pieces, **head))


def stream_error(ask, message="the connection to the replica was lost inside its reply"):
    if ask.api == TGI:
        value = {"error": message, "error_type": "incomplete_generation"}
        return [b"data: " + json.dumps(value).encode() + b"\n\n"]
    value = {"error": {"message": message, "code": "incomplete_generation"}}
    return [b"data: " + json.dumps(value).encode() + b"\n\n", b"data: [DONE]\n\n"]


def test_the_load_has_all_kinds_of_calls():
    assert {(ask.api, ask.is_stream) for ask in ASKS} == {
        (api, stream) for api in ("tgi", "completion", "chat") for stream in (True, False)
    }
    assert {ask.draw for ask in ASKS} == {"greedy", "seeded", "sampled"}
    assert any(ask.stop for ask in ASKS)


def test_the_same_seed_makes_the_same_load():
    assert list(itertools.islice(mixed("oracle", MODEL), 300)) == ASKS


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: f"{ask.id} {ask.kind}")
def test_what_the_simulator_sends_is_right(ask):
    pieces = events_of(ask) if ask.is_stream else [json.dumps(body_of(ask)).encode()]
    assert judged(ask, pieces).kind is Kind.RIGHT
    assert judged(ask, [b"".join(pieces)]).kind is Kind.RIGHT
    assert judged(ask, pieces, id="another").kind is Kind.LOST
    assert judged(ask, pieces, content_type="text/plain").kind is Kind.LOST


@pytest.mark.parametrize("seed", range(150))
def test_a_stream_with_an_event_lost_doubled_or_moved_is_not(seed):
    rng = random.Random(seed)
    ask = rng.choice(LONG)
    events = events_of(ask)
    at, kind = rng.randrange(len(events)), rng.choice(["lost", "doubled", "moved"])
    if kind == "lost":
        spoilt = events[:at] + events[at + 1 :]
    elif kind == "doubled":
        spoilt = events[: at + 1] + events[at:]
    else:
        spoilt = [*events[:at], *events[at + 1 :], events[at]]
    if spoilt != events and not is_same_text(ask, events, spoilt):
        assert judged(ask, spoilt).kind is Kind.LOST, kind


def is_same_text(ask, events, spoilt):
    """Two neighbours of an OpenAI stream may have the same text: swapped, they are as before."""
    return ask.api != TGI and sorted(events) == sorted(spoilt) and events[-2:] == spoilt[-2:]


@pytest.mark.parametrize("seed", range(150))
def test_a_stream_with_a_changed_word_is_not(seed):
    rng = random.Random(seed)
    ask = rng.choice([ask for ask in LONG if ask.draw != SAMPLED])
    events = events_of(ask)
    at = rng.randrange(len(events) - 4)
    events[at] = events[at].replace(b'"text":" ', b'"text":" x').replace(b'nt":" ', b'nt":" x')
    if events != events_of(ask):
        assert judged(ask, events).kind is Kind.LOST


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_stream_that_just_stops_is_not(cut):
    for ask in LONG[:3]:
        whole = b"".join(events_of(ask))
        assert judged(ask, [whole[:-cut]]).kind is Kind.LOST


def test_chunks_hold_whole_events():
    ask = LONG[0]
    whole = b"".join(events_of(ask))
    assert judged(ask, [whole[:50], whole[50:]]).kind is Kind.LOST


def test_counts_are_held_against_the_text():
    for ask in LONG[:60]:
        spoilt = [
            event.replace(b'"completion_tokens":', b'"completion_tokens":1')
            .replace(b'"generated_tokens":', b'"generated_tokens":1')
            .replace(b'"prompt_tokens":', b'"prompt_tokens":1')
            .replace(b'"input_length":', b'"input_length":1')
            for event in events_of(ask)
        ]
        if spoilt != events_of(ask):
            assert judged(ask, spoilt).kind is Kind.LOST


@pytest.mark.parametrize("ask", LONG[:40], ids=lambda ask: f"{ask.id} {ask.kind}")
def test_a_broken_stream_should_have_been_resumed_unless_it_has_a_seed(ask):
    pieces = events_of(ask)[:3] + stream_error(ask)
    expected = Kind.EXCUSED if ask.draw == SEEDED else Kind.NOT_RESUMED
    assert judged(ask, pieces).kind is expected


def test_an_error_before_the_first_event_has_no_excuse():
    for ask in LONG[:20]:
        assert judged(ask, stream_error(ask)).kind is Kind.REFUSED


def test_nothing_follows_an_error():
    ask = next(ask for ask in LONG if ask.api == TGI)
    events = events_of(ask)
    assert judged(ask, events[:3] + stream_error(ask) + events[3:]).kind is Kind.LOST


def test_a_wrong_text_before_an_error_is_no_excuse():
    ask = next(ask for ask in LONG if ask.api == TGI and ask.draw == "greedy")
    events = events_of(ask)
    assert judged(ask, [events[0], events[2], *stream_error(ask)]).kind is Kind.LOST


def test_errors_have_a_type_and_no_status_500():
    ask = ASKS[0]
    right = b'{"error":"the queue is full","error_type":"overloaded"}'
    json_type = {"content_type": "application/json"}
    assert judged(ask, [right], status=429, **json_type).kind is Kind.REFUSED
    assert judged(ask, [right], status=500, **json_type).kind is Kind.LOST
    assert judged(ask, [b'{"error":"?"}'], status=429, **json_type).kind is Kind.LOST
    assert judged(ask, [b"overloaded"], status=429, content_type="text/plain").kind is Kind.LOST
    poison = b'{"error":"refused: 3 replicas died while they served this call","error_type":"v"}'
    assert judged(ask, [poison], status=422, **json_type).kind is Kind.EXCUSED


@pytest.mark.parametrize("seed", range(40))
def test_unstable_texts_may_have_seams_and_nothing_else(seed):
    model = BpeModel(0.004)
    oracle, rng = Oracle(model, is_stable=False), random.Random(seed)
    ask = rng.choice([ask for ask in LONG if ask.api == TGI and ask.draw != SAMPLED])
    events = events_of(ask, model)
    verdict = oracle.judge(ask, reply(ask, events))
    assert (verdict.kind, verdict.seams) == (Kind.RIGHT, 0)
    at = rng.randrange(len(events) - 8)
    assert oracle.judge(ask, reply(ask, events[:at] + events[at + 1 :])).kind is Kind.LOST
