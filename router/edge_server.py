"""aiohttp's server with our refusals: what is no valid HTTP gets JSON and no traceback.

Beside that, a request head has bounds that aiohttp does not set: on its size as a whole, and on the
time that may pass between its first byte and its last. Both cost nothing where a head comes in one
piece, as they do.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from router.apis import GENERATION_APIS
from router.config import LimitsConfig, RouterConfig
from router.errors import InvalidRequest
from router.handlers import Handlers

log = logging.getLogger("router.edge")
LINGER_S = 5.0
"""How long a refused body is read and thrown away, so that the client sees the refusal."""
FIELD_OVERHEAD_BYTES = 4
"""Of a field in a head: a colon, a space, CR and LF."""
QUOTED = re.compile(r"[:'\"\n]")
"""Where aiohttp's messages begin to repeat what was sent, which may be a secret."""


class EdgeProtocol(RequestHandler):
    """One client's connection."""

    __slots__ = ("_head_bytes", "_head_timer", "_is_refused", "_limits", "on_lost")

    def __init__(self, server: "EdgeServer", limits: LimitsConfig, **options: Any) -> None:
        super().__init__(server, **options)
        self._limits = limits
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self.on_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_over()
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        before = self._request_count
        super().data_received(data)
        if count := self._request_count - before:
            if self._head_bytes + len(data) > self._limits.head_bytes:
                self._refuse_large(count)
            self._head_is_over()
        elif data and self._is_between_requests:
            self._head_goes_on(len(data))

    @property
    def _is_between_requests(self) -> bool:
        """What comes now is a head: no request is being served, none waits."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def _head_goes_on(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > self._limits.head_bytes:
            # The rest of it is on its way: closed at once, the client would not see the reply.
            self._refuse(431, self._too_large(), StreamReader(self, 1, loop=self._loop))
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._limits.head_s, self._head_is_late)

    def _head_is_over(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._is_between_requests:
            self._refuse(408, f"its head was not sent within {self._limits.head_s:g} s")

    def _refuse(self, status: int, reason: str, rest: StreamReader = EMPTY_PAYLOAD) -> None:
        """Instead of the request that never became one. While `rest` is open the client may go on
        sending, in vain and at most for LINGER_S."""
        self._is_refused = True
        self._messages.append((_error(status, reason), rest))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _refuse_large(self, count: int) -> None:
        """Of the last so many requests, those whose heads are; what came with them was theirs."""
        for place in range(-count, 0):
            message, body = self._messages[place]
            if not isinstance(message, _ErrInfo) and _head_bytes(message) > self._limits.head_bytes:
                self._messages[place] = _error(431, self._too_large()), body

    def _too_large(self) -> str:
        return f"its head has over {self._limits.head_bytes} bytes, more are not taken"

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.info("refused a malformed request: %s", type(exc).__name__)
        reason = message if isinstance(exc, Refused) else _reason(exc, message)
        error = InvalidRequest(f"the request is no valid HTTP: {reason}")
        reply = web.Response(
            status=431 if isinstance(exc, LineTooLong) else status,
            body=GENERATION_APIS["/"].error_body(error),
            content_type="application/json",
            headers={"connection": "close", "server": "gpu-fleet"},
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

    limits: LimitsConfig

    def __call__(self) -> EdgeProtocol:
        return EdgeProtocol(self, self.limits, loop=self._loop, **self._kwargs)

    def use(self, config: RouterConfig) -> None:
        """For connections that come in from here on."""
        self.limits = config.limits
        self._kwargs["keepalive_timeout"] = config.timeouts.idle_s
        self._kwargs["max_headers"] = config.limits.head_fields
        for bound in ("max_line_size", "max_field_size"):
            self._kwargs[bound] = config.limits.head_bytes


class Refused(HttpProcessingError):
    """A head that is beyond our own bounds; its message is ours."""


def make_server(handlers: Handlers, config: RouterConfig) -> EdgeServer:
    server = EdgeServer(
        handlers.handle,
        handler_cancellation=True,
        access_log=None,
        lingering_time=LINGER_S,
        logger=log,
    )
    server.use(config)
    return server


def _error(status: int, reason: str) -> _ErrInfo:
    return _ErrInfo(status=status, exc=Refused(code=status, message=reason), message=reason)


def _head_bytes(message: Any) -> int:
    fields = message.raw_headers
    size = sum(len(name) + len(value) for name, value in fields)
    return size + FIELD_OVERHEAD_BYTES * len(fields) + len(message.path)


def _reason(exc: BaseException | None, message: str | None) -> str:
    """What aiohttp found, as far as it does not repeat what was sent."""
    words = QUOTED.split((message or "").strip(), maxsplit=1)[0].strip()
    return words[:200] or type(exc).__name__
