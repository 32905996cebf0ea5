"""Fields that chat and completions requests share, mapped to TGI's parameters (pure)."""

from __future__ import annotations

from typing import Any

from launcher.simulator.era import Era
from launcher.simulator.errors import wrong_shape
from launcher.simulator.parameters import Parameters, checked

_KINDS = {
    "temperature": "a number",
    "top_p": "a number",
    "frequency_penalty": "a number",
    "presence_penalty": "a number",
    "repetition_penalty": "a number",
    "max_tokens": "an unsigned 32-bit integer",
    "max_completion_tokens": "an unsigned 32-bit integer",
    "top_logprobs": "an unsigned 32-bit integer",
    "seed": "an unsigned integer",
    "logprobs": "a bool",
    "stop": "a list of strings",
    "model": "a string",
}


def optional(body: dict[str, Any], name: str) -> Any:
    """A field's value, None if absent or null; raises ``HttpRejection`` for a wrong type."""
    value = body.get(name)
    return None if value is None else checked(value, _KINDS[name], name)


def require_model(body: dict[str, Any], era: Era) -> None:
    """Early versions insist on ``model``; what it says is never looked at."""
    if optional(body, "model") is None and era.model_required:
        raise wrong_shape("missing field `model`")


def shared_parameters(
    body: dict[str, Any],
    era: Era,
    *,
    repetition_penalty: float | None,
    top_n_tokens: int | None = None,
    grammar: object = None,
) -> Parameters:
    """Generation parameters of an OpenAI-style request."""
    temperature = optional(body, "temperature")
    samples = True
    if temperature == 0 and era.chat_zero_temperature:
        temperature, samples = None, False
    top_p = optional(body, "top_p")
    return Parameters(
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=optional(body, "frequency_penalty"),
        do_sample=samples,
        max_new_tokens=_max_tokens(body, era),
        stop=tuple(optional(body, "stop") or ()),
        details=True,
        seed=optional(body, "seed"),
        top_n_tokens=top_n_tokens,
        grammar=grammar,
    )


def _max_tokens(body: dict[str, Any], era: Era) -> int | None:
    value: int | None = optional(body, "max_tokens")
    if value is None and era.max_completion_tokens:
        value = optional(body, "max_completion_tokens")
    return era.default_max_new_tokens if value is None else value
