"""Every refusal: its status, its text, and whether it is in-band on a stream."""

import orjson
import pytest

INPUT = "Input validation error: "


def parameters(**changes):
    return {"inputs": "Hello", "parameters": {"max_new_tokens": 2, **changes}}


INVALID = [
    ({"inputs": ""}, "`inputs` cannot be empty"),
    (parameters(temperature=0), "`temperature` must be strictly positive"),
    (parameters(repetition_penalty=0), "`repetition_penalty` must be strictly positive"),
    (parameters(frequency_penalty=2.5), "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    (parameters(top_p=1.0), "`top_p` must be > 0.0 and < 1.0"),
    (parameters(typical_p=0), "`typical_p` must be > 0.0 and < 1.0"),
    (parameters(top_k=0), "`top_k` must be strictly positive"),
    (parameters(max_new_tokens=0), "`max_new_tokens` must be strictly positive"),
    (parameters(stop=list("abcde")), "`stop` supports up to 4 stop sequences. Given: 5"),
    (parameters(top_n_tokens=6), "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    (
        parameters(truncate=0),
        "`truncate` must be strictly positive and less than 20. Given: 0",
    ),
    (parameters(grammar={"type": "regex", "value": "a"}), "grammar is not supported"),
    (
        {"inputs": "a " * 15, "parameters": {"max_new_tokens": 15}},
        "`inputs` tokens + `max_new_tokens` must be <= 30."
        " Given: 16 `inputs` tokens and 15 `max_new_tokens`",
    ),
    (
        {"inputs": "a " * 21, "parameters": {"max_new_tokens": 2}},
        "`inputs` must have less than 20 tokens. Given: 22",
    ),
]
UNARY_ONLY = [
    (parameters(best_of=3, do_sample=True), "`best_of` must be > 0 and <= 2. Given: 3"),
    (parameters(best_of=2), "you must use sampling when `best_of` is > 1"),
    (parameters(best_of=2, do_sample=True, seed=1), "`seed` must not be set when `best_of` > 1"),
]
SMALL = ("--max-input-tokens", "20", "--max-total-tokens", "30")


@pytest.mark.parametrize(("body", "detail"), [*INVALID, *UNARY_ONLY])
async def test_invalid_unary_call_is_422(simulator, body, detail):
    async with simulator(*SMALL) as sim:
        for path in ("/generate", "/"):
            status, data, headers = await sim.post(path, body)
            expected = {"error": INPUT + detail, "error_type": "validation"}
            assert (status, orjson.loads(data)) == (422, expected)
            assert headers["content-type"] == "application/json"
        assert sim.service.engine.permits_left == 128


@pytest.mark.parametrize(("body", "detail"), INVALID)
async def test_invalid_stream_is_200_with_one_error_event(simulator, body, detail):
    async with simulator(*SMALL) as sim:
        events = await sim.events("/generate_stream", body)
        assert events == [{"error": INPUT + detail, "error_type": "validation"}]
        assert sim.service.engine.permits_left == 128


@pytest.mark.parametrize(
    ("version", "second"),
    [
        ("1.4.4", {"error": "Incomplete generation", "error_type": "incomplete_generation"}),
        (
            "3.3.5",
            {
                "error": "Incomplete generation stream",
                "error_type": "incomplete_generation_stream",
            },
        ),
    ],
)
@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"best_of": 0}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
async def test_what_cannot_be_streamed_gives_two_events(simulator, version, second, change, detail):
    async with simulator("--version", version) as sim:
        events = await sim.events("/generate_stream", parameters(**change))
    assert events == [{"error": INPUT + detail, "error_type": "validation"}, second]


REJECTED = [
    (b"{", "application/json", 400, "Failed to parse the request body as JSON"),
    (b'{"inputs":NaN}', "application/json", 400, "Failed to parse the request body as JSON"),
    (rb'{"inputs":"\ud800"}', "application/json", 400, "Failed to parse"),
    (b"[" * 5000, "application/json", 400, "Failed to parse"),
    (
        b'{"inputs":"a"}',
        "text/plain",
        415,
        "Expected request with `Content-Type: application/json`",
    ),
    (b"{}", "application/json", 422, "Failed to deserialize the JSON body into the target type"),
    (b"[]", "application/json", 422, "Failed to deserialize"),
    (b'{"inputs":1}', "application/json", 422, "Failed to deserialize"),
    (b'{"inputs":"a","parameters":3}', "application/json", 422, "Failed to deserialize"),
    (
        b'{"inputs":"a","parameters":{"max_new_tokens":"2"}}',
        "application/json",
        422,
        "Failed to deserialize",
    ),
    (
        b'{"inputs":"a","parameters":{"max_new_tokens":99999999999999999999999}}',
        "application/json",
        422,
        "Failed to deserialize",
    ),
    (b'{"inputs":"a","parameters":{"stop":null}}', "application/json", 422, "Failed to"),
    (b'{"inputs":"%b"}' % (b"a" * 2_000_001), "application/json", 413, "Failed to buffer"),
]


