"""What goes over the wire, byte for byte, for both eras."""

import orjson
import pytest

ASK = {"inputs": "Hello there", "parameters": {"max_new_tokens": 2, "details": True}}
TOKENS = [
    b'{"id":305,"text":" One","logprob":-0.9609375,"special":false}',
    b'{"id":353,"text":" station","logprob":-1.060546875,"special":false}',
]


@pytest.mark.parametrize(
    ("version", "prefix", "input_length"),
    [
        ("1.4.4", b"data:", b""),
        ("2.0.4", b"data:", b""),
        ("2.1.0", b"data: ", b""),
        ("2.3.0", b"data: ", b',"input_length":2'),
        ("3.3.5", b"data: ", b',"input_length":2'),
    ],
)
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_stream_events(simulator, version, prefix, input_length, path):
    expected = (
        prefix
        + b'{"index":1,"token":%b,"generated_text":null,"details":null}\n\n' % TOKENS[0]
        + prefix
        + b'{"index":2,"token":%b,"generated_text":"%b One station","details":'
        b'{"finish_reason":"length","generated_tokens":2,"seed":null%b}}\n\n'
        % (TOKENS[1], b"Hello there" if path == "/" else b"", input_length)
    )
    async with simulator("--version", version) as sim:
        status, data, headers = await sim.post(path, {**ASK, "stream": True})
    assert (status, data) == (200, expected)
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-compute-type"] == "1-nvidia-a100-sxm4-80gb"
    assert headers["x-compute-characters"] == "11"
    assert headers["access-control-allow-origin"] == "*"


async def test_stream_is_chunked_and_the_connection_stays_usable(simulator):
    body = orjson.dumps(ASK)
    head = b"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    length = b"content-length: %d\r\n" % len(body)
    first = head + length + b"\r\n" + body
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with simulator() as sim:
        answer = await sim.raw(first + last)
    stream, _, health = answer.partition(b"\r\n0\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in stream
    assert stream.count(b"\ndata: ") == 2
    assert health.startswith(b"HTTP/1.1 200 OK")


async def test_http_1_0_stream_ends_with_the_connection(simulator):
    body = orjson.dumps(ASK)
    head = b"POST /generate_stream HTTP/1.0\r\ncontent-type: application/json\r\n"
    async with simulator() as sim:
        answer = await sim.raw(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    headers, _, events = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in headers.lower()
    assert events.startswith(b'data: {"index":1,')
    assert events.endswith(b"}}\n\n")


async def test_top_tokens_stand_between_token_and_text(simulator):
    async with simulator() as sim:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 1, "top_n_tokens": 3}}
        (event,) = await sim.events("/generate_stream", body)
    assert list(event) == ["index", "token", "top_tokens", "generated_text", "details"]
    assert [len(event["top_tokens"]), event["top_tokens"][0]] == [3, event["token"]]


async def test_generate_without_details_is_text_only(simulator):
    async with simulator() as sim:
        body = {"inputs": "Hello there", "parameters": {"max_new_tokens": 2}}
        status, data, headers = await sim.post("/generate", body)
        assert (status, data) == (200, b'{"generated_text":" One station"}')
        assert headers["x-prompt-tokens"] == "2"
        assert headers["x-generated-tokens"] == "2"
        for name in ("x-total-time", "x-queue-time", "x-inference-time", "x-validation-time"):
            assert headers[name].isdigit()
        _, data, _ = await sim.post("/", body)
        assert data == b'[{"generated_text":"Hello there One station"}]'


