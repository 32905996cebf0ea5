"""TGI 1.4 to 3.3 as the router reads it: limits, costs, errors in three shapes, ends of streams."""

import json

import pytest

from router.apis import GENERATION_APIS
from router.call import Ask
from router.dialects import DIALECTS, EngineInfo
from router.errors import (
    Retry,
    UpstreamBroken,
    UpstreamFault,
    UpstreamRefusal,
    UpstreamShed,
)
from router.estimates import Estimates

TGI = DIALECTS["tgi"]
JSON = {"content-type": "application/json"}

INFO_A = {
    "model_id": "TheBloke/Llama-2-7B-Chat-GPTQ",
    "model_dtype": "torch.float16",
    "model_device_type": "cuda",
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_input_length": 1024,
    "max_total_tokens": 2048,
    "waiting_served_ratio": 1.2,
    "max_batch_total_tokens": 16_000,
    "max_waiting_tokens": 20,
    "max_batch_size": None,
    "version": "1.4.4",
}
INFO_B = {
    "model_id": "M",
    "model_sha": None,
    "max_concurrent_requests": 64,
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "version": "3.3.5-dev0",
}


def info(version, total=4096):
    body = {**INFO_B, "version": version, "max_total_tokens": total}
    return TGI.info({"/info": json.dumps(body).encode()})


def estimates():
    """A character is a token; answers use half of what they may."""
    made = Estimates()
    made.chars_per_token = 1.0
    made.output_share = 0.5
    return made


def cost(version, total=4096, **ask):
    return TGI.cost(Ask(**ask), info(version, total), estimates())


# ---- /info ----


def test_the_old_shape_tells_the_token_budget():
    found = TGI.info({"/info": json.dumps(INFO_A).encode()})
    assert found.version == (1, 4, 4)
    assert (found.capacity.requests, found.capacity.tokens) == (128, 16_000)
    assert found.capacity.batch is None
    assert (found.max_input_tokens, found.max_total_tokens) == (1024, 2048)
    assert found.model_id == INFO_A["model_id"]
    assert dict(found.told) == INFO_A


def test_the_new_shape_tells_permits_only():
    found = TGI.info({"/info": json.dumps(INFO_B).encode()})
    assert found.version == (3, 3, 5)
    assert (found.capacity.requests, found.capacity.tokens) == (64, None)
    assert not found.capacity.is_told
    assert (found.max_input_tokens, found.max_total_tokens) == (4095, 4096)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.4.4", (1, 4, 4)),
        ("2.3.1-dev0", (2, 3, 1)),
        ("3.3.6-dev0", (3, 3, 6)),
        ("2.0", (2, 0)),
        (None, (0,)),
        ("unknown", (0,)),
        ("", (0,)),
    ],
)
def test_versions_are_read_as_numbers(text, version):
    assert TGI.info({"/info": json.dumps({**INFO_B, "version": text}).encode()}).version == version


@pytest.mark.parametrize("value", [None, 0, -1, "many", 1.5, True, []])
def test_a_limit_that_is_no_count_is_taken_as_not_told(value):
    body = {**INFO_A, "max_batch_total_tokens": value, "max_concurrent_requests": value}
    found = TGI.info({"/info": json.dumps(body).encode()})
    assert found.capacity.tokens is None
    assert found.capacity.requests == 128


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"<html>", b"{}", b'{"models":[]}', b"\xff"]
)
def test_what_is_not_tgis_info_is_no_info(body):
    with pytest.raises(ValueError):  # noqa: PT011  # its text is never shown
        TGI.info({"/info": body})


@pytest.mark.parametrize(
    ("page", "queued"),
    [
        (b"# TYPE tgi_queue_size gauge\ntgi_queue_size 7\ntgi_batch_current_size 3\n", 7),
        (b"tgi_queue_size 0\n", 0),
        (b"tgi_queue_size 12.0\n", 12),
        (b"tgi_queue_size_total 5\n", 0),  # a series appears when it is first touched
        (b"# tgi_queue_size 5\n", 0),
        (b"tgi_queue_size NaN\n", None),
        (b"tgi_queue_size +Inf\n", None),
        (b"tgi_queue_size x\n", None),
        (b"", 0),
        (b"\xff\xfe", 0),
    ],
)
def test_the_engines_queue_is_read_from_its_gauge(page, queued):
    assert TGI.engine_queue(page) == queued


