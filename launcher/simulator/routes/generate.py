"""``POST /``, ``/generate`` and ``/generate_stream``: TGI's own API."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from launcher.simulator.generation import Sequence
from launcher.simulator.parameters import Parameters, read_parameters
from launcher.simulator.replies import generation_reply
from launcher.simulator.request_body import flag_field, text_field
from launcher.simulator.routes.context import body_of, service_of
from launcher.simulator.service import Service
from launcher.simulator.wire import TgiStream, UnaryBody


async def generate(request: web.Request) -> web.StreamResponse:
    """``POST /generate``: one JSON object."""
    return await _unary(request, await body_of(request), is_root=False)


async def generate_stream(request: web.Request) -> web.StreamResponse:
    """``POST /generate_stream``: server-sent events."""
    return await _streamed(request, await body_of(request), is_root=False)


async def root(request: web.Request) -> web.StreamResponse:
    """``POST /``: either, by the body's ``stream``; the JSON answer is a list of one."""
    return await compat(request, await body_of(request))


async def compat(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """The same for a body that was read already."""
    text_field(body, "inputs")
    if flag_field(body, "stream"):
        return await _streamed(request, body, is_root=True)
    return await _unary(request, body, is_root=True)


async def _unary(
    request: web.Request, body: dict[str, Any], *, is_root: bool
) -> web.StreamResponse:
    service = service_of(request)
    prompt, parameters = _asked(service, body)
    fault = service.faults.take()
    collected = await service.collect([prompt], parameters, fault)
    best, others = best_first(collected.sequences)
    answer = unary_body(service).generated(best, others, _with_prompt(parameters, is_root))
    return await generation_reply(
        service, request, collected, [answer] if is_root else answer, fault
    )


async def _streamed(
    request: web.Request, body: dict[str, Any], *, is_root: bool
) -> web.StreamResponse:
    service = service_of(request)
    prompt, parameters = _asked(service, body)
    form = TgiStream(service.settings.era, _with_prompt(parameters, is_root))
    return await service.stream(request, [prompt], parameters, [form])


def _asked(service: Service, body: dict[str, Any]) -> tuple[str, Parameters]:
    return text_field(body, "inputs"), read_parameters(body, service.settings.era)


def _with_prompt(parameters: Parameters, is_root: bool) -> bool:
    # The pipeline tag is text-generation, for which TGI's root route echoes the prompt.
    asked = parameters.return_full_text
    return is_root if asked is None else asked


def unary_body(service: Service) -> UnaryBody:
    settings = service.settings
    with_prefill = settings.enable_prefill_logprobs or not settings.era.prefill_needs_flag
    return UnaryBody(service.model, with_prefill)


def best_first(sequences: list[Sequence]) -> tuple[Sequence, list[Sequence]]:
    """The sequence with the highest mean log probability, and the others."""
    best = max(sequences, key=lambda one: sum(t.logprob for t in one.tokens) / len(one.tokens))
    return best, [one for one in sequences if one is not best]
