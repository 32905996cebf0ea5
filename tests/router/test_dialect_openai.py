"""vLLM, Aphrodite and llama-server as the router reads them: limits, costs, errors, last events."""

import json

import pytest

from router.call import Ask
from router.dialects import DIALECTS, EngineInfo
from router.errors import (
    ReplicaLoading,
    Retry,
    UpstreamBroken,
    UpstreamFault,
    UpstreamRefusal,
    UpstreamShed,
)
from router.estimates import Estimates
from router.room import Capacity

OPENAI = DIALECTS["openai"]
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"

VLLM_MODELS = {
    "object": "list",
    "data": [
        {
            "id": "Qwen/Qwen2.5-7B-Instruct",
            "object": "model",
            "created": 1_760_000_000,
            "owned_by": "vllm",
            "root": "Qwen/Qwen2.5-7B-Instruct",
            "parent": None,
            "max_model_len": 32_768,
            "permission": [],
        },
        {"id": "sql-adapter", "object": "model", "owned_by": "vllm", "parent": "Qwen"},
    ],
}
LLAMA_MODELS = {
    "models": [{"name": "tiny", "model": "tiny"}],
    "object": "list",
    "data": [
        {
            "id": "tiny",
            "object": "model",
            "owned_by": "llamacpp",
            "aliases": ["tiny", "small"],
            "meta": {"n_ctx_train": 4096, "n_vocab": 32_000},
        }
    ],
}
LLAMA_PROPS = {
    "default_generation_settings": {"n_ctx": 2048, "params": {"n_predict": -1}},
    "total_slots": 2,
    "model_path": "/models/tiny.gguf",
    "build_info": "b6000-abc",
}


def vllm_metrics(prefix="vllm", waiting="0.0", more=""):
    return f"""# HELP {prefix}:num_requests_running Number of requests in model execution batches.
# TYPE {prefix}:num_requests_running gauge
{prefix}:num_requests_running{{engine="0",model_name="Qwen/Qwen2.5-7B-Instruct"}} 3.0
# TYPE {prefix}:num_requests_waiting gauge
{prefix}:num_requests_waiting{{engine="0",model_name="Qwen/Qwen2.5-7B-Instruct"}} {waiting}
{prefix}:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 77.0
# TYPE {prefix}:cache_config_info gauge
{prefix}:cache_config_info{{block_size="16",cache_dtype="auto",enable_prefix_caching="True",\
engine="0",gpu_memory_utilization="0.9",num_cpu_blocks="0",num_gpu_blocks="5000",\
num_gpu_blocks_override="None"}} 1.0
{more}""".encode()


def told(models=None, props=None, metrics=None):
    pages = {"/v1/models": models, "/props": props}
    pages = {path: json.dumps(page).encode() for path, page in pages.items() if page is not None}
    return OPENAI.info(pages | ({} if metrics is None else {"/metrics": metrics}))


def estimates():
    """A character is a token; answers use half of what they may, or 200 tokens."""
    made = Estimates()
    made.chars_per_token, made.output_share, made.open_tokens = 1.0, 0.5, 200.0
    return made


def cost(info=None, **ask):
    return OPENAI.cost(Ask(**ask), info or EngineInfo(preempts=True), estimates())


# ---- what it tells of itself ----


@pytest.mark.parametrize("prefix", ["vllm", "aphrodite"])
def test_vllm_tells_its_tokens_but_not_how_many_calls_it_runs(prefix):
    info = told(VLLM_MODELS, metrics=vllm_metrics(prefix))
    assert info.capacity == Capacity(requests=1024, tokens=80_000, hides_batch=True)
    assert not info.capacity.is_told, "the number of calls is learned"
    assert info.max_total_tokens == 32_768
    assert (info.model_id, info.aliases) == ("Qwen/Qwen2.5-7B-Instruct", ("sql-adapter",))
    assert info.goes_by("sql-adapter")
    assert not info.goes_by("Qwen")


def test_the_blocks_of_several_engines_behind_one_endpoint_add_up():
    more = 'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="1000"} 1.0\n'
    assert told(VLLM_MODELS, metrics=vllm_metrics(more=more)).capacity.tokens == 96_000


