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
    "hf-token": "HF_TOKEN in the environment: command lines can be read by anyone",
    "download-dir": "runtime.docker.model_cache, or HF_HOME in engine.env",
    "config": "engine.args: a file of flags could say anything",
    "pipeline-parallel-size": _SHARED,
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

# Bounds where a flag's own version is not known: the last releases that were looked at without it.
# They are wide on purpose, as an engine refuses at once what it does not have.
_AFTER_0_7: Version = (0, 8, 0)
_BEFORE_0_11: Version = (0, 11, 1)

FLAGS: Mapping[str, Flag] = {
    # memory and batches
    "gpu-memory-utilization": Flag("number"),
    "kv-cache-memory-bytes": Flag(since=_AFTER_0_7),
    "max-num-seqs": Flag("whole"),
    "max-num-batched-tokens": Flag("whole"),
    "max-num-queued-reqs": Flag("whole", since=(0, 29, 0)),
    "max-num-queued-tokens": Flag("whole", since=(0, 29, 0)),
    "max-num-partial-prefills": Flag("whole", until=(0, 27, 0)),
    "max-long-partial-prefills": Flag("whole", until=(0, 27, 0)),
    "long-prefill-token-threshold": Flag("whole"),
    "num-scheduler-steps": Flag("whole", until=_BEFORE_0_11),
    "scheduling-policy": Flag(choices=("fcfs", "priority")),
    "scheduler-cls": Flag(),
    "async-scheduling": Flag("toggle", since=_AFTER_0_7),
    "enable-chunked-prefill": Flag("toggle"),
    "enable-prefix-caching": Flag("toggle"),
    "prefix-caching-hash-algo": Flag(since=_AFTER_0_7),
    "block-size": Flag("whole"),
    "kv-cache-dtype": Flag(),
    "calculate-kv-scales": Flag("switch"),
    "num-gpu-blocks-override": Flag("whole"),
    "disable-hybrid-kv-cache-manager": Flag("switch", since=_AFTER_0_7),
    "swap-space": Flag("number", until=(0, 29, 0)),
    "preemption-mode": Flag(choices=("recompute", "swap"), until=_BEFORE_0_11),
    "cpu-offload-gb": Flag("number"),
    "enforce-eager": Flag("switch"),
    "max-seq-len-to-capture": Flag("whole", until=_BEFORE_0_11),
    "cuda-graph-sizes": Flag(since=_AFTER_0_7),
    "cudagraph-capture-sizes": Flag(since=_AFTER_0_7),
    "max-cudagraph-capture-size": Flag("whole", since=_AFTER_0_7),
    "compilation-config": Flag("json"),
    "optimization-level": Flag(since=_AFTER_0_7),
    "attention-backend": Flag(since=_AFTER_0_7),
    "kv-transfer-config": Flag("json"),
    "kv-events-config": Flag("json", since=_AFTER_0_7),
    "seed": Flag("whole"),
    # several GPUs
    "distributed-executor-backend": Flag(choices=("mp", "uni")),
    "disable-custom-all-reduce": Flag("switch"),
    "decode-context-parallel-size": Flag("whole", since=_AFTER_0_7),
    "enable-expert-parallel": Flag("switch", since=_AFTER_0_7),
    "enable-eplb": Flag("switch", since=_AFTER_0_7),
    "max-parallel-loading-workers": Flag("whole"),
    # a second model that guesses
    "speculative-config": Flag("json", since=_AFTER_0_7),
    "speculative-model": Flag(until=_BEFORE_0_11),
    "num-speculative-tokens": Flag("whole", until=_BEFORE_0_11),
    "speculative-draft-tensor-parallel-size": Flag("whole", until=_BEFORE_0_11),
    "speculative-max-model-len": Flag("whole", until=_BEFORE_0_11),
    "speculative-disable-by-batch-size": Flag("whole", until=_BEFORE_0_11),
    "ngram-prompt-lookup-max": Flag("whole", until=_BEFORE_0_11),
    "ngram-prompt-lookup-min": Flag("whole", until=_BEFORE_0_11),
    # what the model is
    "runner": Flag(since=_AFTER_0_7),
    "task": Flag(until=(0, 13, 0)),
    "tokenizer": Flag(),
    "tokenizer-mode": Flag(),
    "tokenizer-revision": Flag(),
    "code-revision": Flag(),
    "skip-tokenizer-init": Flag("switch"),
    "trust-remote-code": Flag("switch"),
    "model-impl": Flag(),
    "load-format": Flag(),
    "safetensors-load-strategy": Flag(since=_AFTER_0_7),
    "model-loader-extra-config": Flag("json"),
    "ignore-patterns": Flag(),
    "config-format": Flag(),
    "hf-config-path": Flag(since=_AFTER_0_7),
    "hf-overrides": Flag("json"),
    "generation-config": Flag(),
    "override-generation-config": Flag("json"),
    "rope-scaling": Flag("json"),
    "rope-theta": Flag("number"),
    "disable-sliding-window": Flag("switch"),
    "disable-cascade-attn": Flag("switch", since=_AFTER_0_7),
    "max-logprobs": Flag(),
    "logprobs-mode": Flag(since=_AFTER_0_7),
    "logits-processor-pattern": Flag(),
    "logits-processors": Flag(since=_AFTER_0_7),
    "guided-decoding-backend": Flag(),
    "structured-outputs-config": Flag("json", since=_AFTER_0_7),
    "additional-config": Flag("json"),
    # images, audio, video
    "limit-mm-per-prompt": Flag(),
    "mm-processor-kwargs": Flag("json"),
    "mm-processor-cache-gb": Flag("number", since=_AFTER_0_7),
    "mm-encoder-tp-mode": Flag(since=_AFTER_0_7),
    "media-io-kwargs": Flag("json", since=_AFTER_0_7),
    "disable-mm-preprocessor-cache": Flag("switch"),
    "allowed-local-media-path": Flag(),
    "allowed-media-domains": Flag(since=_AFTER_0_7),
    # adapters
    "enable-lora": Flag("switch"),
    "lora-modules": Flag(),
    "max-loras": Flag("whole"),
    "max-lora-rank": Flag("whole"),
    "max-cpu-loras": Flag("whole"),
    "lora-dtype": Flag(),
    "fully-sharded-loras": Flag("switch"),
    # what clients get
    "chat-template": Flag(),
    "chat-template-content-format": Flag(choices=("auto", "string", "openai")),
    "default-chat-template-kwargs": Flag("json", since=_AFTER_0_7),
    "response-role": Flag(),
    "return-tokens-as-token-ids": Flag("switch"),
    "enable-auto-tool-choice": Flag("switch"),
    "tool-call-parser": Flag(),
    "tool-parser-plugin": Flag(),
    "enable-reasoning": Flag("switch", until=_BEFORE_0_11),
    "reasoning-parser": Flag(),
    "enable-prompt-tokens-details": Flag("switch"),
    "enable-force-include-usage": Flag("switch", since=_AFTER_0_7),
    "enable-prompt-embeds": Flag("switch", since=_AFTER_0_7),
    "enable-request-id-headers": Flag("switch"),
    "enable-server-load-tracking": Flag("switch", since=_AFTER_0_7),
    "enable-sleep-mode": Flag("switch"),
    "disable-fastapi-docs": Flag("switch"),
    "allow-credentials": Flag("switch"),
    "allowed-origins": Flag("json"),
    "allowed-methods": Flag("json"),
    "allowed-headers": Flag("json"),
    "middleware": Flag(),
    "shutdown-timeout": Flag("whole", since=_AFTER_0_7),
    # processes, logs, traces
    "api-server-count": Flag("whole", since=_AFTER_0_7),
    "disable-frontend-multiprocessing": Flag("switch"),
    "uvicorn-log-level": Flag(choices=("debug", "info", "warning", "error", "critical", "trace")),
    "disable-uvicorn-access-log": Flag("switch"),
    "disable-access-log-for-endpoints": Flag(since=_AFTER_0_7),
    "disable-log-requests": Flag("switch", until=_BEFORE_0_11),
    "enable-log-requests": Flag("switch", since=_AFTER_0_7),
    "max-log-len": Flag("whole"),
    "otlp-traces-endpoint": Flag(),
    "collect-detailed-traces": Flag(),
    "show-hidden-metrics-for-version": Flag(),
}


def argv(args: Mapping[str, Arg], flags: Mapping[str, Flag], version: Version) -> list[str]:
    """As words; `enable-prefix-caching: false` is `--no-enable-prefix-caching`."""
    off = [
        f"--no-{name}"
        for name, value in args.items()
        if value is False and name in flags and flags[name].kind == "toggle"
    ]
    return [*to_argv(args), *(off if version >= _TOGGLES_SINCE else [])]
