"""Streams of TGI cut anywhere and continued: the client must not see where, whatever the version.

The engine is the simulator's as a function (tests/fakes/pure_tgi.py). In `text` mode a continued
greedy text is the undisturbed one to the letter; in `bpe` mode it may differ after the seam, but
never lacks, doubles or breaks a character, and its counts are right.
"""

import json
import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.apis import GENERATION_APIS
from router.call import Call
from router.dialects import DIALECTS
from router.dialects.base import EngineInfo
from router.resume import NotResumable

TGI = DIALECTS["tgi"]
VERSIONS = ("1.4.4", "2.0.4", "2.2.0", "2.3.1", "2.4.1", "3.0.0", "3.1.1", "3.3.5")
CHAT_VERSIONS = ("3.0.0", "3.1.1", "3.3.5")
PROMPT = "The river has a stone and"


def call_of(path, body):
    data = orjson.dumps(body)
    return Call("id", path, GENERATION_APIS[path].parse(path, data), data, (), 0.0, 60.0, 60.0)


def transcript_of(engine, path, body, *, seeded=False, told=None):
    info = EngineInfo(version=engine.version, max_input_tokens=4095, told=told or {})
    return TGI.transcript(call_of(path, body), info, seeded=seeded)


def continued(engine, path, body, cuts, **options):
    """The client's events when the stream breaks after so many events, once for each cut."""
    told = []
    sent = engine.events(path, body)
    seam = None
    for cut in (*cuts, None):
        for event in sent[:cut]:
            mended = seam.mend(event) if seam else event
            if mended:
                told.append(mended)
            if seam and seam.is_over:
                return events_of(told)
        if cut is None:
            return events_of(told)
        transcript = transcript_of(engine, path, body, **options)
        transcript.read(b"".join(told))
        question = transcript.question()
        answer = engine.tokenize(question.path, question.body) if question else None
        counted = TGI.counted(answer) if answer else None
        if transcript.is_finished:
            return events_of([*told, transcript.last_words(counted)])
        continuation = transcript.continued(counted)
        seam, sent = continuation.seam, engine.events(path, continuation.call.body)
    return events_of(told)


def events_of(told):
    return [read(event) for event in b"".join(told).split(b"\n\n")[:-1]]


def read(event):
    data = event.partition(b"data:")[2].strip()
    value = data.decode() if data == b"[DONE]" else json.loads(data)
    if isinstance(value, dict):
        value.pop("created", None)
    return value


def generate(new_tokens=12, **parameters):
    parameters = {"max_new_tokens": new_tokens, "details": True, **parameters}
    return {"inputs": PROMPT, "parameters": parameters}


def chat(new_tokens=12, **fields):
    messages = [{"role": "user", "content": PROMPT}]
    fields = {"temperature": 0, "max_tokens": new_tokens, "stream": True, **fields}
    return {"model": "tgi", "messages": messages, **fields}


def completion(new_tokens=12, **fields):
    fields = {"temperature": 0, "max_tokens": new_tokens, "stream": True, **fields}
    return {"model": "tgi", "prompt": PROMPT, **fields}


# ---- tokens that stay what they are: the undisturbed stream to the letter ----


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
@pytest.mark.parametrize("details", [True, False])
def test_a_greedy_stream_cut_anywhere_is_the_undisturbed_one(tgi, version, path, details):
    engine = tgi(version)
    body = {**generate(details=details), "stream": True}
    whole = events_of(engine.events(path, body))
    for cut in range(1, len(whole)):
        assert continued(engine, path, body, [cut]) == whole, cut


@pytest.mark.parametrize("version", VERSIONS)
def test_many_failures_of_one_stream_are_no_other_case(tgi, version):
    engine = tgi(version)
    whole = events_of(engine.events("/generate_stream", generate(40)))
    for cuts in ([1] * 10, [3, 1, 7, 2], [0, 5, 0, 0, 9], [39], [20, 19]):
        assert continued(engine, "/generate_stream", generate(40), cuts) == whole, cuts


@pytest.mark.parametrize("version", CHAT_VERSIONS)
@pytest.mark.parametrize("usage", [True, False])
def test_a_chat_cut_anywhere_is_the_undisturbed_one(tgi, version, usage):
    engine = tgi(version)
    body = chat(stream_options={"include_usage": usage})
    whole = events_of(engine.events("/v1/chat/completions", body))
    for cut in range(1, len(whole) + 1):
        assert continued(engine, "/v1/chat/completions", body, [cut]) == whole, cut


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_a_text_completion_cut_anywhere_is_the_undisturbed_one(tgi, version):
    """Zero temperature is greedy from 2.0.2 on; before, these routes always sample."""
    engine = tgi(version)
    whole = events_of(engine.events("/v1/completions", completion()))
    for cut in range(1, len(whole) + 1):
        assert continued(engine, "/v1/completions", completion(), [cut]) == whole, cut


