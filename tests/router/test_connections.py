"""Connections to replicas: what is sent again unseen, what is reused, and whose fault it is."""

import asyncio
import errno
import os
import socket

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CLOSE = "connection: close\r\n"


# ---- kept connections ----


@pytest.mark.parametrize(("stale_within_s", "attempts"), [(10.0, "1"), (-1.0, "2")])
async def test_a_kept_connection_is_only_stale_when_it_breaks_at_once(
    app, wire, monkeypatch, stale_within_s, attempts
):
    """Later, the replica may have died of the call: that is an attempt, and a death it had."""
    monkeypatch.setattr("router.upstream.STALE_WITHIN_S", stale_within_s)
    rig = await app(health={"interval_s": 1000, "warm_up": False})
    assert (await rig.post("/generate", GENERATE)).status == 200
    connections = rig.replicas[0].connections
    rig.replicas[0].say(wire.CUT)
    reply = await rig.post("/generate", GENERATE)
    assert (reply.status, reply.get("x-fleet-attempts")) == (200, attempts)
    assert len(rig.replicas[0].requests) == 3
    assert rig.replicas[0].connections > connections
    assert rig.metric("retries_total", reason="ReplicaLost") == int(attempts) - 1
    assert rig["r0"].failed == int(attempts) - 1


async def test_a_call_that_kills_late_on_kept_connections_is_poison_all_the_same(
    app, wire, monkeypatch
):
    monkeypatch.setattr("router.upstream.STALE_WITHIN_S", -1.0)
    rig = await app(4, health={"interval_s": 1000})
    await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(16)))
    for replica in rig.replicas:
        replica.requests.clear()
        replica.otherwise = [wire.RST]
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 422
    assert reply.json()["error_type"] == "validation"
    assert sum(len(replica.requests) for replica in rig.replicas) == 3


# ---- a reply before the request was out ----


class EarlyReplica:
    """Refuses a large body at its head, as reverse proxies do, and reads on only when told."""

    name = "r0"

    def __init__(self):
        self.go_on = asyncio.Event()
        self.posts = []
        self._connections = 0

    async def start(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=2**16)

    async def close(self):
        self.go_on.set()
        self._server.close()

    async def _serve(self, reader, writer):
        self._connections += 1
        number = self._connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("post"):
                    self.posts.append(number)
                    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                    if length > 100_000:
                        await self._refuse(reader, writer)
                        continue
                    await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _refuse(self, reader, writer):
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 8\r\n\r\ntoo big!")
        await self.go_on.wait()
        while await reader.read(2**16):
            pass


async def test_a_connection_whose_request_is_not_out_yet_is_not_used_again(app):
    """What is sent next would be read as part of the body."""
    replica = EarlyReplica()
    await replica.start()
    rig = await app([replica], health={"interval_s": 1000, "warm_up": False})
    reply = await rig.post("/generate", {"inputs": "a" * 16_000_000})
    assert (reply.status, reply.body) == (413, b"too big!")
    reply = await rig.post("/generate", GENERATE)
    assert (reply.status, reply.body) == (200, b"{}")
    refused_on, served_on = replica.posts
    assert served_on != refused_on
    assert rig["r0"].failed == 0
    replica.go_on.set()


# ---- connections that cannot be made ----


@pytest.fixture
async def closing(app, wire):
    """`await closing(2, ...)`: a rig whose replicas keep no connection."""

    async def make(count, **options):
        replicas = [wire.ScriptedReplica(f"r{i}") for i in range(count)]
        for replica in replicas:
            replica.health = [wire.reply(b"", fields=CLOSE)]
            replica.otherwise = [wire.reply(wire.generated("ok"), fields=CLOSE)]
            [info] = replica.info
            head, _, body = info.partition(b"\r\n\r\n")
            replica.info = [head + b"\r\n" + CLOSE.encode() + b"\r\n" + body]
            await replica.start()
        return await app(replicas, **options)

    return make


class Connecting:
    """Takes the place of the loop's `create_connection`, for connections to replicas only."""

    def __init__(self, loop, monkeypatch, do):
        self.count = 0
        self.do = do
        self._real = loop.create_connection
        monkeypatch.setattr(loop, "create_connection", self)

    async def __call__(self, factory, host=None, port=None, **options):
        if host is not None:
            self.count += 1
            if self.do is not None:
                await self.do(port)
        return await self._real(factory, host, port, **options)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
async def test_a_router_without_sockets_says_so_and_blames_no_replica(
    closing, until, monkeypatch, code
):
    rig = await closing(2, health={"interval_s": 0.02, "fall": 1, "eject_after": 1})
    changes = len(rig.lines("health"))

    async def no_socket(port):
        raise OSError(code, os.strerror(code))

    connecting = Connecting(asyncio.get_running_loop(), monkeypatch, no_socket)
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 503
    assert reply.json()["error_type"] == "overloaded"
    assert reply.get("retry-after") == "1"
    assert os.strerror(code) in reply.json()["error"]
    await until(lambda: connecting.count >= 8)  # probes that found no socket either
    assert [replica.health.state.value for replica in rig.all()] == ["healthy"] * 2
    assert [replica.failed for replica in rig.all()] == [0, 0]
    connecting.do = None
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert rig.lines("health")[changes:] == []


async def test_a_tokenizer_call_without_sockets_is_told_so_too(closing, monkeypatch):
    rig = await closing(2, health={"interval_s": 1000})

    async def no_socket(port):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    Connecting(asyncio.get_running_loop(), monkeypatch, no_socket)
    reply = await rig.post("/tokenize", GENERATE)
    assert (reply.status, reply.get("retry-after")) == (503, "1")


async def test_a_connection_that_is_not_accepted_in_time_is_no_refusal(closing, monkeypatch):
    """A full or stopped engine: other calls' connections to it may work, so it stays in use."""
    rig = await closing(2, health={"interval_s": 1000}, timeouts={"connect_s": 0.1})
    port = rig.replicas[0].port

    async def deaf(asked):
        if asked == port:
            await asyncio.Event().wait()

    Connecting(asyncio.get_running_loop(), monkeypatch, deaf)
    replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(4)))
    assert {(reply.status, reply.get("x-fleet-replica")) for reply in replies} == {(200, "r1")}
    timed_out = rig.metric("retries_total", reason="ConnectTimeout")
    assert 1 <= timed_out <= 4
    assert rig.metric("retries_total", reason="ConnectFailed") == 0
    assert rig["r0"].health.state.value == "healthy"
    assert rig["r0"].failed == timed_out


async def test_a_refused_connection_takes_the_replica_out_at_once(closing):
    rig = await closing(2, health={"interval_s": 1000})
    await rig.replicas[0].stop_listening()
    replies = [await rig.post("/generate", GENERATE) for _ in range(3)]
    assert {reply.get("x-fleet-replica") for reply in replies} == {"r1"}
    assert rig["r0"].health.state.value == "unhealthy"
