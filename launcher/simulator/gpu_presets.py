"""How long an engine step takes on which GPU (pure).

The engine asks for a duration before each step. Constants describe a 7B model in fp16 and are
engineering estimates: good for the shape of things (what stalls what), not for buying hardware.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuPreset:
    """Step times and memory of one GPU model serving a 7B fp16 model."""

    device_name: str
    decode_base_s: float
    decode_per_sequence_s: float
    prefill_base_s: float
    prefill_tokens_per_s: float
    #: KV-cache room without grouped-query attention, 0.5 MB per token.
    token_budget: int

    def decode_s(self, sequences: int) -> float:
        """One decode step: one token for each of the running sequences."""
        return self.decode_base_s + self.decode_per_sequence_s * sequences

    def prefill_s(self, tokens: int) -> float:
        """One forward pass over prompt tokens."""
        return self.prefill_base_s + tokens / self.prefill_tokens_per_s

    def step_s(self, prefill_tokens: int, decoding: int) -> float:
        """Any step: decode only, prefill only, or both mixed in one forward pass."""
        if not prefill_tokens:
            return self.decode_s(decoding)
        return self.prefill_s(prefill_tokens) + self.decode_per_sequence_s * decoding


GPU_PRESETS: dict[str, GpuPreset] = {
    "a100": GpuPreset("NVIDIA A100-SXM4-80GB", 0.020, 0.000_10, 0.010, 12_000, 120_000),
    "a10g": GpuPreset("NVIDIA A10G", 0.036, 0.000_25, 0.015, 3_000, 15_000),
    "rtx4090": GpuPreset("NVIDIA GeForce RTX 4090", 0.018, 0.000_15, 0.010, 6_000, 15_000),
}


def tokenise_s(characters: int) -> float:
    """Time TGI's tokeniser workers take before a request reaches the queue."""
    return 0.000_3 + 0.000_001 * characters
