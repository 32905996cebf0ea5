"""Routes passed on as they are: their cost is read, and nothing is refused that can be routed."""

import json

import pytest

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.errors import InvalidRequest, QueueTimeout, RouteNotServed, UpstreamBroken

APIS = {**GENERATION_APIS, **TOKENIZER_APIS}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
PLAIN = [
    *("/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/v1/score"),
    *("/completion", "/infill", "/detokenize", "/v1/messages/count_tokens"),
]


def ask(path, value):
    return APIS[path].parse(path, json.dumps(value).encode())


@pytest.mark.parametrize(
    ("path", "body", "sequences", "chars", "new_tokens"),
    [
        ("/v1/embeddings", {"input": "abc"}, 1, 3, 0),
        ("/v1/embeddings", {"input": ["abc", "de"]}, 2, 5, 0),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 1, 12, 0),
        ("/v1/embeddings", {"input": [[1, 2], [3]]}, 2, 12, 0),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "abc"}]}, 1, 3, 0),
        ("/v1/responses", {"input": "abc"}, 1, 3, "absent"),
        ("/v1/responses", {"input": "abc", "instructions": "de"}, 1, 5, "absent"),
        ("/v1/responses", {"input": "abc", "max_output_tokens": 7}, 1, 3, 7),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "abc"}]}]},
            *(1, 3, "absent"),
        ),
        (
            "/v1/messages",
            {"system": "ab", "messages": [{"role": "user", "content": "cd"}], "max_tokens": 9},
            *(1, 4, 9),
        ),
        ("/v1/rerank", {"query": "ab", "documents": ["cde", {"text": "fg"}]}, 2, 7, 0),
        ("/v1/score", {"text_1": "ab", "text_2": ["cd", "e"]}, 2, 5, 0),
        ("/completion", {"prompt": "abc", "n_predict": 4}, 1, 3, 4),
        ("/completion", {"prompt": "abc", "n_predict": -1}, 1, 3, "absent"),
        ("/completion", {"prompt": ["ab", "c"]}, 2, 3, "absent"),
        ("/completion", {"prompt": [12, "ab"]}, 1, 6, "absent"),
        ("/completion", {"prompt": {"prompt_string": "abc"}}, 1, 3, "absent"),
        (
            "/infill",
            {"input_prefix": "ab", "input_suffix": "c", "input_extra": [{"text": "de"}]},
            *(1, 5, "absent"),
        ),
        ("/detokenize", {"tokens": [1, 2, 3]}, 1, 12, 0),
    ],
)
def test_what_a_call_brings_and_may_produce(path, body, sequences, chars, new_tokens):
    found = ask(path, body)
    assert (found.sequences, found.input_chars) == (sequences, chars)
    assert found.new_tokens == new_tokens


@pytest.mark.parametrize("path", PLAIN)
def test_a_body_of_unknown_fields_is_passed_on_with_its_model_and_stream(path):
    found = ask(path, {"model": "m", "stream": True, "some_day": {"a": ["b"]}})
    assert (found.model, found.stream, found.sequences) == ("m", True, 1)
    assert found.input_chars >= 1


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("body", [{"model": 1}, {"stream": "yes"}])
def test_what_cannot_be_routed_is_refused(path, body):
    with pytest.raises(InvalidRequest):
        ask(path, body)


def test_images_are_counted_and_never_by_their_base64():
    content = [{"type": "input_text", "text": "abc"}, IMAGE, IMAGE]
    found = ask("/v1/responses", {"input": [{"role": "user", "content": content}]})
    assert (found.images, found.input_chars) == (2, 3)


def test_calls_that_share_their_instructions_share_their_affinity():
    one = ask("/v1/responses", {"input": "a", "instructions": "s" * 300})
    two = ask("/v1/responses", {"instructions": "s" * 300, "input": "b"})
    assert one.affinity == two.affinity != ""


@pytest.mark.parametrize("path", PLAIN)
def test_nesting_costs_no_stack(path):
    for key in ("input", "messages", "documents", "prompt", "input_extra", "tokens", "text_1"):
        try:
            found = ask(path, {key: json.loads("[" * 400 + "]" * 400)})
        except InvalidRequest:
            continue
        assert found.input_chars >= 1


# ---- errors ----


@pytest.mark.parametrize("path", [path for path in PLAIN if "messages" not in path])
def test_errors_have_openais_shape(path):
    body = json.loads(APIS[path].error_body(RouteNotServed("x")))
    assert body["error"]["message"] == "x"
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (RouteNotServed("x"), "not_found_error"),
        (QueueTimeout("x"), "overloaded_error"),
        (UpstreamBroken("x"), "api_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_on_messages_have_anthropics_shape(error, kind):
    expected = {"type": "error", "error": {"type": kind, "message": "x"}}
    api = APIS["/v1/messages"]
    assert json.loads(api.error_body(error)) == expected
    name, data = api.error_event(error).removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error", "its client drops events without a name"
    assert json.loads(data.removeprefix(b"data: ")) == expected
