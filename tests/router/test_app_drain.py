"""Stopping and retiring: nothing in flight is lost, nothing is taken, nothing ends in silence."""

import asyncio
import json
import os
import signal
import socket

import pytest

from router.tasks import Tasks

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


class Stopping:
    """The router's `run`, as a task of the test."""

    def __init__(self, rig, tasks):
        self.rig = rig
        self.task = tasks.spawn(rig.app.run(), "run")

    async def ended(self):
        async with asyncio.timeout(10):
            await asyncio.shield(self.task)
        self.rig.is_closed = True


@pytest.fixture
async def running(app):
    """`await running(...)`: a rig whose `run` goes on, as it does in the `router` command."""
    tasks = Tasks()

    async def make(*args, **options):
        rig = await app(*args, **options)
        return rig, Stopping(rig, tasks)

    yield make
    await tasks.close()


async def begun(rig, wire, path="/generate_stream"):
    """A stream whose first event is out, the gate to its rest, and the client."""
    gate = asyncio.Event()
    rig.replicas[0].say(
        wire.stream_head(),
        wire.chunk(wire.token(1)),
        gate,
        wire.chunk(wire.token(2, last="x")),
        wire.LAST_CHUNK,
    )
    client = await rig.client()
    client.post(path, GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1)
    return client, gate


async def test_calls_in_flight_are_finished_and_their_connection_closed(running, wire, until):
    rig, run = await running()
    client, gate = await begun(rig, wire)
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    gate.set()
    assert await client.chunk() == wire.token(2, last="x")
    assert await client.chunk() == b""
    await run.ended()
    assert await client.is_closed()


async def test_waiting_calls_are_served_before_the_end(running, wire, until):
    rig, run = await running(entries={"max_requests": 1})
    _, gate = await begun(rig, wire)
    waiting = await rig.client()
    waiting.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    gate.set()
    assert (await waiting.reply()).status == 200
    await run.ended()


async def test_a_connection_kept_open_is_told_to_close_while_draining(running, wire, until):
    rig, run = await running()
    kept = await rig.client()
    kept.post("/generate", GENERATE)
    assert (await kept.reply()).get("connection") is None
    _, gate = await begun(rig, wire)
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    kept.post("/generate", GENERATE)
    reply = await kept.reply()
    assert (reply.status, reply.get("connection")) == (200, "close")
    gate.set()
    await run.ended()


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
async def test_health_is_503_while_draining(running, wire, until, path):
    rig, run = await running()
    kept = await rig.client()
    kept.ask("GET", path)
    assert (await kept.reply()).status == 200
    _, gate = await begun(rig, wire)
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    kept.ask("GET", path)
    reply = await kept.reply()
    assert (reply.status, reply.get("connection")) == (503, "close")
    gate.set()
    await run.ended()


async def test_new_connections_are_refused_while_draining(running, wire, until):
    rig, run = await running()
    client, gate = await begun(rig, wire)
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    with pytest.raises(ConnectionRefusedError):
        await rig.client()
    gate.set()
    assert await client.chunk() == wire.token(2, last="x")
    await run.ended()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generate_stream", GENERATE), ("/v1/completions", {"prompt": "a", "stream": True})],
)
async def test_the_drain_bound_ends_streams_with_an_error_in_band(running, wire, path, body):
    rig, run = await running(timeouts={"drain_s": 0.1})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post(path, body)
    await client.head()
    assert await client.chunk() == wire.token(1)
    rig.app.stop()
    events = await client.chunk()
    assert await client.chunk() == b""
    first, *rest = events.split(b"\n\n")
    error = json.loads(first[6:])
    if path.startswith("/v1/"):
        assert error["error"]["code"] == "overloaded"
        assert rest == [b"data: [DONE]", b""]
    else:
        assert error["error_type"] == "overloaded"
        assert rest == [b""]
    await run.ended()


async def test_the_drain_bound_answers_unary_and_waiting_calls(running, wire, until):
    rig, run = await running(timeouts={"drain_s": 0.1}, entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    busy, waiting = await rig.client(), await rig.client()
    busy.post("/generate", GENERATE)
    request = await rig.replicas[0].request()
    waiting.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    rig.app.stop()
    for client in (busy, waiting):
        reply = await client.reply()
        assert reply.status == 503
        assert reply.json()["error_type"] == "overloaded"
        assert reply.get("retry-after")
        assert reply.get("connection") == "close"
    async with asyncio.timeout(5):
        await request.gone.wait()
    await run.ended()


async def test_stopping_twice_ends_at_once(running, wire, until):
    rig, run = await running(timeouts={"drain_s": 600})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    await client.chunk()
    rig.app.stop()
    await until(lambda: rig.app.handlers.is_draining)
    rig.app.stop()
    assert b"error" in await client.chunk()
    await run.ended()


async def test_being_asked_politely_twice_cuts_nothing(running, wire, until):
    """A launcher that takes over asks a router that drains already; its calls still finish."""
    rig, run = await running(timeouts={"drain_s": 600})
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    await client.chunk()
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: rig.app.handlers.is_draining)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(3):
        await asyncio.sleep(0)  # the second signal's turn in the loop
    assert rig.app.handlers.calls_running == 1
    assert not rig.app._at_once.is_set()
    client.leave()
    await run.ended()


async def test_a_retired_router_serves_idle_connections_until_they_leave(running, until):
    """No call sent on a kept connection is lost in a hand-over."""
    rig, run = await running()
    kept = [await rig.client() for _ in range(3)]
    for client in kept:
        client.post("/generate", GENERATE)
        assert (await client.reply()).get("connection") is None
    rig.app.retire()
    await until(lambda: rig.app.handlers.is_draining)
    for client in kept[:2]:
        client.post("/generate", GENERATE)
        reply = await client.reply()
        assert (reply.status, reply.get("connection")) == (200, "close")
        assert await client.is_closed()
    assert not run.task.done()
    kept[2].leave()
    await run.ended()


async def test_a_stream_that_began_before_keeps_its_connection_for_one_more_call(
    running, wire, until
):
    """Its head promised that; the client may send its next call while it still reads the end."""
    rig, run = await running()
    client, gate = await begun(rig, wire)
    rig.app.retire()
    await until(lambda: rig.app.handlers.is_draining)
    gate.set()
    while await client.chunk():
        pass
    client.post("/generate", GENERATE)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (200, "close")
    assert await client.is_closed()
    await run.ended()


async def test_a_retired_router_ends_at_the_drain_bound(running):
    rig, run = await running(timeouts={"drain_s": 0.1})
    kept = await rig.client()
    kept.post("/generate", GENERATE)
    await kept.reply()
    rig.app.retire()
    await run.ended()
    assert await kept.is_closed()


async def test_two_routers_share_a_listener_and_lose_no_call(app, running, wire, until):
    """The successor accepts on the same socket while the predecessor retires."""
    old, run = await running()
    kept = await old.client()
    kept.post("/generate", GENERATE)
    assert (await kept.reply()).status == 200
    twin = socket.socket(fileno=socket.dup(old.sock.fileno()))
    twin.setblocking(False)
    new = await app(old.replicas, sock=twin)
    old.app.retire()
    await until(lambda: old.app.handlers.is_draining)
    assert (await new.post("/generate", GENERATE)).status == 200
    kept.post("/generate", GENERATE)
    assert (await kept.reply()).status == 200
    await run.ended()
    assert [(await new.post("/generate", GENERATE)).status for _ in range(3)] == [200] * 3
