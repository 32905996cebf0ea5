"""Permits, limits, slices, stops, disconnects and faults of a running simulator."""

import asyncio
import contextlib

import aiohttp
import orjson
import pytest


def ask(tokens=2, inputs="Hello there", **parameters):
    return {"inputs": inputs, "parameters": {"max_new_tokens": tokens, **parameters}}


@contextlib.asynccontextmanager
async def endless(sim, path="/generate_stream"):
    """A stream that is generating and does not end within the test."""
    async with sim.session.post(path, json=ask(3000)) as reply:
        await reply.content.readuntil(b"\n\n")
        yield reply


async def until(condition):
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing announces these states
            await asyncio.sleep(0.001)


async def scrape(sim):
    _, data, _ = await sim.get("/metrics")
    lines = [line for line in data.decode().splitlines() if line and not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)


# A GPU a thousand times slower than real, so that a call under way stays so.
SLOW = ("--time-scale", "1", "--speed", "0.5")


async def test_permits_are_counted_per_generation(simulator):
    async with simulator(*SLOW, "--max-concurrent-requests", "3") as sim:
        async with endless(sim):
            best_of_two = ask(best_of=2, do_sample=True)
            array = {"prompt": ["a", "b"], "max_tokens": 1}
            assert sim.service.engine.permits_left == 2
            async with endless(sim):
                for path, body in (("/generate", best_of_two), ("/v1/completions", array)):
                    status, data, headers = await sim.post(path, body)
                    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
                    assert (status, orjson.loads(data)) == (429, overloaded)
                    assert "retry-after" not in headers
                assert (await sim.post("/generate", ask(1)))[0] == 200
        await until(lambda: sim.service.engine.permits_left == 3)
        assert (await sim.post("/generate", best_of_two))[0] == 200
        assert sim.service.engine.permits_left == 3


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_full_stream_is_refused_in_band(simulator, version):
    async with (
        simulator(*SLOW, "--version", version, "--max-concurrent-requests", "1") as sim,
        contextlib.AsyncExitStack() as stack,
    ):
        first = await stack.enter_async_context(
            sim.session.post("/generate_stream", json=ask(1000))
        )
        assert (await first.content.readuntil(b"\n\n")).startswith(b"data:")
        events = await sim.events("/generate_stream", ask())
        assert events == [{"error": "Model is overloaded", "error_type": "overloaded"}]


@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_a_client_that_leaves_frees_permit_and_batch(simulator, version):
    async with simulator(*SLOW, "--version", version) as sim:
        for path in ("/generate_stream", "/generate"):
            before = await scrape(sim)
            _, writer = await asyncio.open_connection(sim.host, sim.port)
            body = orjson.dumps(ask(1000))
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: sim.service.engine.permits_left == 127)
            writer.transport.abort()
            await until(lambda: sim.service.engine.permits_left == 128)
            # The next call finds a batch without the one that left.
            assert (await sim.post("/generate", ask(1)))[0] == 200
            after = await scrape(sim)
            dropped = 'tgi_request_failure{err="dropped"}'
            assert int(after[dropped]) == int(before.get(dropped, 0)) + 1
            assert after["tgi_batch_current_size"] == "0"
            assert after["tgi_batch_current_max_tokens"] == "0"


async def test_clients_that_leave_at_once_are_no_errors(simulator, caplog):
    body = orjson.dumps(ask(3))
    head = b"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    async with simulator() as sim:
        for _ in range(50):
            _, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(request)
            writer.transport.abort()
        assert (await sim.post("/generate", ask()))[0] == 200
        await until(lambda: sim.service.engine.permits_left == 128)
        await sim.service.wait_until_idle()
    assert caplog.records == []


@pytest.mark.parametrize("version", ["1.4.4", "2.3.0", "3.3.5"])
async def test_fresh_engine_is_healthy(simulator, version):
    async with simulator("--version", version) as sim:
        for path in ("/health", "/ping", "/"):
            assert (await sim.get(path))[:2] == (200, b"")


async def test_fresh_metrics_have_no_series(simulator):
    async with simulator() as sim:
        assert await scrape(sim) == {}
        await sim.post("/generate", ask())
        metrics = await scrape(sim)
    assert metrics["tgi_queue_size"] == "0"
    assert metrics["tgi_request_success"] == "1"
    assert metrics["tgi_request_generated_tokens_count"] == "1"
    assert metrics["tgi_request_generated_tokens_sum"] == "2.0"
    assert metrics['tgi_batch_inference_count{method="prefill"}'] == "1"


