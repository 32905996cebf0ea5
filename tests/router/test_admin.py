"""The admin API on its own listeners: state, the replica list, drain, and the listener itself."""

import asyncio
import hmac
import json
import os
import socket
import stat

import pytest

from router.errors import StartError

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
TOKEN = "a-token-of-some-length"


async def ask(where, method, path, body=None, token=None):
    """Status and JSON; `where` is a socket's path or a port."""
    if isinstance(where, int):
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
    else:
        reader, writer = await asyncio.open_unix_connection(str(where))
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n"
    if token is not None:
        head += f"Authorization: {token}\r\n"
    writer.write(head.encode() + b"\r\n" + data)
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, payload = reply.partition(b"\r\n\r\n")
    try:
        payload = json.loads(payload)
    except ValueError:
        payload = payload.decode()
    return int(head.split()[1]), payload


@pytest.fixture
def state_dir(tmp_path):
    return tmp_path


@pytest.fixture
def admin(state_dir):
    """`await admin("GET", "/admin/state")` over the unix socket."""

    async def call(method, path, body=None):
        return await ask(state_dir / "router.sock", method, path, body)

    return call


def entry(replica, **fields):
    return {"id": replica.name, "generation": 1, "url": replica.url, "model": "m", **fields}


def pushed(epoch, *entries, cluster="test"):
    return {"protocol": 1, "cluster": cluster, "epoch": epoch, "replicas": list(entries)}


async def test_state_tells_what_is_there(app, admin, state_dir, wire, until):
    rig = await app(2, state_dir=state_dir)
    for replica in rig.replicas:
        replica.say(wire.STALL)
    client = await rig.client()
    client.post("/generate", GENERATE)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    status, state = await admin("GET", "/admin/state")
    assert status == 200
    assert (state["cluster"], state["epoch"], state["calls"]) == ("test", 0, 1)
    assert state["endpoint"] == f"http://127.0.0.1:{rig.port}"
    assert state["pid"] == os.getpid()
    [pool] = state["pools"]
    assert [replica["id"] for replica in pool["replicas"]] == ["r0", "r1"]
    first = pool["replicas"][0]
    assert (first["health"], first["admin"]) == ("healthy", "active")
    assert first["admitted"]
    assert sum(replica["requests"] for replica in pool["replicas"]) == 1
    assert first["url"] == rig.replicas[0].url


