"""How far a starting text-generation-inference server is, read from its log.

The phrases are the server's own, found in the text and the JSON form of its log alike; the
simulator prints the same ones. Pure; used by the engines `tgi` and `simulator`.
"""

import json
import re

from launcher.engines import faults
from launcher.engines.base import Fault

# Tried in this order: the first phrase found in a line decides.
_PHASES: tuple[tuple[str, str], ...] = (
    ("Not enough memory to handle", "failed: not enough GPU memory"),
    ("shutdown with signal 9", "failed: killed, the host was probably out of memory"),
    ("Download encountered an error", "failed: the download"),
    ("Shard 0 failed to start", "failed: the model did not load"),
    ("Shard 0 crashed", "failed: the model server crashed"),
    ("ShardCannotStart", "failed: the model did not load"),
    ("ArgumentValidation(", "failed: the arguments"),
    ("Webserver Crashed", "failed: the web server crashed"),
    ("Args {", "reading arguments"),
    ("Starting download process", "checking weights"),
    ("Starting check and download process", "checking weights"),
    ("Files are already present on the host", "weights are here"),
    ("already present in cache", "weights are here"),
    ("No safetensors weights found", "converting weights"),
    ("Convert", "converting weights"),
    ("Download file:", "downloading weights"),
    ("Retrying in", "downloading weights again"),
    ("Successfully downloaded weights", "weights are here"),
    ("Starting shard", "loading the model"),
    ("Waiting for shard to be ready", "loading the model"),
    ("Server started at unix://", "model loaded"),
    ("Shard ready in", "model loaded"),
    ("Starting Webserver", "starting the web server"),
    ("Using the Hugging Face API", "reading the tokenizer"),
    ("Serving revision", "reading the tokenizer"),
    ("Warming up model", "warming up"),
    ("Cuda Graphs are enabled for sizes", "warming up"),
    ("KV-cache blocks:", "warming up"),
    ("Setting max batch total tokens to", "warmed up"),
)
_DOWNLOADED = re.compile(r"Download: \[(\d+)/(\d+)\](?: -- ETA: ([0-9:]+))?")
_CONNECTED = re.compile(r"\bConnected(?:\"|\s*$)")
_TOKEN_BUDGET = re.compile(r"Setting max batch total tokens to (\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TARGET = r"text_generation_(?:launcher|client|router_v\d::client[\w:]*)"
_SHARD_TARGET = re.compile(_TARGET)
# `... ERROR batch{batch_size=1}:decode{size=1}: target: file.rs:33: what`: spans of numbers only.
_SHARD_ERROR = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z\s+ERROR (?:\w+(?:\{[\w=, ]*\})?:)*\s*"
    rf"{_TARGET}: (?:\S+\.rs:\d+: )?(.*)"
)

_FAULTS = faults.phrases(
    [
        (r"Not enough memory to handle", Fault.GPU_MEMORY),
        (r"\bArgumentValidation\(", Fault.BAD_FLAG),
        (r"\bUnsupported model type\b", Fault.BAD_MODEL),
        (r"No such file or directory: '/model/", Fault.BAD_MODEL),
    ]
)


def phase_of(log_line: str) -> str | None:
    """What the replica is doing, for people; None for a line that tells nothing."""
    if match := _DOWNLOADED.search(log_line):
        done, of, left = match.groups()
        return f"downloading weights: {done} of {of}" + (f", {left} left" if left else "")
    if _CONNECTED.search(log_line):
        return "connected"
    return next((phase for phrase, phase in _PHASES if phrase in log_line), None)


def token_budget_of(log_line: str) -> int | None:
    """The tokens of all running requests together, as the warm-up found them to fit."""
    match = _TOKEN_BUDGET.search(log_line)
    return int(match[1]) if match else None


def fault_of(log_line: str) -> Fault | None:
    """What has gone wrong for good, by text-generation-inference's words or its libraries'."""
    return faults.fault_in(
        log_line, _FAULTS, faults.CLAP, faults.CUDA, faults.HOST, faults.HUB, faults.ARGPARSE
    )


def serving_fault_of(log_line: str) -> Fault | None:
    """Believed are errors of the launcher, which speaks for the shards, and of their client: not
    those of the web server, nor any that is told in the span of a request."""
    if faults.IS_OF_CUDA not in log_line:
        return None
    said = _error_of_a_shard(_COLOUR.sub("", log_line).strip())
    if any(map(faults.says_only_that_the_gpu_is_lost, said.split("\n"))):
        return Fault.GPU_LOST
    return None


def _error_of_a_shard(line: str) -> str:
    """What it says; nothing if it is another's line."""
    if not line.startswith("{"):
        match = _SHARD_ERROR.fullmatch(line)
        return match[1] if match else ""
    try:
        entry = json.loads(line)
        is_believed = entry["level"] == "ERROR" and _SHARD_TARGET.fullmatch(entry["target"])
        message = entry["message"] if "message" in entry else entry["fields"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    is_of_a_request = '"parameters"' in line
    return str(message) if is_believed and not is_of_a_request else ""
