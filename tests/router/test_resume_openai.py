"""Streams of OpenAI's chunks cut anywhere and continued, as vLLM and llama-server stream them.

vLLM is a function here (tests/fakes/pure_vllm.py); of llama-server the real one is tried in
test_resume_llama.py.
"""

import json

import orjson
import pytest

from router.apis import GENERATION_APIS
from router.call import Call
from router.dialects import DIALECTS
from router.dialects.base import EngineInfo
from router.resume import NotResumable

OPENAI = DIALECTS["openai"]
VLLM, LLAMA = EngineInfo(preempts=True), EngineInfo(preempts=False)
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OPTIONS = {"model": "served", "max_tokens": 11, "temperature": 0, "stream": True}
USAGE = {"stream_options": {"include_usage": True}}
CHAT = {"messages": [{"role": "user", "content": "The river has"}], **OPTIONS}
COMPLETION = {"prompt": "The river has", **OPTIONS}
BODIES = [(CHATS, CHAT), (COMPLETIONS, COMPLETION)]


@pytest.fixture(scope="session")
def vllm(fake):
    return fake("pure_vllm").PureVllm


def transcript_of(path, body, info=VLLM):
    data = orjson.dumps(body)
    call = Call("id", path, GENERATION_APIS[path].parse(path, data), data, (), 0.0, 60.0, 60.0)
    return OPENAI.transcript(call, info, seeded=False)


def continued(engine, path, body, *cuts):
    """All that the client gets when the stream breaks after so many events, once for each cut."""
    told, sent, seam = b"", engine.events(path, body), None
    for cut in (*cuts, None):
        for event in sent[:cut]:
            told += seam.mend(event) if seam else event
        if cut is None:
            break
        transcript = transcript_of(path, body)
        transcript.read(told)
        question = transcript.question()
        counted = OPENAI.counted(engine.tokenize(question.body)) if question else None
        if transcript.is_finished:
            told += transcript.last_words(counted)
            break
        continuation = transcript.continued(counted)
        seam, sent = continuation.seam, engine.events(path, continuation.call.body)
    return told


def chunks_of(told):
    *events, done = told.split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    assert b"[DONE]" not in b"".join(events)
    return [json.loads(event[6:]) for event in events]


def text_of(chunks):
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(one["text"] if "text" in one else one["delta"]["content"] for one in choices)


def finishes_of(chunks):
    found = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    return [finish for finish in found if finish]


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("per_chunk", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, USAGE])
def test_a_stream_cut_anywhere_says_the_same(vllm, path, body, per_chunk, options):
    engine, body = vllm(per_chunk), {**body, **options}
    whole = chunks_of(b"".join(engine.events(path, body)))
    for cut in range(1, len(whole) + 2):
        chunks = chunks_of(continued(engine, path, body, cut))
        assert text_of(chunks) == text_of(whole), cut
        assert finishes_of(chunks) == ["length"], cut
        assert [c["usage"] for c in chunks if c.get("usage")] == [
            c["usage"] for c in whole if c.get("usage")
        ], cut
        assert len({chunk["id"] for chunk in chunks}) == 1
        roles = [c["choices"][0]["delta"].get("role") for c in chunks if "delta" in str(c)]
        assert [role for role in roles if role] == ["assistant"] * (path == CHATS)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_several_failures_are_no_other_case(vllm, path, body):
    engine, body = vllm(1), {**body, **USAGE}
    whole = chunks_of(b"".join(engine.events(path, body)))
    for cuts in ([2, 2, 2], [1, 1, 1, 1], [0, 3, 0, 2], [11, 1], [3, 9]):
        chunks = chunks_of(continued(engine, path, body, *cuts))
        assert text_of(chunks) == text_of(whole), cuts
        assert chunks[-1]["usage"] == whole[-1]["usage"], cuts


def test_vllm_is_told_to_continue_and_white_space_that_comes_again_is_dropped(vllm):
    transcript = transcript_of(CHATS, CHAT)
    for text in ("one", " two", " "):
        transcript.read(event({"delta": {"content": text}}))
    continuation = transcript.continued(None)
    body = json.loads(continuation.call.body)
    assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    seam = continuation.seam
    mended = seam.mend(event({"delta": {"content": " three"}}))
    assert json.loads(mended[6:])["choices"][0]["delta"]["content"] == "three"


def event(choice, **more):
    choice = {"index": 0, "finish_reason": None, **choice}
    return b"data: " + orjson.dumps({"id": "a", "choices": [choice], **more}) + b"\n\n"


def test_llama_server_continues_a_last_message_and_may_repeat_it():
    for first, fresh in (("one two three", " three"), (" three", " three")):
        transcript = transcript_of(CHATS, CHAT, LLAMA)
        transcript.read(event({"delta": {"role": "assistant", "content": None}}))
        transcript.read(
            event({"delta": {"content": "one"}}) + event({"delta": {"content": " two"}})
        )
        continuation = transcript.continued(2)
        body = json.loads(continuation.call.body)
        assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
        assert "continue_final_message" not in body
        assert body["max_tokens"] == 9
        seam = continuation.seam
        assert seam.mend(event({"delta": {"role": "assistant", "content": None}})) == b""
        mended = seam.mend(event({"delta": {"content": first}}))
        assert json.loads(mended[6:])["choices"][0]["delta"]["content"] == fresh


