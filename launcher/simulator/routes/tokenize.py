"""``POST /tokenize``: tokens of a text, without permit or queue."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.replies import json_reply
from launcher.simulator.request_body import text_field
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.service import Service


async def tokenize(request: web.Request) -> web.StreamResponse:
    service = service_of(request)
    return json_reply(pieces_json(service, text_field(await body_of(request), "inputs")))


def pieces_json(service: Service, text: str) -> list[dict[str, Any]]:
    return [piece._asdict() for piece in service.model.pieces(text)]
