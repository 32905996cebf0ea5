"""Parameters by what they are, from the names and shapes of a model's tensors. Pure.

`model_files` hands over what the headers list. Exact for weights that are not quantised; packed
ones are counted by their bits. What is stored beside them (scales, zero points, masks, rotary
tables) is no parameter.
"""

import re
from collections import Counter
from collections.abc import Iterable

from launcher.model_shape import Parameters, Quantization
from launcher.safetensors_header import Tensor

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions|tok_embeddings)\."
    r"weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$|^output\.weight$")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.\d+\.")
_VISION = re.compile(r"(?:^|\.)(?:vision_tower|vision_model|visual|multi_modal_projector)\.")
_BESIDE = re.compile(
    r"(?:inv_freq|masked_bias|qzeros|g_idx|scales|weight_scale(?:_inv|_2)?|input_scale|SCB"
    r"|weight_zero_point|weight_shape|weight_g_idx|weight_format|[kv]_scale|k_proj\.output_scale"
    r"|(?:nested_)?(?:absmax|quant_map)|quant_state\.\w+)$"
)
_PACKED = re.compile(r"\.(?:qweight|weight_packed)$")


def count_parameters(
    tensors: Iterable[Tensor], *, is_tied: bool, quantization: Quantization | None
) -> Parameters:
    """A head that is stored although it is the embedding again is loaded, and counted, once."""
    counts = Counter[str]()
    for tensor in tensors:
        kind = _kind(tensor)
        if kind is not None and not (kind == "head" and is_tied):
            counts[kind] += _elements(tensor, quantization)
    return Parameters(
        linear=counts["linear"],
        biases=counts["biases"],
        embedding=counts["embedding"],
        head=counts["head"],
        other=counts["other"],
    )


def _kind(tensor: Tensor) -> str | None:
    """A field of Parameters; None for what is no parameter."""
    name, dimensions = tensor.name, len(tensor.shape)
    # 1. Stored beside the weights: scales and the like, causal masks of GPT-2's time.
    if _BESIDE.search(name) or (name.endswith(".bias") and dimensions > 2):
        return None
    # 2. By name.
    if _VISION.search(name):
        return "other"
    if _EMBEDDING.search(name):
        return "embedding"
    if _HEAD.search(name):
        return "head"
    # 3. In a layer: matrices are linear, experts' stacked ones and packed ones, too.
    if _LAYER.search(name) and not name.endswith(".bias"):
        return "linear" if dimensions > 1 else "other"
    if name.endswith(".bias") and not _is_norm(name):
        return "biases"
    return "other"


def _is_norm(name: str) -> bool:
    """Biases of norms go with the norms."""
    module = name.split(".")[-2] if "." in name else ""
    return "norm" in module or module.startswith("ln_")


def _elements(tensor: Tensor, quantization: Quantization | None) -> int:
    """Parameters in a tensor; several share a word where they are packed."""
    bits = quantization.bits if quantization is not None else None
    is_packed = _PACKED.search(tensor.name) is not None and tensor.dtype == "I32"
    if is_packed and bits is not None and 0 < bits <= 32:
        return tensor.elements * 32 // bits
    is_nibbles = quantization is not None and quantization.scheme in ("nf4", "fp4")
    return tensor.elements * 2 if is_nibbles and tensor.dtype == "U8" else tensor.elements