async def test_metrics_have_help_lines_from_2_3_on(simulator):
    for version, has_help in (("2.2.0", False), ("2.3.0", True)):
        async with simulator("--version", version) as sim:
            await sim.post("/generate", ask())
            _, data, headers = await sim.get("/metrics")
        assert (b"# HELP" in data) is has_help
        assert b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n\n" in data
        assert headers["content-type"].startswith("text/plain")


async def test_health_waits_for_the_step_under_way(simulator):
    async with simulator(*SLOW) as sim, endless(sim):
        steps = 'tgi_batch_inference_count{method="decode"}'
        before = int((await scrape(sim)).get(steps, 0))
        for _ in range(5):
            assert (await sim.get("/health"))[:2] == (200, b"")
        assert int((await scrape(sim))[steps]) >= before + 4


async def test_stop_sequence_ends_the_text_after_it(simulator):
    async with simulator() as sim:
        text = orjson.loads((await sim.post("/generate", ask(30)))[1])["generated_text"]
        word = text.split()[3]
        _, data, _ = await sim.post("/generate", ask(30, stop=["never", word], details=True))
    answer = orjson.loads(data)
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["generated_text"].endswith(word)
    assert text.startswith(answer["generated_text"])


async def test_stop_sequence_may_span_tokens(simulator):
    async with simulator() as sim:
        text = orjson.loads((await sim.post("/generate", ask(30)))[1])["generated_text"]
        pair = " ".join(text.split()[2:4])
        _, data, _ = await sim.post("/generate", ask(30, stop=[pair], details=True))
    assert orjson.loads(data)["details"]["generated_tokens"] == 4


async def test_a_stream_continues_to_the_same_text(simulator):
    async with simulator() as sim:
        events = await sim.events("/generate_stream", ask(40))
        whole = events[-1]["generated_text"]
        part = "".join(event["token"]["text"] for event in events[:17])
        again = await sim.events("/generate_stream", ask(23, inputs="Hello there" + part))
    assert part + again[-1]["generated_text"] == whole


@pytest.mark.parametrize(
    ("version", "wanted", "generated"),
    [("2.4.1", 1500, 1500), ("3.1.0", 1500, 1500), ("3.3.5", 1500, 2048), ("3.3.5", 1024, 1024)],
)
async def test_slices_of_1024_tokens(simulator, version, wanted, generated):
    limits = ("--max-input-tokens", "4000", "--max-total-tokens", "8000")
    async with simulator("--version", version, *limits) as sim:
        _, data, _ = await sim.post("/generate", ask(wanted, details=True))
        assert sim.service.engine.permits_left == 128
    details = orjson.loads(data)["details"]
    assert (details["generated_tokens"], details["finish_reason"]) == (generated, "length")


async def test_a_slice_that_no_longer_fits_ends_the_text(simulator):
    limits = ("--max-input-tokens", "1999", "--max-total-tokens", "2000")
    async with simulator(*limits) as sim:
        _, data, _ = await sim.post("/generate", ask(5000, details=True))
    assert orjson.loads(data)["details"]["generated_tokens"] == 1024


@pytest.mark.parametrize(
    ("version", "parameters", "generated"),
    [
        ("2.4.1", {}, 100),
        ("2.4.1", {"max_new_tokens": None}, 298),
        ("3.3.5", {}, 298),
        ("3.3.5", {"max_new_tokens": None}, 298),
    ],
)
async def test_default_length_by_version(simulator, version, parameters, generated):
    limits = ("--max-input-tokens", "100", "--max-total-tokens", "300")
    async with simulator("--version", version, *limits) as sim:
        body = {"inputs": "Hello there", "parameters": parameters}
        _, _, headers = await sim.post("/generate", body)
    assert headers["x-generated-tokens"] == str(generated)


async def test_truncate_keeps_the_end(simulator):
    async with simulator() as sim:
        long = await sim.post("/generate", ask(5, inputs="one two three four", truncate=2))
        short = await sim.post("/generate", ask(5, inputs=" three four"))
    assert long[1] == short[1]
    assert long[2]["x-prompt-tokens"] == "2"