def test_a_finish_reason_that_is_out_is_completed_and_nothing_asked(tgi):
    """Rule i: what fails after it is never generated again."""
    engine = tgi("3.3.5")
    body = chat(stream_options={"include_usage": True})
    whole = events_of(engine.events("/v1/chat/completions", body))
    asked = len(engine.asked)
    for cut in (12, 13, 14):
        assert continued(engine, "/v1/chat/completions", body, [cut]) == whole
    assert len(engine.asked) == asked + 3  # the streams that broke, and no other


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_that_ends_by_itself_does(tgi, version):
    """The end of the text is a token of its own, and special."""
    engine = tgi(version, eos_rate=0.05)
    body = generate(200)
    whole = events_of(engine.events("/generate_stream", body))
    assert whole[-1]["details"]["finish_reason"] == "eos_token"
    for cut in range(1, len(whole)):
        assert continued(engine, "/generate_stream", body, [cut]) == whole, cut


# ---- the end of the answer ----


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stop_sequence_that_began_before_the_seam_ends_the_stream(tgi, version):
    engine = tgi(version)
    text = engine.events("/generate_stream", generate(30))[-1]
    text = read(text)["generated_text"]
    words = text.split(" ")
    stop = " ".join(words[8:12])[1:]  # begins inside a word and spans several tokens
    body = generate(30, stop=[stop])
    whole = events_of(engine.events("/generate_stream", body))
    assert whole[-1]["details"]["finish_reason"] == "stop_sequence"
    for cut in range(1, len(whole)):
        assert continued(engine, "/generate_stream", body, [cut]) == whole, cut


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stop_sequence_across_the_seam_ends_a_stream_of_chunks(tgi, path):
    engine = tgi("3.3.5")
    plain = chat(30) if "chat" in path else completion(30)
    text = "".join(text_of(event) for event in events_of(engine.events(path, plain)))
    stop = " ".join(text.split(" ")[6:10])[2:]
    body = {**plain, "stop": [stop], "stream_options": {"include_usage": True}}
    whole = events_of(engine.events(path, body))
    for cut in range(1, len(whole)):
        assert continued(engine, path, body, [cut]) == whole, cut


def text_of(event):
    if event == "[DONE]" or not event["choices"]:
        return ""
    choice = event["choices"][0]
    return choice["delta"]["content"] if "delta" in choice else choice["text"]


def test_a_continuation_that_would_overshoot_ends_where_the_client_said(tgi):
    """TGI runs whole slices of 1024 tokens, so what is left of 1500 would come to 2048."""
    engine = tgi("3.3.5")
    told = continued(engine, "/generate_stream", generate(1500), [10])
    assert [event["index"] for event in told] == list(range(1, 1501))
    assert told[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 1500,
        "seed": None,
        "input_length": 6,
    }
    assert told[-1]["generated_text"] == "".join(event["token"]["text"] for event in told)


@pytest.mark.parametrize(("version", "tokens"), [("1.4.4", 100), ("2.4.1", 100), ("3.3.5", None)])
def test_a_length_that_is_absent_means_what_it_means_to_the_engine(tgi, version, tokens):
    engine = tgi(version)
    body = {"inputs": PROMPT, "parameters": {"do_sample": False}}
    transcript = transcript_of(engine, "/generate_stream", body)
    transcript.read(b"".join(engine.events("/generate_stream", body)[:7]))
    parameters = orjson.loads(transcript.continued(None).call.body)["parameters"]
    assert parameters.get("max_new_tokens") == (tokens and tokens - 7)


def test_an_explicit_null_stays_one_where_it_means_the_rest(tgi):
    engine = tgi("2.2.0")
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": None}}
    transcript = transcript_of(engine, "/generate_stream", body)
    transcript.read(b"".join(engine.events("/generate_stream", body)[:7]))
    assert orjson.loads(transcript.continued(None).call.body)["parameters"] == {
        "max_new_tokens": None
    }


# ---- the prompt ----


def test_truncate_grows_with_the_prompt(tgi):
    """It keeps the prompt's end: the text so far must not push out what the answer rests on."""
    engine = tgi("3.3.5")
    body = generate(20, truncate=3)
    whole = events_of(engine.events("/generate_stream", body))
    for cut in (1, 5, 19):
        assert continued(engine, "/generate_stream", body, [cut]) == whole
    assert engine.asked[-1]["parameters"]["truncate"] == 3 + 19


