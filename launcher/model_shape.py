"""How large a model is: parameters by what they are, from its architecture. Pure.

One formula per family, exact for the families named here. Linear weights are counted apart because
only they shrink under quantisation; embeddings, the head, norms and biases stay at 16 bits.
`model_config` makes an `Architecture` of a config.json, `model_files` corrects counts by what the
files hold, `memory` turns a `ModelShape` into bytes on a card. This file reads nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.errors import OperatorError


class ModelError(OperatorError):
    """A model's folder or config cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a config.json says, under one name each. Experts 0: not a mixture."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_position: int | None
    tied: bool
    """The head is the embedding again, and stored and loaded once."""
    dtype: str | None
    experts: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False
    norms: int = 2
    """Normalisations of width `hidden` in each layer, where families vary."""

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values that a cached token takes, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts by what quantisation does to them: only `linear` shrinks."""

    linear: int
    """Projections of attention and MLP inside the layers, experts and their gates included."""
    biases: int
    embedding: int
    """Tokens and, where they are learned, positions."""
    head: int
    """0 when tied."""
    other: int
    """Norms, and whatever is not part of the language model's layers."""

    @property
    def total(self) -> int:
        return self.linear + self.wide

    @property
    def wide(self) -> int:
        """What stays at 16 bits under every scheme."""
        return self.biases + self.embedding + self.head + self.other


@dataclass(frozen=True, slots=True)
class Quantization:
    """What the weights on disk already are. `scheme` is a name of `quantization.SCHEMES`."""

    scheme: str
    bits: int | None = None
    group_size: int | None = None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All that the memory arithmetic needs of a model, and where each number comes from."""

    name: str
    architecture: Architecture
    parameters: Parameters
    quantization: Quantization | None = None
    stored_bytes: int | None = None
    """Of all tensors as they are on disk, if the files are here."""
    sources: tuple[tuple[str, str], ...] = ()
    """(what, where from), for the operator."""
    notes: tuple[str, ...] = ()
    """What is odd about the folder, for the operator."""


def parameters_of(arch: Architecture) -> Parameters:
    """Counts by the family's formula. ModelError when there is none."""
    formula = _FORMULAS.get(arch.family)
    if formula is None:
        raise ModelError(
            f"model_type: found {arch.family!r}, expected one whose size can be computed from its "
            f"config ({', '.join(_FORMULAS)}); for others give a folder with *.safetensors files"
        )
    return formula(arch)


def has_formula(family: str) -> bool:
    return family in _FORMULAS


def rough_parameters(arch: Architecture, total: int) -> Parameters:
    """For a family without a formula whose `total` is known: all but embeddings is linear."""
    embedding = arch.vocab * arch.hidden
    head = 0 if arch.tied else embedding
    norms = (2 * arch.layers + 1) * arch.hidden
    linear = max(0, total - embedding - head - norms)
    return Parameters(linear=linear, biases=0, embedding=embedding, head=head, other=norms)


def _llama(a: Architecture) -> Parameters:
    """Llama and what is built like it: RMS norms, three MLP matrices, usually no biases."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    mlp = 3 * a.hidden * a.intermediate
    if a.experts:
        mlp = mlp * a.experts + a.hidden * a.experts
    biases = (queries + 2 * keys + a.hidden) * a.attention_bias
    biases += (2 * a.intermediate + a.hidden) * a.mlp_bias
    return Parameters(
        linear=a.layers * (2 * a.hidden * queries + 2 * a.hidden * keys + mlp),
        biases=a.layers * biases,
        embedding=a.vocab * a.hidden,
        head=0 if a.tied else a.vocab * a.hidden,
        other=a.layers * a.norms * a.hidden + a.hidden,
    )


def _qwen2(a: Architecture) -> Parameters:
    """Llama with biases on queries, keys and values, not on the output."""
    plain = _llama(a)
    biases = a.layers * (a.heads + 2 * a.kv_heads) * a.head_dim
    return _with(plain, biases=biases)


def _with_head_norms(a: Architecture) -> Parameters:
    """Llama with norms on queries and keys."""
    plain = _llama(a)
    return _with(plain, other=plain.other + a.layers * 2 * a.head_dim)


def _with(plain: Parameters, biases: int | None = None, other: int | None = None) -> Parameters:
    return Parameters(
        linear=plain.linear,
        biases=plain.biases if biases is None else biases,
        embedding=plain.embedding,
        head=plain.head,
        other=plain.other if other is None else other,
    )


def _gpt(a: Architecture, positions: int) -> Parameters:
    """The layer of GPT-2's time: fused or not, two MLP matrices, biases and layer norms with them.

    `positions`: how many are learned; 0 for rotary ones and ALiBi.
    """
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    linear = a.hidden * (queries + 2 * keys) + queries * a.hidden + 2 * a.hidden * a.intermediate
    biases = queries + 2 * keys + a.hidden + a.intermediate + a.hidden
    return Parameters(
        linear=a.layers * linear,
        biases=a.layers * biases,
        embedding=(a.vocab + positions) * a.hidden,
        head=0 if a.tied else a.vocab * a.hidden,
        other=a.layers * 2 * 2 * a.hidden + 2 * a.hidden,
    )


def _gpt2(a: Architecture) -> Parameters:
    return _gpt(a, a.max_position or 0)


def _opt(a: Architecture) -> Parameters:
    return _gpt(a, (a.max_position or 0) + 2)  # its table begins with two that are not used


def _gpt_neox(a: Architecture) -> Parameters:
    return _gpt(a, 0)


def _bloom(a: Architecture) -> Parameters:
    """ALiBi; one more norm, after the embedding."""
    plain = _gpt(a, 0)
    return _with(plain, other=plain.other + 2 * a.hidden)


def _falcon(a: Architecture) -> Parameters:
    """No biases but those of its layer norms: one per layer in 7B, two in 40B."""
    plain = _gpt(a, 0)
    other = (a.layers * a.norms + 1) * 2 * a.hidden
    return _with(plain, biases=plain.biases if a.attention_bias else 0, other=other)


_FORMULAS: Mapping[str, Callable[[Architecture], Parameters]] = {
    "llama": _llama,
    "mistral": _llama,
    "mixtral": _llama,
    "phi3": _llama,
    "gemma": _llama,
    "gemma2": _llama,
    "gemma3_text": _with_head_norms,
    "qwen2": _qwen2,
    "qwen3": _with_head_norms,
    "qwen3_moe": _with_head_norms,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
}
