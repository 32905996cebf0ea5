"""HTTP requests in, calls to the proxy, replies out.

Two entries, one for each edge: `serve` for a plain call that came in whole, `handle` for whatever
aiohttp reads. Every call leaves them answered, counted and logged once, however it ended.
"""

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from router import terms
from router.apis import GENERATION_APIS, TOKENIZER_APIS, Api
from router.call import ANONYMOUS, Ask, Call, Priority
from router.config import RouterConfig
from router.edge import Headers
from router.errors import ClientGone, MethodNotAllowed, RouterError, UnknownRoute
from router.event_log import EventLog
from router.fleet import ANY_MODEL, Fleet
from router.http_client import HttpClient, Reply, Sent
from router.incoming import AiohttpRequest, Incoming, WholeRequest
from router.keys import KeyStore
from router.metrics import Metrics
from router.pages import Pages
from router.parse_worker import ParseWorker
from router.proxy import Proxy
from router.record import Record
from router.relay import error_headers
from router.request_body import BodyReader
from router.stories import Stories
from router.story import READ
from router.tokenizer import Tokenizer

log = logging.getLogger("router.edge")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
MODEL_HEADER = "x-fleet-model"
PREFLIGHT_HEADERS = "content-type,authorization,x-api-key"
ANY_ORIGIN = [("access-control-allow-origin", "*")]
OTHER_ROUTE = "other"
"""The metric label of paths that are none of ours: they come in any number."""


