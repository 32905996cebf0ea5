"""What a model's config.json says, whatever its family calls it. Pure.

`model_files` hands over the parsed file, `known_models` its own table in the same words. Only what
the memory arithmetic needs is read. Something missing or impossible is a ModelError that names the
field; what families leave out because it follows from the others is filled in as they do.
"""

from collections.abc import Mapping
from typing import Any

from launcher.model_shape import Architecture, ModelError, Quantization

Config = Mapping[str, Any]

_HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_DTYPE = ("dtype", "torch_dtype")  # the first since transformers 5

_TYPE_NAMES = {"RefinedWebModel": "falcon", "RefinedWeb": "falcon"}  # before transformers had it
_TIED_UNLESS_SAID = {"gpt2", "gpt_bigcode", "bloom", "falcon", "opt"}
_TIED_UNLESS_SAID |= {"gemma", "gemma2", "gemma3_text"}
_NORMS = {"gemma2": 4, "gemma3_text": 4}
_MOST = 10**12  # no dimension is larger; a larger number is no model's


def architecture_of(config: Config) -> Architecture:
    """The dimensions; in a multimodal model those of its language model."""
    text = language_model_of(config)
    family = _family(text)
    hidden, heads = _whole(text, _HIDDEN), _whole(text, _HEADS)
    experts = _number(text, _EXPERTS, default=0) or 0
    return Architecture(
        family=family,
        layers=_whole(text, _LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, family, heads),
        head_dim=_head_dim(text, hidden, heads),
        intermediate=_intermediate(text, hidden, experts),
        vocab=_whole(text, ("vocab_size",)),
        max_position=_whole(text, _POSITIONS, default=0) or None,
        tied=_flag(text, "tie_word_embeddings", family in _TIED_UNLESS_SAID),
        dtype=_dtype(text),
        experts=experts,
        attention_bias=_flag(text, "bias" if family == "falcon" else "attention_bias", False),
        mlp_bias=_flag(text, "mlp_bias", False),
        norms=_norms(text, family),
    )


def language_model_of(config: Config) -> Config:
    """The part that describes the language model; what only the whole says is kept."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config
    named = {key: value for key, value in inner.items() if value is not None}
    outer = ("tie_word_embeddings", "quantization_config", *_DTYPE)
    return {**{key: config[key] for key in outer if key in config}, **named}


def quantization_of(config: Config) -> Quantization | None:
    """From config.json's own section. The two older files go through `quantization_from`."""
    section = config.get("quantization_config") or language_model_of(config).get(
        "quantization_config"
    )
    if not section:  # some tools write an empty one for none
        return None
    if not isinstance(section, Mapping):
        raise ModelError("quantization_config: expected a mapping in config.json")
    return quantization_from(section, default_method="")


def quantization_from(section: Config, default_method: str) -> Quantization:
    """A section of config.json, or a whole quantize_config.json (gptq), quant_config.json (awq)."""
    method = str(section.get("quant_method") or default_method).lower()
    if not method:
        raise ModelError("quantization_config.quant_method: found nothing, expected a text")
    if method == "bitsandbytes":
        return _bitsandbytes(section)
    if str(section.get("checkpoint_format", "")).lower() == "marlin":
        method = "marlin"
    default_bits = {"gptq": 4, "awq": 4, "marlin": 4, "fp8": 8, "fbgemm_fp8": 8, "eetq": 8}
    bits = _number(section, ("bits", "w_bit"), default_bits.get(method))
    group = _number(section, ("group_size", "q_group_size"), None)
    return Quantization({"fbgemm_fp8": "fp8"}.get(method, method), bits, group)


def _bitsandbytes(section: Config) -> Quantization:
    if not (section.get("load_in_4bit") or section.get("_load_in_4bit")):
        return Quantization("int8", bits=8)
    kind = str(section.get("bnb_4bit_quant_type", "fp4")).lower()  # its own default
    return Quantization(kind if kind in ("nf4", "fp4") else "fp4", bits=4, group_size=64)


def _family(config: Config) -> str:
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise ModelError("model_type: found nothing in config.json, expected a text like llama")
    return _TYPE_NAMES.get(family, family)


def _kv_heads(config: Config, family: str, heads: int) -> int:
    if family == "falcon":  # its newer layout counts them, its older one has one or all
        if _flag(config, "new_decoder_architecture", False):
            return _whole(config, _KV_HEADS, default=heads)
        return 1 if _flag(config, "multi_query", True) else heads
    default = 1 if _flag(config, "multi_query", family == "gpt_bigcode") else heads
    return _whole(config, _KV_HEADS, default=default)


def _head_dim(config: Config, hidden: int, heads: int) -> int:
    """Of compressed keys (DeepSeek's) what they unfold to: engines cache that, or less."""
    if config.get("qk_rope_head_dim") is not None:
        return sum(_whole(config, (f"qk_{part}_head_dim",)) for part in ("nope", "rope"))
    if config.get("head_dim") is None and hidden % heads:
        raise ModelError(
            f"num_attention_heads: found {heads}, expected a divisor of hidden_size ({hidden})"
        )
    return _whole(config, ("head_dim",), default=hidden // heads)


def _intermediate(config: Config, hidden: int, experts: int) -> int:
    names = ("moe_intermediate_size", *_INTERMEDIATE) if experts else _INTERMEDIATE
    return _whole(config, names, default=4 * hidden)


def _norms(config: Config, family: str) -> int:
    if family == "falcon":
        is_parallel = _flag(config, "parallel_attn", True)
        is_new = _flag(config, "new_decoder_architecture", False)
        usual = 1 if is_parallel and not is_new else 2
        return _whole(config, ("num_ln_in_parallel_attn",), default=usual)
    return _NORMS.get(family, 2)


def _dtype(config: Config) -> str | None:
    for name in _DTYPE:
        if isinstance(value := config.get(name), str) and value != "auto":
            return value.removeprefix("torch.")
    return None


def _whole(config: Config, names: tuple[str, ...], default: int | None = None) -> int:
    """The first of `names` that is there, as a whole number above 0."""
    name, value = next(((n, config[n]) for n in names if config.get(n) is not None), (None, None))
    if name is None:
        if default is None:
            raise ModelError(
                f"{' or '.join(names)}: found nothing in config.json, expected a whole number"
            )
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
        found = repr(value)[:60]
        raise ModelError(f"{name}: found {found} in config.json, expected a whole number above 0")
    return value


def _number(config: Config, names: tuple[str, ...], default: int | None) -> int | None:
    """Optional, and 0 (no experts) or -1 (one group per column) are values of it."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < _MOST:
            return value
    return default


def _flag(config: Config, name: str, default: bool) -> bool:
    value = config.get(name)
    return value if isinstance(value, bool) else default
