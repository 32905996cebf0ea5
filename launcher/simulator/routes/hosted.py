"""``POST /invocations`` (SageMaker) and ``/vertex``: other clouds' wrappings of the same calls."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from launcher.simulator.errors import ApiError, wrong_shape
from launcher.simulator.parameters import Parameters, read_parameters
from launcher.simulator.replies import json_reply
from launcher.simulator.request_body import text_field
from launcher.simulator.routes.chat import converse
from launcher.simulator.routes.completions import complete
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.routes.generate import compat
from launcher.simulator.service import Service
from launcher.simulator.wire import error_body

_NO_VARIANT = "data did not match any variant of untagged enum SagemakerRequest"


async def invocations(request: web.Request) -> web.StreamResponse:
    settings = service_of(request).settings
    body = await body_of(request)
    if not settings.era.invocations_union:
        return await (converse if settings.messages_api else compat)(request, body)
    # The order in which TGI tries them.
    if isinstance(body.get("inputs"), str):
        return await compat(request, body)
    if isinstance(body.get("messages"), list):
        return await converse(request, body)
    if "prompt" in body:
        return await complete(request, body)
    raise wrong_shape(_NO_VARIANT)


async def vertex(request: web.Request) -> web.StreamResponse:
    """All instances at once; any failure fails the call with 500."""
    service = service_of(request)
    instances = (await body_of(request)).get("instances")
    if not isinstance(instances, list):
        raise wrong_shape("missing field `instances`")
    asked = [_instance(service, instance) for instance in instances]
    predicted = await asyncio.gather(
        *(_predict(service, prompt, parameters) for prompt, parameters in asked),
        return_exceptions=True,
    )
    for one in predicted:
        if isinstance(one, ApiError):
            return json_reply(error_body(one), status=500)
        if isinstance(one, BaseException):
            raise one
    return json_reply({"predictions": predicted})


async def _predict(service: Service, prompt: str, parameters: Parameters) -> str:
    collected = await service.collect([prompt], parameters, service.faults.take())
    return collected.sequences[0].text


def _instance(service: Service, instance: Any) -> tuple[str, Parameters]:
    if not isinstance(instance, dict):
        raise wrong_shape("instances: invalid type, expected struct VertexInstance")
    era = service.settings.era
    given = instance.get("parameters")
    if isinstance(given, dict) and not era.vertex_all_parameters:
        # Early versions know these two and skip the rest.
        given = {key: given[key] for key in ("max_new_tokens", "seed") if key in given}
        given["do_sample"] = True
    body = {"parameters": given} if given is not None else {}
    return text_field(instance, "inputs"), read_parameters(body, era)