class Handlers:
    """A table of routes, and what their handlers share."""

    def __init__(
        self,
        config: RouterConfig,
        fleet: Fleet,
        proxy: Proxy,
        tokenizer: Tokenizer,
        keys: KeyStore,
        pages: Pages,
        metrics: Metrics,
        log: EventLog,
        stories: Stories,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._proxy = proxy
        self._tokenizer = tokenizer
        self._keys = keys
        self._pages = pages
        self._metrics = metrics
        self._log = log
        self._stories = stories
        self._clock = clock
        self._bodies = BodyReader(config)
        self._worker = ParseWorker()
        self._origins = frozenset(config.cors_allow_origin)
        self.is_draining = False
        self.calls_running = 0
        self._get: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/": self._health,
            "/health": self._health,
            "/ping": self._health,
            "/info": lambda request: pages.info(request.query.get("model"), self._models(request)),
            "/metrics": lambda request: pages.metrics(self._models(request)),
            "/v1/models": lambda request: pages.models(self._models(request)),
            "/docs": lambda request: pages.docs(),
            "/api-doc/openapi.json": lambda request: pages.openapi(),
        }

    async def close(self) -> None:
        await self._worker.close()

    def use(self, config: RouterConfig) -> None:
        """For calls that come in from here on."""
        self._config = config
        self._origins = frozenset(config.cors_allow_origin)
        self._bodies.use(config)

    async def serve(self, request: WholeRequest, client: HttpClient) -> None:
        """A call on a generation route; its reply is out when this returns."""
        record = Record(_request_id(request.headers), request.path, self._clock())
        await self._answered(request, client, record, self._generate(request, client, record))

    async def handle(self, request: web.BaseRequest) -> Any:
        """Any request; returns what aiohttp sends, or `Sent`."""
        client = HttpClient.of(request, self.cors(request.headers), self)
        record = Record(_request_id(request.headers), _route(request.path), self._clock())
        incoming = AiohttpRequest(request)
        work = self._routed(request, incoming, client, record)
        page = await self._answered(incoming, client, record, work)
        return Sent(client.keeps_alive) if page is None else page

    async def _answered(
        self,
        request: Incoming,
        client: HttpClient,
        record: Record,
        work: Awaitable[web.Response | None],
    ) -> web.Response | None:
        self.calls_running += 1
        try:
            try:
                page = await work
                if page is not None:
                    return page
            except RouterError as error:
                self._refuse(request, client, record, error)
            except Exception:
                log.exception("call %s: a bug in the router", record.id)
                client.close_after()
                bug = RouterError(f"internal error; call id {record.id}")
                self._refuse(request, client, record, bug)
            except asyncio.CancelledError:
                if not record.is_told:
                    self._gone(record, ClientGone("the client left"))
                raise
            finally:
                self._finish(request, record)
            if client.is_behind:
                await self._caught_up(client)
        finally:
            self.calls_running -= 1
        return None

    def _routed(
        self, request: web.BaseRequest, incoming: Incoming, client: HttpClient, record: Record
    ) -> Awaitable[web.Response | None]:
        """Gives a page for aiohttp to send, or None: the reply is out."""
        method, path = incoming.method, incoming.path
        if method == "POST" and path in GENERATION_APIS:
            return self._generate(incoming, client, record)
        if method == "POST" and path in TOKENIZER_APIS:
            return self._tokenize(incoming, client, record)
        if method in ("GET", "HEAD") and (page := self._get.get(path)):
            return self._page(page, request, client)
        return self._otherwise(incoming, client, record)

    # ---- calls ----

    async def _generate(self, request: Incoming, client: HttpClient, record: Record) -> None:
        with self._keys.admit(request.headers, record) as permit:
            call = await self._call(request, client, record)
            allowed = permit.account.models
            dispatcher = self._fleet.find(_model(call.ask, request.headers), call.route, allowed)
            record.model = dispatcher.pool.model
            permit.charge(dispatcher.pool.cost(call.ask))
            await self._proxy.serve(call, dispatcher, client, record)

    async def _tokenize(self, request: Incoming, client: HttpClient, record: Record) -> None:
        with self._keys.admit(request.headers, record) as permit:
            call = await self._call(request, client, record)
            allowed = permit.account.models
            dispatcher = self._fleet.find(_model(call.ask, request.headers), call.route, allowed)
            record.model = dispatcher.pool.model
            await self._tokenizer.serve(call, dispatcher, client, record)

    async def _call(self, request: Incoming, client: HttpClient, record: Record) -> Call:
        config = self._config
        self._stories.began(record)
        body = await request.body(self._bodies, client)
        tenant, limit_s = self._tenant(request, record), terms.time_limit_s(request.headers)
        priority = self._priority(request, tenant)
        record.tenant, record.priority = tenant, priority.name.lower()
        ask = await self._worker.parse(request.path, body)
        record.is_stream = ask.stream
        record.step(self._clock(), READ, len(body))
        return Call(
            id=record.id,
            route=request.path,
            ask=ask,
            body=body,
            headers=_passed_on(request.headers, record.id),
            arrived_s=record.arrived_s,
            queue_deadline_s=record.arrived_s + min(config.queue.timeout_s, limit_s),
            deadline_s=record.arrived_s + min(config.timeouts.total_s, limit_s),
            tenant=tenant,
            priority=priority,
        )

    def _tenant(self, request: Incoming, record: Record) -> str:
        """Who shares the fleet with others: whose key it is; without keys, what the client says."""
        if not self._keys.is_open:
            return record.tenant
        name = self._config.queue.tenant_header
        return terms.tenant(request.headers, name) if name else ANONYMOUS

    def _priority(self, request: Incoming, tenant: str) -> Priority:
        """As asked for, within what the tenant may ask for."""
        known = self._config.tenants.get(tenant)
        most = terms.PRIORITIES[known.max_priority] if known else Priority.HIGH
        return max(most, terms.priority(request.headers))

    def _refuse(
        self, request: Incoming, client: HttpClient, record: Record, error: RouterError
    ) -> None:
        """The error in whatever form the client can still be told."""
        record.error, record.status = error, record.status if client.has_started else error.status
        is_whole = client.reply is Reply.WHOLE  # or it was cut, or a bug came after it
        if isinstance(error, ClientGone) or (client.is_gone and not is_whole):
            self._gone(record, error)
            return
        if is_whole:
            return
        api = _api_of(request.path)
        if client.reply is Reply.OPEN:
            client.write(api.error_event(error))
            client.end()
            return
        if not request.is_read:
            client.close_after()
        body = b"" if request.method == "HEAD" else api.error_body(error)
        client.send(error.status, error_headers(record, error), body)

    def _gone(self, record: Record, error: RouterError) -> None:
        """The client left, and with it the call."""
        record.status, record.error = ClientGone.status, error
        self._metrics.cancelled(record.phase)

    def _finish(self, request: Incoming, record: Record) -> None:
        if record.route != OTHER_ROUTE and request.method == "POST":
            now_s = self._clock()
            record.finish(now_s, self._metrics, self._log)
            self._stories.ended(record, now_s - record.arrived_s)
        elif record.error is not None:
            self._metrics.call_done(OTHER_ROUTE, record.status, self._clock() - record.arrived_s)

    async def _caught_up(self, client: HttpClient) -> None:
        """A client that takes no replies gets no further calls in, and in the end is dropped."""
        try:
            await client.drain(self._config.timeouts.between_events_s)
        except ClientGone:
            return

    # ---- everything else ----

    async def _page(
        self,
        page: Callable[[web.BaseRequest], web.Response],
        request: web.BaseRequest,
        client: HttpClient,
    ) -> web.Response:
        reply = page(request)
        reply.headers.update(self.cors(request.headers))
        reply.headers["server"] = "gpu-fleet"
        if client.is_closing:
            reply.force_close()
        return reply

    def _models(self, request: web.BaseRequest) -> frozenset[str] | None:
        """Those that a page may tell whoever asks for it; None: all. Raises Unauthorized."""
        return self._keys.account(request.headers).models

    def _health(self, request: web.BaseRequest) -> web.Response:
        """200 while calls are taken and a replica serves or is on its way."""
        if self.is_draining:
            return self._pages.unhealthy("draining")
        if not self._fleet.can_serve:
            return self._pages.unhealthy("no replica serves and none is starting")
        return web.Response()

    async def _otherwise(self, request: Incoming, client: HttpClient, record: Record) -> None:
        """CORS pre-flight, 405 with what is allowed, or 404."""
        method, path = request.method, request.path
        allowed = []
        if path in self._get:
            allowed += ["GET", "HEAD"]
        if path in GENERATION_APIS or path in TOKENIZER_APIS:
            allowed += ["POST"]
        if not allowed:
            meant = path.rstrip("/")
            known = meant in self._get or meant in GENERATION_APIS or meant in TOKENIZER_APIS
            hint = f"did you mean {meant}?" if known and meant else "GET /docs lists them"
            raise UnknownRoute(f"no route {method} {path[:200]}; {hint}")
        is_preflight = "access-control-request-method" in request.headers
        if method == "OPTIONS" and is_preflight:
            preflight = [("access-control-allow-methods", "GET,POST")]
            preflight += [("access-control-allow-headers", PREFLIGHT_HEADERS)]
            client.send(200, preflight, b"")
            return
        error = MethodNotAllowed(f"{method} is not allowed on {path}; use {allowed[0]}")
        body = _api_of(path).error_body(error)
        fields = [("allow", ",".join(allowed)), *error_headers(record, error)]
        client.send(error.status, fields, b"" if method == "HEAD" else body)

    def cors(self, headers: Mapping[str, str]) -> Headers:
        """Fields for each reply to a request with these."""
        if "*" in self._origins:
            return ANY_ORIGIN
        origin = headers.get("origin", "")
        allowed = [("access-control-allow-origin", origin)] if origin in self._origins else []
        return [*allowed, ("vary", "origin")]


