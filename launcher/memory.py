"""Whether a model fits on a card, and how many tokens its KV cache then holds. Pure.

    need = weights + activations + CUDA context; what is left of the budget is KV cache

Engines give all that is left to the cache, so the answer is a number of tokens, not of bytes: none
means no. The budget is the share of the whole card that an engine fills: TGI 0.90 of its
`--cuda-memory-fraction`, vLLM its `--gpu-memory-utilization`, 0.92 unless told. Estimates to within
a few percent; what a number rests on stands beside it in `Fit.lines`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.memory_advice import warnings_of
from launcher.memory_sum import CONTEXT_BYTES, HABITS, KV_BYTES, Case
from launcher.model_shape import ModelShape
from launcher.quantization import (
    Capability,
    dtype_named,
    linear_bytes_of,
    loaded_dtype,
    scheme_named,
    stored_scheme,
)
from launcher.sizes import MIB
from router.config.words import did_you_mean

_OTHERS_BYTES = 512 * MIB  # what drivers hold on an idle card is less


@dataclass(frozen=True, slots=True)
class Line:
    """One number of the sum and why it is that. `unit`: bytes or tokens."""

    what: str
    number: int
    unit: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer, per card. With tensor parallelism every card holds its part of each number."""

    fits: bool
    weights_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    """Prompts and answers together that the cache holds at once; 0 if the model does not fit."""
    activations_bytes: int
    context_bytes: int
    headroom_bytes: int
    """What the engine leaves of the card unused."""
    budget_bytes: int
    """What the engine may fill: all above but the head-room."""
    room_bytes: int
    """The budget's rest for the KV cache; negative: by so much it does not fit."""
    needed_tokens: int
    """The engine starts only if one call of this length fits."""
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]


def fit(
    shape: ModelShape,
    scheme: str | None,
    dtype: str | None,
    gpu_total_bytes: int,
    *,
    free_bytes: int | None = None,
    fraction: float | None = None,
    tensor_parallel: int = 1,
    engine: str = "tgi",
    max_total_tokens: int | None = None,
    max_batch_prefill_tokens: int | None = None,
    kv_dtype: str | None = None,
    compute_capability: Capability | None = None,
) -> Fit:
    """The whole sum. `scheme` and `dtype` None: what the engine does if not told.

    `fraction`: of the card, as in --cuda-memory-fraction and --gpu-memory-utilization; None: the
    engine's default. `compute_capability` only keeps impossible advice out of the warnings.
    A ValueError says what was expected of an argument.
    """
    _check(gpu_total_bytes, fraction, tensor_parallel, engine, kv_dtype)
    others_bytes = 0 if free_bytes is None else max(0, gpu_total_bytes - free_bytes)
    case = Case(
        shape=shape,
        scheme=scheme_named(scheme, engine) or stored_scheme(shape),
        dtype=loaded_dtype(shape, compute_capability) if dtype is None else dtype_named(dtype),
        total_bytes=gpu_total_bytes,
        others_bytes=others_bytes if others_bytes > _OTHERS_BYTES else 0,
        fraction=fraction,
        gpus=tensor_parallel,
        engine=engine,
        max_total_tokens=max_total_tokens,
        prefill_tokens=max_batch_prefill_tokens,
        kv_dtype=kv_dtype,
    )
    return Fit(
        fits=case.fits,
        weights_bytes=case.weights_bytes,
        kv_bytes_per_token=case.kv_bytes_per_token,
        kv_tokens=case.kv_tokens,
        activations_bytes=case.activations_bytes,
        context_bytes=CONTEXT_BYTES,
        headroom_bytes=gpu_total_bytes - case.budget_bytes,
        budget_bytes=case.budget_bytes,
        room_bytes=case.room_bytes,
        needed_tokens=case.needed_tokens,
        lines=tuple(_lines(case)),
        warnings=tuple(warnings_of(case, compute_capability)),
    )


def _check(
    total_bytes: int, fraction: float | None, gpus: int, engine: str, kv_dtype: str | None
) -> None:
    if engine not in HABITS:
        raise ValueError(did_you_mean(engine, HABITS))
    if total_bytes <= 0:
        raise ValueError("a card with memory")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError("a fraction above 0 and at most 1")
    if gpus < 1:
        raise ValueError("at least 1 GPU")
    if kv_dtype is not None and kv_dtype != "auto" and kv_dtype not in KV_BYTES:
        try:
            dtype_named(kv_dtype)
        except ValueError:
            raise ValueError(did_you_mean(kv_dtype, ["auto", *KV_BYTES])) from None


def _lines(case: Case) -> Iterator[Line]:
    arch = case.shape.architecture
    yield Line("card", case.total_bytes, "bytes", "as its driver reports it")
    yield Line("budget", case.budget_bytes, "bytes", f"{case.share:.3g} of it: {_why_share(case)}")
    if case.others_bytes:
        yield Line("others", case.others_bytes, "bytes", "in use on the card already")
    yield Line("weights", case.weights_bytes, "bytes", _why_weights(case))
    yield Line("activations", case.activations_bytes, "bytes", _why_activations(case))
    yield Line("context", CONTEXT_BYTES, "bytes", "CUDA's own, allowed for at 0.6 GiB")
    reason = f"the rest, at {case.kv_bytes_per_token} bytes per token"
    reason += f" (2 x {arch.layers} layers x {arch.kv_heads} heads x {arch.head_dim}"
    reason += f", {case.gpus} GPUs)" if case.gpus > 1 else ")"
    yield Line("KV cache", case.kv_tokens, "tokens", reason)


def _why_share(case: Case) -> str:
    given = f" = {case.fraction:g}" if case.fraction is not None else ""
    return case.habits.reason + given


def _why_weights(case: Case) -> str:
    parameters = case.shape.parameters
    if case.stored_bytes is not None:
        words = "as they are on disk"
    elif case.scheme is None:
        words = f"{parameters.total / 1e9:.2f} G parameters in {case.dtype}"
    else:
        linear_bytes = linear_bytes_of(case.scheme, case.shape.quantization)
        words = f"{parameters.linear / 1e9:.2f} G linear parameters in {case.scheme.name}"
        words += f" ({linear_bytes:.3g} B each), {parameters.wide / 1e9:.2f} G at 16 bits"
    return f"{words}, over {case.gpus} GPUs" if case.gpus > 1 else words


def _why_activations(case: Case) -> str:
    if case.prefill_tokens is None:
        return "of a prefill, allowed for at 1 GiB"
    return f"of a prefill of {case.prefill_tokens} tokens, logits included; an upper bound"