def test_without_parameters_it_is_still_sampled(tgi):
    engine = tgi("3.3.5")
    body = {"inputs": PROMPT}
    transcript = transcript_of(engine, "/generate_stream", body)
    transcript.read(b"".join(engine.events("/generate_stream", {**body, "parameters": {}})[:3]))
    assert orjson.loads(transcript.continued(None).call.body)["parameters"] == {"do_sample": True}


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_a_prompt_that_is_echoed_stands_before_the_whole_text_once(tgi, asked, path):
    engine = tgi("3.3.5")
    body = {**generate(return_full_text=asked), "stream": True}
    whole = events_of(engine.events(path, body))
    for cut in (1, 6, 11):
        assert continued(engine, path, body, [cut]) == whole


def test_a_text_that_repeats_its_prompt_is_not_taken_for_an_echo(tgi):
    transcript = transcript_of(tgi("3.3.5"), "/generate_stream", {"inputs": "la"})
    transcript.read(token_event(1, "la") + token_event(2, "la"))
    seam = transcript.continued(None).seam
    mended = seam.mend(token_event(1, "lalalala", "lalalala"))
    assert read(mended.strip())["generated_text"] == "lalalalalala"


def token_event(index, text, last=None):
    token = {"id": 1, "text": text, "logprob": -1, "special": False}
    value = {"index": index, "token": token, "generated_text": last, "details": None}
    return b"data: " + orjson.dumps(value) + b"\n\n"


def test_a_chat_of_the_clients_own_beginning_is_continued_in_place(tgi):
    engine = tgi("3.3.5")
    body = chat()
    body["messages"].append({"role": "assistant", "content": "Well, the"})
    whole = events_of(engine.events("/v1/chat/completions", body))
    assert continued(engine, "/v1/chat/completions", body, [4]) == whole
    assert [message["role"] for message in engine.asked[-1]["messages"]] == ["user", "assistant"]


def test_a_prompt_that_could_not_be_counted_is_what_the_engine_counts_less_the_text(tgi):
    engine = tgi("3.3.5")
    transcript = transcript_of(engine, "/generate_stream", generate())
    transcript.read(b"".join(engine.events("/generate_stream", generate())[:5]))
    continuation = transcript.continued(None)
    sent = engine.events("/generate_stream", continuation.call.body)
    last = read(continuation.seam.mend(b"".join(sent)).split(b"\n\n")[-2])
    assert last["details"]["input_length"] == engine.model.count(PROMPT)


# ---- tokens that do not stay what they are ----


@pytest.mark.parametrize("version", ["1.4.4", "2.3.1", "3.3.5"])
@given(data=st.data())
def test_in_bpe_mode_no_character_is_lost_or_doubled_and_counts_are_right(tgi, version, data):
    engine = tgi(version, "bpe")
    words = data.draw(st.lists(st.sampled_from(["river", "é", "🙂x", "stone,"]), min_size=1))
    body = {**generate(60), "inputs": " ".join(words)}
    cuts = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))
    if sum(cuts) >= 60:
        return
    told = continued(engine, "/generate_stream", body, cuts)
    check_tokens(told, 60, engine.model.count(body["inputs"]), version)
    seams = len(cuts)
    assert is_joined(engine, body, told[-1]["generated_text"], seams)


def check_tokens(told, new_tokens, prompt_tokens, version):
    text = "".join(event["token"]["text"] for event in told if not event["token"]["special"])
    last = told[-1]
    assert [event["index"] for event in told] == list(range(1, len(told) + 1))
    assert last["generated_text"] == text
    assert "\ufffd" not in text
    assert last["details"]["generated_tokens"] == len(told) == new_tokens
    assert all(event["generated_text"] is None for event in told[:-1])
    if version >= "2.3":
        assert last["details"]["input_length"] == prompt_tokens


def is_joined(engine, body, text, seams):
    """Whether a text is made of what the engine says to the prompt, and to the prompt with a part
    of it, and so on: the only ways in which it may differ from the undisturbed one.
    """
    undisturbed = engine.model.cursor(body["inputs"], None)
    longest = "".join(said(undisturbed, 60))
    if longest.startswith(text):
        return True
    if not seams:
        return False
    common = next(i for i in range(len(text)) if longest[i : i + 1] != text[i])
    return any(
        is_joined(engine, {**body, "inputs": body["inputs"] + text[:end]}, text[end:], seams - 1)
        for end in range(common, -1, -1)
    )


def said(cursor, count):
    for _ in range(count):
        token = cursor.advance()
        if not token.special:
            yield token.text


@pytest.mark.parametrize("seed", range(8))
def test_in_bpe_mode_chats_keep_their_characters_and_counts(tgi, seed):
    rng = random.Random(seed)
    engine = tgi("3.3.5", "bpe")
    body = chat(60, stream_options={"include_usage": True})
    body["messages"][0]["content"] = f"{rng.random()}"
    prompt_tokens = len(
        orjson.loads(engine.tokenize("/chat_tokenize", orjson.dumps(body)))["tokenize_response"]
    )
    for cut in range(1, 60):
        told = continued(engine, "/v1/chat/completions", body, [cut])
        *chunks, usage, done = told
        assert done == "[DONE]"
        assert usage["choices"] == []
        assert usage["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 60,
            "total_tokens": prompt_tokens + 60,
        }
        assert len(chunks) == 60
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 59 + [
            "length"
        ]
        assert "\ufffd" not in "".join(map(text_of, chunks))


