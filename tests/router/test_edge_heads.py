"""A request head has bounds: in bytes, in fields and in time, on new and on kept connections."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
BODY = json.dumps(GENERATE).encode()
START = b"POST /generate HTTP/1.1\r\nHost: a\r\n"
LINES = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)


async def refused(client, status):
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (status, "close"), reply.body
    assert reply.json()["error_type"] == "validation"
    assert await client.is_closed()


# ---- time ----


@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("start", [b"P", START, START + b"X-A: 1\r\n", b"\r\n"])
async def test_a_head_that_does_not_go_on_is_408(app, is_kept, start):
    rig = await app(limits={"head_s": 0.2})
    client = await rig.client()
    if is_kept:
        client.post("/generate", GENERATE)
        assert (await client.reply()).status == 200
    client.write(start)
    await refused(client, 408)


async def test_a_head_that_is_dribbled_is_408_and_bytes_do_not_buy_time(app):
    rig = await app(limits={"head_s": 0.3})
    client = await rig.client()
    loop = asyncio.get_running_loop()
    begun_s = loop.time()

    async def dribble():
        client.write(START)
        while True:
            client.write(b"X-A: 1\r\n")
            await asyncio.sleep(0.02)  # a slow sender: this is the behaviour under test

    dribbling = rig.app.tasks.spawn(dribble(), "dribble")
    reply = await client.reply()
    dribbling.cancel()
    assert reply.status == 408
    assert 0.25 < loop.time() - begun_s < 5
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_a_head_in_pieces_that_comes_in_time_is_served_and_so_is_the_next(app):
    rig = await app(limits={"head_s": 1.0})
    client = await rig.client()
    for _ in range(2):
        for piece in (b"P", START[1:], LINES, b"\r\n" + BODY):
            client.write(piece)
            await client.drain()
            await asyncio.sleep(0.05)  # each in a read of its own
        assert (await client.reply()).status == 200
    [protocol] = rig.app._edge.connections
    assert protocol._late is None
    assert protocol._call is None
    assert protocol._data == b""


async def test_the_time_of_a_head_ends_with_it(app, wire):
    """A call that takes longer than that is served all the same."""
    rig = await app(limits={"head_s": 0.1})
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("late")))
    client = await rig.client()
    client.write(START)
    await client.drain()
    await asyncio.sleep(0.02)  # a read of its own
    client.write(LINES + b"\r\n" + BODY)
    await rig.replicas[0].request()
    await asyncio.sleep(0.2)  # past the bound
    gate.set()
    assert (await client.reply()).status == 200


async def test_a_connection_that_says_nothing_is_not_held_to_it(app):
    rig = await app(limits={"head_s": 0.1})
    client = await rig.client()
    await asyncio.sleep(0.3)  # past the bound
    client.post("/generate", GENERATE)
    assert (await client.reply()).status == 200


async def test_a_body_that_is_dribbled_is_408(app):
    rig = await app(timeouts={"body_s": 0.3})
    client = await rig.client()
    client.write(START + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n")

    async def dribble():
        while True:
            client.write(b"x")
            await asyncio.sleep(0.02)  # a slow sender: this is the behaviour under test

    dribbling = rig.app.tasks.spawn(dribble(), "dribble")
    reply = await client.reply()
    dribbling.cancel()
    assert (reply.status, reply.get("connection")) == (408, "close")


# ---- size ----


def padded(size):
    """A head of so many bytes, in fields of a thousand."""
    fields = b"".join(b"X-%03d: %b\r\n" % (i, b"a" * 1000) for i in range(size // 1000))
    return START + LINES + fields + b"\r\n"


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_head_over_the_bound_is_431(app, in_pieces):
    rig = await app(limits={"head_bytes": 20_000})
    client = await rig.client()
    head = padded(30_000)
    pieces = [head[i : i + 2000] for i in range(0, len(head), 2000)] if in_pieces else [head]
    for piece in pieces:
        client.write(piece)
        await asyncio.sleep(0)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (431, "close")
    assert rig.replicas[0].requests == []


async def test_a_large_body_beside_a_small_head_is_none(app):
    rig = await app(limits={"head_bytes": 2000})
    client = await rig.client()
    for _ in range(3):
        client.post("/generate", {"inputs": "a" * 150_000})
    assert [(await client.reply()).status for _ in range(3)] == [200] * 3


async def test_of_pipelined_requests_the_one_with_the_large_head_is_refused(app):
    rig = await app(limits={"head_bytes": 5000})
    client = await rig.client()
    small = START + LINES + b"\r\n" + BODY
    client.write(small + padded(6000) + BODY + small)
    assert (await client.reply()).status == 200
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (431, "close")
    assert await client.is_closed()
    assert len(rig.replicas[0].requests) == 1


async def test_a_field_over_the_bound_is_431_and_the_message_does_not_repeat_it(app):
    rig = await app(limits={"head_bytes": 4000})
    reply = await rig.post("/generate", GENERATE, f"Authorization: Bearer hunter2{'x' * 5000}")
    assert reply.status == 431
    assert b"hunter2" not in reply.body


async def test_more_fields_than_the_bound_are_refused(app):
    rig = await app(limits={"head_fields": 10})
    assert (await rig.post("/generate", GENERATE, *["X-A: 1"] * 7)).status == 200
    assert (await rig.post("/generate", GENERATE, *["X-A: 1"] * 8)).status == 400


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /?key=hunter2 HTTP/1.1\r\nHost: a\r\nX-A: hunter2\x00\r\n\r\n",
        b"GET /?key=hunter2\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"hunter2 / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / hunter2/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhunter2 x: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: hunter2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: hunter2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key1: hunter2\r\n\r\n",
        b"GET http://[hunter2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization: hunter2\r\n\r\n",
    ],
)
async def test_what_is_malformed_is_not_repeated(app, request_bytes, caplog):
    caplog.set_level("DEBUG")
    rig = await app()
    client = await rig.client()
    client.write(request_bytes)
    reply = await client.reply()
    assert 400 <= reply.status < 500
    assert b"hunter2" not in reply.body
    assert "hunter2" not in caplog.text + rig.out.getvalue().decode()
