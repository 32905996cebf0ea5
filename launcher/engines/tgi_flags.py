"""The flags of text-generation-inference, version by version, and those that are the launcher's.

From the programs of 1.4.4 to 3.3.7. Tables only; used by the engine `tgi`.
"""

from collections.abc import Mapping

from launcher.engines.flags import Flag

RESERVED = {
    "model-id": "models[].id",
    "revision": "models[].revision",
    "dtype": "models[].dtype",
    "quantize": "models[].quantize",
    "max-input-tokens": "models[].max_input_tokens",
    "max-input-length": "models[].max_input_tokens",
    "max-total-tokens": "models[].max_total_tokens",
    "port": "runtime.first_port",
    "hostname": "runtime.host",
    "num-shard": "models[].gpus_per_replica",
    "sharded": "models[].gpus_per_replica",
    "prometheus-port": "nothing here: each replica gets its own",
    "master-port": "nothing here: each replica gets its own",
    "master-addr": "nothing here: a replica's shards are on one machine",
    "shard-uds-path": "nothing here: each replica gets its own",
    "api-key": "API_KEY in engine.env, as ${NAME}: command lines can be read by anyone",
    "ngrok": "nothing here: the router is the endpoint",
    "ngrok-authtoken": "nothing here: the router is the endpoint",
    "ngrok-edge": "nothing here: the router is the endpoint",
    "env": "nothing here: it only prints",
}
RESERVED_ENV = {
    "CUDA_VISIBLE_DEVICES": "models[].devices",
    "NVIDIA_VISIBLE_DEVICES": "models[].devices",
    "CUDA_DEVICE_ORDER": "models[].devices",
    "PORT": "runtime.first_port",
    "NUM_SHARD": "models[].gpus_per_replica",
    "SHARDED": "models[].gpus_per_replica",
}

FLAGS: Mapping[str, Flag] = {
    "validation-workers": Flag("whole"),
    "speculate": Flag("whole"),
    "kv-cache-dtype": Flag(since=(2, 4, 0), choices=("fp8_e4m3fn", "fp8_e5m2")),
    "trust-remote-code": Flag("switch"),
    "max-concurrent-requests": Flag("whole"),
    "max-best-of": Flag("whole"),
    "max-stop-sequences": Flag("whole"),
    "max-top-n-tokens": Flag("whole"),
    "max-client-batch-size": Flag("whole", since=(2, 0, 1)),
    "max-batch-prefill-tokens": Flag("whole"),
    "max-batch-total-tokens": Flag("whole"),
    "max-batch-size": Flag("whole"),
    "max-waiting-tokens": Flag("whole"),
    "waiting-served-ratio": Flag("number"),
    "enable-cuda-graphs": Flag("switch", until=(2, 0, 0)),
    "cuda-graphs": Flag(since=(2, 0, 0)),
    "cuda-memory-fraction": Flag("number"),
    "disable-custom-kernels": Flag("switch"),
    "disable-grammar-support": Flag("switch"),
    "enable-prefill-logprobs": Flag("switch", since=(3, 0, 0)),
    "rope-scaling": Flag(choices=("linear", "dynamic")),
    "rope-factor": Flag("number"),
    "huggingface-hub-cache": Flag(),
    "weights-cache-override": Flag(),
    "tokenizer-config-path": Flag(),
    "lora-adapters": Flag(since=(2, 1, 0)),
    "json-output": Flag("switch"),
    "otlp-endpoint": Flag(),
    "otlp-service-name": Flag(since=(2, 1, 0)),
    "cors-allow-origin": Flag(),
    "watermark-gamma": Flag("number"),
    "watermark-delta": Flag("number"),
    "disable-usage-stats": Flag("switch", since=(2, 2, 0), until=(2, 3, 0)),
    "usage-stats": Flag(since=(2, 3, 0), choices=("on", "off", "no-stack")),
    "payload-limit": Flag("whole", since=(2, 4, 1)),
    "graceful-termination-timeout": Flag("whole", since=(3, 2, 2)),
}
