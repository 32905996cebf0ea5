"""What text-generation-inference accepts, version by version: values, limits and their defaults.

Pure; used by the engines `tgi` and `simulator`, which imitates it.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from launcher.engines.flags import Arg
from launcher.engines.versions import Version, show_version
from router.config.mismatch import Mismatch
from router.config.words import did_you_mean, dotted, quoted

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig

EXAMPLE = "3.3.5"
DTYPES = ("float16", "bfloat16")
QUANTIZE_SINCE: dict[str, Version] = {
    "bitsandbytes": (0, 0, 0),
    "bitsandbytes-nf4": (0, 0, 0),
    "bitsandbytes-fp4": (0, 0, 0),
    "gptq": (0, 0, 0),
    "awq": (0, 0, 0),
    "eetq": (0, 0, 0),
    "fp8": (2, 0, 0),
    "exl2": (2, 1, 0),
    "marlin": (2, 1, 0),
    "compressed-tensors": (2, 4, 0),
}
_QUANTIZE_BESIDE_DTYPE = (
    None,
    "auto",
    "bitsandbytes",
    "bitsandbytes-nf4",
    "bitsandbytes-fp4",
)  # the others fix the type themselves
FIXED_LIMITS_UNTIL: Version = (2, 0, 0)  # before: 1024 input and 2048 total unless told otherwise
FIXED_TOTAL_TOKENS = 2048
CHUNKS_INPUTS_SINCE: Version = (3, 0, 0)  # before: a prompt must fit into one prefill

_PREFILL, _BATCH = "max-batch-prefill-tokens", "max-batch-total-tokens"


def check_values(model: "ModelConfig", version: Version) -> Iterator[Mismatch]:
    """`quantize` and `dtype` that this version does not know, or not together."""
    if model.quantize == "auto":
        pass  # becomes one of them, or none, when the GPU is known
    elif model.quantize is not None and model.quantize not in QUANTIZE_SINCE:
        known = ["auto", *(name for name, since in QUANTIZE_SINCE.items() if since <= version)]
        expected = did_you_mean(model.quantize, known)
        yield Mismatch(("quantize",), f"a text {quoted(model.quantize)}", expected)
    elif model.quantize is not None and version < QUANTIZE_SINCE[model.quantize]:
        since = show_version(QUANTIZE_SINCE[model.quantize])
        found = f"{model.quantize}, which came with version {since}"
        yield Mismatch(("quantize",), found, f"engine version {since} or later, or another one")
    if model.quantize == "exl2" and model.shards > 1:
        found = f"exl2 on {model.shards} GPUs"
        yield Mismatch(("quantize",), found, "one GPU for each replica, or another way")
    if model.dtype is not None and model.dtype not in DTYPES:
        yield Mismatch(
            ("dtype",), f"a text {quoted(model.dtype)}", did_you_mean(model.dtype, DTYPES)
        )
    elif model.dtype is not None and model.quantize not in _QUANTIZE_BESIDE_DTYPE:
        yield Mismatch(("dtype",), "dtype beside quantize", "one of the two")


def check_limits(model: "ModelConfig", version: Version) -> Iterator[Mismatch]:
    """An input limit that the version's own total does not leave room for."""
    has_fixed_total = model.max_total_tokens is None and version < FIXED_LIMITS_UNTIL
    limit = model.max_input_tokens
    if has_fixed_total and limit is not None and limit >= FIXED_TOTAL_TOKENS:
        expected = f"less than {FIXED_TOTAL_TOKENS}, this version's total, or max_total_tokens"
        yield Mismatch(("max_input_tokens",), str(limit), expected)


def check_batches(
    model: "ModelConfig", engine: "EngineConfig", version: Version
) -> Iterator[Mismatch]:
    """Batches that the longest call would not fit into: the server ends when it sees them."""
    longest, total = limits(model.max_input_tokens, model.max_total_tokens, version)
    for path, args in engine.all_args():
        prefill, batch = (_whole(args.get(name)) for name in (_PREFILL, _BATCH))
        place = dotted(("engine", *path))
        if _above(longest, prefill) and version < CHUNKS_INPUTS_SINCE:
            expected = f"at most {place}.{_PREFILL} ({prefill})"
            yield Mismatch(("max_input_tokens",), str(longest), expected)
        if _above(total, batch):
            expected = f"at most {place}.{_BATCH} ({batch})"
            yield Mismatch(("max_total_tokens",), str(total), expected)


def check_batch_flags(args: Mapping[str, Arg]) -> Iterator[Mismatch]:
    prefill, batch = (_whole(args.get(name)) for name in (_PREFILL, _BATCH))
    if _above(prefill, batch):
        yield Mismatch((_PREFILL,), str(prefill), f"at most {_BATCH} ({batch})")
    if _whole(args.get("validation-workers")) == 0:
        yield Mismatch(("validation-workers",), "0", "1 or more")


def _above(value: int | None, limit: int | None) -> bool:
    return value is not None and limit is not None and value > limit


def _whole(value: Arg) -> int | None:
    """A flag's value as the number that it is or spells."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def limits(
    max_input_tokens: int | None, max_total_tokens: int | None, version: Version
) -> tuple[int | None, int | None]:
    """Input and total tokens to tell the engine; None leaves it to the engine.

    Unless told otherwise the input may fill all but one token of the total: a stream that is
    continued on another replica comes back with its text so far as input.
    """
    if max_total_tokens is None and version < FIXED_LIMITS_UNTIL:
        max_total_tokens = FIXED_TOTAL_TOKENS
    if max_input_tokens is None and max_total_tokens is not None:
        max_input_tokens = max_total_tokens - 1
    return max_input_tokens, max_total_tokens
