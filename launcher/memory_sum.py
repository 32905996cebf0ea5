"""The sum itself: what one model takes of one kind of card under one engine. Pure.

    need = weights + activations + CUDA context; what is left of the budget is KV cache

`memory.fit` builds a `Case` and reports it, `memory_advice` varies it to find what would fit. Each
number is a property, so that a varied case is right by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.model_shape import ModelShape
from launcher.quantization import WIDE_BYTES, Scheme, dtype_bytes, linear_bytes_of
from launcher.sizes import GIB

CONTEXT_BYTES = int(0.6 * GIB)  # CUDA's own, cuBLAS and NCCL: 0.4 to 0.8 GiB per process
ACTIVATION_BYTES = GIB  # of a prefill of the usual 4096 tokens
_MLP_BYTES = 9  # per prefilled token and MLP column, by TGI's own over-estimate
_LOGIT_BYTES = 4
KV_BYTES: Mapping[str, int] = {
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e4m3fn": 1,
    "fp8_e5m2": 1,
    "f16": 2,
}


@dataclass(frozen=True, slots=True)
class Habits:
    """How an engine goes about a card's memory."""

    share: float
    """Of the card, unless the operator gives a fraction."""
    margin: float
    """It fills this part of its share."""
    wants_whole_context: bool
    """Refuses to start unless one call as long as the model's context fits."""
    refuses_crowds: bool
    """Does not start on a card with less free than it may fill; what others hold is no matter to
    it otherwise."""
    logits: int | None
    """Most tokens whose logits it holds at once; None: of every prefilled one."""
    reason: str


HABITS: Mapping[str, Habits] = {
    "tgi": Habits(1.0, 0.90, False, False, None, "TGI fills 0.90 of --cuda-memory-fraction"),
    "vllm": Habits(0.92, 1.0, True, True, 256, "vLLM fills --gpu-memory-utilization"),
    "aphrodite": Habits(0.92, 1.0, True, True, 256, "Aphrodite fills --gpu-memory-utilization"),
    "llamacpp": Habits(
        0.95, 1.0, True, False, 512, "llama.cpp has no limit; 0.05 kept for the driver"
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one kind of card in one way: all that the sum depends on."""

    shape: ModelShape
    scheme: Scheme | None
    dtype: str
    total_bytes: int
    others_bytes: int
    fraction: float | None
    gpus: int
    engine: str
    max_total_tokens: int | None
    prefill_tokens: int | None
    kv_dtype: str | None

    @property
    def habits(self) -> Habits:
        return HABITS[self.engine]

    @property
    def share(self) -> float:
        """Of the whole card."""
        habits = self.habits
        return (habits.share if self.fraction is None else self.fraction) * habits.margin

    @property
    def budget_bytes(self) -> int:
        return int(self.total_bytes * self.share)

    @property
    def weights_bytes(self) -> int:
        """Per card. Linear weights, embedding and head are split, the small rest is on each."""
        shape, parameters = self.shape, self.shape.parameters
        if self.stored_bytes is not None:
            return -(-self.stored_bytes // self.gpus)
        wide = linear = float(dtype_bytes(self.dtype))
        if self.scheme is not None:
            wide, linear = WIDE_BYTES, linear_bytes_of(self.scheme, shape.quantization)
        split = parameters.linear * linear + (parameters.embedding + parameters.head) * wide
        return int(split / self.gpus + (parameters.biases + parameters.other) * wide)

    @property
    def stored_bytes(self) -> int | None:
        """Of weights that are loaded as they are on disk, quantised already; None for others."""
        return None if self.shape.quantization is None else self.shape.stored_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Per card. Fewer heads than cards are copied, one to each."""
        arch = self.shape.architecture
        values = arch.kv_values_per_token // arch.kv_heads * max(1, arch.kv_heads // self.gpus)
        return values * self._kv_value_bytes

    @property
    def _kv_value_bytes(self) -> int:
        if self.kv_dtype in (None, "auto"):
            return dtype_bytes(self.dtype)
        known = KV_BYTES.get(str(self.kv_dtype))
        return dtype_bytes(str(self.kv_dtype)) if known is None else known

    @property
    def activations_bytes(self) -> int:
        tokens = self.prefill_tokens
        if tokens is None:
            return ACTIVATION_BYTES
        arch = self.shape.architecture
        logits = tokens if self.habits.logits is None else min(tokens, self.habits.logits)
        mlp = tokens * arch.intermediate * _MLP_BYTES // self.gpus
        return mlp + logits * arch.vocab * _LOGIT_BYTES

    @property
    def room_bytes(self) -> int:
        """Of the budget for the KV cache; negative: by so much the rest does not fit."""
        used = self.weights_bytes + self.activations_bytes + CONTEXT_BYTES
        others_bytes = 0 if self.habits.refuses_crowds else self.others_bytes
        return self.budget_bytes - used - others_bytes

    @property
    def kv_tokens(self) -> int:
        return max(0, self.room_bytes // self.kv_bytes_per_token)

    @property
    def needed_tokens(self) -> int:
        if self.max_total_tokens is not None:
            return self.max_total_tokens
        longest = self.shape.architecture.max_position
        return longest if longest is not None and self.habits.wants_whole_context else 1

    @property
    def cannot_be_split(self) -> str | None:
        """Why this many cards cannot share the model, if so."""
        arch, gpus = self.shape.architecture, self.gpus
        if arch.heads % gpus:
            return f"{arch.heads} attention heads cannot be split over {gpus} GPUs"
        if arch.kv_heads % gpus and gpus % arch.kv_heads:
            return f"{arch.kv_heads} KV heads cannot be split over {gpus} GPUs"
        if gpus > 1 and self.scheme is not None and self.scheme.name == "exl2":
            return "exl2 weights cannot be split over GPUs"
        return None

    @property
    def is_crowded(self) -> bool:
        """Whether the engine would not start because of what others hold."""
        free_bytes = self.total_bytes - self.others_bytes
        return self.habits.refuses_crowds and free_bytes < self.budget_bytes

    @property
    def fits(self) -> bool:
        if self.cannot_be_split is not None or self.is_crowded:
            return False
        return self.kv_tokens >= self.needed_tokens
