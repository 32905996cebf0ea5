"""What routing reads of TGI's own routes: defaults, nulls, wrong types, wrappers."""

import json

import pytest

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.apis.tgi import AFFINITY_CHARS
from router.errors import InvalidRequest, QueueFull, UpstreamFault

APIS = {**GENERATION_APIS, **TOKENIZER_APIS}
PLAIN = ["/", "/generate", "/generate_stream", "/invocations"]
ALL_NULL = dict.fromkeys(
    (
        *("best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p"),
        *("typical_p", "max_new_tokens", "return_full_text", "stop", "truncate", "seed"),
        *("top_n_tokens", "grammar", "adapter_id", "do_sample", "watermark", "details"),
        "decoder_input_details",
    )
)


def ask(path, value):
    return APIS[path].parse(path, json.dumps(value).encode())


def refusal(path, value):
    with pytest.raises(InvalidRequest) as caught:
        ask(path, value)
    return caught.value.message


@pytest.mark.parametrize("path", PLAIN)
def test_the_least_a_call_needs_is_its_inputs(path):
    found = ask(path, {"inputs": "hello"})
    assert found.input_chars == 5
    assert found.sequences == 1
    assert found.new_tokens == "absent"
    assert found.truncate_tokens is None
    assert found.model is None
    assert found.affinity == "hello"
    assert found.stream is (path == "/generate_stream")


@pytest.mark.parametrize("path", PLAIN)
def test_every_parameter_may_be_null(path):
    body = {"inputs": "hello", "parameters": ALL_NULL, "stream": None, "model": None}
    found = ask(path, body)
    assert found.new_tokens == "rest"
    assert found.sequences == 1
    assert ask(path, {"inputs": "hello", "parameters": None}).new_tokens == "absent"


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({}, "absent"), ({"max_new_tokens": None}, "rest"), ({"max_new_tokens": 7}, 7)],
)
def test_an_absent_limit_is_not_an_explicit_null(path, parameters, expected):
    assert ask(path, {"inputs": "x", "parameters": parameters}).new_tokens == expected


@pytest.mark.parametrize(
    ("path", "stream", "expected"),
    [
        ("/", True, True),
        ("/", False, False),
        ("/", None, False),
        ("/invocations", True, True),
        ("/generate", True, False),
        ("/generate", False, False),
        ("/generate_stream", False, True),
    ],
)
def test_only_the_root_route_listens_to_the_stream_flag(path, stream, expected):
    assert ask(path, {"inputs": "x", "stream": stream}).stream is expected


@pytest.mark.parametrize(("given", "permits"), [(None, 1), (0, 1), (1, 1), (2, 2), (4, 4)])
def test_best_of_takes_that_many_permits(given, permits):
    assert ask("/generate", {"inputs": "x", "parameters": {"best_of": given}}).sequences == permits


def test_each_sequence_of_best_of_holds_the_whole_prompt():
    one = ask("/generate", {"inputs": "x" * 400})
    four = ask("/generate", {"inputs": "x" * 400, "parameters": {"best_of": 4}})
    assert four.input_chars == 4 * one.input_chars