# ---- what a call reserves ----

COSTS = [
    # version, max_new_tokens as written, reserved beside 100 input tokens of a total of 4096
    ("1.4.4", 50, 50),
    ("1.4.4", "absent", 100),
    ("1.4.4", "rest", 3996),
    ("1.4.4", 2000, 2000),
    ("2.4.0", 50, 50),
    ("2.4.0", "absent", 100),
    ("2.4.0", "rest", 3996),
    ("2.4.0", 2000, 2000),
    ("3.0.0", 50, 50),
    ("3.0.0", 2000, 2000),
    ("3.0.0", "absent", 1024),
    ("3.0.0", "rest", 1024),
    ("3.1.0", 2000, 2000),
    ("3.1.1", 50, 50),
    ("3.1.1", 2000, 1024),
    ("3.1.1", "absent", 1024),
    ("3.1.1", "rest", 1024),
    ("3.3.5", 50, 50),
    ("3.3.5", 2000, 1024),
    ("3.3.5", 10**9, 1024),
    ("3.3.5", "absent", 1024),
    ("3.3.5", "rest", 1024),
]


@pytest.mark.parametrize(("version", "new_tokens", "reserved"), COSTS)
def test_each_version_reserves_what_its_scheduler_does(version, new_tokens, reserved):
    found = cost(version, input_chars=100, new_tokens=new_tokens)
    assert found.requests == 1
    assert found.input_tokens == 100
    assert found.reserve_tokens == 100 + reserved


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
def test_no_call_reserves_more_than_the_context(version):
    found = cost(version, 2048, input_chars=2000, new_tokens=10**6)
    assert found.reserve_tokens == 2048


@pytest.mark.parametrize("version", ["1.4.4", "2.4.0", "3.0.0", "3.1.1", "3.3.5"])
def test_every_sequence_reserves_its_own_share(version):
    one = cost(version, input_chars=100, new_tokens=50)
    four = cost(version, input_chars=400, new_tokens=50, sequences=4)
    assert four.requests == 4
    assert four.reserve_tokens == 4 * one.reserve_tokens
    assert four.expected_tokens == 4 * one.expected_tokens


def test_the_expected_length_follows_what_was_learned():
    assert cost("1.4.4", input_chars=10, new_tokens=80).expected_tokens == 40


def test_an_image_is_a_fixed_number_of_tokens():
    none = cost("3.3.5", 8192, input_chars=100, new_tokens=10)
    two = cost("3.3.5", 8192, input_chars=100, new_tokens=10, images=2)
    assert two.input_tokens - none.input_tokens == 3000


def test_truncation_bounds_the_input_of_each_sequence():
    one = cost("3.3.5", input_chars=3000, new_tokens=10, truncate_tokens=200)
    assert (one.input_tokens, one.reserve_tokens) == (200, 210)
    two = cost("3.3.5", input_chars=6000, new_tokens=10, truncate_tokens=200, sequences=2)
    assert (two.input_tokens, two.reserve_tokens) == (400, 420)


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
@pytest.mark.parametrize("chars", [5_000, 250_000, 30_000_000])
def test_a_prompt_the_engine_will_not_take_holds_no_more_than_the_longest_one(version, chars):
    """It is refused at once: until then it must not drain a replica of everything else."""
    found = cost(version, input_chars=chars, new_tokens=10)
    assert found == cost(version, input_chars=4095, new_tokens=10)
    assert (found.input_tokens, found.reserve_tokens) == (4095, 4096)


def test_more_sequences_than_the_engine_allows_hold_no_more_than_it_allows():
    found = cost("3.3.5", input_chars=1000 * 100, new_tokens=10, sequences=1000)
    assert found == cost("3.3.5", input_chars=4 * 100, new_tokens=10, sequences=4)
    assert found.requests == 4


