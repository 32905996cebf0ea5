"""Reads a request's body: bounded in bytes and in time, per request and over all of them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from router.config import RouterConfig
from router.errors import (
    BodyTimeout,
    BodyTooLarge,
    InvalidRequest,
    QueueFull,
    UnsupportedMediaType,
)
from router.http_client import HttpClient
from router.parse_worker import LARGE_BODY_BYTES

JSON = "application/json"


class BodyReader:
    """One per router: large bodies that are being received share the queue's bound in bytes."""

    def __init__(self, config: RouterConfig) -> None:
        self.use(config)
        self.held_bytes = 0

    def use(self, config: RouterConfig) -> None:
        self._limit = config.max_body_bytes
        self._timeout_s = config.timeouts.body_s
        self._budget = config.queue.max_bytes

    def whole(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """One that came with its head. Raises BodyTooLarge or UnsupportedMediaType."""
        self._check_head(headers, len(body))
        return body

    async def read(self, request: web.BaseRequest, client: HttpClient) -> bytes:
        """The whole body; usually it came with the head and nothing is waited for.

        Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType, InvalidRequest or QueueFull.
        """
        self._check_head(request.headers, request.content_length)
        if request.headers.get("expect", "").lower() == "100-continue":
            client.invite()
        content = request.content
        try:
            body = content.read_nowait()
            if not content.at_eof():
                body = await self._rest(content, body)
        except (web.RequestPayloadError, web.HTTPException) as exc:
            client.close_after()
            content.feed_eof()  # nothing in it is worth waiting for
            reason = (str(exc).strip() or "malformed").splitlines()[0][:200]
            raise InvalidRequest(f"the body cannot be read: {reason}") from None
        if len(body) > self._limit:
            raise BodyTooLarge(f"the body has over {self._limit} bytes, more are not taken")
        return body

    def _check_head(self, headers: Mapping[str, str], told: int | None) -> None:
        if told is not None and told > self._limit:
            raise BodyTooLarge(f"the body has {told} bytes, at most {self._limit} are taken")
        given = headers.get("content-type", "")
        if given != JSON and not _is_json(given):
            found = _media_type(given)[:80] or "no content type"
            raise UnsupportedMediaType(f"found {found}, expected content-type: application/json")

    async def _rest(self, content: Any, first: bytes) -> bytes:
        pieces, size, held = [first], len(first), 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    if size > LARGE_BODY_BYTES:
                        self.held_bytes += size - held
                        held = size
                        self._check_budget()
                    if size > self._limit or content.at_eof():
                        break
                    piece = await content.readany()
                    pieces.append(piece)
                    size += len(piece)
        except TimeoutError:
            raise BodyTimeout(f"the body was not sent within {self._timeout_s:g} s") from None
        finally:
            self.held_bytes -= held
        return b"".join(pieces)

    def _check_budget(self) -> None:
        if self.held_bytes > self._budget:
            raise QueueFull(
                f"bodies that are being received hold over {self._budget} bytes already",
                retry_after_s=1,
            )


def _is_json(given: str) -> bool:
    media_type = _media_type(given)
    return media_type == JSON or media_type.endswith("+json")


def _media_type(given: str) -> str:
    return given.partition(";")[0].strip().lower()