async def test_state_tells_who_waits(app, admin, state_dir, wire, until):
    rig = await app(1, state_dir=state_dir, entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    clients = []
    for number, fields in enumerate(
        [(), ("x-fleet-tenant: a",), ("x-fleet-tenant: a", "x-fleet-priority: low"), ()]
    ):
        client = await rig.client()
        client.post("/generate", GENERATE, *fields)
        await until(
            lambda number=number: rig.dispatcher.open_leases + len(rig.dispatcher.queue) > number
        )
        clients.append(client)
    _, state = await admin("GET", "/admin/state")
    assert state["pools"][0]["waiting_calls"] == 3
    assert state["pools"][0]["waiting"] == [
        {"tenant": "a", "high": 0, "normal": 1, "low": 1},
        {"tenant": "", "high": 0, "normal": 1, "low": 0},
    ]
    for client in clients:
        client.leave()
    await until(lambda: not rig.app.handlers.calls_running)
    _, state = await admin("GET", "/admin/state")
    assert state["pools"][0]["waiting"] == []


async def test_the_socket_is_the_owner_s_alone(app, state_dir):
    await app(1, state_dir=state_dir)
    assert stat.S_IMODE((state_dir / "router.sock").stat().st_mode) == 0o600


async def test_a_pushed_list_replaces_the_one_before(app, admin, state_dir):
    rig = await app(2, state_dir=state_dir)
    before = rig["r0"]
    fields = {"model": "default"}
    kept, other = entry(rig.replicas[0], **fields), entry(rig.replicas[1], id="new", **fields)
    assert await admin("PUT", "/admin/replicas", pushed(3, kept, other)) == (200, {"epoch": 3})
    assert [replica.id for replica in rig.all()] == ["r0", "new"]
    assert rig["r0"] is before  # it keeps its load and health
    await rig.is_up()
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_a_new_generation_is_another_replica(app, admin, state_dir):
    rig = await app(1, state_dir=state_dir)
    before = rig["r0"]
    again = entry(rig.replicas[0], model="default", generation=2)
    assert (await admin("PUT", "/admin/replicas", pushed(1, again)))[0] == 200
    assert rig["r0"] is not before
    assert rig["r0"].generation == 2
    await rig.is_up()


async def test_an_older_epoch_and_another_cluster_are_refused(app, admin, state_dir):
    rig = await app(1, state_dir=state_dir)
    one = entry(rig.replicas[0], model="default")
    assert (await admin("PUT", "/admin/replicas", pushed(5, one)))[0] == 200
    assert (await admin("PUT", "/admin/replicas", pushed(5, one)))[0] == 200
    status, answer = await admin("PUT", "/admin/replicas", pushed(4))
    assert (status, answer["epoch"]) == (409, 5)
    status, answer = await admin("PUT", "/admin/replicas", pushed(9, cluster="other"))
    assert status == 409
    assert "other" in answer["error"]
    assert [replica.id for replica in rig.all()] == ["r0"]


BAD_ENTRIES = [
    {"id": "", "generation": 1, "url": "http://a:1", "model": "m"},
    {"id": "a b", "generation": 1, "url": "http://a:1", "model": "m"},
    {"id": "a", "generation": -1, "url": "http://a:1", "model": "m"},
    {"id": "a", "generation": 1, "url": "https://a:1", "model": "m"},
    {"id": "a", "generation": 1, "url": "http://a:99999", "model": "m"},
    {"id": "a", "generation": 1, "url": "http://a:1/path", "model": "m"},
    {"id": "a", "generation": 1, "url": 5, "model": "m"},
    {"id": "a", "generation": 1, "url": "http://a:1", "model": ""},
    {"id": "a", "generation": 1, "url": "http://a:1", "model": "m", "dialect": "x"},
    {"id": "a", "generation": 1, "url": "http://a:1", "model": "m", "max_requests": 0},
    {"id": "a", "generation": 1},
    "a",
]


async def test_malformed_lists_are_refused_whole(app, admin, state_dir):
    rig = await app(1, state_dir=state_dir)
    good = entry(rig.replicas[0])
    bad = [pushed(9, good, wrong) for wrong in BAD_ENTRIES]
    bad += [pushed(9, good, good), pushed(9, good, {**good, "model": "other"})]
    bad += [b"", b"{", b"[]", b"null", b"\xff", {**pushed(9), "protocol": 2}]
    bad += [{**pushed(9), "epoch": -1}, {"protocol": 1}, b"[" * 100_000]
    for body in bad:
        status, answer = await admin("PUT", "/admin/replicas", body)
        assert status == 422, (body, answer)
        assert answer["error"]
    assert (rig.app.fleet.epoch, [replica.id for replica in rig.all()]) == (0, ["r0"])


async def test_unknown_fields_of_a_newer_launcher_are_let_be(app, admin, state_dir):
    rig = await app(1, state_dir=state_dir)
    one = entry(rig.replicas[0], model="default", colour="red")
    assert (await admin("PUT", "/admin/replicas", {**pushed(1, one), "mood": 1}))[0] == 200


async def test_a_list_too_large_is_refused(app, admin, state_dir):
    await app(1, state_dir=state_dir)
    status, _ = await admin("PUT", "/admin/replicas", b" " * (5 * 1024**2))
    assert status == 413


async def test_removing_a_model_fails_its_waiting_calls_clearly(app, admin, state_dir, wire, until):
    rig = await app(1, state_dir=state_dir, entries={"max_requests": 1})
    rig.replicas[0].say(wire.STALL)
    busy, waiting = await rig.client(), await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    waiting.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    assert (await admin("PUT", "/admin/replicas", pushed(1)))[0] == 200
    reply = await waiting.reply()
    assert reply.status == 503
    busy.leave()
    await until(lambda: rig.app.handlers.calls_running == 0)
    assert (await rig.post("/generate", GENERATE)).status in (404, 503)
    assert (await rig.get("/health")).status == 503


# ---- drain ----


async def test_a_drained_replica_gets_no_more_calls_and_finishes_its_own(
    app, admin, state_dir, wire, until
):
    rig = await app(2, state_dir=state_dir)
    gate = asyncio.Event()
    for replica in rig.replicas:
        replica.say(gate, wire.reply(wire.generated("finished")))
    client = await rig.client()
    client.post("/generate", GENERATE)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    busy, idle = sorted(rig.replicas, key=lambda replica: not replica.requests)
    idle.forget_scripts()
    status, answer = await admin("POST", f"/admin/replicas/{busy.name}/drain")
    assert (status, answer) == (200, {"id": busy.name, "admin": "draining", "requests": 1})
    for _ in range(4):
        assert (await rig.post("/generate", GENERATE)).get("x-fleet-replica") == idle.name
    gate.set()
    assert (await client.reply()).body == wire.generated("finished")
    status, answer = await admin("POST", f"/admin/replicas/{busy.name}/undrain")
    assert (status, answer["admin"]) == (200, "active")
    replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(4)))
    assert {reply.get("x-fleet-replica") for reply in replies} == {"r0", "r1"}


async def test_draining_an_unknown_replica_names_the_known_ones(app, admin, state_dir):
    await app(2, state_dir=state_dir)
    status, answer = await admin("POST", "/admin/replicas/none/drain")
    assert (status, answer["replicas"]) == (404, ["r0", "r1"])


