"""Routes that tell about the engine: info, health, models, metrics, docs, faults."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.errors import unhealthy
from launcher.simulator.replies import json_reply
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.settings import Settings
from launcher.simulator.wire_openai import DOCKER_LABEL

_NO_SHA = "0" * 40

_DOCS = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Simulated Text Generation Inference</title>
<h1>Simulated Text Generation Inference {version}</h1>
<p>This is a simulator: it answers like TGI {version} and invents its text. No model runs here.</p>
<ul>{routes}</ul></html>
"""


async def info(request: web.Request) -> web.StreamResponse:
    return json_reply(info_body(service_of(request).settings))


def info_body(settings: Settings) -> dict[str, Any]:
    """``/info`` with the fields, names and order of the version, and one that owns up."""
    era, limits, batch = settings.era, settings.limits, settings.batch
    body: dict[str, Any] = {"model_id": settings.model_id, "model_sha": None}
    if era.info_scheduler_fields:
        body |= {"model_dtype": "torch.float16", "model_device_type": "cuda"}
    body |= {
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        era.info_input_name: limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
    }
    if era.info_scheduler_fields:
        body |= {
            "waiting_served_ratio": batch.waiting_served_ratio,
            "max_batch_total_tokens": batch.max_batch_total_tokens,
            "max_waiting_tokens": batch.max_waiting_tokens,
            "max_batch_size": batch.max_batch_size,
        }
    body["validation_workers"] = settings.validation_workers
    if era.info_client_batch:
        body["max_client_batch_size"] = limits.max_client_batch_size
    if era.info_router:
        body["router"] = "text-generation-router"
    return body | {
        "version": era.version,
        "sha": _NO_SHA,
        "docker_label": DOCKER_LABEL,
        "simulator": True,
    }


async def health(request: web.Request) -> web.StreamResponse:
    service = service_of(request)
    await service.engine.health()
    if service.faults.take(is_health=True):
        raise unhealthy()
    return web.Response()


async def models(request: web.Request) -> web.StreamResponse:
    name = service_of(request).settings.model_id
    entry = {"id": name, "object": "model", "created": 0, "owned_by": name}
    return json_reply({"object": "list", "data": [entry]})


async def metrics(request: web.Request) -> web.StreamResponse:
    return web.Response(text=service_of(request).metrics.render(), content_type="text/plain")


async def docs(request: web.Request) -> web.StreamResponse:
    service = service_of(request)
    resources = {resource.canonical for resource in request.app.router.resources()}
    routes = "".join(f"<li>{path}</li>" for path in sorted(resources))
    page = _DOCS.format(version=service.settings.era.version, routes=routes)
    return web.Response(text=page, content_type="text/html")


async def arm_fault(request: web.Request) -> web.StreamResponse:
    """``POST /simulator/faults``: see ``launcher.simulator.faults``."""
    return json_reply(service_of(request).faults.arm(await body_of(request)))
