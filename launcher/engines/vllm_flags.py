"""The flags that vLLM and its fork Aphrodite share, version by version.

Tables and pure functions; used by the engines `vllm` and `aphrodite`. Versions are vLLM's.
"""

from collections.abc import Mapping

from launcher.engines.flags import Arg, Flag, to_argv
from launcher.engines.versions import Version

# From here on, what is on by default has a `--no-...` that switches it off.
_TOGGLES_SINCE: Version = (0, 9, 0)

_GAUGES = "nothing here: the router would not see how busy the engine is"
_SHARED = "nothing here: each replica is one server; models[].gpus_per_replica divides a model"

RESERVED = {
    "model": "models[].id",
    "served-model-name": "models[].name",
    "revision": "models[].revision",
    "dtype": "models[].dtype",
    "quantization": "models[].quantize",
    "max-model-len": "models[].max_total_tokens",
    "tensor-parallel-size": "models[].gpus_per_replica",
    "host": "runtime.host",
    "port": "runtime.first_port",
    "uds": "runtime.host",
    "root-path": "nothing here: the router asks for paths as they are",
    "ssl-keyfile": "nothing here: the router speaks plain HTTP to replicas",
    "ssl-certfile": "nothing here: the router speaks plain HTTP to replicas",
    "ssl-ca-certs": "nothing here: the router speaks plain HTTP to replicas",
    "ssl-cert-reqs": "nothing here: the router speaks plain HTTP to replicas",
    "disable-log-stats": _GAUGES,
    "data-parallel-size": _SHARED,
    "data-parallel-address": _SHARED,
    "data-parallel-rank": _SHARED,
    "data-parallel-rpc-port": _SHARED,
    "data-parallel-size-local": _SHARED,
    "headless": _SHARED,
    "nnodes": _SHARED,
    "node-rank": _SHARED,
    "master-addr": _SHARED,
    "master-port": _SHARED,
    "tokens-only": "nothing here: the router needs all of the API",
}

FLAGS: Mapping[str, Flag] = {
    # memory and batches
    "gpu-memory-utilization": Flag("number"),
    "max-num-seqs": Flag("whole"),
    "max-num-batched-tokens": Flag("whole"),
    "max-num-queued-reqs": Flag("whole", since=(0, 29, 0)),
    "max-num-queued-tokens": Flag("whole", since=(0, 29, 0)),
    "block-size": Flag("whole"),
    "kv-cache-dtype": Flag(),
    "swap-space": Flag("number"),
    "cpu-offload-gb": Flag("number"),
    "num-gpu-blocks-override": Flag("whole"),
    "enable-prefix-caching": Flag("toggle"),
    "enable-chunked-prefill": Flag("toggle"),
    "enforce-eager": Flag("switch"),
    "seed": Flag("whole"),
    "scheduling-policy": Flag(choices=("fcfs", "priority")),
    "async-scheduling": Flag("toggle", since=(0, 10, 0)),
    "pipeline-parallel-size": Flag("whole"),
    "disable-custom-all-reduce": Flag("switch"),
    "compilation-config": Flag("json"),
    "speculative-config": Flag("json", since=(0, 8, 0)),
    # what the model is
    "tokenizer": Flag(),
    "tokenizer-mode": Flag(),
    "tokenizer-revision": Flag(),
    "code-revision": Flag(),
    "skip-tokenizer-init": Flag("switch"),
    "trust-remote-code": Flag("switch"),
    "load-format": Flag(),
    "model-loader-extra-config": Flag("json"),
    "config-format": Flag(),
    "hf-overrides": Flag("json"),
    "generation-config": Flag(),
    "override-generation-config": Flag("json"),
    "limit-mm-per-prompt": Flag(),
    "mm-processor-kwargs": Flag("json"),
    "max-logprobs": Flag("whole"),
    # adapters
    "enable-lora": Flag("switch"),
    "lora-modules": Flag(),
    "max-loras": Flag("whole"),
    "max-lora-rank": Flag("whole"),
    "max-cpu-loras": Flag("whole"),
    # what clients get
    "chat-template": Flag(),
    "chat-template-content-format": Flag(choices=("auto", "string", "openai")),
    "response-role": Flag(),
    "enable-auto-tool-choice": Flag("switch"),
    "tool-call-parser": Flag(),
    "reasoning-parser": Flag(),
    "enable-prompt-tokens-details": Flag("switch"),
    "enable-request-id-headers": Flag("switch"),
    "enable-server-load-tracking": Flag("switch"),
    "allowed-origins": Flag("json"),
    # logs
    "uvicorn-log-level": Flag(choices=("debug", "info", "warning", "error", "critical", "trace")),
    "disable-uvicorn-access-log": Flag("switch"),
    "max-log-len": Flag("whole"),
}


def argv(args: Mapping[str, Arg], flags: Mapping[str, Flag], version: Version) -> list[str]:
    """As words; `enable-prefix-caching: false` is `--no-enable-prefix-caching`."""
    off = [
        f"--no-{name}"
        for name, value in args.items()
        if value is False and name in flags and flags[name].kind == "toggle"
    ]
    return [*to_argv(args), *(off if version >= _TOGGLES_SINCE else [])]
