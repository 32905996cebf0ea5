"""The launcher's side of the router's admin API, over its unix socket.

Every call is short and may find no router: `RouterAway` then, which callers treat as "try again at
the next beat". Used by the supervisor (pushing the replica list) and by the drain commands.
"""

from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

from router.errors import OperatorError

TIMEOUT_S = 3.0


class RouterAway(OperatorError):
    """No router answers at the admin socket, or not in time."""


class PushRefused(OperatorError):
    """The router refused the list: an older epoch, another cluster, or malformed."""


class RouterClient:
    """Use as an async context manager; one per event loop."""

    def __init__(self, admin_socket: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._admin_socket = admin_socket
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "RouterClient":
        # One connection per call: a router that was replaced under the same path is met at once.
        connector = aiohttp.UnixConnector(str(self._admin_socket), force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def state(self) -> dict[str, Any]:
        status, body = await self._request("GET", "/admin/state")
        if status != 200:
            raise RouterAway(f"the router answered {status} to GET /admin/state")
        return body

    async def push(self, cluster: str, epoch: int, replicas: list[dict[str, Any]]) -> None:
        """Give the router the full list; PushRefused says why it was not taken."""
        body = {"protocol": 1, "cluster": cluster, "epoch": epoch, "replicas": replicas}
        status, reply = await self._request("PUT", "/admin/replicas", body)
        if status != 200:
            raise PushRefused(f"{status}: {reply.get('error', reply)}")

    async def drain(self, replica_id: str, *, undo: bool = False) -> dict[str, Any] | None:
        """Stop (or resume) sending calls to a replica; None when the router does not know it."""
        verb = "undrain" if undo else "drain"
        status, body = await self._request("POST", f"/admin/replicas/{replica_id}/{verb}")
        if status not in (200, 404):
            raise OperatorError(f"the router refused: {status}: {body.get('error', body)}")
        return body if status == 200 else None

    async def call(self, call_id: str) -> dict[str, Any]:
        """All calls of that id; none when it remembers none. What it remembers, too."""
        _, body = await self._request("GET", f"/admin/calls/{quote(call_id, safe='')}")
        return body

    async def calls(self, kind: str) -> dict[str, Any]:
        """`failed`, the last one first, or `slow`, the slowest first. What it remembers, too."""
        _, body = await self._request("GET", f"/admin/calls?{kind}")
        return body

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.request(method, f"http://admin{path}", json=body) as reply:
                content = await reply.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise RouterAway(
                f"no router answers at {self._admin_socket} ({self._why(exc)})"
            ) from exc
        return reply.status, content if isinstance(content, dict) else {}

    def _why(self, exc: Exception) -> str:
        """A timeout has no text of its own, and whoever hangs can only be told by that."""
        if isinstance(exc, TimeoutError):
            return f"no answer within {self._timeout.total:g} s"
        return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__


def replica_states(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The replicas of `/admin/state` by id, whatever pool they are in."""
    pools = state.get("pools", [])
    return {replica["id"]: replica for pool in pools for replica in pool.get("replicas", [])}
