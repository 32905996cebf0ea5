"""A call's request as the handlers see it, whichever edge took it in."""

from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from router import terms
from router.http_client import HttpClient
from router.request_body import BodyReader
from router.terms import Terms


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

    def terms(self, tenant_header: str | None) -> Terms:
        """What its head says. Raises InvalidRequest."""
        ...

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        """All of it. Raises what `BodyReader` does."""
        ...


class KnownHead:
    """A head of a plain call. Clients send the same one again and again, with other bodies."""

    __slots__ = ("_tenant_header", "_terms", "fields", "path")

    def __init__(self, path: str, fields: Mapping[str, str]) -> None:
        """`fields` by their names in lower case, without the body's length."""
        self.path = path
        self.fields = fields
        self._terms: Terms | None = None
        self._tenant_header: str | None = None

    def terms(self, tenant_header: str | None) -> Terms:
        """Raises InvalidRequest."""
        if self._terms is None or self._tenant_header != tenant_header:
            self._terms = terms.terms(self.fields, tenant_header)
            self._tenant_header = tenant_header
        return self._terms


class WholeRequest:
    """One that came in whole: a POST, and its body."""

    __slots__ = ("_body", "headers", "path", "terms")

    method = "POST"
    is_read = True

    def __init__(self, head: KnownHead, body: bytes) -> None:
        self.path = head.path
        self.headers = head.fields
        self.terms = head.terms
        self._body = body

    def whole(self, bodies: BodyReader) -> bytes:
        """Raises what `BodyReader` does."""
        return bodies.whole(self.headers, self._body)

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        return self.whole(bodies)


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

    def terms(self, tenant_header: str | None) -> Terms:
        return terms.terms(self.headers, tenant_header)

    async def body(self, bodies: BodyReader, client: HttpClient) -> bytes:
        return await bodies.read(self._request, client)
