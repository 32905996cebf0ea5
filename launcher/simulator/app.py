"""The simulator's web application: routes, and what surrounds every one of them.

``serving`` builds it once. The one middleware turns errors into TGI's answers, checks the key, adds
the cross-origin headers and counts calls in flight, which a drain waits for.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from launcher.simulator.errors import ApiError, HttpRejection
from launcher.simulator.replies import json_reply
from launcher.simulator.routes import chat, completions, generate, hosted, status, tokenize
from launcher.simulator.routes.context import SERVICE
from launcher.simulator.service import Service
from launcher.simulator.wire import error_body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: POST routes that need the key, where one is set; `/chat_tokenize` never does.
_KEY_PATHS = frozenset(
    {
        *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"),
        *("/vertex", "/invocations", "/tokenize"),
    }
)
_VARY = "origin, access-control-request-method, access-control-request-headers"


def build_app(service: Service) -> web.Application:
    """All routes that the imitated version has."""
    settings = service.settings
    era = settings.era
    app = web.Application(
        middlewares=[_around(service)], client_max_size=settings.limits.payload_bytes
    )
    app[SERVICE] = service
    app.on_response_prepare.append(_cross_origin(settings.cors_allow_origin))
    router = app.router
    router.add_post("/", generate.root)
    router.add_get("/", status.health)
    router.add_post("/generate", generate.generate)
    router.add_post("/generate_stream", generate.generate_stream)
    router.add_post("/v1/chat/completions", chat.chat)
    router.add_post("/v1/completions", completions.completions)
    router.add_post("/tokenize", tokenize.tokenize)
    router.add_post("/invocations", hosted.invocations)
    router.add_post("/vertex", hosted.vertex)
    router.add_get("/info", status.info)
    router.add_get("/health", status.health)
    router.add_get("/ping", status.health)
    router.add_get("/metrics", status.metrics)
    router.add_get("/docs", status.docs)
    if era.models_route:
        router.add_get("/v1/models", status.models)
    if era.chat_tokenize_route:
        router.add_post("/chat_tokenize", chat.chat_tokenize)
    if settings.faults:
        router.add_post("/simulator/faults", status.arm_fault)
    return app


def _around(service: Service) -> Middleware:
    settings = service.settings
    key = settings.api_key if settings.era.api_key else None

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return _preflight()
        if key and request.method == "POST" and request.path in _KEY_PATHS:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.lower().encode(), f"bearer {key}".lower().encode()):
                return web.Response(status=401)
        transport = request.transport
        service.enter(transport)
        try:
            return await _answered(request, handler)
        finally:
            service.leave(transport)

    return around


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return json_reply(error_body(error), status=error.status)
    except HttpRejection as rejection:
        return web.Response(text=rejection.text, status=rejection.status)
    except web.HTTPMethodNotAllowed as refused:
        return web.Response(status=405, headers={"allow": refused.headers.get("Allow", "")})
    except ConnectionResetError:
        # The client left before its reply began: nobody reads this one.
        return web.Response(status=499)
    except web.HTTPException as refused:
        return web.Response(status=refused.status)


def _preflight() -> web.Response:
    return web.Response(
        headers={
            "access-control-allow-methods": "GET,POST",
            "access-control-allow-headers": "content-type",
        }
    )


def _cross_origin(
    allowed: str | None,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["access-control-allow-origin"] = allowed or "*"
        response.headers["vary"] = _VARY
        response.headers["server"] = "gpu-fleet-simulator"

    return add_headers
