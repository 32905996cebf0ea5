"""How weights can be compressed: what each scheme costs, needs and loses. Pure.

`SCHEMES` is the table; names are ours, `flag_of` gives each engine's. Two kinds: an engine makes
the one itself while it loads 16-bit weights; the other must already be in the weights. `why_not`
judges a scheme for a model, an engine and a card; whether it fits is `memory`'s question.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from launcher.model_shape import ModelShape, Quantization
from router.config.words import did_you_mean

T = TypeVar("T")
Capability = tuple[int, int]
"""CUDA compute capability, (8, 9) for 8.9."""

WIDE_BYTES = 2  # embeddings, head, norms and biases under every scheme
_DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_DTYPE_ALIASES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16"}
_DTYPE_ALIASES |= {"float": "float32", "fp32": "float32"}
_BF16_SINCE = (8, 0)
_SCALE_BYTES = 2  # one 16-bit scale per group, beside a zero point as wide as a weight


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store linear weights. `loss` 0 is none; `auto` tries in its order."""

    name: str
    linear_bytes: float
    """Per parameter, scales included; what the files take counts where they are here."""
    loss: int
    since: Capability
    until: Capability | None = None
    """The last capability its kernels are stated for."""
    note: str = ""


# The 8-bit ones lose about the same: the faster first. Scales per row are under 0.1 % and left out.
SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("eetq", 1.0, 1, (7, 0), (8, 9), "8-bit weights, calculates in 16 bits"),
        Scheme("fp8", 1.0, 2, (8, 0), note="native from 8.9 on, weights only below"),
        Scheme("int8", 1.0, 3, (7, 5), note="bitsandbytes: slow, without CUDA graphs"),
        Scheme("nf4", 0.5 + 1 / 64 + 4 / (64 * 256), 4, (6, 0), note="bitsandbytes, 4 bits"),
        Scheme("fp4", 0.5 + 1 / 64 + 4 / (64 * 256), 5, (6, 0), note="bitsandbytes, 4 bits"),
        Scheme("awq", 0.5 + 2.5 / 128, 4, (7, 5), note="fast kernels from 8.0 on"),
        Scheme("gptq", 0.5 + 2.5 / 128, 4, (7, 0), note="fast kernels from 8.0 on"),
        Scheme("marlin", 0.5 + 2.5 / 128, 4, (8, 0)),
        Scheme("exl2", 0.5 + 2.5 / 128, 4, (8, 0), note="no tensor parallelism"),
        Scheme("compressed-tensors", 1.0, 2, (7, 5), note="depends on what is in the weights"),
        Scheme("gguf", 0.5 + 2.5 / 128, 4, (6, 0), note="depends on what is in the file"),
    )
}

# Ours -> the engine's, for what it quantises itself while loading.
_ON_LOAD: Mapping[str, Mapping[str, str]] = {
    "tgi": {
        "eetq": "eetq",
        "fp8": "fp8",
        "int8": "bitsandbytes",
        "nf4": "bitsandbytes-nf4",
        "fp4": "bitsandbytes-fp4",
    },
    "vllm": {"fp8": "fp8", "nf4": "bitsandbytes"},
    "aphrodite": {"fp8": "fp8", "nf4": "bitsandbytes"},
    "llamacpp": {},
}
_VLLM_READS: tuple[str, ...] = (
    "awq",
    "gptq",
    "marlin",
    "fp8",
    "compressed-tensors",
    "int8",
    "nf4",
    "fp4",
    "gguf",
)
_VLLM_READS += ("modelopt", "modelopt_fp4", "mxfp4", "quark", "torchao", "auto-round")
# Ours -> the engine's, for weights that are so already; None: it sees that without a flag.
_IN_WEIGHTS: Mapping[str, Mapping[str, str | None]] = {
    "tgi": {
        "awq": "awq",
        "gptq": "gptq",
        "marlin": "marlin",
        "exl2": "exl2",
        "fp8": "fp8",
        "compressed-tensors": "compressed-tensors",
    },
    "vllm": dict.fromkeys(_VLLM_READS),
    "aphrodite": dict.fromkeys(_VLLM_READS),
    "llamacpp": {"gguf": None},
}
ENGINES = tuple(_ON_LOAD)


def on_load(engine: str) -> list[Scheme]:
    """What the engine can make of 16-bit weights, least loss first."""
    schemes = [SCHEMES[name] for name in _engine(_ON_LOAD, engine)]
    return sorted(schemes, key=lambda scheme: scheme.loss)


