"""What routing reads of OpenAI's routes, and errors as OpenAI's client reads them."""

import json

import pytest

from router.apis import GENERATION_APIS
from router.errors import (
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    QueueTimeout,
    Unauthorized,
    UpstreamBroken,
)

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def ask(path, value):
    return GENERATION_APIS[path].parse(path, json.dumps(value).encode())


def refusal(path, value):
    with pytest.raises(InvalidRequest) as caught:
        ask(path, value)
    return caught.value.message


def test_the_least_a_chat_needs():
    found = ask(CHAT, {"messages": HI})
    assert (found.input_chars, found.sequences, found.images) == (2, 1, 0)
    assert (found.new_tokens, found.stream, found.model) == ("absent", False, None)


def test_the_least_a_completion_needs():
    found = ask(TEXT, {"prompt": "abc"})
    assert (found.input_chars, found.sequences, found.new_tokens) == (3, 1, "absent")


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": HI}), (TEXT, {"prompt": "x"})])
@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"max_tokens": None}, "absent"),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
    ],
)
def test_the_token_limit_has_two_names_and_null_means_absent(path, body, extra, expected):
    assert ask(path, {**body, **extra}).new_tokens == expected


def test_every_optional_field_may_be_null():
    keys = ("model", "max_tokens", "temperature", "top_p", "stop", "stream", "seed", "logprobs")
    found = ask(CHAT, {"messages": HI, **dict.fromkeys(keys)})
    assert (found.model, found.stream) == (None, False)


def test_several_prompts_take_a_permit_each():
    found = ask(TEXT, {"prompt": ["ab", "cde", "f"], "max_tokens": 4})
    assert (found.sequences, found.input_chars, found.affinity) == (3, 6, "ab")


@pytest.mark.parametrize(
    ("prompt", "sequences", "chars"), [([1, 2, 3], 1, 12), ([[1, 2], [3]], 2, 12)]
)
def test_prompts_of_token_ids_count_as_so_many_tokens(prompt, sequences, chars):
    found = ask(TEXT, {"prompt": prompt})
    assert (found.sequences, found.input_chars) == (sequences, chars)
    assert found.affinity == ask(TEXT, {"prompt": prompt}).affinity != ""


@pytest.mark.parametrize(
    ("path", "body", "choices"),
    [
        (CHAT, {"messages": HI}, 1),
        (CHAT, {"messages": HI, "n": None}, 1),
        (CHAT, {"messages": HI, "n": 3}, 3),
        (CHAT, {"messages": HI, "n": 0}, 1),
        (TEXT, {"prompt": "x", "n": 2}, 2),
        (TEXT, {"prompt": "x", "n": 2, "best_of": 5}, 5),
    ],
)
def test_wanted_answers_are_counted_beside_the_prompts(path, body, choices):
    found = ask(path, body)
    assert (found.sequences, found.choices) == (1, choices)


def test_minus_one_is_all_that_is_left():
    assert ask(CHAT, {"messages": HI, "max_tokens": -1}).new_tokens == "rest"


def test_all_texts_of_a_chat_count_and_images_are_counted_apart():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    messages = [
        {"role": "system", "content": "abc"},
        {"role": "user", "content": [{"type": "text", "text": "de"}, image, image]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    found = ask(CHAT, {"messages": messages})
    assert (found.input_chars, found.images) == (5, 2)


def test_chats_that_share_their_start_share_their_affinity():
    system = {"role": "system", "content": "s" * 300}
    one = ask(CHAT, {"messages": [system, *HI]})
    two = ask(CHAT, {"messages": [system, {"role": "user", "content": "other"}]})
    assert one.affinity == two.affinity != ""


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": ["hi"]}, "messages"),
        (CHAT, {"messages": [None]}, "messages"),
        (CHAT, {"messages": HI, "stream": "true"}, "stream"),
        (CHAT, {"messages": HI, "max_tokens": "9"}, "max_tokens"),
        (CHAT, {"messages": HI, "max_tokens": -2}, "max_tokens"),
        (CHAT, {"messages": HI, "n": "2"}, "n"),
        (CHAT, {"messages": HI, "model": ["m"]}, "model"),
        (TEXT, {}, "prompt"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ["a", ""]}, "prompt"),
        (TEXT, {"prompt": ["a", 1]}, "prompt"),
        (TEXT, {"prompt": [1, 2.5]}, "prompt"),
        (TEXT, {"prompt": [True]}, "prompt"),
        (TEXT, {"prompt": [[1], "a"]}, "prompt"),
        (TEXT, {"prompt": [[1], []]}, "prompt"),
        (TEXT, {"prompt": [["a"]]}, "prompt"),
        (TEXT, {"prompt": {"a": 1}}, "prompt"),
        (TEXT, {"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(path, body, names):
    assert names in refusal(path, body)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (ModelNotFound("x"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (QueueFull("x"), "rate_limit_error"),
        (QueueTimeout("x"), "server_error"),
        (UpstreamBroken("x"), "server_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_have_openais_shape(error, kind):
    body = json.loads(GENERATION_APIS[CHAT].error_body(error))
    assert body["error"]["message"] == "x"
    assert body["error"]["type"] == kind
    assert body["error"].keys() >= {"message", "type", "code", "param"}


def test_an_error_event_is_followed_by_done():
    """OpenAI's client reads until `[DONE]` and raises what stood before it."""
    event = GENERATION_APIS[CHAT].error_event(UpstreamBroken("a\n\nb"))
    first, second, rest = event.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["error"]["message"] == "a\n\nb"
    assert (second, rest) == (b"data: [DONE]", b"")
