"""How many connections may be open, who is counted as one, and what one too many sees."""

import asyncio
import errno
import os
import socket

import pytest

from router.acceptor import client_of

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1234, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::ffff", 1, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:3::", 1, 0, 0), "2001:db8:1:3::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        (("::1", 1, 0, 0), "::/64"),
        ("", "unix"),
    ],
)
def test_an_address_or_a_network_of_ipv6_is_one_client(address, client):
    assert client_of(address) == client


async def full(rig, until, count):
    """Connections until there are so many; those that are served take part."""
    clients = [await rig.client() for _ in range(count)]
    await until(lambda: rig.app.acceptor.connections == count)
    return clients


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"connections_per_client": 2}, "client_connections"),
        ({"connections": 2}, "connections"),
    ],
)
async def test_one_too_many_is_told_so_and_the_others_are_served(app, until, limits, reason):
    rig = await app(limits=limits)
    clients = await full(rig, until, 2)
    turned_away = await rig.client()
    turned_away.post("/generate", GENERATE)
    reply = await turned_away.reply()
    assert (reply.status, reply.get("connection"), reply.get("retry-after")) == (429, "close", "1")
    assert reply.json()["error_type"] == "overloaded"
    assert "connections" in reply.json()["error"]
    assert await turned_away.is_closed()
    assert rig.metric("sheds_total", reason=reason) == 1
    for client in clients:
        client.post("/generate", GENERATE)
        assert (await client.reply()).status == 200
    clients[0].leave()
    await until(lambda: rig.app.acceptor.connections == 1)
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert len(rig.replicas[0].requests) == 3


async def test_a_flood_of_them_holds_nothing(app, until):
    rig = await app(limits={"connections": 1})
    await full(rig, until, 1)
    flood = [await rig.client() for _ in range(150)]
    await until(lambda: rig.metric("sheds_total", reason="connections") == 150)
    assert len(rig.app.acceptor._lingering) <= 64
    for client in flood:
        client.leave()


async def test_connections_are_counted_down_however_they_end(app, wire, until):
    rig = await app(timeouts={"idle_s": 0.2})
    served, reset, left, _idle = await full(rig, until, 4)
    served.post("/generate", GENERATE, "Connection: close")
    assert (await served.reply()).status == 200
    reset.reset()
    left.leave()
    await until(lambda: not rig.app.acceptor.connections)
    assert not rig.app.acceptor._by_client


async def test_a_router_without_files_goes_on_once_it_has_some(app, until, monkeypatch):
    monkeypatch.setattr("router.acceptor.REST_S", 0.05)
    rig = await app()
    real, tries = rig.sock.accept, []

    class Poor(socket.socket):
        def accept(self):
            tries.append(1)
            if len(tries) < 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real()

    rig.app.acceptor._loop.remove_reader(rig.sock)
    poor = Poor(fileno=os.dup(rig.sock.fileno()))
    rig.app.acceptor._listener = poor
    rig.app.acceptor.open()
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert len(tries) >= 3


async def test_two_acceptors_on_one_socket_let_everybody_in(app, wire, until):
    """As while a router takes over from another."""
    rig = await app()
    other = await app(rig.replicas, sock=rig.sock.dup())
    replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(50)))
    assert {reply.status for reply in replies} == {200}
    rig.app.retire()
    drained = rig.app.tasks.spawn(rig.app.drain(), "drain")
    replies = await asyncio.gather(*(other.post("/generate", GENERATE) for _ in range(50)))
    assert {reply.status for reply in replies} == {200}
    for client in (*rig.clients, *other.clients):
        client.leave()
    async with asyncio.timeout(10):
        await drained
