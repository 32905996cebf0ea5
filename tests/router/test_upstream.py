"""The router before real simulators: through a proxy that goes wrong, and with clients in use."""

import asyncio
import json
import re
import subprocess
import sys
from operator import length_hint

import openai
import pytest
from text_generation import AsyncClient, Client
from text_generation import errors as tgi_errors

from router.fleet import ReplicaEntry, ReplicaList

# The text-generation client speaks pydantic 1's names.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 12, "do_sample": False}}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def simulator():
    """`simulator("3.3.5")`: the port of a real simulator process of that version."""
    ports, processes = {}, []

    def start(version):
        if version not in ports:
            command = [sys.executable, "-m", "launcher.simulator", "--port", "0", "--faults"]
            flags = ["--version", version, "--time-scale", "100", "--load-s", "0"]
            process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            found = (re.search(r"listening on http://\S+:(\d+)", line) for line in process.stdout)
            ports[version] = next(int(match[1]) for match in found if match)
        return ports[version]

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
async def rigged(app, faults):
    """`await rigged([port, ...])`: a router over what listens there; `proxies` puts one before."""
    proxies = []

    async def make(ports, *, proxied=(), **options):
        rig = await app([], is_up=False, **options)
        entries = []
        for position, port in enumerate(ports):
            if position in proxied:
                proxy = faults.FaultProxy(port)
                await proxy.start()
                proxies.append(proxy)
                port = proxy.port
            url = f"http://127.0.0.1:{port}"
            entries.append(ReplicaEntry(id=f"r{position}", generation=1, url=url, model="default"))
        rig.app.fleet.apply(ReplicaList(protocol=1, cluster="t", epoch=1, replicas=entries))
        await rig.is_up()
        return rig, proxies

    yield make
    for proxy in proxies:
        await proxy.close()


async def reference(rig):
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 200
    return reply.json()["generated_text"]


# ---- through a proxy that goes wrong ----


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_cut_at_any_byte_a_stream_is_whole(
    rigged, simulator, faults, until, version, is_reset
):
    """Never a cut, never half an event, never a token twice or one too few."""
    port = simulator(version)
    rig, [proxy] = await rigged(
        [port], proxied=[0], health={"eject_after": 1000, "interval_s": 1000}
    )
    whole = await reference(rig)
    for cut in (1, 60, 150, 200, 260, 300, 420, 555, 700, 1000, 1500, 1800):
        await until(lambda: all(replica.is_usable for replica in rig.all()))  # probed since
        await rig_forgets_connections(rig)
        proxy.faults = faults.Faults(cut_after_bytes=cut, is_reset=is_reset, is_once=True)
        cuts = proxy.cuts
        client = await rig.client()
        client.post("/generate_stream", GENERATE)
        await until(lambda cuts=cuts: proxy.cuts > cuts)
        reply = await client.reply()
        assert reply.is_whole, cut
        assert reply.body.endswith(b"\n\n"), cut
        events = [json.loads(event[5:]) for event in reply.body.split(b"\n\n")[:-1]]
        assert [event.get("index") for event in events] == list(range(1, 13)), cut
        texts = "".join(event["token"]["text"] for event in events)
        assert events[-1]["generated_text"] == texts == whole, cut


@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
async def test_streams_cut_at_every_byte_of_an_event_are_all_whole(
    rigged, simulator, faults, until, is_reset
):
    """Each connection ends one byte later than the one before: in all, over two whole events."""
    port = simulator("3.3.5")
    health = {"eject_after": 1000, "interval_s": 1000, "warm_up": False}
    rig, [proxy] = await rigged([port, port], proxied=[0], health=health)
    whole = await reference(rig)
    await rig_forgets_connections(rig)
    places = range(500, 500 + 256)
    proxy.plan = iter([faults.Faults(cut_after_bytes=cut, is_reset=is_reset) for cut in places])
    while length_hint(proxy.plan):
        await until(lambda: all(replica.is_usable for replica in rig.all()))  # probed since
        await rig_forgets_connections(rig)
        calls = (rig.post("/generate_stream", GENERATE) for _ in range(256))
        for reply in await asyncio.gather(*calls):
            assert reply.is_whole
            events = [json.loads(event[5:]) for event in reply.body.split(b"\n\n")[:-1]]
            assert [event["index"] for event in events] == list(range(1, 13))
            assert events[-1]["generated_text"] == whole
            assert "".join(event["token"]["text"] for event in events) == whole
        for client in rig.clients:
            client.leave()
        rig.clients.clear()
    assert rig.metric("resumes_total", model="default", outcome="resumed") >= 32