# ---- white space that comes again ----


def delta(text, finish=None):
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "", "choices": [choice]}) + b"\n\n"


@pytest.mark.parametrize(("stop", "rest"), [("ab", "bc"), ("a\nb", "b")])
def test_white_space_that_is_dropped_still_stands_between_for_a_stop_sequence(tgi, stop, rest):
    transcript = transcript_of(tgi("3.3.5"), "/v1/chat/completions", chat(stop=[stop]))
    transcript.read(delta(" a") + delta("\n"))
    seam = transcript.continued(None).seam
    told = seam.mend(delta("\n")) + seam.mend(delta("b")) + seam.mend(delta("c", "length"))
    assert "".join(text_of(event) for event in events_of([told])) == rest


def test_a_begun_message_is_continued_as_the_engine_saw_it(tgi):
    body = chat()
    body["messages"].append({"role": "assistant", "content": "Hello "})
    transcript = transcript_of(tgi("3.3.5"), "/v1/chat/completions", body)
    transcript.read(delta(" world"))
    messages = orjson.loads(transcript.continued(None).call.body)["messages"]
    assert messages[-1]["content"] == "Hello world"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"grammar": {"type": "regex", "value": "a+"}}, "grammar"),
        ({"watermark": True}, "watermarked"),
        ({"do_sample": True, "seed": 3}, "seed"),
        ({"top_p": 0.9, "seed": 3}, "seed"),
        ({"temperature": 0.5, "seed": 3}, "seed"),
        ({"best_of": 2, "do_sample": True}, "several answers"),
    ],
)
def test_what_cannot_be_continued_says_why(tgi, parameters, why):
    with pytest.raises(NotResumable, match=why):
        transcript_of(tgi("3.3.5"), "/generate_stream", generate(**parameters))


def test_a_prompt_with_images_is_refused(tgi):
    body = {"inputs": "![](https://example.org/a.png) What is it?"}
    with pytest.raises(NotResumable, match="images"):
        transcript_of(tgi("3.3.5"), "/generate_stream", body)


@pytest.mark.parametrize("parameters", [{"seed": 3}, {"do_sample": True}, {"temperature": 1.0}])
def test_greedy_calls_with_a_seed_and_sampled_ones_without_are_taken(tgi, parameters):
    transcript_of(tgi("3.3.5"), "/generate_stream", generate(**parameters))


def test_sampled_calls_with_a_seed_are_taken_when_that_is_allowed(tgi):
    body = generate(do_sample=True, seed=3)
    engine = tgi("3.3.5")
    told = continued(engine, "/generate_stream", body, [5], seeded=True)
    assert len(told) == 12
    assert engine.asked[-1]["parameters"]["seed"] == 3


@pytest.mark.parametrize("version", ["1.4.4", "2.4.1"])
def test_chats_below_3_0_are_refused(tgi, version):
    with pytest.raises(NotResumable, match=r"from 3\.0 on"):
        transcript_of(tgi(version), "/v1/chat/completions", chat())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "grammar"),
        ({"logprobs": True}, "log probabilities"),
        ({"n": 2}, "several answers"),
        ({"seed": 1, "temperature": 0.7}, "seed"),
    ],
)
def test_chats_that_cannot_be_continued_say_why(tgi, fields, why):
    with pytest.raises(NotResumable, match=why):
        transcript_of(tgi("3.3.5"), "/v1/chat/completions", chat(**fields))


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2, 3], [[1, 2]]])
def test_completions_of_other_prompts_than_one_text_are_refused(tgi, prompt):
    with pytest.raises(NotResumable, match=r"one text|several answers"):
        transcript_of(tgi("3.3.5"), "/v1/completions", {**completion(), "prompt": prompt})


def test_what_the_engine_refuses_to_continue_is_said_in_its_words(tgi):
    transcript = transcript_of(tgi("3.3.5"), "/generate_stream", generate())
    transcript.read(token_event(1, " a"))
    seam = transcript.continued(None).seam
    error = b'data: {"error":"Input validation error: too long","error_type":"validation"}\n\n'
    with pytest.raises(NotResumable, match="refused to continue it: Input validation error"):
        seam.mend(error)


@pytest.mark.parametrize(
    "event", [b"data: {}\n\n", b"data: x\n\n", b"data: []\n\n", b"event: x\n\n"]
)
def test_an_event_of_an_unknown_shape_is_never_continued(tgi, event):
    transcript = transcript_of(tgi("3.3.5"), "/generate_stream", generate())
    with pytest.raises(NotResumable):
        transcript.read(event)