@pytest.mark.parametrize(
    "labels",
    [
        'block_size="16",num_gpu_blocks="None"',
        'block_size="16",num_gpu_blocks_override="7"',
        'num_gpu_blocks="100"',
        "",
    ],
)
def test_blocks_that_are_not_said_are_no_limit(labels):
    page = f"vllm:num_requests_waiting 0.0\nvllm:cache_config_info{{{labels}}} 1.0\n".encode()
    assert told(VLLM_MODELS, metrics=page).capacity.tokens is None


def test_vllm_without_gauges_is_taken_as_it_is_usually_started():
    """With --disable-log-stats nothing shows that it is full, so nothing can be learned."""
    for metrics in (None, b"", b"python_info 1.0\n"):
        info = told(VLLM_MODELS, metrics=metrics)
        assert (info.capacity.batch, info.capacity.tokens) == (256, None)
        assert info.capacity.is_told


def test_llama_server_tells_its_slots_and_what_one_holds():
    info = told(LLAMA_MODELS, LLAMA_PROPS, b"llamacpp:requests_deferred 0\n")
    assert info.capacity == Capacity(requests=2, batch=2)
    assert info.capacity.is_told
    assert (info.max_total_tokens, info.max_sequences) == (2048, 2)
    assert (info.model_id, info.aliases) == ("tiny", ("small",))


def test_slots_of_a_server_started_without_their_number_share_one_context():
    """Its default since 2026: 4 slots, each told to hold what only all of them hold together."""
    info = told(LLAMA_MODELS, {**LLAMA_PROPS, "total_slots": 4})
    assert info.capacity == Capacity(requests=4, batch=4, tokens=2048)
    assert info.capacity.is_told


def test_what_is_told_is_shown_in_tgis_words():
    assert told(LLAMA_MODELS, LLAMA_PROPS).told == {
        "model_id": "tiny",
        "max_total_tokens": 2048,
        "max_concurrent_requests": 2,
    }
    assert told(VLLM_MODELS, metrics=vllm_metrics()).told == {
        "model_id": "Qwen/Qwen2.5-7B-Instruct",
        "max_total_tokens": 32_768,
        "max_batch_total_tokens": 80_000,
    }


@pytest.mark.parametrize("page", [b"", b"{", b"[]", b"null", b'{"data":{}}', b'{"data":[1]}'])
def test_pages_without_sense_tell_nothing(page):
    info = OPENAI.info({"/v1/models": page, "/props": page, "/metrics": page})
    assert (info.model_id, info.aliases, info.max_total_tokens) == (None, (), None)
    assert dict(info.told) == {}


@pytest.mark.parametrize(
    ("page", "queued"),
    [
        (vllm_metrics(waiting="0.0"), 0),
        (vllm_metrics(waiting="12.0"), 12),
        (vllm_metrics("aphrodite", waiting="3.0"), 3),
        (b'vllm:num_requests_waiting{model_name="a b"} 2.0\n', 2),
        (b'vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting 1\n', 3),
        (b"vllm:num_requests_waiting 1.0\nvllm:num_requests_swapped 4.0\n", 5),
        (b"llamacpp:requests_processing 4\nllamacpp:requests_deferred 9\n", 9),
        (b"# HELP llamacpp:requests_deferred x\n", None),
        (b"tgi_queue_size 3\n", None),
        (b"", None),
        (b"vllm:num_requests_waiting NaN\n", None),
        (b"vllm:num_requests_waiting +Inf\n", None),
        (b"vllm:num_requests_waiting many\n", None),
    ],
)
def test_the_calls_waiting_inside_it(page, queued):
    assert OPENAI.engine_queue(page) == queued


# ---- what a call costs ----


def test_a_call_holds_what_it_brings_and_what_it_is_likely_to_produce():
    found = cost(input_chars=100, new_tokens=60)
    assert (found.requests, found.input_tokens) == (1, 100)
    assert (found.reserve_tokens, found.expected_tokens) == (130, 30)