async def test_generate_details(simulator):
    async with simulator("--version", "1.4.4") as sim:
        parameters = {"max_new_tokens": 2, "details": True, "decoder_input_details": True}
        _, data, _ = await sim.post("/generate", {"inputs": "a b", "parameters": parameters})
    details = orjson.loads(data)["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert [entry["text"] for entry in details["prefill"]] == ["a", " b"]
    assert details["prefill"][0]["logprob"] is None
    assert details["prefill"][1]["logprob"] < 0


async def test_best_of_gives_the_likelier_sequence_and_the_other(simulator):
    async with simulator() as sim:
        parameters = {"max_new_tokens": 5, "best_of": 2, "do_sample": True, "details": True}
        _, data, _ = await sim.post("/generate", {"inputs": "a", "parameters": parameters})
    answer = orjson.loads(data)
    (other,) = answer["details"]["best_of_sequences"]

    def mean(tokens):
        return sum(token["logprob"] for token in tokens) / len(tokens)

    assert mean(answer["details"]["tokens"]) >= mean(other["tokens"])
    assert answer["details"]["seed"] != other["seed"]


async def test_keep_alive_comments_in_a_silent_stream(simulator):
    # Scaled 150 times a comment is due after 0.1 s, and so slow a GPU needs 0.13 s for a token.
    async with (
        simulator("--time-scale", "150", "--speed", "0.001") as sim,
        sim.session.post("/generate_stream", json=ASK) as reply,
    ):
        pieces = (await reply.content.read()).split(b"\n\n")
    kinds = [piece[:5] for piece in pieces]
    assert kinds == [b"data:", b":", b"data:", b""]


CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("version", "chat_object", "chunk_object", "done"),
    [
        ("1.4.4", "text_completion", "text_completion", False),
        ("2.1.0", "chat.completion", "chat.completion.chunk", False),
        ("2.2.0", "chat.completion", "chat.completion.chunk", True),
        ("3.3.5", "chat.completion", "chat.completion.chunk", True),
    ],
)
async def test_chat_by_version(simulator, version, chat_object, chunk_object, done):
    async with simulator("--version", version) as sim:
        _, data, _ = await sim.post("/v1/chat/completions", CHAT)
        events = await sim.events("/v1/chat/completions", {**CHAT, "stream": True})
        _, raw, _ = await sim.post("/v1/chat/completions", {**CHAT, "stream": True})
    answer = orjson.loads(data)
    assert (answer["object"], answer["id"]) == (chat_object, "")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    assert (events[-1] == "[DONE]") is done
    chunks = [event for event in events if event != "[DONE]"]
    assert {chunk["object"] for chunk in chunks} == {chunk_object}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]
    assert {chunk["choices"][0]["delta"]["role"] for chunk in chunks} == {"assistant"}
    assert raw.startswith(b"data: " if version > "2.1" else b"data:{")


@pytest.mark.parametrize(
    ("version", "usages"),
    [
        ("2.2.0", ["absent", "absent"]),
        ("2.3.0", [None, 2]),
        ("3.1.1", [None, 2]),
        ("3.2.0", [None, None, 2]),
    ],
)
async def test_usage_in_chat_streams(simulator, version, usages):
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with simulator("--version", version) as sim:
        events = [e for e in await sim.events("/v1/chat/completions", body) if e != "[DONE]"]
    found = [event.get("usage", "absent") for event in events]
    assert [u["completion_tokens"] if isinstance(u, dict) else u for u in found] == usages
    assert len(events[-1]["choices"]) == (0 if len(usages) == 3 else 1)


@pytest.mark.parametrize(
    ("version", "chat_reason", "stream_reason"),
    [("2.2.0", "eos_token", "eos_token"), ("3.3.5", "stop", "eos_token")],
)
async def test_name_of_the_end_token(simulator, version, chat_reason, stream_reason):
    completion = {"model": "tgi", "prompt": "a", "max_tokens": 5}
    async with simulator("--version", version, "--eos-rate", "1") as sim:
        chat = orjson.loads((await sim.post("/v1/chat/completions", CHAT))[1])
        events = await sim.events("/v1/completions", {**completion, "stream": True})
    assert chat["choices"][0]["finish_reason"] == chat_reason
    assert chat["choices"][0]["message"]["content"] == ""
    assert events[0]["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": stream_reason,
    }