async def test_list_and_drain_survive_a_restart(app, admin, state_dir, wire):
    replicas = [wire.ScriptedReplica(f"r{i}") for i in range(2)]
    for replica in replicas:
        await replica.start()
    rig = await app(None, is_up=False, state_dir=state_dir)
    rig.replicas = replicas
    both = [entry(replica) for replica in replicas]
    assert (await admin("PUT", "/admin/replicas", pushed(7, *both)))[0] == 200
    await rig.is_up()
    assert (await admin("POST", "/admin/replicas/r1/drain"))[0] == 200
    await rig.close()

    again = await app(None, is_up=False, state_dir=state_dir)
    await again.is_up()
    status, state = await admin("GET", "/admin/state")
    assert (status, state["cluster"], state["epoch"]) == (200, "test", 7)
    [pool] = state["pools"]
    assert [r["admin"] for r in pool["replicas"]] == ["active", "draining"]
    assert (await again.post("/generate", GENERATE)).get("x-fleet-replica") == "r0"
    assert (await admin("PUT", "/admin/replicas", pushed(8, *both)))[0] == 200
    assert again["r1"].admin.value == "draining"  # a push of the launcher does not undrain


@pytest.mark.parametrize("kept", [b"", b"{", b"null", b'{"protocol":9}', b"\xff\xfe"])
async def test_a_broken_kept_list_is_said_and_does_not_stop_the_start(app, admin, state_dir, kept):
    (state_dir / "replicas.json").write_bytes(kept)
    rig = await app(None, is_up=False, state_dir=state_dir)
    _, state = await admin("GET", "/admin/state")
    assert "replicas.json" in state["state_error"]
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 503
    assert reply.get("retry-after")


# ---- hand-over ----


async def test_the_listener_given_away_really_accepts(app, state_dir):
    rig = await app(1, state_dir=state_dir)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.setblocking(False)
        await loop.sock_connect(channel, str(state_dir / "router.sock"))
        await loop.sock_sendall(channel, b"GET /admin/listener HTTP/1.1\r\nHost: a\r\n\r\n")
        readable = asyncio.Event()
        loop.add_reader(channel.fileno(), readable.set)
        async with asyncio.timeout(10):
            await readable.wait()
        loop.remove_reader(channel.fileno())
        data, fds, _, _ = socket.recv_fds(channel, 4096, 4)
    assert data.startswith(b"HTTP/1.1 200")
    [fd] = fds
    with socket.socket(fileno=fd) as given:
        assert given.getsockname()[1] == rig.port
        assert given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        given.setblocking(False)
        await rig.close()  # the router's own descriptor is closed; the socket lives on
        client = socket.create_connection(("127.0.0.1", rig.port), timeout=5)
        with client, (await loop.sock_accept(given))[0] as accepted:
            client.sendall(b"hello")
            assert await loop.sock_recv(accepted, 5) == b"hello"


async def test_retire_over_the_socket_drains(app, admin, state_dir, until):
    rig = await app(1, state_dir=state_dir)
    assert await admin("POST", "/admin/retire") == (200, {"draining": True})
    async with asyncio.timeout(10):
        await rig.app._stopping.wait()


async def test_a_second_router_takes_the_socket_s_place(app, admin, state_dir):
    await app(1, state_dir=state_dir)
    second = await app(1, state_dir=state_dir, entries={"cluster": "second"})
    _, state = await admin("GET", "/admin/state")
    assert state["cluster"] == "second"
    assert state["endpoint"].endswith(str(second.port))


async def test_a_path_too_long_for_a_socket_is_said(app, tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with pytest.raises(StartError, match="shorter state folder"):
        await app(1, state_dir=folder)


# ---- the loopback port ----


def tcp_port(rig):
    return rig.lines("admin")[0]["endpoint"].rpartition(":")[2]


async def test_the_port_needs_the_token(app):
    rig = await app(1, admin={"port": 0, "token": TOKEN})
    port = int(tcp_port(rig))
    for token in (None, "", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9"):
        for method, path in (("GET", "/admin/state"), ("POST", "/admin/retire"), ("GET", "/none")):
            status, answer = await ask(port, method, path, token=token)
            assert status == 401, token
            assert TOKEN not in json.dumps(answer)
    assert (await ask(port, "GET", "/admin/state", token=f"Bearer {TOKEN}"))[0] == 200
    assert not rig.app.handlers.is_draining


async def test_the_token_is_compared_in_constant_time(app, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    rig = await app(1, admin={"port": 0, "token": TOKEN})
    port = int(tcp_port(rig))
    assert (await ask(port, "GET", "/admin/state", token="Bearer x"))[0] == 401
    assert compared == [(b"Bearer x", f"Bearer {TOKEN}".encode())]


async def test_the_port_listens_on_loopback_and_gives_no_listener(app):
    rig = await app(1, admin={"port": 0, "token": TOKEN})
    port = int(tcp_port(rig))
    assert (await ask(port, "GET", "/admin/listener", token=f"Bearer {TOKEN}"))[0] == 404


@pytest.mark.parametrize(
    "path", ["/admin/state", "/admin/listener", "/admin/retire", "/admin/replicas", "/admin"]
)
async def test_the_public_port_knows_nothing_of_admin(app, state_dir, path):
    rig = await app(1, state_dir=state_dir, admin={"port": 0, "token": TOKEN})
    for method in ("GET", "PUT", "POST"):
        client = await rig.client()
        client.ask(method, path, f"Authorization: Bearer {TOKEN}", "Content-Length: 0")
        assert (await client.reply()).status == 404


async def test_a_port_in_use_is_said(app):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=str(port)):
            await app(1, admin={"port": port, "token": TOKEN})
