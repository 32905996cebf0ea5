"""How route functions reach the process's ``Service``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.request_body import read_json
from launcher.simulator.service import Service

SERVICE: web.AppKey[Service] = web.AppKey("service", Service)


def service_of(request: web.Request) -> Service:
    return request.app[SERVICE]


async def body_of(request: web.Request) -> dict[str, Any]:
    """The request's JSON object within the payload limit; raises ``HttpRejection``."""
    return await read_json(request, service_of(request).settings.limits.payload_bytes)
