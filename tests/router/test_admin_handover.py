"""The admin API while one router drains and the next one takes over."""

import asyncio
import json
import socket

import pytest

from router.tasks import Tasks

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
TOKEN = "a-token-of-some-length"


@pytest.fixture
async def draining(app, wire, until, tmp_path):
    """`await draining()`: a router with a call in flight, told to end; and the gate of the call."""
    tasks, gate = Tasks(), asyncio.Event()
    running = []

    async def make(**options):
        rig = await app(state_dir=tmp_path, health={"interval_s": 1000}, **options)
        rig.replicas[0].say(gate, wire.reply(wire.generated("the last one")))
        client = await rig.client()
        client.post("/generate", GENERATE)
        await rig.replicas[0].request()
        running.append((rig, client, tasks.spawn(rig.app.run(), "run")))
        rig.app.stop()
        await until(lambda: rig.app.handlers.is_draining)
        return rig

    yield make
    gate.set()
    for rig, client, task in running:
        assert (await client.reply()).body == wire.generated("the last one")
        async with asyncio.timeout(5):
            await asyncio.shield(task)
        rig.is_closed = True
    await tasks.close()


async def asked(reader, writer, path, token=None):
    """Status and JSON of one question."""
    field = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{field}\r\n".encode())
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def state_at(port):
    connection = await asyncio.open_connection("127.0.0.1", port)
    return await asked(*connection, "/admin/state", TOKEN)


def admin_port(rig):
    return int(rig.lines("admin")[0]["endpoint"].rpartition(":")[2])


async def test_a_draining_router_still_tells_its_state(draining, tmp_path):
    await draining()
    connection = await asyncio.open_unix_connection(str(tmp_path / "router.sock"))
    status, state = await asked(*connection, "/admin/state")
    assert status == 200
    assert (state["draining"], state["calls"]) == (True, 1)
    assert state["pools"][0]["replicas"][0]["requests"] == 1


async def test_a_draining_router_still_gives_its_listener_away(draining, tmp_path):
    """The launcher may start the successor only after it told this one to end."""
    rig = await draining()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.setblocking(False)
        await loop.sock_connect(channel, str(tmp_path / "router.sock"))
        await loop.sock_sendall(channel, b"GET /admin/listener HTTP/1.1\r\nHost: a\r\n\r\n")
        readable = asyncio.Event()
        loop.add_reader(channel.fileno(), readable.set)
        async with asyncio.timeout(5):
            await readable.wait()
        loop.remove_reader(channel.fileno())
        _, fds, _, _ = socket.recv_fds(channel, 4096, 4)
    [fd] = fds
    with socket.socket(fileno=fd) as given:
        assert given.getsockname()[1] == rig.port
        assert given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        given.setblocking(False)
        client = socket.create_connection(("127.0.0.1", rig.port), timeout=5)
        with client, (await loop.sock_accept(given))[0] as accepted:
            assert accepted.getpeername() == client.getsockname()


async def test_the_next_router_takes_the_admin_port_while_the_first_one_drains(draining, app):
    first = await draining(admin={"port": 0, "token": TOKEN})
    port = admin_port(first)
    second = await app(
        admin={"port": port, "token": TOKEN}, entries={"cluster": "second"}, is_up=False
    )
    assert admin_port(second) == port
    answers = [await state_at(port) for _ in range(10)]
    assert {(status, state["cluster"]) for status, state in answers} == {(200, "second")}
    assert {state["draining"] for _, state in answers} == {False}


async def test_the_next_router_may_have_the_port_before_the_first_one_drains(app, until):
    first = await app(admin={"port": 0, "token": TOKEN}, entries={"cluster": "first"})
    port = admin_port(first)
    await app(admin={"port": port, "token": TOKEN}, entries={"cluster": "second"}, is_up=False)
    await first.app.drain()
    answers = [await state_at(port) for _ in range(10)]
    assert {(status, state["cluster"]) for status, state in answers} == {(200, "second")}