@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": 1}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": "x", "parameters": []}, "parameters"),
        ({"inputs": "x", "parameters": "temperature=1"}, "parameters"),
        ({"inputs": "x", "parameters": {"max_new_tokens": "20"}}, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 20.5}}, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"max_new_tokens": True}}, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 2**32}}, "max_new_tokens"),
        ({"inputs": "x", "parameters": {"best_of": -1}}, "best_of"),
        ({"inputs": "x", "parameters": {"best_of": 10**9}}, "best_of"),
        ({"inputs": "x", "parameters": {"best_of": []}}, "best_of"),
        ({"inputs": "x", "parameters": {"truncate": "all"}}, "truncate"),
        ({"inputs": "x", "parameters": {"truncate": -5}}, "truncate"),
        ({"inputs": "x", "model": 7}, "model"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(path, body, names):
    assert names in refusal(path, body)


def test_a_wrong_stream_flag_is_refused_where_it_counts():
    for path in ("/", "/invocations"):
        assert "stream" in refusal(path, {"inputs": "x", "stream": "yes"})


def test_the_affinity_key_is_the_start_of_the_prompt():
    first = ask("/generate", {"inputs": "p" * AFFINITY_CHARS + "one"})
    second = ask("/generate", {"inputs": "p" * AFFINITY_CHARS + "two"})
    assert first.affinity == second.affinity
    assert len(first.affinity) == AFFINITY_CHARS


def test_model_and_truncate_are_read():
    found = ask("/generate", {"inputs": "x", "model": "tgi", "parameters": {"truncate": 12}})
    assert (found.model, found.truncate_tokens) == ("tgi", 12)


# ---- wrappers ----


def test_sagemaker_takes_each_kind_of_body():
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}
    found = ask("/invocations", chat)
    assert (found.input_chars, found.new_tokens, found.stream) == (2, 3, True)
    found = ask("/invocations", {"prompt": ["ab", "cde"], "max_tokens": 4})
    assert (found.sequences, found.input_chars, found.new_tokens) == (2, 5, 4)
    both = ask("/invocations", {"inputs": "abc", "messages": []})
    assert both.input_chars == 3, "TGI tries its own shape first"


def test_sagemaker_names_what_it_would_take():
    message = refusal("/invocations", {"text": "x"})
    assert all(word in message for word in ("inputs", "messages", "prompt"))


def test_an_image_in_a_prompt_is_counted_as_one_not_by_its_length():
    picture = "![](data:image/png;base64," + "A" * 1_000_000 + ")"
    found = ask("/generate", {"inputs": f"What is {picture}?"})
    assert (found.images, found.input_chars) == (1, len("What is ?"))


def test_vertex_runs_all_its_instances_at_once():
    body = {
        "instances": [
            {"inputs": "ab", "parameters": {"max_new_tokens": 5}},
            {"inputs": "cde", "parameters": {"max_new_tokens": 9}},
        ],
        "parameters": {"ignored": True},
    }
    found = ask("/vertex", body)
    assert (found.instances, found.sequences) == (2, 1)
    assert (found.input_chars, found.new_tokens) == (5, 9)
    assert found.stream is False
    assert found.affinity == "ab"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": "x"},
        {"instances": None},
        {"instances": []},
        {"instances": {}},
        {"instances": ["x"]},
        {"instances": [{}]},
        {"instances": [{"inputs": "x"}, {"inputs": ""}]},
        {"instances": [{"inputs": "x", "parameters": {"max_new_tokens": "y"}}]},
    ],
)
def test_vertex_refuses_what_holds_no_prompts(body):
    refusal("/vertex", body)


def test_the_tokenizer_routes_take_a_prompt_or_a_chat():
    assert ask("/tokenize", {"inputs": "abc"}).input_chars == 3
    found = ask("/chat_tokenize", {"messages": [{"role": "user", "content": "abc"}]})
    assert found.input_chars == 3
    assert "messages" in refusal("/chat_tokenize", {})
    assert "inputs" in refusal("/tokenize", {})


@pytest.mark.parametrize(
    "body",
    [{"prompt": "abc"}, {"messages": [{"role": "user", "content": "abc"}]}, {"content": "abc"}],
    ids=["vllm", "vllm chat", "llama-server"],
)
def test_a_tokenizer_call_may_have_another_engines_shape(body):
    assert ask("/tokenize", body).input_chars == 3


# ---- errors as the text-generation client reads them ----


def test_an_error_has_tgis_two_fields():
    body = json.loads(APIS["/generate"].error_body(QueueFull("full")))
    assert body == {"error": "full", "error_type": "overloaded"}


def test_an_error_event_is_one_whole_event():
    event = APIS["/generate"].error_event(UpstreamFault('broken "é"\n\n'))
    assert event.startswith(b"data:")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1, "a blank line in the message must not end the event"
    assert json.loads(event[5:]) == {"error": 'broken "é"\n\n', "error_type": "generation"}
