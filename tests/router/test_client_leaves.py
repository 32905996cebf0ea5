"""A client that leaves frees what it held at once, in every phase, and nobody else is disturbed."""

import asyncio

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
ROUTES = ["/generate", "/generate_stream"]
LEAVE = ["leave", "reset"]


async def seen_gone(request):
    """The replica's side of the connection is closed: that is how an engine stops working."""
    async with asyncio.timeout(5):
        await request.gone.wait()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("how", LEAVE)
async def test_leaving_while_queued_frees_the_place(app, wire, until, path, how):
    rig = await app(entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    client = await rig.client()
    client.post(path, GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    getattr(client, how)()
    await until(lambda: len(rig.dispatcher.queue) == 0)
    assert rig.dispatcher.queue.waiting_bytes == 0
    line = await rig.line()
    assert (line["status"], line["replica"]) == (499, None)
    assert rig.metric("cancellations_total", phase="queue") == 1
    assert len(rig.replicas[0].requests) == 1


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("how", LEAVE)
async def test_leaving_before_the_first_token_frees_the_replica(app, wire, until, path, how):
    rig = await app(entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post(path, GENERATE)
    request = await rig.replicas[0].request()
    getattr(client, how)()
    await seen_gone(request)
    await until(lambda: rig["r0"].load.requests == 0)
    assert (await rig.line())["status"] == 499
    assert rig.metric("cancellations_total", phase="prefill") == 1
    assert (await rig.post("/generate", GENERATE)).status == 200


@pytest.mark.parametrize("how", LEAVE)
async def test_leaving_inside_a_stream_frees_the_replica(app, wire, until, how):
    rig = await app(entries={"max_requests": 1})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1)
    getattr(client, how)()
    await seen_gone(rig.replicas[0].requests[0])
    await until(lambda: rig["r0"].load.requests == 0)
    line = await rig.line()
    assert (line["status"], line["replica"]) == (499, "r0")
    assert rig.metric("cancellations_total", phase="relay") == 1


async def test_an_event_in_the_tick_in_which_a_client_left_harms_nobody(app, wire):
    """Its transport is closed by then, and the call not cancelled yet."""
    rig = await app()
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1)
    [serving] = rig.app._edge.connections
    [exchange] = [running for running in rig.app.upstream._running if running.is_stream]
    read = asyncio.get_running_loop().create_future()

    def event():
        try:
            read.set_result(exchange.on_read(wire.token(2)))
        except RuntimeError as exc:
            read.set_exception(exc)

    serving.transport.abort()
    asyncio.get_running_loop().call_soon(event)
    await read
    assert (await rig.line())["status"] == 499


@pytest.mark.parametrize("how", LEAVE)
async def test_leaving_a_stream_that_only_has_its_head_frees_the_replica(app, wire, until, how):
    rig = await app(timeouts={"stream_open_after_s": 0.05})
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    getattr(client, how)()
    await seen_gone(rig.replicas[0].requests[0])
    assert (await rig.line())["status"] == 499


async def test_a_place_freed_in_the_queue_goes_to_the_next(app, wire, until):
    rig = await app(entries={"max_requests": 1})
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("first")))
    clients = []
    for position in range(3):
        client = await rig.client()
        client.post("/generate", {"inputs": f"call {position}"})
        clients.append(client)
        if position == 0:
            await rig.replicas[0].request()
        else:
            await until(lambda position=position: len(rig.dispatcher.queue) == position)
    clients[1].leave()
    await until(lambda: len(rig.dispatcher.queue) == 1)
    gate.set()
    assert (await clients[0].reply()).body == wire.generated("first")
    assert (await clients[2].reply()).status == 200
    assert [b"call 1" in request.body for request in rig.replicas[0].requests] == [False, False]


async def test_a_leaving_client_does_not_hurt_the_replica_s_health(app, wire, until):
    rig = await app(health={"eject_after": 1})
    for _ in range(3):
        rig.replicas[0].say(wire.STALL)
    for number in (1, 2, 3):
        client = await rig.client()
        client.post("/generate", GENERATE)
        request = await rig.replicas[0].request(number)
        client.leave()
        await seen_gone(request)
    assert rig["r0"].health.state.value == "healthy"
    assert rig["r0"].failed == 0


async def test_leaving_while_a_retry_waits_frees_everything(app, wire, until):
    """The only replica died; the call waits at the head of the queue for it to come back."""
    rig = await app(health={"interval_s": 1000})
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post("/generate", GENERATE)
    await rig.replicas[0].request()
    await rig.replicas[0].die()
    await until(lambda: len(rig.dispatcher.queue) == 1)
    client.leave()
    await until(lambda: len(rig.dispatcher.queue) == 0)
    assert (await rig.line())["status"] == 499


async def test_leaving_while_a_large_body_is_parsed_leaves_nothing(app, until):
    rig = await app()
    await rig.post("/generate", b" " * 300_000 + b'{"inputs":"a"}')  # the process is there
    client = await rig.client()
    body = b'{"inputs":"a","x":[' + b"1.5," * 3_000_000 + b"1]}"
    client.post("/generate", body)
    await client.drain()
    await until(lambda: rig.app.handlers.calls_running == 1)
    client.leave()
    await until(lambda: rig.app.handlers.calls_running == 0)


async def test_many_clients_leave_at_once(app, wire, until):
    rig = await app(2, entries={"max_requests": 2})
    for replica in rig.replicas:
        replica.otherwise = [wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL]
    clients = [await rig.client() for _ in range(40)]
    for client in clients:
        client.post("/generate_stream", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 36)
    for client in clients:
        client.reset()
    await until(lambda: len(rig.lines()) == 40)
    assert {line["status"] for line in rig.lines()} == {499}
    await rig.at_rest()


CHAT = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize("how", LEAVE)
async def test_leaving_at_the_last_word_is_no_cancellation(app, wire, until, how):
    """OpenAI's client closes at [DONE], and does not wait for the end of the body behind it."""
    rig = await app()
    last = wire.chunk(wire.delta("a", finish="stop") + wire.DONE)
    rig.replicas[0].say(wire.stream_head(), last, wire.STALL)
    client = await rig.client()
    client.post("/v1/chat/completions", CHAT)
    await client.head()
    assert (await client.chunk()).endswith(wire.DONE)
    getattr(client, how)()
    line = await rig.line()
    assert (line["status"], line["error"], line["generated_tokens"]) == (200, None, 1)
    assert (rig["r0"].served, rig["r0"].failed) == (1, 0)
    assert rig.metric("cancellations_total", phase="relay") == 0


async def test_leaving_at_an_error_does_not_excuse_the_engine(app, wire, until):
    """A client raises what an error event says, and is gone before the stream's end."""
    rig = await app(resume={"enabled": False})
    error = wire.error_event("Request failed during generation: CUDA", "generation")
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1) + error), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert (await client.chunk()).endswith(error)
    client.leave()
    line = await rig.line()
    assert (line["status"], "CUDA" in line["error"]) == (200, True)
    assert (rig["r0"].served, rig["r0"].failed) == (0, 1)