def test_a_message_that_the_client_began_is_continued_where_the_engine_was_told_to(vllm):
    began = {"role": "assistant", "content": "Well,"}
    told = {"continue_final_message": True, "add_generation_prompt": False}
    body = {**CHAT, "messages": [*CHAT["messages"], began], **told}
    transcript = transcript_of(CHATS, body)
    transcript.read(event({"delta": {"content": " yes"}}))
    messages = json.loads(transcript.continued(None).call.body)["messages"]
    assert messages[-1] == {"role": "assistant", "content": "Well, yes"}
    assert len(messages) == 2


def test_limits_in_tokens_are_those_of_the_rest():
    body = {**COMPLETION, "min_tokens": 4, "truncate_prompt_tokens": 7}
    transcript = transcript_of(COMPLETIONS, body)
    transcript.read(event({"text": " one two"}))
    asked = json.loads(transcript.continued(3).call.body)
    assert [asked[key] for key in ("max_tokens", "min_tokens", "truncate_prompt_tokens")] == [
        8,
        1,
        10,
    ]


def test_both_names_of_the_limit_are_kept_in_step():
    body = {**CHAT, "max_completion_tokens": 11}
    transcript = transcript_of(CHATS, body)
    transcript.read(event({"delta": {"content": " one"}}))
    asked = json.loads(transcript.continued(1).call.body)
    assert (asked["max_tokens"], asked["max_completion_tokens"]) == (10, 10)


def test_usage_of_every_chunk_is_that_of_the_whole():
    transcript = transcript_of(COMPLETIONS, COMPLETION)
    transcript.read(event({"text": " one two"}))
    seam = transcript.continued(2).seam
    told = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    mended = json.loads(seam.mend(event({"text": " three"}, usage=told))[6:])
    assert mended["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_usage_that_was_cut_off_is_told_by_whoever_generates_the_last_piece_again(vllm):
    """The end of the text is a token of its own, which only an engine can count."""
    body = {**COMPLETION, **USAGE}
    transcript = transcript_of(COMPLETIONS, body)
    transcript.read(event({"text": " one"}) + event({"text": " two", "finish_reason": "stop"}))
    assert not transcript.is_finished
    assert json.loads(transcript.question().body)["prompt"] == " one"
    continuation = transcript.continued(1)
    assert json.loads(continuation.call.body)["prompt"] == "The river has one"
    assert json.loads(continuation.call.body)["max_tokens"] == len(" two") + 1
    seam = continuation.seam
    assert seam.mend(event({"text": " two", "finish_reason": "length"})) == b""
    told = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    mended = seam.mend(b"data: " + orjson.dumps({"choices": [], "usage": told}) + b"\n\n")
    assert json.loads(mended[6:])["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
    }


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "grammar"),
        ({"guided_regex": "a"}, "grammar"),
        ({"structured_outputs": {"regex": "a"}}, "grammar"),
        ({"logprobs": True}, "log probabilities"),
        ({"prompt_logprobs": 1}, "log probabilities"),
        ({"return_token_ids": True}, "token ids"),
        ({"n": 2}, "several answers"),
        ({"seed": 4, "temperature": 1}, "seed"),
    ],
)
def test_what_cannot_be_continued_says_why(fields, why):
    with pytest.raises(NotResumable, match=why):
        transcript_of(CHATS, {**CHAT, **fields})


@pytest.mark.parametrize(
    "fields", [{"tools": [{}], "tool_choice": "none"}, {"tools": []}, {"n": 1}]
)
def test_what_asks_for_nothing_of_the_kind_is_taken(fields):
    transcript_of(CHATS, {**CHAT, **fields})


def test_images_and_other_routes_are_refused():
    parts = [{"type": "image_url", "image_url": {"url": "data:,x"}}]
    body = {**CHAT, "messages": [{"role": "user", "content": parts}]}
    with pytest.raises(NotResumable, match="images"):
        transcript_of(CHATS, body)
    with pytest.raises(NotResumable, match="/v1/responses"):
        transcript_of("/v1/responses", {"input": "x", "stream": True})


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "reasoning", "function_call"])
def test_an_answer_that_holds_more_than_text_is_refused(key):
    transcript = transcript_of(CHATS, CHAT)
    with pytest.raises(NotResumable, match="more than text"):
        transcript.read(event({"delta": {key: "x"}}))


def test_an_engine_that_refuses_is_quoted():
    transcript = transcript_of(CHATS, CHAT)
    transcript.read(event({"delta": {"content": "one"}}))
    seam = transcript.continued(1).seam
    error = {"error": {"message": "roles must alternate", "type": "BadRequestError", "code": 400}}
    with pytest.raises(NotResumable, match="refused to continue it: roles must alternate"):
        seam.mend(b"data: " + orjson.dumps(error) + b"\n\n")