async def test_greedy_and_sampled_calls(simulator):
    async with simulator() as sim:

        async def seed_of(body):
            details = orjson.loads((await sim.post("/generate", body))[1])["details"]
            return details["seed"]

        assert await seed_of(ask(details=True)) is None
        assert await seed_of(ask(details=True, do_sample=True, seed=2**64 - 1)) == 2**64 - 1
        assert isinstance(await seed_of(ask(details=True, top_k=5)), int)
        texts = {(await sim.post("/generate", {"inputs": "Hello"}))[1] for _ in range(3)}
        assert len(texts) == 3


@pytest.mark.parametrize("token_model", ["text", "bpe"])
@pytest.mark.parametrize("version", ["1.4.4", "3.3.5"])
async def test_many_calls_at_once_all_get_their_tokens(simulator, version, token_model):
    budget = ("--max-batch-total-tokens", "5000", "--max-batch-prefill-tokens", "1024")
    limits = ("--max-input-tokens", "1000", "--max-total-tokens", "2000")
    async with simulator(
        "--version", version, "--token-model", token_model, *budget, *limits
    ) as sim:
        sizes = [1 + i * 7 % 90 for i in range(100)]
        replies = await asyncio.gather(
            *(sim.post("/generate", ask(n, inputs=f"Hello {n} " * n)) for n in sizes)
        )
        assert [int(headers["x-generated-tokens"]) for *_, headers in replies] == sizes
        assert sim.service.engine.permits_left == 128
        metrics = await scrape(sim)
    assert metrics["tgi_batch_current_max_tokens"] == "0"
    assert metrics["tgi_request_success"] == "100"


FAULT = "/simulator/faults"


async def test_faults_need_their_flag(simulator):
    async with simulator() as sim:
        assert (await sim.post(FAULT, {"mode": "overload"}))[0] == 404
    async with simulator("--faults") as sim:
        assert (await sim.post(FAULT, {"mode": "nonsense"}))[0] == 422


@pytest.mark.parametrize(
    ("mode", "status", "error_type"),
    [
        ("error_next", 424, "generation"),
        ("overload", 429, "overloaded"),
        ("die_mid_stream", 424, "generation"),
        ("incomplete", 500, "incomplete_generation"),
    ],
)
async def test_faults_that_are_errors(simulator, mode, status, error_type):
    async with simulator("--faults") as sim:
        await sim.post(FAULT, {"mode": mode, "after_events": 3, "count": 2})
        found, data, _ = await sim.post("/generate", ask(10))
        assert (found, orjson.loads(data)["error_type"]) == (status, error_type)
        events = await sim.events("/generate_stream", ask(10))
        assert events[-1]["error_type"].startswith(error_type)
        assert len(events) == (4 if mode in ("die_mid_stream", "incomplete") else 1)
        assert (await sim.post("/generate", ask()))[0] == 200
        assert sim.service.engine.permits_left == 128


@pytest.mark.parametrize("mode", ["cut_mid_event", "wrong_length", "garbage"])
@pytest.mark.parametrize("after", [0, 2])
async def test_faults_that_break_the_connection(simulator, mode, after, caplog):
    async with simulator("--faults") as sim:
        await sim.post(FAULT, {"mode": mode, "after_events": after, "count": 2})
        with pytest.raises(aiohttp.ClientError):
            await sim.post("/generate", ask(10))
        with pytest.raises(aiohttp.ClientError):
            await sim.post("/generate_stream", ask(10))
        assert (await sim.post("/generate", ask()))[0] == 200
        await until(lambda: sim.service.engine.permits_left == 128)
    assert caplog.records == []


async def test_hang_says_nothing_until_the_client_leaves(simulator):
    async with simulator("--faults") as sim:
        await sim.post(FAULT, {"mode": "hang"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sim.post("/generate_stream", ask()), 0.1)
        assert (await sim.post("/generate_stream", ask()))[0] == 200


async def test_unhealthy_is_for_health_checks_only(simulator):
    async with simulator("--faults") as sim:
        await sim.post(FAULT, {"mode": "unhealthy"})
        assert (await sim.post("/generate", ask()))[0] == 200
        status, data, _ = await sim.get("/health")
        expected = {"error": "unhealthy", "error_type": "healthcheck"}
        assert (status, orjson.loads(data)) == (503, expected)
        assert (await sim.get("/health"))[0] == 200
