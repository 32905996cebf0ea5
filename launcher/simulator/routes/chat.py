"""``POST /v1/chat/completions`` and ``/chat_tokenize``."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.chat_template import templated
from launcher.simulator.era import Era
from launcher.simulator.errors import tools_refused, wrong_shape
from launcher.simulator.parameters import Parameters
from launcher.simulator.replies import generation_reply, json_reply
from launcher.simulator.request_body import flag_field
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.routes.openai_fields import optional, require_model, shared_parameters
from launcher.simulator.routes.tokenize import pieces_json
from launcher.simulator.wire_openai import ChatStream, chat_body


async def chat(request: web.Request) -> web.StreamResponse:
    return await converse(request, await body_of(request))


async def converse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """The same for a body that was read already."""
    service = service_of(request)
    settings = service.settings
    era = settings.era
    require_model(body, era)
    prompt = _prompt(body, era)
    logprobs = bool(optional(body, "logprobs"))
    parameters = _parameters(body, era)
    streams = flag_field(body, "stream")
    include_usage = _include_usage(body)
    service.metrics.count("tgi_request_count")
    if body.get("tools") and body.get("tool_choice") != "none":
        raise tools_refused()
    if streams:
        form = ChatStream(era, settings.model_id, include_usage, logprobs)
        return await service.stream(request, [prompt], parameters, [form])
    fault = service.faults.take()
    collected = await service.collect([prompt], parameters, fault)
    answer = chat_body(era, settings.model_id, collected.sequences[0], logprobs)
    return await generation_reply(service, request, collected, answer, fault)


async def chat_tokenize(request: web.Request) -> web.StreamResponse:
    """The templated prompt and its tokens; needs neither permit nor queue."""
    service = service_of(request)
    prompt = _prompt(await body_of(request), service.settings.era)
    return json_reply({"tokenize_response": pieces_json(service, prompt), "templated_text": prompt})


def _prompt(body: dict[str, Any], era: Era) -> str:
    if "messages" not in body:
        raise wrong_shape("missing field `messages`")
    return templated(body["messages"], era)


def _parameters(body: dict[str, Any], era: Era) -> Parameters:
    presence = optional(body, "presence_penalty")
    return shared_parameters(
        body,
        era,
        # TGI has no presence penalty: -2..2 becomes its repetition penalty 0..4.
        repetition_penalty=None if presence is None else presence + 2.0,
        top_n_tokens=optional(body, "top_logprobs"),
        grammar=body.get("response_format"),
    )


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong_shape("stream_options: invalid type, expected struct StreamOptions")
    return flag_field(options, "include_usage")