def scheme_named(name: str | None, engine: str) -> Scheme | None:
    """The scheme of a `quantize` value, ours or the engine's; None for none. ValueError else."""
    if name is None or name == "none":
        return None
    theirs = {flag: ours for ours, flag in _engine(_ON_LOAD, engine).items()}
    scheme = SCHEMES.get(theirs.get(name, name))
    if scheme is None:
        raise ValueError(
            did_you_mean(name, ["none", *SCHEMES, *(n for n in theirs if n not in SCHEMES)])
        )
    return scheme


def stored_scheme(shape: ModelShape) -> Scheme | None:
    """What the weights already are; one we have no name for costs what its bits say."""
    stored = shape.quantization
    if stored is None:
        return None
    unknown = Scheme(stored.scheme, (stored.bits or 16) / 8, loss=0, since=(0, 0))
    return SCHEMES.get(stored.scheme, unknown)


def flag_of(scheme: Scheme | None, shape: ModelShape, engine: str) -> str | None:
    """The engine's own word for its quantisation flag; None to leave the flag out."""
    if scheme is None:
        return None
    if _is_in_weights(scheme, shape):
        return _engine(_IN_WEIGHTS, engine).get(scheme.name)
    return _engine(_ON_LOAD, engine).get(scheme.name)


def why_not(
    scheme: Scheme | None, shape: ModelShape, engine: str, capability: Capability | None
) -> str | None:
    """Why this scheme cannot be had here, room aside; None if it can. `capability` None: any."""
    stored = shape.quantization
    # 1. Weights that are quantised stay as they are.
    if stored is not None and (scheme is None or stored.scheme != scheme.name):
        return f"the weights are {stored.scheme} already, and stay so"
    if scheme is None:
        return None
    # 2. The engine must know it.
    name = scheme.name
    if stored is not None and name not in _engine(_IN_WEIGHTS, engine):
        return f"{engine} cannot load {name} weights"
    if stored is None and name not in _engine(_ON_LOAD, engine):
        if name in _engine(_IN_WEIGHTS, engine):
            return f"needs weights that are {name} already, and these are not quantised"
        return f"{engine} does not have it"
    # 3. So must the card.
    if capability is not None and capability < scheme.since:
        return f"needs compute capability {_shown(scheme.since)}, the card has {_shown(capability)}"
    if capability is not None and scheme.until is not None and capability > scheme.until:
        return (
            f"its kernels are stated for {_shown(scheme.since)} to {_shown(scheme.until)}, "
            f"the card has {_shown(capability)}"
        )
    return None


def dtype_named(name: str) -> str:
    """`half`, `fp16` and `float16` are one. ValueError for what is no dtype of weights."""
    dtype = _DTYPE_ALIASES.get(name, name)
    if dtype not in _DTYPE_BYTES:
        raise ValueError(did_you_mean(name, [*_DTYPE_BYTES, *_DTYPE_ALIASES]))
    return dtype


def loaded_dtype(shape: ModelShape, capability: Capability | None = None) -> str:
    """What engines load the weights as if not told: as stored, but never wider than 16 bits.

    bfloat16 needs compute capability 8.0; on older cards float16 is what works.
    """
    if shape.architecture.dtype != "bfloat16":
        return "float16"
    is_old = capability is not None and capability < _BF16_SINCE
    return "float16" if is_old else "bfloat16"


def dtype_flag(
    scheme: Scheme | None, shape: ModelShape, engine: str, capability: Capability
) -> str | None:
    """float16 where the weights say bfloat16 and the card is too old, if the flag is allowed."""
    is_allowed = scheme is None or engine != "tgi" or scheme.name in ("int8", "nf4", "fp4")
    needs = shape.architecture.dtype == "bfloat16" and capability < _BF16_SINCE
    return "float16" if needs and is_allowed and engine != "llamacpp" else None


def dtype_bytes(dtype: str) -> int:
    return _DTYPE_BYTES[dtype_named(dtype)]


def linear_bytes_of(scheme: Scheme, stored: Quantization | None) -> float:
    """Bytes per linear parameter, by what the weights' own config says of bits and groups."""
    if stored is None or stored.scheme != scheme.name or stored.bits is None:
        return scheme.linear_bytes
    if scheme.name not in ("awq", "gptq", "marlin"):
        return scheme.linear_bytes
    group = stored.group_size or 128
    overhead = (_SCALE_BYTES + stored.bits / 8) / group if group > 0 else 0.0
    return stored.bits / 8 + overhead


def _is_in_weights(scheme: Scheme, shape: ModelShape) -> bool:
    return shape.quantization is not None and shape.quantization.scheme == scheme.name


def _engine(table: Mapping[str, T], engine: str) -> T:
    if engine not in table:
        raise ValueError(did_you_mean(engine, table))
    return table[engine]


def _shown(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
