"""One simulator process's settings, and the start-up checks TGI makes on them.

Built once by the command line and handed to every part; nothing changes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.simulator.era import Era
from launcher.simulator.errors import StartRefused
from launcher.simulator.gpu_presets import GpuPreset

#: Longest context of the pretended model, where neither flags nor memory are tighter.
MODEL_CONTEXT_TOKENS = 8192
DEFAULT_PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for; every field as in ``/info`` or a launcher flag."""

    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the scheduler may put into one batch."""

    max_batch_prefill_tokens: int
    max_batch_total_tokens: int
    max_batch_size: int | None
    max_waiting_tokens: int
    waiting_served_ratio: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the pretended GPU is.

    ``speed`` multiplies the GPU alone (0.5 is a replica at half speed); ``time_scale`` makes
    everything that waits that many times faster, and 0 means that nothing waits at all.
    """

    speed: float
    time_scale: float
    noise: float
    noise_seed: int

    def waited_s(self, duration_s: float) -> float:
        """Real seconds for something that would take ``duration_s``; not for GPU steps."""
        return duration_s / self.time_scale if self.time_scale else 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the command line decided."""

    host: str
    port: int
    model_id: str
    era: Era
    gpu: GpuPreset
    limits: Limits
    batch: BatchLimits
    pace: Pace
    token_model: str
    eos_rate: float
    api_key: str | None
    cors_allow_origin: str | None
    load_s: float
    accept_then_close: bool
    graceful_termination_s: float
    json_output: bool
    prefix_caching: bool
    enable_prefill_logprobs: bool
    messages_api: bool
    faults: bool
    validation_workers: int


def check_start(settings: Settings) -> None:
    """Refuse what TGI's launcher or warm-up refuses, with ``StartRefused``."""
    limits, batch = settings.limits, settings.batch
    total, prefill = limits.max_total_tokens, batch.max_batch_prefill_tokens
    if settings.validation_workers < 1:
        raise _argument("`validation_workers` must be > 0")
    if limits.max_input_tokens >= total:
        raise _argument(
            f"`max_input_tokens` must be < `max_total_tokens`. Given: {limits.max_input_tokens}"
            f" and {total}"
        )
    if not settings.era.chunking and prefill < limits.max_input_tokens:
        raise _argument(
            "`max_batch_prefill_tokens` must be >= `max_input_tokens`."
            f" Given: {prefill} and {limits.max_input_tokens}"
        )
    if prefill > batch.max_batch_total_tokens:
        raise StartRefused(
            "WebserverFailed",
            f"Not enough memory to handle {prefill} prefill tokens. You need to decrease"
            " `--max-batch-prefill-tokens`",
        )
    if total > batch.max_batch_total_tokens:
        raise StartRefused(
            "WebserverFailed",
            f"Not enough memory to handle `max_total_tokens={total}`: the budget is"
            f" {batch.max_batch_total_tokens}. You need to decrease `--max-total-tokens`",
        )


def _argument(message: str) -> StartRefused:
    return StartRefused("ArgumentValidation", message)