def test_each_vertex_instance_takes_its_own_place():
    one = cost("3.3.5", input_chars=100, new_tokens=10)
    many = cost("3.3.5", input_chars=20 * 100, new_tokens=10, instances=20)
    assert many.requests == 20
    assert many.reserve_tokens == 20 * one.reserve_tokens


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_an_image_costs_the_same_however_large_it_is(path):
    def asked(size):
        url = "data:image/png;base64," + "A" * size
        parts = [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        body = {
            "inputs": f"What? ![]({url})",
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 10,
            "parameters": {"max_new_tokens": 10},
        }
        ask = GENERATION_APIS[path].parse(path, json.dumps(body).encode())
        return TGI.cost(ask, info("3.3.5", 8192), estimates())

    assert asked(100) == asked(1_000_000)
    assert 1500 < asked(100).reserve_tokens < 1600


@pytest.mark.parametrize("new_tokens", [0, 1, 2**32 - 1, "absent", "rest"])
@pytest.mark.parametrize("chars", [1, 10**9])
def test_a_cost_is_never_less_than_a_token(new_tokens, chars):
    ask = Ask(input_chars=chars, new_tokens=new_tokens)
    for told in (EngineInfo(), info("1.4.4"), info("3.3.5")):
        found = TGI.cost(ask, told, Estimates())
        assert found.requests >= 1
        assert found.input_tokens >= 1
        assert found.reserve_tokens >= 1
        assert found.expected_tokens >= 1


# ---- whole replies ----


def error(text, kind):
    return json.dumps({"error": text, "error_type": kind}).encode()


REFUSALS = [
    (429, error("Model is overloaded", "overloaded"), UpstreamShed),
    (503, error("unhealthy", "healthcheck"), UpstreamShed),
    (429, b"", UpstreamShed),
    (424, error("Request failed during generation: CUDA", "generation"), UpstreamFault),
    (500, error("Incomplete generation", "incomplete_generation"), UpstreamFault),
    (500, b"", UpstreamFault),
    (502, b"<html>bad gateway</html>", UpstreamFault),
    (504, b"\xff\xfe", UpstreamFault),
    (400, b"Failed to parse the request body as JSON", None),
    (401, b"", None),
    (404, b"", None),
    (413, b"Failed to buffer the request body", None),
    (415, b"Expected request with `Content-Type: application/json`", None),
    (422, error("Input validation error: x", "validation"), None),
    (422, b"Failed to deserialize the JSON body into the target type", None),
    (200, b'{"generated_text":"x"}', None),
    (200, b'[{"generated_text":"x"}]\n', None),
    (200, b'{"generated_text":"x', UpstreamBroken),
    (200, b"", UpstreamBroken),
    (200, b"<html>", UpstreamBroken),
    (204, b"", UpstreamBroken),
    (302, b"", UpstreamBroken),
]


@pytest.mark.parametrize(("status", "body", "expected"), REFUSALS)
def test_what_a_whole_reply_means(status, body, expected):
    found = TGI.refusal(status, JSON, body)
    assert type(found) is (expected or type(None))
    if isinstance(found, UpstreamFault):
        assert found.status == status
        assert found.message
        found.message.encode()


def test_a_fault_is_told_as_the_replica_told_it():
    found = TGI.refusal(424, JSON, error("Request failed during generation: CUDA", "generation"))
    assert found.message == "Request failed during generation: CUDA"
    assert found.error_type == "generation"


def test_a_reply_that_is_no_json_by_its_own_word_is_not_judged():
    assert TGI.refusal(200, {"content-type": "text/plain"}, b"pong") is None


def test_a_refusal_on_an_open_stream_keeps_the_replicas_words():
    found = TGI.refused(422, error("Input validation error: x", "validation"))
    assert isinstance(found, UpstreamRefusal)
    assert (found.status, found.error_type) == (422, "validation")
    assert found.message == "Input validation error: x"
    plain = TGI.refused(422, b"Failed to deserialize the JSON body")
    assert "Failed to deserialize" in plain.message


# ---- first events ----

OVERLOADED_A = b'data:{"error":"Model is overloaded","error_type":"overloaded"}'
OVERLOADED_B = b'data: {"error":"Model is overloaded","error_type":"overloaded"}'
OVERLOADED_V1 = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}'
FAULT = "Request failed during generation: Server error: CUDA error"
FAULT_A = b'data:{"error":"%s","error_type":"generation"}' % FAULT.encode()
FAULT_V1 = b'data: {"error":{"message":"%s","http_status_code":422}}' % FAULT.encode()
INVALID = "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"
INVALID_A = b'data:{"error":"%s","error_type":"validation"}' % INVALID.encode()
INVALID_V1 = b'data: {"error":{"message":"%s","http_status_code":422}}' % INVALID.encode()
TOKEN_A = (
    b'data:{"index":1,"token":{"id":13,"text":"\\"error\\": overloaded","logprob":-0.5,'
    b'"special":false},"generated_text":null,"details":null}'
)
TOKEN_B = TOKEN_A.replace(b"data:", b"data: ")
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"\\"error\\""},"finish_reason":null}]}'


