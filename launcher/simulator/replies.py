"""Unary replies: bodies, and the headers in which TGI reports its timings.

Routes call ``generation_reply`` with what ``Service.collect`` gave them.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from launcher.simulator.broken_reply import CONNECTION_FAULTS, faulty_reply
from launcher.simulator.faults import Fault
from launcher.simulator.service import Collected, Service


def json_reply(
    value: Any, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


async def generation_reply(
    service: Service,
    request: web.Request,
    collected: Collected,
    value: Any,
    fault: Fault | None,
) -> web.StreamResponse:
    """A generation's answer; broken on purpose if a fault says so."""
    data = orjson.dumps(value)
    if fault and fault.mode in CONNECTION_FAULTS:
        return await faulty_reply(request, fault, data)
    return json_reply(data, headers=timing_headers(service, collected))


def timing_headers(service: Service, collected: Collected) -> dict[str, str]:
    """What a call cost; sums over its prompts where it has several."""
    sequences = collected.sequences
    first = sequences[0]
    total_s = collected.finished_s - collected.arrived_s
    inference_s = sum(one.finished_s - one.started_s for one in sequences)
    generated = sum(len(one.tokens) for one in sequences)
    asks = {id(one.ask): one.ask for one in sequences}.values()
    return {
        "x-compute-type": service.compute_type,
        "x-compute-time": f"{total_s:.6f}",
        "x-compute-characters": str(sum(len(ask.prompt) for ask in asks)),
        "x-total-time": _ms(total_s),
        "x-validation-time": _ms(first.enqueued_s - collected.arrived_s),
        "x-queue-time": _ms(sum(one.queue_s for one in sequences)),
        "x-inference-time": _ms(inference_s),
        "x-time-per-token": _ms(inference_s / generated),
        "x-prompt-tokens": str(sum(ask.input_tokens for ask in asks)),
        "x-generated-tokens": str(generated),
    }


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))
