"""The clients people use, unchanged, against the endpoint: `text-generation` and `openai`."""

import asyncio
import json
import re
import time
import urllib.request
from contextlib import closing

import openai
import pytest
from text_generation import AsyncClient, Client, types
from text_generation import client as client_module
from text_generation.errors import (
    GenerationError,
    IncompleteGenerationError,
    OverloadedError,
    ValidationError,
)

pytestmark = [
    pytest.mark.e2e,
    # text-generation 0.7.0 is written for pydantic 1's names.
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),
]

PROMPT = "What is Deep Learning?"
MESSAGES = [{"role": "user", "content": PROMPT}]
SEED = 7


@pytest.fixture(scope="module", params=["2.1.1", "3.3.5"])
def served(request, fleets):
    """Version, endpoint and a replica; 2.1.1 is the last without [DONE] on streamed chats."""
    with fleets() as fleet:
        fleet.config["models"][0] |= {"replicas": 2, "max_total_tokens": 256}
        fleet.config["engine"]["version"] = request.param
        fleet.write()
        status = fleet.up()
        yield request.param, status["endpoint"], status["replicas"][0]["url"]


@pytest.fixture
def endpoint(served):
    return served[1]


@pytest.fixture
def said(loads):
    """The right answer of so many tokens to a prompt, with a seed or greedy."""
    return lambda prompt, tokens, seed=None: loads.continued(prompt, tokens, seed)[0]


@pytest.fixture
def chatted(loads):
    return lambda tokens: loads.ask_for("chat", PROMPT, tokens).expected


@pytest.fixture
def openai_client(endpoint):
    with openai.OpenAI(base_url=f"{endpoint}/v1", api_key="unused", max_retries=0) as client:
        yield client


# ---- text-generation ----


def test_text_generation_client(endpoint, said):
    client = Client(endpoint)
    whole = client.generate(PROMPT, max_new_tokens=12)
    assert whole.generated_text == said(PROMPT, 12)
    assert whole.details.generated_tokens == 12
    streamed = list(client.generate_stream(PROMPT, max_new_tokens=12))
    assert "".join(event.token.text for event in streamed) == said(PROMPT, 12)
    assert streamed[-1].generated_text == said(PROMPT, 12)
    assert streamed[-1].details.generated_tokens == 12


def test_text_generation_client_with_everything_set(endpoint, said):
    whole = Client(endpoint).generate(
        PROMPT,
        do_sample=True,
        max_new_tokens=6,
        best_of=1,
        repetition_penalty=1.2,
        frequency_penalty=0.1,
        return_full_text=True,
        seed=SEED,
        stop_sequences=["~~"],
        temperature=0.5,
        top_k=5,
        top_p=0.9,
        truncate=100,
        typical_p=0.9,
        watermark=True,
        decoder_input_details=True,
        top_n_tokens=2,
    )
    assert whole.generated_text == PROMPT + said(PROMPT, 6, SEED)
    assert whole.details.seed == SEED


def test_text_generation_chat(endpoint, chatted):
    answer = Client(endpoint).chat(MESSAGES, max_tokens=9, seed=SEED)
    assert answer.choices[0].message.content == chatted(9)
    assert answer.usage["completion_tokens"] == 9


@pytest.fixture
def readable_chunks(monkeypatch):
    """Repairs one line of text-generation 0.7.0: it demands `tool_calls` in each chunk of a chat.

    No TGI sends that key beside text, so without the repair the client reads none of them.
    """

    class ChoiceDelta(types.ChoiceDelta):
        tool_calls: types.ChoiceDeltaToolCall | None = None

    class Choice(types.Choice):
        delta: ChoiceDelta

    class ChatCompletionChunk(types.ChatCompletionChunk):
        choices: list[Choice]

    monkeypatch.setattr(client_module, "ChatCompletionChunk", ChatCompletionChunk)


