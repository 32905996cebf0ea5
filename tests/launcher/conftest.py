"""Builders for specs and handles, and a stand-in for the router's admin socket."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from launcher.placement import ReplicaSpec
from launcher.runtimes import Handle
from launcher.state import StateFolder


@pytest.fixture
def folder() -> Iterator[StateFolder]:
    """A state folder with a path short enough for a unix socket."""
    path = Path(tempfile.mkdtemp(prefix="state-")).resolve()
    state = StateFolder(path)
    state.create()
    yield state
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_spec() -> Callable[..., ReplicaSpec]:
    def make(replica_id: str = "replica-0", fingerprint: str = "new", **fields: Any) -> ReplicaSpec:
        values = {
            "model": "m",
            "model_id": "m",
            "revision": None,
            "dtype": None,
            "quantize": None,
            "max_input_tokens": None,
            "max_total_tokens": None,
            "devices": (),
            "memory_fraction": None,
            "engine_name": "simulator",
            "engine_version": None,
            "image": None,
            "args": {},
            "env": {},
            "volumes": (),
            "shm_bytes": None,
            "start_timeout_s": 10.0,
        }
        return ReplicaSpec(id=replica_id, fingerprint=fingerprint, **{**values, **fields})

    return make


@pytest.fixture
def make_handle() -> Callable[..., Handle]:
    def make(
        replica_id: str = "replica-0", generation: int = 1, fingerprint: str = "new"
    ) -> Handle:
        ref = f"{generation}/1/boot"
        return Handle("fake", replica_id, generation, ref, "http://127.0.0.1:1", fingerprint, 1)

    return make


class AdminStandIn:
    """The router's side of the admin contract: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.pushes: list[dict[str, Any]] = []
        self.admin: dict[str, str] = {}
        self.phases: dict[str, str] = {}
        self.requests: dict[str, int] = {}
        self.epoch = 0
        self.pid = 1

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/admin/state", self.state)
        app.router.add_put("/admin/replicas", self.replicas)
        app.router.add_post("/admin/replicas/{id}/{verb}", self.drain)
        return app

    async def state(self, request: web.Request) -> web.Response:
        last = self.pushes[-1]["replicas"] if self.pushes else []
        replicas = [
            {
                "id": replica["id"],
                "admin": self.admin.get(replica["id"], "active"),
                "phase": self.phases.get(replica["id"], replica.get("phase")),
                "requests": self.requests.get(replica["id"], 0),
            }
            for replica in last
        ]
        pools = [{"model": "m", "replicas": replicas}]
        return web.json_response({"pid": self.pid, "epoch": self.epoch, "pools": pools})

    async def replicas(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["epoch"] < self.epoch:
            return web.json_response({"error": f"epoch {self.epoch} is newer"}, status=409)
        self.epoch = body["epoch"]
        self.pushes.append(body)
        return web.json_response({"epoch": self.epoch})

    async def drain(self, request: web.Request) -> web.Response:
        name, verb = request.match_info["id"], request.match_info["verb"]
        if not any(r["id"] == name for push in self.pushes for r in push["replicas"]):
            return web.json_response({"error": "no such replica"}, status=404)
        self.admin[name] = "draining" if verb == "drain" else "active"
        reply = {"id": name, "admin": self.admin[name], "requests": self.requests.get(name, 0)}
        return web.json_response(reply)


@pytest.fixture
async def admin(folder: StateFolder) -> AsyncIterator[AdminStandIn]:
    stand_in = AdminStandIn()
    runner = web.AppRunner(stand_in.app())
    await runner.setup()
    await web.UnixSite(runner, str(folder.admin_socket)).start()
    yield stand_in
    await runner.cleanup()


@pytest.fixture
async def fd_server(folder: StateFolder) -> AsyncIterator[Callable[[list[socket.socket]], Any]]:
    """Answers /admin/listener as the router does: one sendmsg that carries the sockets."""
    servers: list[socket.socket] = []

    def serve(passed: list[socket.socket], status: str = "200 OK") -> Any:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(folder.admin_socket))
        server.listen(1)
        servers.append(server)

        def answer() -> bytes:
            client, _ = server.accept()
            with client:
                request = client.recv(65_536)
                head = f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok".encode()
                socket.send_fds(client, [head], [sock.fileno() for sock in passed])
            return request

        return asyncio.to_thread(answer)

    yield serve
    for server in servers:
        server.close()
