"""HTTP requests in, calls to the proxy, replies out.

`handle` is for whatever aiohttp reads. A plain call that came in whole is taken through the same
steps by `express`. Every call leaves here answered, counted and logged once, however it ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from router import terms
from router.apis import GENERATION_APIS, TOKENIZER_APIS, Api
from router.call import PRIORITY_WORDS, Ask, Call, Priority
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.edge import Fields, fields
from router.errors import ClientGone, MethodNotAllowed, RouterError, UnknownRoute
from router.event_log import EventLog
from router.fleet import ANY_MODEL, Fleet
from router.http_client import HttpClient, Reply, Sent
from router.incoming import AiohttpRequest, Incoming, WholeRequest
from router.keys import KeyStore, Permit
from router.metrics import Metrics
from router.pages import Pages
from router.parse_worker import ParseWorker, parse
from router.proxy import Proxy
from router.record import Record
from router.relay import error_headers
from router.request_body import BodyReader
from router.stories import Stories
from router.story import READ
from router.tasks import Tasks
from router.terms import Terms
from router.tokenizer import Tokenizer

log = logging.getLogger("router.edge")

PREFLIGHT_HEADERS = "content-type,authorization,x-api-key"
ANY_ORIGIN = ("access-control-allow-origin", "*")
ANY_ORIGIN_FIELDS = fields(ANY_ORIGIN)
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
        tasks: Tasks,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._fleet = fleet
        self.proxy = proxy
        self._tokenizer = tokenizer
        self.keys = keys
        self.tasks = tasks
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

    def record_of(self, request: WholeRequest) -> Record:
        """Begins with its arrival."""
        return Record(terms.request_id(request.headers), request.path, self._clock())

    async def handle(self, request: web.BaseRequest) -> Any:
        """Any request; returns what aiohttp sends, or `Sent`."""
        client = HttpClient.of(request, self.cors(request.headers), self)
        record = Record(terms.request_id(request.headers), _route(request.path), self._clock())
        incoming = AiohttpRequest(request)
        work = self._routed(request, incoming, client, record)
        self.calls_running += 1
        try:
            page = await self.answered(incoming, client, record, work)
        finally:
            self.calls_running -= 1
        return Sent(client.keeps_alive) if page is None else page

    async def answered(
        self,
        request: Incoming,
        client: HttpClient,
        record: Record,
        work: Awaitable[web.Response | None],
    ) -> web.Response | None:
        """The work's page, if it comes to one; else its reply is out when this returns."""
        try:
            page = await work
            if page is not None:
                return page
        except Exception as exc:
            self.failed(request, client, record, exc)
        except asyncio.CancelledError:
            if not record.is_told:
                self.left(record)
            raise
        finally:
            self.finish(request, record)
        if client.is_behind:
            await self.caught_up(client)
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
        with self.keys.admit(request.headers, record) as permit:
            call = await self._call(request, client, record)
            dispatcher = self.dispatcher_for(call, permit, record)
            await self.proxy.serve(call, dispatcher, client, record)

    async def _tokenize(self, request: Incoming, client: HttpClient, record: Record) -> None:
        with self.keys.admit(request.headers, record) as permit:
            call = await self._call(request, client, record)
            allowed = permit.account.models
            dispatcher = self._fleet.find(call.ask.model, call.route, allowed)
            record.model = dispatcher.pool.model
            await self._tokenizer.serve(call, dispatcher, client, record)

    async def _call(self, request: Incoming, client: HttpClient, record: Record) -> Call:
        self._stories.began(record)
        body = await request.body(self._bodies, client)
        told = self._terms(request, record)
        return self._made(request, record, body, told, await self._worker.parse(request.path, body))

    def whole_call(self, request: WholeRequest, record: Record) -> Call:
        """Of a request that is here. Raises what is wrong with it."""
        self._stories.began(record)
        body = request.whole(self._bodies)
        told = self._terms(request, record)
        return self._made(request, record, body, told, parse(request.path, body))

    def dispatcher_for(self, call: Call, permit: Permit, record: Record) -> Dispatcher:
        """Its model's; the call is charged to the permit. Raises why it may not be made."""
        dispatcher = self._fleet.find(call.ask.model, call.route, permit.account.models)
        record.model = dispatcher.pool.model
        if permit.is_metered:
            permit.charge(dispatcher.pool.cost(call.ask))
        return dispatcher

    def _terms(self, request: Incoming, record: Record) -> Terms:
        """Whose it is, its key says; without keys, what the client says counts."""
        is_open = self.keys.is_open
        told = request.terms(self._config.queue.tenant_header if is_open else None)
        if is_open:
            record.tenant = told.tenant
        return told

    def _made(self, request: Incoming, record: Record, body: bytes, told: Terms, ask: Ask) -> Call:
        config, tenant = self._config, record.tenant
        priority = self._priority(tenant, told.priority)
        record.priority = PRIORITY_WORDS[priority]
        if told.model and (ask.model or "") in ANY_MODEL:  # the body's word comes first
            ask = ask._replace(model=told.model)
        record.is_stream = ask.stream
        record.step(self._clock(), READ, len(body))
        return Call(
            id=record.id,
            route=request.path,
            ask=ask,
            body=body,
            headers=(("x-request-id", record.id), *told.traced),
            arrived_s=record.arrived_s,
            queue_deadline_s=record.arrived_s + min(config.queue.timeout_s, told.limit_s),
            deadline_s=record.arrived_s + min(config.timeouts.total_s, told.limit_s),
            tenant=tenant,
            priority=priority,
        )

    def _priority(self, tenant: str, asked: Priority) -> Priority:
        """As asked for, within what the tenant may ask for."""
        known = self._config.tenants.get(tenant)
        return max(terms.PRIORITIES[known.max_priority], asked) if known else asked

    def failed(self, request: Incoming, client: HttpClient, record: Record, exc: Exception) -> None:
        """The client is told, in whatever form it still can be."""
        error = exc
        if not isinstance(error, RouterError):
            log.error("call %s: a bug in the router", record.id, exc_info=exc)
            client.close_after()
            error = RouterError(f"internal error; call id {record.id}")
        record.error, record.status = error, record.status if client.has_started else error.status
        is_whole = client.reply is Reply.WHOLE  # or it was cut, or a bug came after it
        if isinstance(error, ClientGone) or (client.is_gone and not is_whole):
            self._left(record, error)
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

    def left(self, record: Record) -> None:
        """The client did, and with it the call."""
        self._left(record, ClientGone("the client left"))

    def _left(self, record: Record, error: RouterError) -> None:
        record.status, record.error = ClientGone.status, error
        self._metrics.cancelled(record.phase)

    def finish(self, request: Incoming, record: Record) -> None:
        if record.route != OTHER_ROUTE and request.method == "POST":
            now_s = self._clock()
            record.finish(now_s, self._metrics, self._log)
            self._stories.ended(record, now_s - record.arrived_s)
        elif record.error is not None:
            self._metrics.call_done(OTHER_ROUTE, record.status, self._clock() - record.arrived_s)

    async def caught_up(self, client: HttpClient) -> None:
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
        reply.headers.update(self._cors(request.headers))
        reply.headers["server"] = "gpu-fleet"
        if client.is_closing:
            reply.force_close()
        return reply

    def _models(self, request: web.BaseRequest) -> frozenset[str] | None:
        """Those that a page may tell whoever asks for it; None: all. Raises Unauthorized."""
        return self.keys.account(request.headers).models

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
            methods = ("access-control-allow-methods", "GET,POST")
            client.send(
                200, fields(methods, ("access-control-allow-headers", PREFLIGHT_HEADERS)), b""
            )
            return
        error = MethodNotAllowed(f"{method} is not allowed on {path}; use {allowed[0]}")
        body = _api_of(path).error_body(error)
        told = fields(("allow", ",".join(allowed))) + error_headers(record, error)
        client.send(error.status, told, b"" if method == "HEAD" else body)

    def cors(self, headers: Mapping[str, str]) -> Fields:
        """For each reply to a request with these."""
        return ANY_ORIGIN_FIELDS if "*" in self._origins else fields(*self._cors(headers))

    def _cors(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        if "*" in self._origins:
            return [ANY_ORIGIN]
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