async def test_completions_of_several_prompts(simulator):
    body = {"prompt": ["One", "Two", "Three"], "max_tokens": 3}
    async with simulator() as sim:
        _, data, headers = await sim.post("/v1/completions", body)
        events = await sim.events("/v1/completions", {**body, "stream": True})
    choices = orjson.loads(data)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert "x-compute-time" not in headers
    assert headers["x-generated-tokens"] == "9"
    assert events.pop() == "[DONE]"
    for choice in choices:
        mine = [e for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(e["choices"][0]["text"] for e in mine) != ""
        assert [e["choices"][0]["finish_reason"] for e in mine] == ["", "", "length"]
        assert "usage" in mine[-1]


async def test_chat_logprobs(simulator):
    async with simulator() as sim:
        body = {**CHAT, "logprobs": True, "top_logprobs": 2}
        answer = orjson.loads((await sim.post("/v1/chat/completions", body))[1])
        events = await sim.events("/v1/chat/completions", {**body, "stream": True})
    content = answer["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2]
    assert len(events[0]["choices"][0]["logprobs"]["content"]) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_continues_a_trailing_assistant_message(simulator, stream):
    greedy = {**CHAT, "max_tokens": 12, "temperature": 0}
    async with simulator() as sim:
        whole = orjson.loads((await sim.post("/v1/chat/completions", greedy))[1])
        text = whole["choices"][0]["message"]["content"]
        part = text[: text.index(" ", 15)]
        messages = [*CHAT["messages"], {"role": "assistant", "content": part}]
        body = {**greedy, "messages": messages, "stream": stream}
        if stream:
            events = await sim.events("/v1/chat/completions", body)
            rest = "".join(e["choices"][0]["delta"]["content"] for e in events if e != "[DONE]")
        else:
            answer = orjson.loads((await sim.post("/v1/chat/completions", body))[1])
            rest = answer["choices"][0]["message"]["content"]
    assert (part + rest).startswith(text)


async def test_tokenize_and_chat_tokenize(simulator):
    async with simulator("--token-model", "bpe") as sim:
        _, data, _ = await sim.post("/tokenize", {"inputs": "Hello 🙂"})
        pieces = orjson.loads(data)
        _, chat, _ = await sim.post("/chat_tokenize", CHAT)
    assert pieces[0] == {"id": 1, "text": "<s>", "start": 0, "stop": 0}
    assert pieces[-1]["stop"] == 7
    assert orjson.loads(chat)["templated_text"] == "<|user|>\nHi\n<|assistant|>\n"


async def test_tokenize_agrees_with_what_a_prompt_costs(simulator):
    for model in ("text", "bpe"):
        async with simulator("--token-model", model) as sim:
            body = {"inputs": "Hello 🙂, how are you?", "parameters": {"max_new_tokens": 1}}
            _, data, _ = await sim.post("/tokenize", body)
            _, _, headers = await sim.post("/generate", body)
        assert headers["x-prompt-tokens"] == str(len(orjson.loads(data)))


async def test_info_by_version(simulator):
    names = {}
    for version in ("1.4.4", "2.2.0", "3.3.5"):
        async with simulator("--version", version) as sim:
            names[version] = orjson.loads((await sim.get("/info"))[1])
            assert names[version]["simulator"] is True
    old, middle, new = names.values()
    assert (old["max_input_length"], old["max_total_tokens"]) == (1024, 2048)
    assert old["max_batch_total_tokens"] == 120_000
    assert {"max_input_tokens", "max_batch_total_tokens", "router"} <= set(middle)
    assert "max_batch_total_tokens" not in new
    assert "model_dtype" not in new
    assert new["max_client_batch_size"] == 4


async def test_models(simulator):
    async with simulator("--model-id", "my/model") as sim:
        _, data, _ = await sim.get("/v1/models")
        assert orjson.loads(data)["data"][0]["id"] == "my/model"
    async with simulator("--version", "2.2.0") as sim:
        assert (await sim.get("/v1/models"))[0] == 404


async def test_invocations_tries_three_shapes(simulator):
    async with simulator() as sim:
        _, compat, _ = await sim.post("/invocations", {"inputs": "a", "parameters": {}})
        _, chat, _ = await sim.post("/invocations", CHAT)
        _, completion, _ = await sim.post("/invocations", {"prompt": "a", "max_tokens": 1})
        status, _, _ = await sim.post("/invocations", {"nothing": 1})
    assert "generated_text" in orjson.loads(compat)[0]
    assert orjson.loads(chat)["object"] == "chat.completion"
    assert orjson.loads(completion)["object"] == "text_completion"
    assert status == 422


async def test_invocations_of_early_versions_follow_the_environment(simulator):
    async with simulator("--version", "2.2.0") as sim:
        assert (await sim.post("/invocations", CHAT))[0] == 422
    on = {"MESSAGES_API_ENABLED": "true"}
    async with simulator("--version", "2.2.0", environ=on) as sim:
        assert (await sim.post("/invocations", CHAT))[0] == 200


async def test_vertex_predicts_all_instances_or_fails(simulator):
    instance = {"inputs": "a", "parameters": {"max_new_tokens": 3}}
    async with simulator() as sim:
        status, data, _ = await sim.post("/vertex", {"instances": [instance, instance]})
        failed, error, _ = await sim.post("/vertex", {"instances": [instance, {"inputs": ""}]})
    assert status == 200
    assert len(orjson.loads(data)["predictions"]) == 2
    assert failed == 500
    assert orjson.loads(error)["error_type"] == "validation"