@pytest.mark.parametrize("event", [OVERLOADED_A, OVERLOADED_B, OVERLOADED_V1])
def test_overload_as_a_first_event_is_a_shed(event):
    found = TGI.failure(event)
    assert type(found) is UpstreamShed
    assert found.retry is Retry.ELSEWHERE
    assert not found.hurts_health


@pytest.mark.parametrize("event", [FAULT_A, FAULT_A.replace(b"data:", b"data: "), FAULT_V1])
def test_a_failed_generation_as_a_first_event_is_a_fault(event):
    found = TGI.failure(event)
    assert type(found) is UpstreamFault
    assert FAULT in found.message


@pytest.mark.parametrize(
    "event",
    [
        b'data:{"error":"Incomplete generation","error_type":"incomplete_generation"}',
        b'data: {"error":"Incomplete generation stream",'
        b'"error_type":"incomplete_generation_stream"}',
    ],
)
def test_an_incomplete_generation_is_a_fault(event):
    assert type(TGI.failure(event)) is UpstreamFault


@pytest.mark.parametrize("event", [INVALID_A, INVALID_A.replace(b"data:", b"data: "), INVALID_V1])
def test_a_wrong_call_is_the_clients_to_see_and_blames_nobody(event):
    assert TGI.failure(event) is None


def test_a_wrong_call_that_quotes_the_word_overloaded_is_still_wrong():
    event = b'data:{"error":"Input validation error: overloaded","error_type":"validation"}'
    assert TGI.failure(event) is None


@pytest.mark.parametrize(
    "event", [TOKEN_A, TOKEN_B, CHUNK, b"data: [DONE]", b"data: x", b'data: "error"', b"data:"]
)
def test_what_is_no_error_is_relayed(event):
    assert TGI.failure(event) is None


# ---- headers of unary replies ----


def test_a_reply_reports_in_seconds_and_tokens():
    headers = {
        "x-prompt-tokens": "12",
        "x-generated-tokens": "20",
        "x-queue-time": "250",
        "x-time-per-token": "40",
    }
    found = TGI.report(headers, b"")
    assert (found.prompt_tokens, found.generated_tokens) == (12, 20)
    assert found.engine_wait_s == 0.25
    assert found.between_tokens_s == 0.04


@pytest.mark.parametrize("value", [None, "", "x", "-1", "1.5", "²", "1e3"])
def test_a_header_that_is_no_number_reports_nothing(value):
    headers = {"x-prompt-tokens": value, "x-queue-time": value} if value is not None else {}
    found = TGI.report(headers, b"")
    assert found.prompt_tokens is None
    assert found.engine_wait_s is None


# ---- ends of streams ----


def lasts(*payloads, prefix=b"data: "):
    return b"".join(prefix + json.dumps(p).encode() + b"\n\n" for p in payloads)


TOKEN = {"index": 3, "token": {"id": 1, "text": "x"}, "generated_text": None, "details": None}
END_A = {**TOKEN, "generated_text": "x x", "details": None}
END_B = {**END_A, "details": {"finish_reason": "length", "generated_tokens": 3, "input_length": 7}}


