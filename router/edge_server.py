"""aiohttp's server with our refusals: what is no valid HTTP gets JSON and no traceback."""

import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from router.apis import GENERATION_APIS
from router.config import RouterConfig
from router.errors import InvalidRequest
from router.handlers import Handlers

log = logging.getLogger("router.edge")
LINGER_S = 5.0
"""How long a refused body is read and thrown away, so that the client sees the refusal."""


class EdgeProtocol(RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.info("refused a malformed request: %s", type(exc).__name__)
        reason = (message or "malformed").strip().splitlines()[0][:200]
        error = InvalidRequest(f"the request is no valid HTTP: {reason}")
        reply = web.Response(
            status=status,
            body=GENERATION_APIS["/"].error_body(error),
            content_type="application/json",
        )
        reply.force_close()
        return reply

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """What is left of a refused body is thrown away unread: if it does not even unpack, that is
        the client's doing, and nobody may fill the log with it."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            log.info("refused a malformed body")
        else:
            super().log_exception(*args, **kwargs)


class EdgeServer(web.Server):
    """Makes an `EdgeProtocol` per connection."""

    def __call__(self) -> RequestHandler:
        return EdgeProtocol(self, loop=self._loop, **self._kwargs)

    def use(self, config: RouterConfig) -> None:
        """For connections that come in from here on."""
        self._kwargs["keepalive_timeout"] = config.timeouts.idle_s


def make_server(handlers: Handlers, config: RouterConfig) -> EdgeServer:
    return EdgeServer(
        handlers.handle,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=config.timeouts.idle_s,
        lingering_time=LINGER_S,
        logger=log,
    )
