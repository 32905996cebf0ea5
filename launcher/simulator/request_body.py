"""Reading a JSON request body the way TGI's HTTP layer does.

Every POST route starts here. Refusals are plain text with a real status: 415, 413, 400, 422.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from launcher.simulator.errors import HttpRejection, wrong_shape


async def read_json(request: web.Request, limit_bytes: int) -> dict[str, Any]:
    """The body as a JSON object; raises ``HttpRejection``."""
    content_type = request.content_type
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise HttpRejection(415, "Expected request with `Content-Type: application/json`")
    if (request.content_length or 0) > limit_bytes:
        raise _too_large()
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise _too_large() from exc
    if len(data) > limit_bytes:
        raise _too_large()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise HttpRejection(400, f"Failed to parse the request body as JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise wrong_shape(f"invalid type: found {type(body).__name__}, expected a JSON object")
    return body


def text_field(body: dict[str, Any], name: str) -> str:
    """A required string."""
    if name not in body:
        raise wrong_shape(f"missing field `{name}`")
    value = body[name]
    if not isinstance(value, str):
        raise wrong_shape(f"{name}: invalid type: found {type(value).__name__}, expected a string")
    return value


def flag_field(body: dict[str, Any], name: str) -> bool:
    """An optional boolean, false if absent."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise wrong_shape(f"{name}: invalid type: found {type(value).__name__}, expected a bool")
    return value


def _too_large() -> HttpRejection:
    return HttpRejection(413, "Failed to buffer the request body: length limit exceeded")