@pytest.mark.parametrize("path", ["/", "/generate_stream", "/invocations"])
@pytest.mark.parametrize("prefix", [b"data:", b"data: "])
def test_generated_text_ends_a_stream(path, prefix):
    found = TGI.ending(path, lasts(TOKEN, END_A, prefix=prefix))
    assert found.is_whole
    assert found.error is None
    assert found.prompt_tokens is None
    assert TGI.ending(path, lasts({**END_A, "generated_text": ""}, prefix=prefix)).is_whole


def test_details_tell_the_counts():
    found = TGI.ending("/generate_stream", lasts(TOKEN, END_B))
    assert (found.prompt_tokens, found.generated_tokens) == (7, 3)


@pytest.mark.parametrize("last", [b"", b":\n\n", b"data: x\n\n", b"data: []\n\n", lasts(TOKEN)])
def test_a_stream_without_its_end_mark_is_not_whole(last):
    assert not TGI.ending("/generate_stream", last).is_whole


CHAT = "/v1/chat/completions"
DELTA = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
FINISH = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "length"}]}
COUNTS = {"prompt_tokens": 12, "completion_tokens": 20, "total_tokens": 32}
DONE = b"data: [DONE]\n\n"

CHAT_ENDS = {
    "a finish reason, no [DONE]": (lasts(DELTA, FINISH), True, None),
    "[DONE]": (lasts(FINISH) + DONE, True, None),
    "[DONE] alone": (DONE, True, None),
    "usage on the finish chunk": (lasts({**FINISH, "usage": COUNTS}) + DONE, True, 20),
    "usage in its own chunk": (
        lasts(FINISH, {"choices": [], "usage": COUNTS}) + DONE,
        True,
        20,
    ),
    "usage chunk alone": (lasts({"choices": [], "usage": COUNTS}), True, 20),
    "null usage": (lasts({**FINISH, "usage": None}) + DONE, True, None),
    "tokens only": (lasts(DELTA, DELTA), False, None),
    "nothing": (b"", False, None),
    "a comment": (b":\n\n", False, None),
    "completions' empty reason": (
        lasts({"choices": [{"index": 0, "text": "x", "finish_reason": ""}]}),
        False,
        None,
    ),
}


@pytest.mark.parametrize(("last", "is_whole", "generated"), CHAT_ENDS.values(), ids=CHAT_ENDS)
def test_how_openai_streams_end(last, is_whole, generated):
    found = TGI.ending(CHAT, last)
    assert found.is_whole is is_whole
    assert found.generated_tokens == generated
    assert found.error is None


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/generate_stream", lasts({"error": FAULT, "error_type": "generation"})),
        ("/generate_stream", lasts(TOKEN, {"error": FAULT, "error_type": "generation"})),
        (CHAT, lasts(DELTA, {"error": {"message": FAULT, "http_status_code": 422}}) + DONE),
        (CHAT, lasts({"error": FAULT, "error_type": "generation"})),
    ],
)
def test_an_error_event_of_the_engines_own_ends_a_stream(path, last):
    found = TGI.ending(path, last)
    assert found.is_whole, "the client has been told; nothing is added"
    assert FAULT in found.error.message
    assert found.error.hurts_health


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/generate_stream", lasts({"error": INVALID, "error_type": "validation"})),
        (CHAT, lasts({"error": INVALID, "error_type": "validation"})),
        (CHAT, lasts({"error": {"message": INVALID, "http_status_code": 422}}) + DONE),
        (  # best_of on a stream: two error events, of which the first counts
            "/generate_stream",
            lasts(
                {"error": INVALID, "error_type": "validation"},
                {"error": "Incomplete generation", "error_type": "incomplete_generation"},
            ),
        ),
    ],
)
def test_a_wrong_streamed_call_does_not_hurt_the_replica(path, last):
    found = TGI.ending(path, last)
    assert found.is_whole
    assert found.error is not None
    assert found.error.message == INVALID
    assert not found.error.hurts_health
    assert found.error.retry is Retry.NEVER


@pytest.mark.parametrize("choices", [None, 7, ["x"], [None], [{"finish_reason": 1}]])
def test_garbage_in_the_last_chunk_is_no_crash(choices):
    TGI.ending(CHAT, lasts({"choices": choices, "usage": choices}))
    TGI.ending("/generate_stream", lasts({"generated_text": "x", "details": choices}))