@pytest.mark.parametrize("new_tokens", ["absent", "rest"])
def test_a_call_that_says_no_length_is_likely_to_get_the_usual_one(new_tokens):
    """The rest of the context would be tens of thousands of tokens, which nobody uses."""
    found = cost(told(VLLM_MODELS), input_chars=100, new_tokens=new_tokens)
    assert (found.reserve_tokens, found.expected_tokens) == (300, 200)


def test_where_nothing_is_preempted_a_call_holds_all_that_it_might_produce():
    """llama-server fails every running call when its cache is full (build 0c1e570)."""
    info = told(LLAMA_MODELS, LLAMA_PROPS)
    found = cost(info, input_chars=100, new_tokens=60)
    assert (found.reserve_tokens, found.expected_tokens) == (160, 30)
    found = cost(info, input_chars=100, new_tokens="absent")
    assert (found.reserve_tokens, found.expected_tokens) == (900, 200)


def test_answers_to_one_prompt_share_its_pages_and_prompts_do_not():
    found = cost(input_chars=100, new_tokens=60, choices=3)
    assert (found.requests, found.input_tokens, found.reserve_tokens) == (3, 100, 190)
    found = cost(input_chars=300, sequences=3, new_tokens=60)
    assert (found.requests, found.input_tokens, found.reserve_tokens) == (3, 300, 390)


def test_several_answers_to_several_prompts_take_a_place_each():
    assert cost(input_chars=8, sequences=2, choices=3, new_tokens=2).requests == 6


def test_more_sequences_than_slots_take_all_slots():
    info = told(LLAMA_MODELS, LLAMA_PROPS)
    assert cost(info, input_chars=8, sequences=9, new_tokens=2).requests == 2


def test_what_is_longer_than_the_context_holds_no_more_than_it():
    info = told(LLAMA_MODELS, LLAMA_PROPS)
    assert cost(info, input_chars=2000, new_tokens=1000).reserve_tokens == 2048
    assert cost(info, input_chars=10**9, new_tokens=10).reserve_tokens == 2049


def test_embeddings_produce_nothing():
    assert cost(input_chars=500, new_tokens=0).reserve_tokens == 501


def test_an_image_counts_the_same_whatever_its_size():
    assert cost(input_chars=10, images=2, new_tokens=0).input_tokens == 3010


# ---- replies ----

FLAT = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens.",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
NESTED = {"error": {key: FLAT[key] for key in ("message", "type", "param", "code")}}
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
QUEUE_FULL = {
    "error": {"message": "Too many requests", "type": "ServiceUnavailableError", "code": 503}
}


@pytest.mark.parametrize("body", [QUEUE_FULL, {}, {"detail": "busy"}])
@pytest.mark.parametrize("status", [429, 503])
def test_a_full_queue_is_a_shed(status, body):
    judged = OPENAI.refusal(status, JSON, json.dumps(body).encode())
    assert isinstance(judged, UpstreamShed)
    assert judged.retry is Retry.ELSEWHERE


@pytest.mark.parametrize("body", [LOADING, {"status": "loading model"}])
def test_a_server_that_loads_its_model_is_not_there_yet(body):
    """The call has not been seen by it: asked elsewhere at no cost, and it counts as down."""
    judged = OPENAI.refusal(503, JSON, json.dumps(body).encode())
    assert isinstance(judged, ReplicaLoading)
    assert judged.retry is Retry.SAFE
    assert judged.hurts_health
    assert not judged.was_sent


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 424, 501])
def test_what_is_wrong_with_the_call_is_passed_on_as_sent(status):
    assert OPENAI.refusal(status, JSON, json.dumps(NESTED).encode()) is None


@pytest.mark.parametrize("status", [500, 502, 504])
def test_other_failures_may_be_tried_again(status):
    body = {"error": {"message": "CUDA error", "type": "InternalServerError", "code": status}}
    judged = OPENAI.refusal(status, JSON, json.dumps(body).encode())
    assert isinstance(judged, UpstreamFault)
    assert (judged.status, judged.error_type) == (status, "InternalServerError")
    assert judged.message == "CUDA error"


