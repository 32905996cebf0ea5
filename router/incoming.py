"""A call's request as the handlers see it, whichever edge took it in."""

from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from router.http_client import HttpClient
from router.request_body import BodyReader


class Incoming(Protocol):
    """A request whose head has been read."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """Without a query."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """To be asked for names in lower case."""
        ...

    @property
    def is_read(self) -> bool:
        """All of it is here: what comes next on its connection is another one."""
        ...

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        """All of it. Raises what `BodyReader` does."""
        ...


class WholeRequest:
    """One that came in whole: a POST, its fields by their names in lower case, its body."""

    __slots__ = ("_body", "headers", "path")

    method = "POST"
    is_read = True

    def __init__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self._body = body

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        return bodies.whole(self.headers, self._body)


class AiohttpRequest:
    """One that aiohttp reads, of whatever kind."""

    __slots__ = ("_request", "headers", "method", "path")

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.method = request.method
        self.path = request.path
        self.headers = request.headers

    @property
    def is_read(self) -> bool:
        return self._request.content.is_eof()

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        return await bodies.read(self._request, client)
