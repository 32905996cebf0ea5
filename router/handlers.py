"""The aiohttp edge: HTTP in, calls to the proxy, replies out.

Replies do not go through aiohttp's response objects: they are written to the connection directly,
and `Sent` tells aiohttp that nothing is left to send. That is a private contract with aiohttp
3.14 (guarded by tests/router/test_aiohttp_contract.py) and halves the cost of a call.
"""

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from router.apis import GENERATION_APIS, TOKENIZER_APIS, Api
from router.call import Ask, Call
from router.config import RouterConfig
from router.edge import Headers
from router.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    InvalidRequest,
    MethodNotAllowed,
    RouterError,
    UnknownRoute,
    UnsupportedMediaType,
)
from router.fleet import Fleet
from router.metrics import Metrics
from router.pages import Pages
from router.parse_worker import ParseWorker
from router.proxy import Proxy, error_headers

log = logging.getLogger("router.edge")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
MODEL_HEADER = "x-fleet-model"
REASONS = {status.value: status.phrase for status in HTTPStatus}


class Sent:
    """Tells aiohttp that the reply is out already."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to prepare."""

    async def write_eof(self) -> None:
        """Nothing to end."""


class HttpClient:
    """`edge.Client` over one aiohttp request."""

    __slots__ = (
        *("_closing", "_edge", "_extra", "_head", "_http10", "_protocol", "_transport"),
        "has_started",
    )

    def __init__(self, request: web.BaseRequest, extra: Headers, edge: "Handlers") -> None:
        self._edge = edge
        self._protocol: RequestHandler = request.protocol
        self._transport = request.transport
        self._extra = extra
        self._http10 = request.version < (1, 1)
        self._closing = not request.keep_alive or self._http10
        self._head = b""
        self.has_started = False

    @property
    def is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def is_closing(self) -> bool:
        """The connection ends with this reply; the router may have begun to drain meanwhile."""
        return self._closing or self._edge.is_draining

    @property
    def keeps_alive(self) -> bool:
        return not self.is_closing and not self.is_gone

    def close_after(self) -> None:
        """The connection ends with this reply: what follows in it is not to be trusted."""
        self._closing = True

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        self.has_started = True
        head = self._render(status, headers, f"content-length: {len(body)}\r\n")
        if self._transport is not None:
            self._transport.write(head + body)

    def start(self, status: int, headers: Headers) -> None:
        self.has_started = True
        framing = "" if self._http10 else "transfer-encoding: chunked\r\n"
        self._head = self._render(status, headers, framing)

    def write(self, data: bytes) -> bool:
        if self._transport is None:
            return True
        if not self._http10:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)
        return not self._protocol.writing_paused

    def end(self) -> None:
        if self._transport is not None:
            self._transport.write(self._head + (b"" if self._http10 else b"0\r\n\r\n"))
            self._head = b""

    def cut(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    async def drain(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._protocol._drain_helper()
        except TimeoutError:
            self._closing = True
            if self._transport is not None:
                self._transport.abort()
            raise ClientGone(f"the client read nothing for {timeout_s:g} s") from None
        except ConnectionError as exc:
            raise ClientGone("the client left") from exc

    def _render(self, status: int, headers: Headers, framing: str) -> bytes:
        fields = "".join(f"{name}: {value}\r\n" for name, value in (*headers, *self._extra))
        close = "connection: close\r\n" if self.is_closing else ""
        reason = REASONS.get(status, "")
        head = f"HTTP/1.1 {status} {reason}\r\n{fields}{close}{framing}\r\n"
        return head.encode("latin-1", "replace")


class Handlers:
    """One entry, `handle`, and a table of routes behind it."""

    def __init__(
        self,
        config: RouterConfig,
        fleet: Fleet,
        proxy: Proxy,
        pages: Pages,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._proxy = proxy
        self._pages = pages
        self._metrics = metrics
        self._clock = clock
        self._worker = ParseWorker()
        self._origins = frozenset(config.cors_allow_origin)
        self.is_draining = False
        self.calls_running = 0
        self._get: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/": self._health,
            "/health": self._health,
            "/ping": self._health,
            "/info": lambda request: pages.info(request.query.get("model")),
            "/metrics": lambda request: pages.metrics(),
            "/v1/models": lambda request: pages.models(),
            "/docs": lambda request: pages.docs(),
            "/api-doc/openapi.json": lambda request: pages.openapi(),
        }

    async def close(self) -> None:
        await self._worker.close()

    async def handle(self, request: web.BaseRequest) -> Any:
        """Every request comes in here; returns what aiohttp sends, or `Sent`."""
        self.calls_running += 1
        client = HttpClient(request, self._cors(request), self)
        call_id = _request_id(request)
        try:
            return await self._routed(request, client, call_id)
        except RouterError as error:
            self._refuse(request, client, call_id, error)
        except Exception:
            log.exception("call %s: a bug in the router", call_id)
            bug = RouterError(f"internal error; call id {call_id}")
            self._refuse(request, client, call_id, bug)
        finally:
            self.calls_running -= 1
        return Sent(client.keeps_alive)

    def _routed(self, request: web.BaseRequest, client: HttpClient, call_id: str) -> Awaitable[Any]:
        method, path = request.method, request.path
        if method == "POST":
            if api := GENERATION_APIS.get(path):
                return self._generate(request, client, call_id, path, api)
            if api := TOKENIZER_APIS.get(path):
                return self._tokenize(request, client, call_id, path, api)
        if method in ("GET", "HEAD") and (page := self._get.get(path)):
            return self._page(page, request, client)
        return self._otherwise(request, client, call_id, method, path)

    # ---- calls ----

    async def _generate(
        self, request: web.BaseRequest, client: HttpClient, call_id: str, path: str, api: Api
    ) -> Sent:
        arrived_s = self._clock()
        call = await self._call(request, client, call_id, path, arrived_s)
        dispatcher = self._fleet.find(call.ask.model or request.headers.get(MODEL_HEADER))
        await self._proxy.serve(call, api, dispatcher, client)
        return Sent(client.keeps_alive)

    async def _tokenize(
        self, request: web.BaseRequest, client: HttpClient, call_id: str, path: str, api: Api
    ) -> Sent:
        call = await self._call(request, client, call_id, path, self._clock())
        dispatcher = self._fleet.find(call.ask.model or request.headers.get(MODEL_HEADER))
        await self._proxy.serve_unleased(call, dispatcher, client)
        return Sent(client.keeps_alive)

    async def _call(
        self,
        request: web.BaseRequest,
        client: HttpClient,
        call_id: str,
        path: str,
        arrived_s: float,
    ) -> Call:
        body = await self._body(request, client)
        ask: Ask = await self._worker.parse(path, body)
        return Call(
            id=call_id,
            route=path,
            ask=ask,
            body=body,
            headers=_passed_on(request, call_id),
            arrived_s=arrived_s,
            queue_deadline_s=arrived_s + self._config.queue.timeout_s,
            deadline_s=arrived_s + self._config.timeouts.total_s,
        )

    async def _body(self, request: web.BaseRequest, client: HttpClient) -> bytes:
        """The whole body; usually it came with the head and nothing is waited for."""
        limit, told = self._config.max_body_bytes, request.content_length
        if told is not None and told > limit:
            raise BodyTooLarge(f"the body has {told} bytes, at most {limit} are taken")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            found = media_type[:80] or "no content type"
            raise UnsupportedMediaType(f"found {found}, expected content-type: application/json")
        if request.headers.get("expect", "").lower() == "100-continue" and client._transport:
            client._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        content = request.content
        pieces: list[bytes] = []
        try:
            pieces.append(content.read_nowait())
            if not content.at_eof():
                await self._rest_of_body(content, pieces, limit)
        except (web.RequestPayloadError, web.HTTPException) as exc:
            client.close_after()
            content.feed_eof()  # nothing in it is worth waiting for
            raise InvalidRequest(f"the body cannot be read: {_first_line(str(exc))}") from None
        body = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        if len(body) > limit:
            raise BodyTooLarge(f"the body has over {limit} bytes, more are not taken")
        return body

    async def _rest_of_body(self, content: Any, pieces: list[bytes], limit: int) -> None:
        timeout_s, size = self._config.timeouts.body_s, len(pieces[0])
        try:
            async with asyncio.timeout(timeout_s):
                while size <= limit and not content.at_eof():
                    piece = await content.readany()
                    pieces.append(piece)
                    size += len(piece)
        except TimeoutError:
            raise BodyTimeout(f"the body was not sent within {timeout_s:g} s") from None

    # ---- everything else ----

    async def _page(
        self,
        page: Callable[[web.BaseRequest], web.Response],
        request: web.BaseRequest,
        client: HttpClient,
    ) -> web.Response:
        reply = page(request)
        reply.headers.update(self._cors(request))
        if client.is_closing:
            reply.force_close()
        return reply

    def _health(self, request: web.BaseRequest) -> web.Response:
        """200 while calls are taken and a replica serves or is on its way."""
        if self.is_draining:
            return self._pages.unhealthy("draining")
        if not self._fleet.can_serve:
            return self._pages.unhealthy("no replica serves and none is starting")
        return web.Response()

    async def _otherwise(
        self, request: web.BaseRequest, client: HttpClient, call_id: str, method: str, path: str
    ) -> Sent:
        """CORS pre-flight, 405 with what is allowed, or 404."""
        allowed = []
        if path in self._get:
            allowed += ["GET", "HEAD"]
        if path in GENERATION_APIS or path in TOKENIZER_APIS:
            allowed += ["POST"]
        if not allowed:
            raise UnknownRoute(f"no route {method} {path[:200]}; GET /docs lists them")
        is_preflight = "access-control-request-method" in request.headers
        if method == "OPTIONS" and is_preflight:
            preflight = [("access-control-allow-methods", "GET,POST")]
            preflight += [("access-control-allow-headers", "content-type")]
            client.send(200, preflight, b"")
            return Sent(client.keeps_alive)
        error = MethodNotAllowed(f"{method} is not allowed on {path}")
        body = _api_of(path).error_body(error)
        fields = [("allow", ",".join(allowed)), *error_headers(call_id, error)]
        client.send(error.status, fields, b"" if method == "HEAD" else body)
        return Sent(client.keeps_alive)

    def _refuse(
        self, request: web.BaseRequest, client: HttpClient, call_id: str, error: RouterError
    ) -> None:
        api, path = _api_of(request.path), request.path
        if client.is_gone:
            return
        if not request.content.at_eof():
            client.close_after()
        if client.has_started:
            client.write(api.error_event(error))
            client.end()
            return
        body = b"" if request.method == "HEAD" else api.error_body(error)
        client.send(error.status, error_headers(call_id, error), body)
        route = path if path in GENERATION_APIS or path in TOKENIZER_APIS else "other"
        self._metrics.call_done(route, error.status, 0.0)

    def _cors(self, request: web.BaseRequest) -> Headers:
        if "*" in self._origins:
            return ANY_ORIGIN
        origin = request.headers.get("origin", "")
        allowed = [("access-control-allow-origin", origin)] if origin in self._origins else []
        return [*allowed, ("vary", "origin")]


ANY_ORIGIN = [("access-control-allow-origin", "*")]


class EdgeProtocol(RequestHandler):
    """aiohttp's connection, with its own refusals in our JSON and without a traceback each."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.info("refused a malformed request: %s", type(exc).__name__)
        error = InvalidRequest(f"the request is no valid HTTP: {_first_line(message)}")
        reply = web.Response(
            status=status,
            body=_api_of("/").error_body(error),
            content_type="application/json",
        )
        reply.force_close()
        return reply


class EdgeServer(web.Server):
    """Makes an `EdgeProtocol` per connection."""

    def __call__(self) -> RequestHandler:
        return EdgeProtocol(self, loop=self._loop, **self._kwargs)


def make_server(handlers: Handlers, config: RouterConfig) -> EdgeServer:
    return EdgeServer(
        handlers.handle,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=config.timeouts.idle_s,
        lingering_time=5.0,
        logger=log,
    )


def _api_of(path: str) -> Api:
    return (
        GENERATION_APIS.get(path)
        or GENERATION_APIS["/v1/completions" if path.startswith("/v1/") else "/generate"]
    )


def _request_id(request: web.BaseRequest) -> str:
    """The client's, when well-formed; else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(96):024x}"


def _passed_on(request: web.BaseRequest, call_id: str) -> tuple[tuple[str, str], ...]:
    """Only what is listed here reaches a replica: no credentials, no smuggled fields."""
    fields = [("x-request-id", call_id)]
    traceparent = request.headers.get("traceparent", "")
    if TRACEPARENT.fullmatch(traceparent):
        fields.append(("traceparent", traceparent))
        tracestate = request.headers.get("tracestate", "")
        if TRACESTATE.fullmatch(tracestate):
            fields.append(("tracestate", tracestate))
    return tuple(fields)


def _first_line(message: str | None) -> str:
    return (message or "malformed").strip().splitlines()[0][:200]