@pytest.mark.usefixtures("readable_chunks")
async def test_text_generation_streamed_chat(served, chatted):
    """Only with an engine that sends no [DONE], which this client takes for JSON."""
    version, endpoint, _ = served
    if version != "2.1.1":
        pytest.skip("this engine ends chat streams with [DONE]")
    chunks = list(Client(endpoint).chat(MESSAGES, max_tokens=9, seed=SEED, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == chatted(9)
    stream = await AsyncClient(endpoint).chat(MESSAGES, max_tokens=9, seed=SEED, stream=True)
    texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(texts) == chatted(9)


def test_a_streamed_chat_is_sent_as_the_engine_sends_it(served):
    """So whatever a client can read from a replica it can read from the endpoint."""
    _, endpoint, replica = served
    body = {"model": "tgi", "messages": MESSAGES, "max_tokens": 9, "seed": SEED, "stream": True}
    bodies = []
    for url in (endpoint, replica):
        with post(f"{url}/v1/chat/completions", body) as reply:
            bodies.append(re.sub(rb'"created":\d+', b"", reply.read()))
    assert bodies[0] == bodies[1]


async def test_text_generation_async_client(endpoint, said, chatted):
    client = AsyncClient(endpoint)
    whole = await client.generate(PROMPT, max_new_tokens=12)
    assert whole.generated_text == said(PROMPT, 12)
    streamed = [event async for event in client.generate_stream(PROMPT, max_new_tokens=12)]
    assert streamed[-1].generated_text == said(PROMPT, 12)
    answer = await client.chat(MESSAGES, max_tokens=9, seed=SEED)
    assert answer.choices[0].message.content == chatted(9)


async def test_many_async_clients_at_once(endpoint, said):
    prompts = [f"{PROMPT} {i}" for i in range(64)]
    client = AsyncClient(endpoint)
    answers = await asyncio.gather(*(client.generate(p, max_new_tokens=8) for p in prompts))
    assert [answer.generated_text for answer in answers] == [said(p, 8) for p in prompts]


async def test_text_generation_validation_errors(endpoint):
    client, async_client = Client(endpoint), AsyncClient(endpoint)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        client.generate(PROMPT, max_new_tokens=10_000)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        list(client.generate_stream(PROMPT, max_new_tokens=10_000))
    with pytest.raises(ValidationError, match="max_new_tokens"):
        await async_client.generate(PROMPT, max_new_tokens=10_000)
    with pytest.raises(ValidationError, match="max_new_tokens"):
        [event async for event in async_client.generate_stream(PROMPT, max_new_tokens=10_000)]


# ---- openai ----


def test_openai_client(openai_client, said, chatted):
    answer = openai_client.chat.completions.create(
        model="tgi", messages=MESSAGES, max_tokens=9, seed=SEED
    )
    assert answer.choices[0].message.content == chatted(9)
    assert answer.usage.completion_tokens == 9
    answer = openai_client.completions.create(model="tgi", prompt=PROMPT, max_tokens=8, seed=SEED)
    assert answer.choices[0].text == said(PROMPT, 8, SEED)


def test_openai_streams(openai_client, said, chatted):
    chunks = list(
        openai_client.chat.completions.create(
            model="tgi", messages=MESSAGES, max_tokens=9, seed=SEED, stream=True
        )
    )
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == chatted(9)
    chunks = list(
        openai_client.completions.create(
            model="tgi", prompt=PROMPT, max_tokens=8, seed=SEED, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == said(PROMPT, 8, SEED)


def test_openai_usage_of_a_stream(served, openai_client):
    if served[0] == "2.1.1":
        pytest.skip("this engine knows no stream_options")
    chunks = list(
        openai_client.chat.completions.create(
            model="tgi",
            messages=MESSAGES,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage.completion_tokens == 9


def test_openai_lists_the_model(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["gpu-fleet/simulated-7b"]


async def test_openai_async_client(endpoint, said, chatted):
    async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="unused") as client:
        answer = await client.chat.completions.create(
            model="gpu-fleet/simulated-7b", messages=MESSAGES, max_tokens=9, seed=SEED
        )
        assert answer.choices[0].message.content == chatted(9)
        stream = await client.chat.completions.create(
            model="tgi", messages=MESSAGES, max_tokens=9, seed=SEED, stream=True
        )
        texts = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(texts) == chatted(9)
        answer = await client.completions.create(
            model="tgi", prompt=PROMPT, max_tokens=8, seed=SEED
        )
        assert answer.choices[0].text == said(PROMPT, 8, SEED)


async def test_openai_errors(endpoint, openai_client):
    """The engine's own refusals keep TGI's shape, whose text this client has in `body`."""
    chat = openai_client.chat.completions
    with pytest.raises(openai.UnprocessableEntityError) as told:
        chat.create(model="tgi", messages=MESSAGES, max_tokens=10_000)
    assert "max_new_tokens" in told.value.body
    with pytest.raises(openai.NotFoundError, match="expected one of: 'gpu-fleet/simulated-7b'"):
        chat.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.UnprocessableEntityError, match="messages"):
        chat.create(model="tgi", messages=[])
    async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="unused") as client:
        with pytest.raises(openai.UnprocessableEntityError) as told:
            await client.completions.create(model="tgi", prompt=PROMPT, max_tokens=10_000)
    assert "max_new_tokens" in told.value.body


# ---- overload and failures ----


@pytest.fixture(scope="module")
def frail(fleets):
    """One replica that runs one call at a time and fails on command; nobody waits for it."""
    with fleets() as fleet:
        fleet.config["models"][0]["replicas"] = 1
        fleet.config["engine"]["args"] |= {"faults": True, "max-concurrent-requests": 1}
        fleet.config["router"]["queue"] = {"timeout_s": 0}
        fleet.write()
        status = fleet.up()
        yield status["endpoint"], status["replicas"][0]["url"]


def post(url, body):
    head = {"Content-Type": "application/json"}
    return urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), head), timeout=20
    )


@pytest.fixture
def full(frail):
    """The endpoint, while its only replica is busy with somebody's stream."""
    endpoint, _ = frail
    until_free(endpoint)
    body = {"inputs": "on and on", "parameters": {"max_new_tokens": 8000}}
    with closing(post(f"{endpoint}/generate_stream", body)) as stream:
        assert stream.readline().startswith(b"data:")
        yield endpoint
    until_free(endpoint)


@pytest.fixture
def failing(frail):
    """`failing(mode)`: the endpoint, whose replica now fails each call in this way."""
    endpoint, replica = frail

    def arm(mode, **options):
        until_free(endpoint)
        with post(f"{replica}/simulator/faults", {"mode": mode, "count": -1, **options}):
            return endpoint

    yield arm
    arm("none")


def until_free(endpoint):
    """A client that left frees its replica soon, but not before the router has noticed."""
    deadline_s = time.monotonic() + 10
    while True:
        with urllib.request.urlopen(f"{endpoint}/metrics", timeout=10) as page:
            [held] = [line for line in page if line.startswith(b"fleet_replica_requests{")]
        if float(held.split()[-1]) == 0:
            return
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


async def test_an_overloaded_fleet_is_told_as_the_clients_know_it(full):
    with pytest.raises(OverloadedError):
        Client(full).generate(PROMPT)
    with pytest.raises(OverloadedError):
        list(Client(full).generate_stream(PROMPT))
    with pytest.raises(OverloadedError):
        await AsyncClient(full).generate(PROMPT)
    with openai.OpenAI(base_url=f"{full}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(model="tgi", messages=MESSAGES)
        assert int(told.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="tgi", messages=MESSAGES, stream=True)


async def test_a_failed_generation_is_told_as_the_clients_know_it(failing):
    endpoint = failing("error_next")
    with pytest.raises(GenerationError, match="injected fault"):
        Client(endpoint).generate(PROMPT)
    with pytest.raises(GenerationError, match="injected fault"):
        await AsyncClient(endpoint).generate(PROMPT)
    failing("incomplete")
    with pytest.raises(IncompleteGenerationError):
        Client(endpoint).generate(PROMPT)


async def test_a_stream_that_fails_midway_and_cannot_go_on_raises_after_its_tokens(failing):
    """Sampled with a seed of its own: another replica could only draw another text."""
    seeded = {"do_sample": True, "seed": 1}
    endpoint = failing("die_mid_stream", after_events=3)
    got = []
    with pytest.raises(GenerationError, match="injected fault"):
        got.extend(event for event in Client(endpoint).generate_stream(PROMPT, **seeded))
    assert len(got) == 3
    endpoint = failing("cut_mid_event", after_events=3)
    events = AsyncClient(endpoint).generate_stream(PROMPT, **seeded)
    assert [(await anext(events)).token.text for _ in range(3)]
    with pytest.raises(IncompleteGenerationError):
        await anext(events)
    with openai.OpenAI(base_url=f"{endpoint}/v1", api_key="unused", max_retries=0) as client:
        create = client.chat.completions.create
        stream = create(model="tgi", messages=MESSAGES, stream=True, seed=1)
        with pytest.raises(openai.APIError):
            list(stream)
