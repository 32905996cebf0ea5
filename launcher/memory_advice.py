"""What an operator should know of a sum that does not come out, or only just. Pure.

Asked by `memory.fit`. Each warning says what is wrong and, where something would help, what: the
least lossy scheme, the fewest cards, the longest call.
"""

from collections.abc import Iterator
from dataclasses import replace

from launcher.memory_sum import Case
from launcher.quantization import Capability, Scheme, on_load, why_not
from launcher.sizes import show_bytes

_TIGHT = 0.85  # weights above this share of the budget leave little for anything else
_FEW_TOKENS = 2048  # fewer serve hardly one conversation
_MORE_GPUS = (2, 4, 8)


def warnings_of(case: Case, capability: Capability | None) -> Iterator[str]:
    arch, longest = case.shape.architecture, case.max_total_tokens
    if (reason := case.cannot_be_split) is not None:
        yield reason
    if (reason := why_not(case.scheme, case.shape, case.engine, capability)) is not None:
        name = case.scheme.name if case.scheme is not None else case.dtype
        yield f"{name}: {reason}"
    if case.others_bytes:
        yield _crowd(case)
    if case.room_bytes < case.kv_bytes_per_token:
        yield _too_large(case, capability)
    elif case.kv_tokens < case.needed_tokens:
        yield _too_long(case, capability)
    elif case.needed_tokens == 1 and case.kv_tokens < _FEW_TOKENS:
        yield f"tight: the KV cache holds only {case.kv_tokens} tokens"
    elif case.kv_tokens < 2 * case.needed_tokens and case.needed_tokens > 1:
        yield (
            f"tight: the KV cache holds {case.kv_tokens} tokens, "
            f"one call of {case.needed_tokens} at a time"
        )
    if case.fits and case.weights_bytes > _TIGHT * case.budget_bytes:
        part = case.weights_bytes / case.budget_bytes
        yield f"tight: weights take {part:.0%} of the budget"
    if longest is not None and arch.max_position is not None and longest > arch.max_position:
        yield (
            f"max_total_tokens ({longest}) is over the model's context of {arch.max_position} "
            f"tokens"
        )
    if 1 <= arch.kv_heads < case.gpus and case.gpus % arch.kv_heads == 0:
        yield f"{arch.kv_heads} KV heads are copied to {case.gpus} GPUs: the cache saves less"


def _crowd(case: Case) -> str:
    text = f"other processes hold {show_bytes(case.others_bytes)} of the card"
    if not case.is_crowded:
        return text
    free_bytes = case.total_bytes - case.others_bytes
    share = max(0, int(free_bytes / case.total_bytes * 100)) / 100
    return f"{text}; {case.engine} refuses to start unless told to take less: {share:g} or below"


def _too_large(case: Case, capability: Capability | None) -> str:
    missing = show_bytes(case.kv_bytes_per_token - case.room_bytes)
    kind = case.scheme.name if case.scheme is not None else case.dtype
    on = "1 GPU" if case.gpus == 1 else f"{case.gpus} GPUs"
    text = f"does not fit in {kind} on {on} of {show_bytes(case.total_bytes)}: {missing} missing"
    return f"{text}; {_remedy(case, capability)}"


def _too_long(case: Case, capability: Capability | None) -> str:
    asked = "max_total_tokens" if case.max_total_tokens is not None else "the model's whole context"
    text = f"the KV cache holds {case.kv_tokens} tokens, {asked} is {case.needed_tokens}"
    if case.kv_tokens >= _FEW_TOKENS:
        text += f": set max_total_tokens to {case.kv_tokens} or less"
    return f"{text}; {_remedy(case, capability)}"


def _remedy(case: Case, capability: Capability | None) -> str:
    """What would make it fit: the least lossy scheme, the fewest cards, or nothing we know."""
    ways = [f"with quantize: {scheme.name}" for scheme in _schemes(case, capability)][:1]
    ways += [f"on {gpus} such GPUs" for gpus in _counts(case)][:1]
    if not ways:
        return f"neither quantising nor {_MORE_GPUS[-1]} such GPUs would do"
    return f"all would fit {' or '.join(ways)}"


def _schemes(case: Case, capability: Capability | None) -> Iterator[Scheme]:
    if case.scheme is not None:
        loss = case.scheme.loss
        better = [scheme for scheme in on_load(case.engine) if scheme.loss > loss]
    else:
        better = on_load(case.engine)
    for scheme in better:
        is_possible = why_not(scheme, case.shape, case.engine, capability) is None
        if is_possible and replace(case, scheme=scheme).fits:
            yield scheme


def _counts(case: Case) -> Iterator[int]:
    return (n for n in _MORE_GPUS if n > case.gpus and replace(case, gpus=n).fits)