@pytest.mark.parametrize(("data", "kind", "status", "text"), REJECTED)
@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream"])
async def test_http_layer_rejections_are_plain_text(simulator, path, data, kind, status, text):
    async with simulator() as sim:
        found, body, headers = await sim.post(path, data, **{"content-type": kind})
    assert (found, headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert body.decode().startswith(text)


@pytest.mark.parametrize(
    "wrong", [{"repetition_penalty": [None]}, {"temperature": {}}, {"stop": 1}, {"seed": "a"}]
)
async def test_completions_with_a_field_of_a_wrong_type_are_422(simulator, wrong):
    async with simulator() as sim:
        status, body, _ = await sim.post("/v1/completions", {"prompt": "a", **wrong})
    assert status == 422
    assert body.decode().startswith("Failed to deserialize")


async def test_payload_limit_by_version(simulator):
    body = {"inputs": "a" * 2_050_000, "parameters": {"truncate": 1, "max_new_tokens": 1}}
    async with simulator("--version", "2.2.0") as sim:
        assert (await sim.post("/generate", body))[0] == 200
    async with simulator("--payload-limit", "100") as sim:
        assert (await sim.post("/generate", {"inputs": "a" * 100}))[0] == 413


async def test_unknown_path_and_wrong_method_have_empty_bodies(simulator):
    async with simulator() as sim:
        assert (await sim.get("/nowhere"))[:2] == (404, b"")
        status, body, headers = await sim.get("/generate")
        assert (status, body, headers["allow"]) == (405, b"", "POST")
        status, body, _ = await sim.get("/info", method="HEAD")
        assert (status, body) == (200, b"")


async def test_cross_origin_preflight(simulator):
    async with simulator() as sim:
        status, body, headers = await sim.get("/generate", method="OPTIONS")
    assert (status, body) == (200, b"")
    assert headers["access-control-allow-methods"] == "GET,POST"
    assert headers["access-control-allow-headers"] == "content-type"
    assert headers["access-control-allow-origin"] == "*"


async def test_api_key_guards_posts_only(simulator):
    async with simulator("--api-key", "secret") as sim:
        assert (await sim.post("/generate", parameters()))[:2] == (401, b"")
        key = {"authorization": "bearer SECRET"}
        assert (await sim.post("/generate", parameters(), **key))[0] == 200
        for path in ("/health", "/info", "/metrics", "/v1/models", "/ping", "/"):
            assert (await sim.get(path))[0] == 200
    async with simulator("--api-key", "secret", "--version", "2.2.0") as sim:
        assert (await sim.post("/generate", parameters()))[0] == 200


CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
OPENAI_ERRORS = [
    ("/v1/chat/completions", {**CHAT, "tools": [TOOL]}, "tool_error"),
    ("/v1/chat/completions", {**CHAT, "messages": []}, "template_error"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix not supported"),
    ("/v1/completions", {"prompt": list("abcde")}, "batch size exceeded"),
]


@pytest.mark.parametrize(("path", "body", "error_type"), OPENAI_ERRORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_refusals_have_a_real_status(simulator, path, body, error_type, stream):
    async with simulator() as sim:
        status, data, _ = await sim.post(path, {**body, "stream": stream})
    assert (status, orjson.loads(data)["error_type"]) == (422, error_type)


@pytest.mark.parametrize(
    ("version", "events"),
    [
        ("2.2.0", [{"error": "Model is overloaded", "error_type": "overloaded"}, "[DONE]"]),
        (
            "3.3.5",
            [{"error": {"message": "Model is overloaded", "http_status_code": 422}}, "[DONE]"],
        ),
    ],
)
async def test_overload_in_an_openai_stream(simulator, version, events):
    async with simulator("--version", version, "--faults") as sim:
        await sim.post("/simulator/faults", {"mode": "overload"})
        assert await sim.events("/v1/chat/completions", {**CHAT, "stream": True}) == events


async def test_failure_in_the_middle_of_an_openai_stream(simulator):
    async with simulator("--faults") as sim:
        await sim.post("/simulator/faults", {"mode": "die_mid_stream", "after_events": 1})
        events = await sim.events("/v1/chat/completions", {**CHAT, "stream": True})
    assert [set(event) & {"choices", "error"} for event in events[:2]] == [{"choices"}, {"error"}]
    assert events[1]["error"]["http_status_code"] == 422
    assert events[2:] == ["[DONE]"]


@pytest.mark.parametrize(
    ("version", "body", "status"),
    [
        ("1.4.4", {**CHAT, "model": None}, 422),
        ("3.3.5", {**CHAT, "model": None}, 200),
        ("1.4.4", {**CHAT, "temperature": 0}, 422),
        ("2.0.2", {**CHAT, "temperature": 0}, 200),
        ("1.4.4", {**CHAT, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, 422),
    ],
)
async def test_chat_requests_by_version(simulator, version, body, status):
    async with simulator("--version", version) as sim:
        assert (await sim.post("/v1/chat/completions", body))[0] == status


async def test_content_chunks(simulator):
    content = [{"type": "text", "text": "Hi"}]
    async with simulator("--version", "2.1.0") as sim:
        body = {**CHAT, "messages": [{"role": "user", "content": content}], "seed": 1}
        chunks = await sim.post("/v1/chat/completions", body)
        plain = await sim.post("/v1/chat/completions", {**CHAT, "seed": 1})
    first, second = (orjson.loads(data)["choices"] for _, data, _ in (chunks, plain))
    assert first == second
