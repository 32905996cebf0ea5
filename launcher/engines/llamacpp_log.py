"""How far a starting llama-server is, and what ends it, read from its log. Pure."""

import re

from launcher.engines import faults
from launcher.engines.base import Fault

# Tried in this order: the first phrase found in a line decides.
_PHASES: tuple[tuple[str, str], ...] = (
    ("out of memory", "failed: not enough memory"),
    ("unable to allocate", "failed: not enough memory"),
    ("exiting due to model loading error", "failed: the model did not load"),
    ("failed to load model", "failed: the model did not load"),
    ("error: invalid argument", "failed: the arguments"),
    ("error while handling argument", "failed: the arguments"),
    ("listening on http", "connected"),
    ("all slots are idle", "connected"),
    ("model loaded", "model loaded"),
    ("warming up the model", "warming up"),
    ("initializing, n_slots", "making the slots"),
    ("initializing slots", "making the slots"),
    ("llama_context: constructing", "making the context"),
    ("loading model tensors", "loading the model"),
    ("loading model", "loading the model"),
    ("load_tensors:", "loading the model"),
    ("llama_model_loader:", "loading the model"),
    ("trying to download model", "downloading weights"),
    ("downloading from", "downloading weights"),
    ("using cached file", "weights are here"),
)
# Builds of 2026 say it in one line, older ones when they make the context.
_SLOTS = re.compile(r"\bn_slots = (\d+), n_ctx_slot = (\d+)")
_CONTEXT = re.compile(
    r"(?:llama_context|llama_init_from_model|llama_new_context_with_model): n_ctx +[=:] +(\d+)"
)

_FAULTS = faults.phrases(
    [
        (r"unable to allocate CUDA\d* buffer", Fault.GPU_MEMORY),
        (r"failed to allocate CUDA\d* buffer", Fault.GPU_MEMORY),
        (r"unable to allocate CPU buffer", Fault.HOST_MEMORY),
        (r"failed to mmap|mmap failed", Fault.HOST_MEMORY),
        (r"(?:^|\s)error: (?:invalid|unknown) argument", Fault.BAD_FLAG),
        (r"error while handling argument ", Fault.BAD_FLAG),
        (r"(?:^|\s)error: --?[\w-]+ requires? ", Fault.BAD_FLAG),
        (r"\bunknown model architecture: ", Fault.BAD_MODEL),
        (r"\binvalid magic (?:number|characters)|failed to read magic", Fault.BAD_MODEL),
        (r"data is not within the file bounds", Fault.BAD_MODEL),
        (r"failed to open GGUF file", Fault.BAD_MODEL),
    ]
)


def phase_of(log_line: str) -> str | None:
    """What the replica is doing, for people; None for a line that tells nothing."""
    return next((phase for phrase, phase in _PHASES if phrase in log_line), None)


def token_budget_of(log_line: str) -> int | None:
    """The tokens of all slots together."""
    if match := _SLOTS.search(log_line):
        return int(match[1]) * int(match[2])
    match = _CONTEXT.search(log_line)
    return int(match[1]) if match else None


def fault_of(log_line: str) -> Fault | None:
    """What has gone wrong for good, by llama.cpp's words or CUDA's."""
    return faults.fault_in(log_line, _FAULTS, faults.CUDA, faults.HOST, faults.HUB)
