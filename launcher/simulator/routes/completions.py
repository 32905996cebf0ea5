"""``POST /v1/completions``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.era import Era
from launcher.simulator.errors import batch_size_exceeded, suffix_refused, wrong_shape
from launcher.simulator.parameters import Parameters
from launcher.simulator.replies import generation_reply
from launcher.simulator.request_body import flag_field
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.routes.openai_fields import optional, require_model, shared_parameters
from launcher.simulator.service import Service
from launcher.simulator.wire_openai import CompletionStream, completion_body


async def completions(request: web.Request) -> web.StreamResponse:
    return await complete(request, await body_of(request))


async def complete(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """The same for a body that was read already."""
    service = service_of(request)
    settings = service.settings
    era = settings.era
    require_model(body, era)
    prompts = _prompts(body, era)
    parameters = _parameters(body, era)
    streams = flag_field(body, "stream")
    service.metrics.count("tgi_request_count")
    if body.get("suffix") is not None:
        raise suffix_refused()
    if len(prompts) > settings.limits.max_client_batch_size:
        raise batch_size_exceeded(settings.limits.max_client_batch_size)
    model_id = settings.model_id
    if streams:
        forms = [CompletionStream(era, model_id, index) for index in range(len(prompts))]
        return await service.stream(request, prompts, parameters, forms)
    return await _unary(service, request, prompts, parameters)


async def _unary(
    service: Service, request: web.Request, prompts: list[str], parameters: Parameters
) -> web.StreamResponse:
    fault = service.faults.take()
    collected = await service.collect(prompts, parameters, fault)
    settings = service.settings
    answer = completion_body(settings.era, settings.model_id, collected.sequences)
    reply = await generation_reply(service, request, collected, answer, fault)
    if settings.era.prompt_arrays:
        reply.headers.popall("x-compute-time", None)
    return reply


def _prompts(body: dict[str, Any], era: Era) -> list[str]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    is_list = isinstance(prompt, list) and prompt and all(isinstance(one, str) for one in prompt)
    if isinstance(prompt, list) and is_list and era.prompt_arrays:
        return list(prompt)
    expected = "a string or a list of strings" if era.prompt_arrays else "a string"
    found = "missing field `prompt`" if prompt is None else "prompt: invalid type"
    raise wrong_shape(f"{found}, expected {expected}")


def _parameters(body: dict[str, Any], era: Era) -> Parameters:
    # Before 2.1 completions had no `stop`: serde skips fields it does not know.
    known = body if era.completion_stop else {**body, "stop": None}
    return shared_parameters(known, era, repetition_penalty=optional(known, "repetition_penalty"))
