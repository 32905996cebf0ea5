"""`max_memory` as Transformers programs write it: what each GPU may be filled with. Pure.

`{0: "20GiB", 1: "600MB"}`: GPU number to budget. Keys and sizes follow accelerate. What engines
cannot do is refused with the reason, never dropped: they keep all of a model on the GPUs, while
accelerate may leave layers in host memory or on disk. `memory_fraction` turns a budget into what
engines take instead: a share of the whole card.
"""

from collections.abc import Iterator, Mapping

from launcher.sizes import parse_size_bytes, show_bytes
from router.config.mismatch import Mismatch, refuse
from router.config.words import describe

_KEYS = 'a GPU\'s number, as in {0: "20GiB"}'
_OFF_GPU = "nothing: engines keep all of a model on the GPU and cannot offload layers to it"
_STEPS = 1000  # a share is written with three decimals


def parse_max_memory(value: object) -> dict[int, int]:
    """Budget in bytes by GPU number, ascending. `Mismatches` (a ValueError) names all mistakes."""
    if not isinstance(value, Mapping):
        found = describe(value, None)
        refuse([Mismatch((), found, f"a mapping from {_KEYS.removeprefix('a ')}")])
        return {}  # never reached: `refuse` raised
    refuse(_mismatches(value))
    budgets = {gpu: parse_size_bytes(size) for gpu, size in value.items() if isinstance(gpu, int)}
    return dict(sorted(budgets.items()))


def memory_fraction(budget_bytes: int, total_bytes: int) -> float:
    """The share of a card that is at most `budget_bytes`: rounded down to 3 decimals, at most 1.

    For TGI's `--cuda-memory-fraction` and vLLM's `--gpu-memory-utilization`.
    """
    if total_bytes <= 0:
        raise ValueError(f"a card with memory, not one of {show_bytes(total_bytes)}")
    steps = min(_STEPS, budget_bytes * _STEPS // total_bytes)
    if steps <= 0:
        least = show_bytes(-(-total_bytes // _STEPS))
        raise ValueError(f"at least {least}, a thousandth of the card's {show_bytes(total_bytes)}")
    return steps / _STEPS


def _mismatches(value: Mapping[object, object]) -> Iterator[Mismatch]:
    if not value:
        yield Mismatch((), "no GPU", _KEYS)
    for key, size in value.items():
        path = (key if isinstance(key, int) else str(key),)
        if (wrong := _wrong_key(key)) is not None:
            yield Mismatch(path, describe(key, None), wrong)
            continue
        try:
            size_bytes = parse_size_bytes(size)
        except ValueError as exc:
            yield Mismatch(path, describe(size, None), str(exc))
            continue
        # 1. Host memory and disk: naming them asks for offloading, unless with nothing.
        if isinstance(key, str) and size_bytes > 0:
            yield Mismatch(path, describe(size, None), f"{_OFF_GPU}; leave {key} out")
        # 2. To accelerate a GPU with 0 is one to pass over.
        elif isinstance(key, int) and size_bytes == 0:
            yield Mismatch(path, "0 bytes", "more; leave a GPU that is not to be used out")


def _wrong_key(key: object) -> str | None:
    """Why this is no key of `max_memory`, if it is none."""
    if isinstance(key, int) and not isinstance(key, bool):
        return None if key >= 0 else f"{_KEYS}, counted from 0"
    if not isinstance(key, str) or key in ("cpu", "disk"):
        return None if isinstance(key, str) else _KEYS
    if key == "mps":
        return f"{_KEYS}; these engines run on CUDA devices only"
    number = key.removeprefix("cuda:").removeprefix("gpu")
    if number.isascii() and number.isdecimal():
        return f"{_KEYS}: write {int(number) if len(number) < 4 else 0} without quotes"
    return _KEYS
