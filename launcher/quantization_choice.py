"""`quantize: auto`: the least lossy way to get a model onto a card. Pure.

Walks the schemes of `quantization` from no loss to most and takes the first that the engine and
the card have and that fits; whether it fits is asked of the caller, who knows the rest of the plan.
Weights that are quantised already leave no choice. Every scheme passed over keeps its reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from launcher.memory import Fit
from launcher.model_shape import ModelShape
from launcher.quantization import (
    Capability,
    Scheme,
    dtype_flag,
    flag_of,
    loaded_dtype,
    on_load,
    stored_scheme,
    why_not,
)
from launcher.sizes import show_bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What `quantize: auto` means for one model on one kind of card."""

    works: bool
    """Whether the model can be run so; if not, the rest is what comes closest."""
    scheme: str | None
    """A name of SCHEMES; None: 16 bits."""
    flag: str | None
    """For the engine's quantisation flag; None: leave it out."""
    dtype: str | None
    """For the engine's dtype flag; None: leave it out."""
    reason: str
    rejected: tuple[tuple[str, str], ...]
    """(what, why not), in the order tried."""
    fit: Fit


def choose(
    shape: ModelShape,
    engine: str,
    capability: Capability,
    fit_of: Callable[[str | None], Fit],
) -> Choice:
    """The least lossy scheme that this engine and card have and that fits.

    `fit_of` answers for a scheme's name; for None as the weights are: 16 bits, or quantised.
    """
    rejected: list[tuple[str, str]] = []
    tried: list[tuple[Scheme | None, Fit]] = []
    for scheme in _candidates(shape, engine):
        reason = why_not(scheme, shape, engine, capability)
        if reason is None:
            fit = fit_of(_asked(scheme, shape))
            if fit.fits:
                return _choice(shape, engine, capability, scheme, fit, rejected)
            tried.append((scheme, fit))
            reason = _too_much(fit)
        name = loaded_dtype(shape, capability) if scheme is None else scheme.name
        rejected.append((name, reason))
    if not tried:  # quantised weights that this engine or card cannot use
        tried.append((stored_scheme(shape), fit_of(None)))
        reason = "nothing can be used"
    else:
        reason = "nothing fits"
    scheme, fit = max(tried, key=lambda one: one[1].room_bytes)
    return replace(
        _choice(shape, engine, capability, scheme, fit, rejected), works=False, reason=reason
    )


def _candidates(shape: ModelShape, engine: str) -> Iterator[Scheme | None]:
    """As the weights are, then with growing loss."""
    yield stored_scheme(shape)
    if shape.quantization is None:
        yield from on_load(engine)


def _asked(scheme: Scheme | None, shape: ModelShape) -> str | None:
    return None if scheme is None or shape.quantization is not None else scheme.name


def _choice(
    shape: ModelShape,
    engine: str,
    capability: Capability,
    scheme: Scheme | None,
    fit: Fit,
    rejected: list[tuple[str, str]],
) -> Choice:
    if rejected:
        reason = "the least lossy that fits"
    else:
        reason = "the weights are so already" if shape.quantization else "nothing is lost"
    return Choice(
        works=True,
        scheme=None if scheme is None else scheme.name,
        flag=flag_of(scheme, shape, engine),
        dtype=dtype_flag(scheme, shape, engine, capability),
        reason=reason,
        rejected=tuple(rejected),
        fit=fit,
    )


def _too_much(fit: Fit) -> str:
    if fit.room_bytes < fit.kv_bytes_per_token:
        missing = show_bytes(fit.kv_bytes_per_token - fit.room_bytes)
        return f"does not fit: {missing} missing"
    if fit.kv_tokens < fit.needed_tokens:
        return f"leaves room for {fit.kv_tokens} tokens, {fit.needed_tokens} are needed"
    return fit.warnings[0] if fit.warnings else "does not fit"
