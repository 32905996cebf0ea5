"""From a request's JSON to a checked ``Ask``: TGI's defaults, ranges and error texts (pure).

``read_parameters`` checks the shape as the HTTP layer does (plain-text 422); ``check`` applies
the engine's rules (JSON 422) and counts tokens. OpenAI routes build ``Parameters`` themselves and
share ``check``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.simulator.era import Era
from launcher.simulator.errors import invalid, wrong_shape
from launcher.simulator.settings import Limits
from launcher.simulator.tokens import TokenModel


@dataclass(frozen=True, slots=True)
class Parameters:
    """``parameters`` of a generate request, absent values already replaced by defaults."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    #: None: until ``max_total_tokens``.
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: object = None

    @property
    def samples(self) -> bool:
        """Whether TGI samples: ``do_sample``, or any knob that has no meaning without."""
        knobs = (self.top_k, self.top_p, self.typical_p)
        return self.do_sample or self.temperature not in (None, 1.0) or any(knobs)


@dataclass(frozen=True, slots=True)
class Ask:
    """One checked request for generations of one prompt."""

    prompt: str
    #: The prompt after ``truncate``: what the model sees.
    context: str
    input_tokens: int
    max_new_tokens: int
    parameters: Parameters

    @property
    def sequences(self) -> int:
        """Generations it asks for, each with a permit and a place in the batch."""
        return max(self.parameters.best_of or 1, 1)


_UNSIGNED, _UNSIGNED_32 = "an unsigned integer", "an unsigned 32-bit integer"
_INTEGER, _NUMBER, _BOOLEAN = "a 32-bit integer", "a number", "a bool"
_STRING, _STRINGS, _ANY = "a string", "a list of strings", "anything"
_RANGES = {
    _UNSIGNED: range(2**64),
    _UNSIGNED_32: range(2**32),
    _INTEGER: range(-(2**31), 2**31),
}

_NULLABLE = {
    "best_of": _UNSIGNED,
    "temperature": _NUMBER,
    "repetition_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "top_k": _INTEGER,
    "top_p": _NUMBER,
    "typical_p": _NUMBER,
    "max_new_tokens": _UNSIGNED_32,
    "return_full_text": _BOOLEAN,
    "truncate": _UNSIGNED,
    "seed": _UNSIGNED,
    "top_n_tokens": _UNSIGNED_32,
    "grammar": _ANY,
}
_NEVER_NULL = {
    "do_sample": _BOOLEAN,
    "stop": _STRINGS,
    "watermark": _BOOLEAN,
    "details": _BOOLEAN,
    "decoder_input_details": _BOOLEAN,
}


def read_parameters(body: dict[str, Any], era: Era) -> Parameters:
    """``parameters`` of a generate request; raises ``HttpRejection`` for a wrong type."""
    given = body.get("parameters")
    if "parameters" not in body:
        return Parameters(do_sample=True, max_new_tokens=era.default_max_new_tokens)
    if not isinstance(given, dict):
        raise wrong_shape("parameters: invalid type, expected struct GenerateParameters")
    values: dict[str, Any] = {}
    for name, kind in _NULLABLE.items():
        if given.get(name) is not None:
            values[name] = checked(given[name], kind, f"parameters.{name}")
    for name, kind in _NEVER_NULL.items():
        if name in given:
            values[name] = checked(given[name], kind, f"parameters.{name}")
    values.pop("watermark", None)
    values["stop"] = tuple(values.get("stop", ()))
    if "max_new_tokens" not in given:
        values["max_new_tokens"] = era.default_max_new_tokens
    return Parameters(**values)


def checked(value: Any, kind: str, path: str) -> Any:
    """The value if it is of the kind, else ``HttpRejection`` in the words of the HTTP layer."""
    if _is_kind(value, kind):
        return value
    raise wrong_shape(f"{path}: invalid type: found {type(value).__name__}, expected {kind}")


def _is_kind(value: Any, kind: str) -> bool:
    if kind == _ANY:
        return True
    if kind == _BOOLEAN or isinstance(value, bool):
        return kind == _BOOLEAN and isinstance(value, bool)
    if kind == _STRINGS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == _STRING:
        return isinstance(value, str)
    if kind == _NUMBER:
        return isinstance(value, int | float)
    return isinstance(value, int) and value in _RANGES[kind]


def check(prompt: str, parameters: Parameters, era: Era, limits: Limits, model: TokenModel) -> Ask:
    """Apply the engine's rules; raises ``ApiError`` with TGI's text for the first one broken."""
    _check_ranges(parameters, limits)
    if not prompt:
        raise invalid("`inputs` cannot be empty")
    context = _truncated(prompt, parameters.truncate, limits, model)
    input_tokens = model.count(context)
    max_new_tokens = parameters.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = max(limits.max_total_tokens - input_tokens, 1)
    reserved = reserve_tokens(max_new_tokens, parameters.max_new_tokens is None, era)
    if input_tokens + reserved > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}."
            f" Given: {input_tokens} `inputs` tokens and {reserved} `max_new_tokens`"
        )
    if input_tokens > limits.max_input_tokens:
        raise invalid(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_tokens}"
        )
    if parameters.grammar is not None:
        raise invalid("grammar is not supported")
    return Ask(prompt, context, input_tokens, max_new_tokens, parameters)


def reserve_tokens(max_new_tokens: int, was_absent: bool, era: Era) -> int:
    """Output tokens that one admission into the batch has to hold room for."""
    if not era.slice_tokens or (era.slice_only_when_absent and not was_absent):
        return max_new_tokens
    return min(max_new_tokens, era.slice_tokens)


def _truncated(prompt: str, truncate: int | None, limits: Limits, model: TokenModel) -> str:
    if truncate is None:
        return prompt
    if not 0 < truncate <= limits.max_input_tokens:
        raise invalid(
            "`truncate` must be strictly positive and less than"
            f" {limits.max_input_tokens}. Given: {truncate}"
        )
    return model.keep_last(prompt, truncate)


def _check_ranges(p: Parameters, limits: Limits) -> None:
    best_of = p.best_of or 1
    if best_of > limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if best_of > 1 and not p.samples:
        raise invalid("you must use sampling when `best_of` is > 1")
    if best_of > 1 and p.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    for value, name in (
        (p.temperature, "temperature"),
        (p.repetition_penalty, "repetition_penalty"),
    ):
        if value is not None and value <= 0:
            raise invalid(f"`{name}` must be strictly positive")
    if p.frequency_penalty is not None and not -2.0 <= p.frequency_penalty <= 2.0:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for value, name in ((p.top_p, "top_p"), (p.typical_p, "typical_p")):
        if value is not None and not 0.0 < value < 1.0:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive")
    if p.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(p.stop) > limits.max_stop_sequences:
        raise invalid(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences."
            f" Given: {len(p.stop)}"
        )
    if p.top_n_tokens is not None and p.top_n_tokens > limits.max_top_n_tokens:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {p.top_n_tokens}"
        )


def check_streamable(parameters: Parameters) -> None:
    """Refuse what cannot be streamed; TGI sends a second error event after this one."""
    if parameters.best_of not in (None, 1):
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
