"""Plain `curl` with every TGI parameter spelled out: the router's answer is the replica's own."""

import json
import subprocess

import pytest

pytestmark = pytest.mark.e2e

MAX_TOTAL_TOKENS = 160
ABSENT_TOKENS = 100
"""What a length that is not given at all means up to 2.4."""
NULLS = {
    "best_of": None,
    "repetition_penalty": None,
    "return_full_text": None,
    "seed": None,
    "stop": [],
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate": None,
    "typical_p": None,
    "watermark": False,
    "decoder_input_details": False,
    "details": True,
    "do_sample": False,
    "max_new_tokens": None,
    "frequency_penalty": None,
    "top_n_tokens": None,
    "grammar": None,
    "adapter_id": None,
}
"""As TGI's clients send them: null wherever TGI takes a null."""
VALUES = {
    "best_of": 1,
    "repetition_penalty": 1.1,
    "return_full_text": True,
    "seed": 42,
    "stop": ["~~", "\n\n"],
    "temperature": 0.7,
    "top_k": 10,
    "top_p": 0.9,
    "truncate": 4,
    "typical_p": 0.95,
    "watermark": True,
    "decoder_input_details": True,
    "details": True,
    "do_sample": True,
    "max_new_tokens": 12,
    "frequency_penalty": 0.1,
    "top_n_tokens": 2,
    "grammar": None,
    "adapter_id": None,
}
PROMPT = "What is Deep Learning, and whom does it help?"


@pytest.fixture(scope="module", params=["1.4.4", "3.3.5"])
def served(request, fleets):
    """The endpoint and one replica's URL."""
    with fleets() as fleet:
        fleet.config["models"][0] |= {"replicas": 2, "max_total_tokens": MAX_TOTAL_TOKENS}
        fleet.config["engine"]["version"] = request.param
        fleet.write()
        status = fleet.up()
        yield status["endpoint"], status["replicas"][0]["url"]


def curl(url, body, *options):
    """Status, content type and body of one POST."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--max-time", "20", *options),
            *("--write-out", "\n%{http_code} %{content_type}"),
            *("--header", "Content-Type: application/json"),
            *("--data", json.dumps(body), url),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    text, _, told = done.stdout.rpartition("\n")
    status, _, content_type = told.partition(" ")
    return int(status), content_type, text


def everywhere(served, path, body, *options):
    """The endpoint's answer, which is the replica's to the byte."""
    endpoint, replica = served
    answer = curl(endpoint + path, body, *options)
    assert answer == curl(replica + path, body, *options)
    return answer


def events(text):
    return [
        json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("d")
    ]


@pytest.mark.parametrize("path", ["/generate", "/"])
@pytest.mark.parametrize("parameters", [NULLS, VALUES], ids=["nulls", "values"])
def test_every_parameter_spelled_out_on_a_unary_call(served, path, parameters):
    status, content_type, text = everywhere(
        served, path, {"inputs": PROMPT, "parameters": parameters}
    )
    assert (status, content_type) == (200, "application/json")
    answer = json.loads(text)
    answer = answer[0] if path == "/" else answer
    check_length(answer["details"], parameters)
    assert answer["generated_text"].startswith(PROMPT) is (parameters is VALUES or path == "/")


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
@pytest.mark.parametrize("parameters", [NULLS, VALUES], ids=["nulls", "values"])
def test_every_parameter_spelled_out_on_a_stream(served, path, parameters):
    parameters = {**parameters, "decoder_input_details": False}  # refused on streams
    body = {"inputs": PROMPT, "parameters": parameters}
    if path == "/":
        body["stream"] = True
    status, content_type, text = everywhere(served, path, body, "--no-buffer")
    assert (status, content_type) == (200, "text/event-stream")
    found = events(text)
    assert all(event["generated_text"] is None for event in found[:-1])
    tokens = "".join(event["token"]["text"] for event in found)
    assert found[-1]["generated_text"].endswith(tokens)
    assert found[-1]["details"]["generated_tokens"] == len(found)
    if parameters["max_new_tokens"]:
        assert len(found) == parameters["max_new_tokens"]
    else:
        assert len(found) > ABSENT_TOKENS


def check_length(details, parameters):
    """A null length is the rest of the context, in every version; it is not an absent one."""
    wanted = parameters["max_new_tokens"]
    if wanted:
        assert details["generated_tokens"] == wanted
    else:
        assert details["generated_tokens"] > ABSENT_TOKENS
    assert details["finish_reason"] == "length"
    assert details["seed"] == parameters["seed"]
    assert len(details["tokens"]) == details["generated_tokens"]


def test_two_of_best_of_are_asked_of_one_replica(served):
    parameters = {**NULLS, "best_of": 2, "do_sample": True, "max_new_tokens": 5}
    endpoint, _ = served
    status, _, text = curl(f"{endpoint}/generate", {"inputs": PROMPT, "parameters": parameters})
    assert status == 200
    assert len(json.loads(text)["details"]["best_of_sequences"]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("best_of", 9), ("temperature", 0.0), ("top_k", 0), ("top_p", 1.5), ("typical_p", 2)),
        *(("truncate", 0), ("max_new_tokens", 0), ("repetition_penalty", 0), ("top_n_tokens", 99)),
        *(("stop", ["x"] * 9), ("max_new_tokens", 10_000)),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_engine_s_words(served, name, value):
    body = {"inputs": PROMPT, "parameters": {**NULLS, name: value}}
    status, content_type, text = everywhere(served, "/generate", body)
    assert (status, content_type) == (422, "application/json")
    assert json.loads(text)["error_type"] == "validation"


def test_no_parameters_at_all(served):
    endpoint, _ = served
    status, _, text = curl(f"{endpoint}/generate", {"inputs": "hi"})
    assert status == 200
    assert json.loads(text)["generated_text"]
