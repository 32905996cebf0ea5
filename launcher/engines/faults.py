"""What a line of an engine's log says has gone wrong for good. Pure tables; used by the engines.

A line that repeats what a client sent is never believed: whoever may ask a model something could
else have its replica restarted. Phrases are those of the programs themselves (clap and argparse,
CUDA and NVML, PyTorch, the hub's client), and none that a passing trouble of the network writes.
"""

import re
from collections.abc import Iterable

from launcher.engines.base import Fault

Phrases = tuple[tuple[re.Pattern[str], Fault], ...]

# Where engines put a request into a log line: text-generation-inference as the parameters of its
# span, vLLM and Aphrodite with the prompt or the name of a model, uvicorn in its access log,
# pydantic and chat templates in what they refuse.
_QUOTES_A_CLIENT = re.compile(
    r"GenerateParameters \{|\bparameters=|\"parameters\":|\bprompt['\"]?:|Received request"
    r"|Error with model |\"[A-Z]{3,7} /|\binput_value=|\bTemplateError: "
)

# What is only warned of, or tried again, has ended nothing yet. Links to the files themselves
# expire, and are then refused to everybody for a while.
_IS_NOT_THE_END = re.compile(
    r"\bWARN(?:ING)?\b|\b\w*[Ww]arning: |^\s*[\d.]+ W |failed to mlock"
    r"|\b[Rr]etrying\b|\bX-Amz-|https?://(?:cdn-|cas-|[\w.-]*\bxethub\.)"
)


def phrases(table: Iterable[tuple[str, Fault]]) -> Phrases:
    """Regular expressions, tried in this order: the first one found in a line decides."""
    return tuple((re.compile(pattern), fault) for pattern, fault in table)


def fault_in(log_line: str, *tables: Phrases) -> Fault | None:
    """The fault this line tells, if it is the engine's own words; earlier tables come first."""
    for table in tables:
        for pattern, fault in table:
            if pattern.search(log_line):
                is_believed = not _QUOTES_A_CLIENT.search(log_line)
                return fault if is_believed and not _IS_NOT_THE_END.search(log_line) else None
    return None


IS_OF_CUDA = "CUDA error: "  # few lines are: to look for this first is cheap
# After any of these all further CUDA calls of the process fail.
_ALL_CALLS_FAIL = (
    r"(?:uncorrectable (?:ECC|NVLink) error encountered|unspecified launch failure"
    r"|an illegal (?:memory access|instruction) was encountered|misaligned address"
    r"|device-side assert triggered|unknown error|invalid device ordinal)"
)
_LOST = re.compile(
    r"(?:Server error: )?(?:Unexpected <class '[\w.]+'>: )?(?:[\w.]+Error: )?"
    rf"{IS_OF_CUDA}{_ALL_CALLS_FAIL}\.?"
)


def says_only_that_the_gpu_is_lost(words: str) -> bool:
    """Of what a line says without its time and place: as PyTorch puts it, and nothing beside."""
    return _LOST.fullmatch(words.strip()) is not None


CUDA = phrases(
    [
        (r"CUDA out of memory", Fault.GPU_MEMORY),
        (r"\btorch\.(?:cuda\.)?OutOfMemoryError", Fault.GPU_MEMORY),
        (r"CUDA error: out of memory", Fault.GPU_MEMORY),
        (r"CUDA_ERROR_OUT_OF_MEMORY", Fault.GPU_MEMORY),
        (r"cudaMalloc failed: out of memory", Fault.GPU_MEMORY),
        (r"CUBLAS_STATUS_ALLOC_FAILED", Fault.GPU_MEMORY),
        # systemd's daemon-reload takes the devices out of containers that run.
        (r"Failed to initialize NVML", Fault.GPU_LOST),
        (r"Driver/library version mismatch", Fault.GPU_LOST),
        (r"No CUDA GPUs are available", Fault.GPU_LOST),
        (r"no CUDA-capable device is detected", Fault.GPU_LOST),
        (r"CUDA-capable device\(s\) is/are busy or unavailable", Fault.GPU_LOST),
        (r"\bNVRM: Xid ", Fault.GPU_LOST),
        (rf"{IS_OF_CUDA}{_ALL_CALLS_FAIL}", Fault.GPU_LOST),
    ]
)

HOST = phrases(
    [
        (r"shutdown with signal 9\b", Fault.HOST_MEMORY),
        (r"died with <Signals\.SIGKILL", Fault.HOST_MEMORY),
        (r"\bexit ?code:? -9\b", Fault.HOST_MEMORY),
        (r"DefaultCPUAllocator: (?:can't|not enough) ", Fault.HOST_MEMORY),
        (r"\bstd::bad_alloc\b", Fault.HOST_MEMORY),
        (r"\bCannot allocate memory\b", Fault.HOST_MEMORY),
    ]
)

# No 404 as such: engines ask for files that a model need not have.
HUB = phrases(
    [
        (r"\b(?:401|403) Client Error", Fault.NO_ACCESS),
        (r"\bstatus client error \((?:401|403)\b", Fault.NO_ACCESS),
        (r"\b(?:GatedRepo|RepositoryNotFound)Error", Fault.NO_ACCESS),
        (r"Cannot access gated repo", Fault.NO_ACCESS),
        (r"You are trying to access a gated repo", Fault.NO_ACCESS),
        (r"is not a local folder and is not a valid model identifier", Fault.NO_ACCESS),
        (r"\bRevisionNotFoundError", Fault.BAD_MODEL),
        (r"Repo id must ", Fault.BAD_MODEL),
        (r"Unrecognized (?:model in|configuration class) ", Fault.BAD_MODEL),
    ]
)

CLAP = phrases(
    [
        (r"(?:^|\s)error: unexpected argument ", Fault.BAD_FLAG),
        (r"(?:^|\s)error: invalid value .+ for '-", Fault.BAD_FLAG),
        (r"(?:^|\s)error: the argument '-", Fault.BAD_FLAG),
        (r"(?:^|\s)error: a value is required for ", Fault.BAD_FLAG),
        (r"(?:^|\s)error: the following required arguments were not", Fault.BAD_FLAG),
    ]
)

ARGPARSE = phrases(
    [
        (r"\berror: unrecognized arguments: ", Fault.BAD_FLAG),
        (r"\berror: argument -", Fault.BAD_FLAG),
        (r"\berror: ambiguous option: ", Fault.BAD_FLAG),
        (r"\berror: the following arguments are required: ", Fault.BAD_FLAG),
    ]
)