async def rig_forgets_connections(rig):
    """Connections kept from before would not meet the fault."""
    for replica in rig.all():
        rig.app.upstream.forget(replica)


async def test_a_replica_behind_a_bad_line_costs_no_unary_call(rigged, simulator, faults):
    port = simulator("3.3.5")
    rig, [proxy] = await rigged([port, port], proxied=[0], health={"eject_after": 1000})
    whole = await reference(rig)
    for cut in (1, 100, 250, 400):
        await rig_forgets_connections(rig)
        proxy.faults = faults.Faults(cut_after_bytes=cut)
        replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(6)))
        assert [reply.status for reply in replies] == [200] * 6
        assert {reply.json()["generated_text"] for reply in replies} == {whole}
    assert proxy.cuts >= 1


async def test_late_and_dripping_bytes_are_put_together(rigged, simulator, faults):
    rig, [proxy] = await rigged([simulator("3.3.5")], proxied=[0])
    whole = await reference(rig)
    await rig_forgets_connections(rig)
    proxy.faults = faults.Faults(drip_bytes=7, latency_s=0.0002)
    reply = await rig.post("/generate_stream", GENERATE)
    events = [json.loads(event[5:]) for event in reply.body.split(b"\n\n")[:-1]]
    assert events[-1]["generated_text"] == whole
    assert [event["index"] for event in events] == list(range(1, 13))


async def test_a_line_that_goes_deaf_is_left_at_the_first_event_s_bound(rigged, simulator, faults):
    port = simulator("3.3.5")
    rig, [proxy] = await rigged(
        [port, port], proxied=[0], timeouts={"first_event_s": 0.3}, health={"eject_after": 1000}
    )
    await rig_forgets_connections(rig)
    proxy.faults = faults.Faults(is_deaf=True)
    replies = await asyncio.gather(*(rig.post("/generate_stream", GENERATE) for _ in range(4)))
    assert all(b'"generated_text":"' in reply.body for reply in replies)


# ---- clients in use ----


@pytest.fixture
async def endpoint(rigged, simulator):
    """`await endpoint(version)`: base URL of a router over one real simulator."""

    async def make(version="3.3.5", **options):
        rig, _ = await rigged([simulator(version)], **options)
        return rig, f"http://127.0.0.1:{rig.port}"

    return make


async def consumed(stream, at_each=lambda: None):
    async for _ in stream:
        at_each()


def in_thread(work):
    """The synchronous clients block; the router runs on this loop."""
    return asyncio.get_running_loop().run_in_executor(None, work)


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_text_generation_client_sync(endpoint, version):
    _, url = await endpoint(version)

    def work():
        client = Client(url, timeout=20)
        whole = client.generate("hello", max_new_tokens=8)
        streamed = list(client.generate_stream("hello", max_new_tokens=8))
        return whole, streamed

    whole, streamed = await in_thread(work)
    assert whole.details.generated_tokens == 8
    assert streamed[-1].generated_text == whole.generated_text
    assert "".join(event.token.text for event in streamed) == whole.generated_text


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_text_generation_client_async(endpoint, version):
    _, url = await endpoint(version)
    client = AsyncClient(url, timeout=20)
    whole = await client.generate("hello", max_new_tokens=8)
    events = [event async for event in client.generate_stream("hello", max_new_tokens=8)]
    assert events[-1].generated_text == whole.generated_text
    assert len(events) == 8


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_text_generation_chat(endpoint, version):
    _, url = await endpoint(version)
    whole = await AsyncClient(url, timeout=20).chat(MESSAGES, max_tokens=8, seed=1)
    again = await in_thread(lambda: Client(url, timeout=20).chat(MESSAGES, max_tokens=8, seed=1))
    assert whole.choices[0].message.content == again.choices[0].message.content != ""


