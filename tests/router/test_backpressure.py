"""A client that reads slowly slows its replica down, costs bounded memory and disturbs nobody."""

import asyncio

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
MEGABYTE = 1024**2


def flood(wire, count=10**9):
    """An endless stream of events of 4 KiB."""
    return [wire.stream_head(), wire.Flood(wire.chunk(wire.token(1, "x" * 4000)), count)]


async def test_a_reader_that_stops_pauses_its_replica(app, wire, until):
    rig = await app()
    rig.replicas[0].say(*flood(wire))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    request = await rig.replicas[0].request()
    async with asyncio.timeout(10):
        await request.waits.wait()
    others = [await rig.post("/generate", GENERATE) for _ in range(20)]
    assert {reply.status for reply in others} == {200}
    assert request.flooded_bytes < 16 * MEGABYTE  # socket buffers on both sides, not the stream
    assert request.waits.is_set()


async def test_a_reader_that_goes_on_gets_every_byte(app, wire):
    rig = await app()
    event, last = wire.token(1, "x" * 4000), wire.token(2, last="end")
    rig.replicas[0].say(
        wire.stream_head(),
        wire.Flood(wire.chunk(event), 3000),
        wire.chunk(last),
        wire.LAST_CHUNK,
    )
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    request = await rig.replicas[0].request()
    async with asyncio.timeout(10):
        await request.waits.wait()
    reply = await client.reply()
    assert reply.is_whole
    assert len(reply.body) == 3000 * len(event) + len(last)
    assert reply.body == event * 3000 + last


async def test_a_reader_that_stays_stopped_is_dropped(app, wire, until):
    rig = await app(timeouts={"between_events_s": 0.2})
    rig.replicas[0].say(*flood(wire))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    line = await rig.line()
    assert line["status"] == 499
    assert "read nothing" in line["error"]
    async with asyncio.timeout(5):
        await rig.replicas[0].requests[0].gone.wait()
    assert rig["r0"].load.requests == 0
    assert rig["r0"].failed == 0
    assert rig.metric("cancellations_total", phase="relay") == 1


async def test_a_stopped_reader_that_leaves_frees_its_replica(app, wire, until):
    rig = await app()
    rig.replicas[0].say(*flood(wire))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    request = await rig.replicas[0].request()
    async with asyncio.timeout(10):
        await request.waits.wait()
    client.reset()
    async with asyncio.timeout(5):
        await request.gone.wait()
    assert (await rig.line())["status"] == 499


async def test_a_slow_reader_s_pause_is_no_silence_of_the_replica(app, wire):
    """Paused for several times `between_events_s`, piece by piece, and nothing goes wrong."""
    rig = await app(timeouts={"between_events_s": 0.3})
    event, last = wire.token(1, "x" * 4000), wire.token(2, last="end")
    rig.replicas[0].say(
        wire.stream_head(), wire.Flood(wire.chunk(event), 2500), wire.chunk(last), wire.LAST_CHUNK
    )
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    size, loop = 0, asyncio.get_running_loop()
    slow_until_s = loop.time() + 0.9
    while piece := await client.chunk():
        size += len(piece)
        if loop.time() < slow_until_s:
            await asyncio.sleep(0.002)  # a slow reader: this is the behaviour under test
    assert size == 2500 * len(event) + len(last)


async def test_a_stopped_reader_does_not_outlive_the_drain_bound(app, wire, until):
    rig = await app(timeouts={"drain_s": 0.1})
    rig.replicas[0].say(*flood(wire))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate_stream", GENERATE)
    await client.head()
    request = await rig.replicas[0].request()
    async with asyncio.timeout(10):
        await request.waits.wait()
    async with asyncio.timeout(5):
        await rig.app.drain()
        await rig.app.close()
    rig.is_closed = True
    assert rig["r0"].load.requests == 0
    assert rig.dispatcher.open_leases == 0


async def test_a_reply_larger_than_what_is_held_is_paused_too(app, wire):
    rig = await app()
    size = 64 * MEGABYTE
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % size
    rig.replicas[0].say(head, wire.Flood(b"x" * 65536, size // 65536))
    client = await rig.client(receive_buffer=4096)
    client.post("/generate", GENERATE)
    request = await rig.replicas[0].request()
    await client.head()
    async with asyncio.timeout(10):
        await request.waits.wait()
    assert request.flooded_bytes < 32 * MEGABYTE


async def dropped(rig, until):
    """Waits until the router has dropped its client; the most it ever held for it."""
    most_bytes = 0

    def is_dropped():
        nonlocal most_bytes
        connections = rig.app._edge.connections
        held = [c.transport.get_write_buffer_size() for c in connections if c.transport]
        most_bytes = max([most_bytes, *held])
        return rig.lines() and not connections

    await until(is_dropped)
    assert not rig.app.handlers.calls_running
    return most_bytes


async def test_a_client_that_pipelines_and_reads_nothing_is_held_up_and_dropped(app, wire, until):
    """Whole replies are bounded as streams are: one more than the buffers take, and no further."""
    rig = await app(timeouts={"between_events_s": 0.3})
    size = 200_000
    rig.replicas[0].otherwise = [wire.reply(wire.generated("x" * size))]
    client = await rig.client(receive_buffer=4096)
    for _ in range(400):
        client.post("/generate", GENERATE)
    assert size / 2 < await dropped(rig, until) < 3 * size
    assert len(rig.replicas[0].requests) < 100  # what the socket buffers took, not what was asked
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_a_client_that_pipelines_wrong_calls_and_reads_nothing_is_dropped_too(app, until):
    """Refusals count as replies. Each names the model, so that few calls fill the buffers."""
    rig = await app(timeouts={"between_events_s": 0.3}, entries={"models": ("m" * 512,)})
    client = await rig.client(receive_buffer=4096)
    sent = 20_000
    for _ in range(sent):
        client.post("/generate", {"inputs": "x", "model": "n"})
    assert await dropped(rig, until) < 3 * 2**16
    assert {line["status"] for line in rig.lines()} == {404}
    assert len(rig.lines()) < sent / 2