def test_an_answer_is_passed_on_and_half_a_one_is_not():
    assert OPENAI.refusal(200, JSON, b'{"choices":[]}') is None
    assert isinstance(OPENAI.refusal(200, JSON, b'{"choices":['), UpstreamBroken)
    assert isinstance(OPENAI.refusal(302, JSON, b""), UpstreamBroken)


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (FLAT, FLAT["message"], "BadRequestError"),
        (NESTED, FLAT["message"], "BadRequestError"),
        ({"error": NESTED}, FLAT["message"], "BadRequestError"),
        ({"error": "Unauthorized"}, "Unauthorized", "validation"),
        ({"detail": "Not Found"}, "Not Found", "validation"),
        ({"error": {"code": 7}}, "the replica failed", "validation"),
    ],
)
def test_errors_are_read_in_every_shape(body, message, kind):
    refused = OPENAI.refused(400, json.dumps(body).encode())
    assert (refused.status, refused.message, refused.error_type) == (400, message, kind)


def test_a_text_that_is_no_json_is_shown_cut():
    refused = OPENAI.refused(400, b"<html>" + b"x" * 1000)
    assert "<html>" in refused.message
    assert len(refused.message) < 300


# ---- what a unary reply reports ----


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"usage": {"prompt_tokens": 12, "completion_tokens": 20}}, (12, 20)),
        ({"usage": {"input_tokens": 12, "output_tokens": 20}}, (12, 20)),
        ({"usage": {"prompt_tokens": 12, "total_tokens": 12}}, (12, None)),
        ({"content": "x", "tokens_evaluated": 12, "tokens_predicted": 20}, (12, 20)),
        (
            {"usage": {"cache_read_input_tokens": 11, "input_tokens": 1, "output_tokens": 20}},
            (12, 20),
        ),
        ({"usage": None}, (None, None)),
        ([1], (None, None)),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": True}}, (None, None)),
    ],
    ids=[
        "chat",
        "responses",
        "embeddings",
        "llama-server",
        "messages",
        "none",
        "array",
        "nonsense",
    ],
)
def test_counts_are_read_from_the_body(reply, expected):
    report = OPENAI.report({}, json.dumps(reply).encode())
    assert (report.prompt_tokens, report.generated_tokens) == expected


def test_llama_server_tells_its_pace():
    timings = {"prompt_n": 1, "predicted_n": 20, "predicted_per_token_ms": 25.0}
    report = OPENAI.report({}, json.dumps({"timings": timings}).encode())
    assert report.between_tokens_s == pytest.approx(0.025)
    assert report.generated_tokens == 20


def test_a_huge_body_is_not_parsed():
    body = b'{"data":[' + b"1," * 200_000 + b'1],"usage":{"prompt_tokens":5}}'
    assert OPENAI.report({}, body).prompt_tokens is None


# ---- streams ----


def event(value, name=None):
    field = f"event: {name}\n" if name else ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{field}data: {text}\n\n".encode()


def chunk(text="", finish=None, **more):
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice], **more})


DONE = event("[DONE]")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 30}})


def ending(*events, path=CHAT):
    return OPENAI.ending(path, b"".join(events))


def test_a_stream_is_whole_with_done_and_only_with_it():
    assert ending(chunk("a"), chunk(finish="stop"), DONE).is_whole
    for events in ([chunk("a")], [chunk(finish="stop")], [chunk(finish="stop"), USAGE], []):
        assert not ending(*events).is_whole


def test_the_counts_stand_in_the_usage_before_done():
    found = ending(chunk("a"), chunk(finish="stop"), USAGE, DONE)
    assert (found.prompt_tokens, found.generated_tokens) == (9, 30)


def test_the_counts_stand_in_llama_servers_timings():
    timings = {"cache_n": 20, "prompt_n": 1, "predicted_n": 30, "predicted_per_token_ms": 9.0}
    found = ending(chunk("a"), chunk(finish="stop", timings=timings), DONE)
    assert (found.prompt_tokens, found.generated_tokens) == (21, 30)


