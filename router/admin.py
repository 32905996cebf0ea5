"""The admin API, on its own listener: state, the full list of replicas, drain and undrain.

On a unix socket in the state folder (file mode decides who may), and on a loopback port with a
bearer token if the config says so. Never on the public endpoint.
"""

import hmac
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from router import __version__
from router.call import Priority
from router.config import RouterConfig
from router.errors import StartError
from router.fleet import Fleet, ReplicaList, StaleList
from router.handlers import Handlers
from router.replica import Admin as AdminState
from router.replica import Replica
from router.request_queue import RequestQueue
from router.stories import Stories

SOCKET_NAME = "router.sock"
MAX_SOCKET_PATH_BYTES = 107
MAX_TENANTS_TOLD = 100
MAX_LIST_BYTES = 4 * 1024**2
MAX_STORIES = 20


class AdminApi:
    def __init__(
        self,
        config: RouterConfig,
        fleet: Fleet,
        handlers: Handlers,
        stories: Stories,
        listener: socket.socket,
        retire: Callable[[], None],
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._handlers = handlers
        self._stories = stories
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self._endpoint = f"{config.scheme}://{host}:{port}"
        self._kept: socket.socket | None = None
        """The listener again: it must outlive the server's, which closes it when draining."""
        self._port_runner: web.AppRunner | None = None
        self._retire = retire
        self._started_s = time.monotonic()
        self._runners: list[web.AppRunner] = []

    def use(self, config: RouterConfig) -> None:
        """The port stays where it is; another token counts at once."""
        self._config = config

    async def listen_unix(self, state_dir: Path) -> None:
        """Raises StartError when the socket cannot be made."""
        path = state_dir / SOCKET_NAME
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise StartError(
                f"{path}: a unix socket's path may have {MAX_SOCKET_PATH_BYTES} bytes; "
                "choose a shorter state folder"
            )
        runner = await self._runner(needs_token=False)
        self._kept = self._listener.dup()
        part = state_dir / f".{SOCKET_NAME}.{os.getpid()}"
        part.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(part)).start()
        except OSError as exc:
            raise StartError(f"no admin socket at {path}: {exc.strerror}") from exc
        finally:
            os.umask(mask)
        os.replace(part, path)  # takes over from a router that drains

    async def listen_tcp(self, port: int) -> int:
        """Gives the port it listens on, shared with a router that hands over. Raises StartError."""
        runner = self._port_runner = await self._runner(needs_token=True)
        site = web.TCPSite(runner, "127.0.0.1", port, reuse_port=True)
        try:
            await site.start()
        except OSError as exc:
            raise StartError(f"no admin API on 127.0.0.1:{port}: {exc.strerror}") from exc
        return int(runner.addresses[0][1])

    async def leave_port(self) -> None:
        """While draining, the port belongs to the router that follows."""
        for site in list(self._port_runner.sites) if self._port_runner else []:
            await site.stop()

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._kept is not None:
            self._kept.close()

    async def _runner(self, *, needs_token: bool) -> web.AppRunner:
        app = web.Application(
            client_max_size=MAX_LIST_BYTES, middlewares=[self._authorised()] if needs_token else []
        )
        app.router.add_get("/admin/state", self._state)
        app.router.add_get("/admin/calls", self._calls)
        app.router.add_get("/admin/calls/{id:.+}", self._call)
        app.router.add_put("/admin/replicas", self._replicas)
        app.router.add_post("/admin/replicas/{id}/drain", self._drain)
        app.router.add_post("/admin/replicas/{id}/undrain", self._undrain)
        app.router.add_post("/admin/retire", self._retired)
        if not needs_token:
            app.router.add_get("/admin/listener", self._give_listener)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        return runner

    def _authorised(self) -> Any:
        @web.middleware
        async def check(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Bearer {self._config.admin.token}".encode()):
                return _json({"error": "the admin token is missing or wrong"}, status=401)
            return await handler(request)

        return check

    async def _state(self, request: web.Request) -> web.Response:
        state = {
            "version": __version__,
            "pid": os.getpid(),
            "cluster": self._fleet.cluster,
            "epoch": self._fleet.epoch,
            "draining": self._handlers.is_draining,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "endpoint": self._endpoint,
            "calls": self._handlers.calls_running,
            "state_error": self._fleet.state_error,
            "pools": [
                {
                    "model": dispatcher.pool.model,
                    "policy": self._config.policy,
                    "waiting_calls": len(dispatcher.queue),
                    "waiting_bytes": dispatcher.queue.waiting_bytes,
                    "waiting": _waiting(dispatcher.queue),
                    "replicas": [_replica(replica) for replica in dispatcher.pool],
                }
                for dispatcher in self._fleet
            ],
        }
        return _json(state)

    async def _calls(self, request: web.Request) -> web.Response:
        """`?failed`, the last one first; `?slow`, the slowest first."""
        if "failed" in request.query:
            found = self._stories.failed()
        elif "slow" in request.query:
            found = self._stories.slowest()
        else:
            return _json({"error": "found neither ?failed nor ?slow, expected one"}, status=422)
        calls = [story.as_json() for story in found[:MAX_STORIES]]
        return _json({"calls": calls, "remembered": self._stories.remembered()})

    async def _call(self, request: web.Request) -> web.Response:
        """All calls of that id, the latest first."""
        call_id = request.match_info["id"]
        calls = [story.as_json() for story in self._stories.find(call_id)]
        remembered = self._stories.remembered()
        if not calls:
            error = f"no call {call_id!r} is remembered"
            return _json({"error": error, "remembered": remembered}, status=404)
        return _json({"calls": calls, "remembered": remembered})

    async def _replicas(self, request: web.Request) -> web.Response:
        try:
            pushed = ReplicaList.model_validate_json(await request.read())
            self._fleet.accept(pushed)
        except ValidationError as exc:
            problems = exc.errors(include_url=False, include_input=False, include_context=False)
            return _json({"error": "not a replica list", "problems": problems}, status=422)
        except StaleList as exc:
            return _json({"error": str(exc), "epoch": self._fleet.epoch}, status=409)
        except ValueError as exc:
            return _json({"error": f"a replica's url: expected {exc}"}, status=422)
        return _json({"epoch": self._fleet.epoch})

    async def _drain(self, request: web.Request) -> web.Response:
        return self._set(request.match_info["id"], AdminState.DRAINING)

    async def _undrain(self, request: web.Request) -> web.Response:
        return self._set(request.match_info["id"], AdminState.ACTIVE)

    def _set(self, replica_id: str, wanted: AdminState) -> web.Response:
        replica = self._fleet.set_admin(replica_id, wanted)
        if replica is None:
            known = [replica.id for replica in self._fleet.replicas()]
            return _json({"error": f"no replica {replica_id!r}", "replicas": known}, status=404)
        load = replica.load
        return _json({"id": replica.id, "admin": replica.admin.value, "requests": load.requests})

    async def _retired(self, request: web.Request) -> web.Response:
        """Another router takes over the listener: finish what is here, then end."""
        self._retire()
        return _json({"draining": True})

    async def _give_listener(self, request: web.Request) -> web.StreamResponse:
        """The public listening socket itself, as SCM_RIGHTS beside a plain 200."""
        assert request.transport is not None
        assert self._kept is not None
        connection = request.transport.get_extra_info("socket")
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        with socket.socket(fileno=os.dup(connection.fileno())) as own:
            socket.send_fds(own, [head], [self._kept.fileno()])
        request.transport.abort()
        return web.Response()


def _waiting(queue: RequestQueue) -> list[dict[str, Any]]:
    """Calls by tenant and priority; the tenants that hold the most first, and not all of many."""
    most = sorted(queue.places.items(), key=lambda item: item[1].count, reverse=True)
    return [
        {"tenant": tenant}
        | {priority.name.lower(): places.calls[priority] for priority in Priority}
        for tenant, places in most[:MAX_TENANTS_TOLD]
    ]


def _replica(replica: Replica) -> dict[str, Any]:
    capacity = replica.room.capacity
    return {
        "id": replica.id,
        "generation": replica.generation,
        "url": replica.base_url or None,
        "health": replica.health.state.value,
        "admitted": replica.has_started,
        "reason": replica.reason,
        "fault": replica.fault or None,
        "slowed": replica.slowed or None,
        "admin": replica.admin.value,
        "phase": replica.phase,
        "requests": replica.load.requests,
        "tokens": replica.load.tokens,
        "capacity": {"requests": replica.room.requests, "tokens": capacity.tokens},
        "served": replica.served,
        "failed": replica.failed,
    }


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