def _route(path: str) -> str:
    return path if path in GENERATION_APIS or path in TOKENIZER_APIS else OTHER_ROUTE


def _api_of(path: str) -> Api:
    return (
        GENERATION_APIS.get(path)
        or TOKENIZER_APIS.get(path)
        or GENERATION_APIS["/v1/completions" if path.startswith("/v1/") else "/generate"]
    )


def _model(ask: Ask, headers: Mapping[str, str]) -> str | None:
    """The body's word; what stands for any model gives way to the header."""
    named = headers.get(MODEL_HEADER)
    return named if named and (ask.model or "") in ANY_MODEL else ask.model


def _request_id(headers: Mapping[str, str]) -> str:
    """The client's, when well-formed; else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(96):024x}"


def _passed_on(headers: Mapping[str, str], call_id: str) -> tuple[tuple[str, str], ...]:
    """Only what is listed here reaches a replica: no credentials, no smuggled fields."""
    fields = [("x-request-id", call_id)]
    traceparent = headers.get("traceparent", "")
    if TRACEPARENT.fullmatch(traceparent):
        fields.append(("traceparent", traceparent))
        tracestate = headers.get("tracestate", "")
        if TRACESTATE.fullmatch(tracestate):
            fields.append(("tracestate", tracestate))
    return tuple(fields)