async def test_text_generation_streamed_chat(app, wire):
    """This client reads streams that name `tool_calls` and end without [DONE], and no others."""
    rig = await app()
    plain = [wire.delta(" a"), wire.delta(" b", "length")]
    events = [
        event.replace(b'"content"', b'"tool_calls": null, "content"').replace(
            b'"id"', b'"model": "m", "system_fingerprint": "x", "id"'
        )
        for event in plain
    ]
    rig.replicas[0].say(wire.streamed(*events))
    client = AsyncClient(f"http://127.0.0.1:{rig.port}", timeout=20)
    chunks = [c async for c in await client.chat(MESSAGES, max_tokens=2, stream=True)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == [" a", " b"]


async def test_text_generation_client_maps_errors_of_router_and_engine(endpoint, wire, app):
    _, url = await endpoint()
    client = AsyncClient(url, timeout=20)
    with pytest.raises(tgi_errors.ValidationError):
        await client.generate("")
    with pytest.raises(tgi_errors.ValidationError):
        await client.generate("hello", stop_sequences=["a"] * 9)
    with pytest.raises(tgi_errors.ValidationError):
        await consumed(client.generate_stream("hello", stop_sequences=["a"] * 9))

    rig = await app(retries={"max_attempts": 1}, entries={"max_requests": 1})
    client = AsyncClient(f"http://127.0.0.1:{rig.port}", timeout=20)
    failed = wire.error("Request failed during generation: x", "generation")
    rig.replicas[0].say(wire.reply(failed, "424 Failed Dependency"))
    with pytest.raises(tgi_errors.GenerationError):
        await client.generate("hello")
    gate = asyncio.Event()
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), gate, wire.CUT)
    with pytest.raises(tgi_errors.IncompleteGenerationError):
        await consumed(client.generate_stream("hello"), gate.set)


async def test_text_generation_client_sees_overload_as_overload(app, wire):
    rig = await app(entries={"max_requests": 1}, queue={"timeout_s": 0})
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    client = AsyncClient(f"http://127.0.0.1:{rig.port}", timeout=20)
    with pytest.raises(tgi_errors.OverloadedError):
        await client.generate("hello")
    with pytest.raises(tgi_errors.OverloadedError):
        await consumed(client.generate_stream("hello"))


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_openai_client_async(endpoint, version):
    _, url = await endpoint(version)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        ask = {"model": "tgi", "messages": MESSAGES, "max_tokens": 8}
        whole = await client.chat.completions.create(**ask)
        stream = await client.chat.completions.create(**ask, stream=True)
        chunks = [chunk async for chunk in stream]
        assert whole.choices[0].message.content
        assert chunks[-1].choices[0].finish_reason == "length"
        if version == "3.3.5":
            text = await client.completions.create(model="tgi", prompt="hello", max_tokens=8)
            assert text.choices[0].text
            assert [model.id async for model in client.models.list()]


async def test_openai_client_sync(endpoint):
    _, url = await endpoint()

    def work():
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            ask = {"model": "tgi", "messages": MESSAGES, "max_tokens": 8, "seed": 1}
            whole = client.chat.completions.create(**ask)
            chunks = list(client.chat.completions.create(**ask, stream=True))
            return whole, chunks

    whole, chunks = await in_thread(work)
    assert whole.usage.completion_tokens == 8
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content


async def test_openai_client_maps_errors_to_its_classes(endpoint, app, wire):
    _, url = await endpoint()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError, match="not served"):
            await create(model="nobody/none", messages=MESSAGES)
        with pytest.raises(openai.UnprocessableEntityError, match="messages"):
            await create(model="tgi", messages=[])

    off = {"enabled": False}
    rig = await app(entries={"max_requests": 1}, queue={"timeout_s": 0}, resume=off)
    base = f"http://127.0.0.1:{rig.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
        gate = asyncio.Event()
        rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.delta("a")), gate, wire.CUT)
        stream = await client.chat.completions.create(model="tgi", messages=MESSAGES, stream=True)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="tgi", messages=MESSAGES)
        with pytest.raises(openai.APIError, match="lost"):
            await consumed(stream, gate.set)