def test_events_without_a_token_are_told_apart():
    """Opening, finish, usage and [DONE] of: opening, a, b, finish, usage, [DONE]."""
    empty = event({"choices": [], "usage": None})
    assert ending(chunk("b"), chunk(finish="stop"), empty, DONE).other_events == 4
    text = event({"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]})
    assert ending(text, DONE, path="/v1/completions").other_events == 1


@pytest.mark.parametrize(
    ("path", "events", "counts"),
    [
        (
            "/v1/responses",
            [
                event({"type": "response.output_text.delta", "delta": "a"}, "x"),
                event(
                    {
                        "type": "response.completed",
                        "response": {"error": None, "usage": {"input_tokens": 9}},
                    },
                    "response.completed",
                ),
            ],
            (9, None),
        ),
        (
            "/v1/messages",
            [
                event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
                event({"type": "message_delta", "usage": {"output_tokens": 30}}, "message_delta"),
                event({"type": "message_stop"}, "message_stop"),
                DONE,
            ],
            (None, 30),
        ),
        (
            "/completion",
            [
                event({"content": "a", "stop": False}),
                event({"content": "", "stop": True, "tokens_evaluated": 9, "tokens_predicted": 3}),
            ],
            (9, 3),
        ),
    ],
)
def test_other_routes_end_with_a_word_of_their_own(path, events, counts):
    found = ending(*events, path=path)
    assert found.is_whole
    assert found.error is None
    assert (found.prompt_tokens, found.generated_tokens) == counts
    assert not ending(events[0], path=path).is_whole


BAD = {"message": "CUDA error", "type": "BadRequestError", "param": None, "code": 400}
IN_BAND = {
    "vllm 0.9": event({"error": {"object": "error", **BAD}}),
    "vllm 0.10": event({"error": BAD}),
    "nested twice": event({"error": {"error": BAD}}),
    "flat": event({"object": "error", **BAD}),
    "llama-server": event({"error": {"code": 500, "message": "CUDA error", "type": "server"}}),
    "llama-server, early 2025": b'error: {"code":500,"message":"CUDA error","type":"server"}\n\n',
    "messages": event({"type": "error", "error": {"type": "e", "message": "CUDA error"}}, "error"),
    "responses": event({"type": "error", "code": "e", "message": "CUDA error"}, "error"),
}


@pytest.mark.parametrize("name", [name for name in IN_BAND if "early" not in name])
def test_an_error_inside_a_stream_is_the_engines_in_every_shape(name):
    for judged in (
        OPENAI.failure(IN_BAND[name].strip()),
        ending(chunk("a"), IN_BAND[name]).error,
        ending(chunk("a"), IN_BAND[name], DONE).error,
    ):
        assert isinstance(judged, UpstreamFault)
        assert judged.message == "CUDA error"
        assert judged.status >= 500


def test_llama_servers_own_field_for_errors_is_read():
    """Its value has no `error` around it."""
    bare = IN_BAND["llama-server, early 2025"]
    assert isinstance(OPENAI.failure(bare.strip()), UpstreamFault)
    assert isinstance(ending(chunk("a"), bare).error, UpstreamFault)


@pytest.mark.parametrize("kind", ["invalid_request_error", "exceed_context_size_error"])
def test_what_llama_server_says_in_band_of_a_wrong_call_is_relayed(kind):
    bad = event({"error": {"code": 400, "message": "too long", "type": kind}})
    assert OPENAI.failure(bad.strip()) is None
    error = ending(bad).error
    assert isinstance(error, UpstreamRefusal)
    assert (error.status, error.message) == (400, "too long")


def test_overload_and_loading_as_first_events():
    assert isinstance(OPENAI.failure(event(QUEUE_FULL).strip()), UpstreamShed)
    assert isinstance(OPENAI.failure(event(LOADING).strip()), ReplicaLoading)


@pytest.mark.parametrize(
    "first",
    [
        chunk("an error"),
        event({"type": "response.created", "response": {"error": None}, "error": None}),
        event({"content": "error", "stop": False}),
        DONE,
    ],
)
def test_other_first_events_are_relayed(first):
    assert OPENAI.failure(first.strip()) is None
