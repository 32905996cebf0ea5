"""How far a starting vLLM or Aphrodite server is, and what ends it, read from its log.

Both write the same phrases, as one is a fork of the other. Pure; used by both engines.
"""

import re

from launcher.by_index import LOST, REFUSED
from launcher.engines import faults
from launcher.engines.base import Fault

# Tried in this order: the first phrase found in a line decides.
_PHASES: tuple[tuple[str, str], ...] = (
    ("CUDA out of memory", "failed: not enough GPU memory"),
    ("No available memory for the cache blocks", "failed: not enough GPU memory"),
    ("is less than desired GPU memory utilization", "failed: the GPU is used by others"),
    ("Engine core initialization failed", "failed: the engine did not start"),
    ("Failed core proc(s)", "failed: the engine did not start"),
    ("unrecognized arguments:", "failed: the arguments"),
    ("Starting to load model", "loading the model"),
    ("Using model weights format", "downloading weights"),
    ("Time spent downloading weights", "weights are here"),
    ("Loading safetensors checkpoint shards", "loading the model"),
    ("Loading weights took", "model loaded"),
    ("Model loading took", "model loaded"),
    ("Memory profiling takes", "measuring memory"),
    ("torch.compile takes", "compiling"),
    ("Compiling a graph", "compiling"),
    ("GPU KV cache size:", "memory measured"),
    ("Maximum concurrency for", "memory measured"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("Capturing the model for CUDA graphs", "capturing CUDA graphs"),
    ("Graph capturing finished in", "warmed up"),
    ("init engine (profile, create kv cache, warmup model) took", "warmed up"),
    ("Starting vLLM API server", "starting the web server"),
    ("Starting Aphrodite", "starting the web server"),
    ("Started server process", "starting the web server"),
    ("Application startup complete", "connected"),
    ("Initializing a V", "reading arguments"),
    ("Initializing an LLM engine", "reading arguments"),
    ("Automatically detected platform", "reading arguments"),
)
_TOKEN_BUDGET = re.compile(r"GPU KV cache size: ([\d,]+) tokens")
_BLOCKS = re.compile(r"# (?:GPU|CUDA|cuda) blocks: (\d+)")
_USUAL_BLOCK_TOKENS = 16  # versions that tell blocks only
# `(EngineCore_DP0 pid=271) ERROR 08-20 10:01:02 [core.py:700] what`: every line of a process bears
# its name, a traceback's too.
_CORE_ERROR = re.compile(
    r"\((?:EngineCore|Worker|VllmWorker|AphroditeWorker)[\w =-]*\) ERROR [\d-]+ [\d:.]+ "
    r"\[?[\w./-]+:\d+\] (.*)"
)

_FAULTS = faults.phrases(
    [
        (r"No available memory for the cache blocks", Fault.GPU_MEMORY),
        (r"is less than desired GPU memory utilization", Fault.GPU_MEMORY),
        (
            r"larger than the (?:available KV cache memory|maximum number of tokens)",
            Fault.GPU_MEMORY,
        ),
        (re.escape(LOST), Fault.GPU_LOST),
        (re.escape(REFUSED), Fault.BAD_FLAG),
        (r"[Mm]odel architectures? .+ (?:is|are) not supported", Fault.BAD_MODEL),
        (r"\bUnknown quantization method\b", Fault.BAD_FLAG),
    ]
)


def phase_of(log_line: str) -> str | None:
    """What the replica is doing, for people; None for a line that tells nothing."""
    return next((phase for phrase, phase in _PHASES if phrase in log_line), None)


def token_budget_of(log_line: str) -> int | None:
    """The tokens its cache holds for all running requests together."""
    if match := _TOKEN_BUDGET.search(log_line):
        return int(match[1].replace(",", ""))
    if match := _BLOCKS.search(log_line):
        return int(match[1]) * _USUAL_BLOCK_TOKENS
    return None


def fault_of(log_line: str) -> Fault | None:
    """What has gone wrong for good, by the engine's words or its libraries'."""
    return faults.fault_in(log_line, _FAULTS, faults.ARGPARSE, faults.CUDA, faults.HOST, faults.HUB)


def serving_fault_of(log_line: str) -> Fault | None:
    """Believed are errors of the processes that hold a GPU. The web server's quote requests."""
    if faults.IS_OF_CUDA not in log_line:
        return None
    match = _CORE_ERROR.fullmatch(log_line.strip())
    if match and faults.says_only_that_the_gpu_is_lost(match[1]):
        return Fault.GPU_LOST
    return None
