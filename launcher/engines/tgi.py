"""text-generation-inference, run natively (`text-generation-launcher` on the PATH).

One replica per GPU: one shard, and everything that two servers on one host would fight over
(ports, the shard's socket) is told apart. Flags follow the version; `engine.version` unset means
the newest known. Access tokens travel in the environment, never on the command line.
"""

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from launcher.engines.base import Command
from launcher.engines.flags import Arg, Flag, check_args, to_argv
from launcher.engines.tgi_limits import check_limits, check_values, check_version, limits
from launcher.engines.tgi_log import phase_of, token_budget_of
from launcher.engines.versions import LATEST, Version, parse_version
from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec

# Each replica's other ports lie this far above its HTTP port, where no other replica's can be.
PROMETHEUS_PORT_OFFSET = 600
MASTER_PORT_OFFSET = 1200
OFFSETS_END = 1800

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # old and new versions read different ones

_RESERVED = {
    "model-id": "models[].id",
    "revision": "models[].revision",
    "dtype": "models[].dtype",
    "quantize": "models[].quantize",
    "max-input-tokens": "models[].max_input_tokens",
    "max-input-length": "models[].max_input_tokens",
    "max-total-tokens": "models[].max_total_tokens",
    "port": "runtime.first_port",
    "hostname": "runtime.host",
    "num-shard": "one shard per replica: leave it out",
    "sharded": "one shard per replica: leave it out",
    "prometheus-port": "nothing here: each replica gets its own",
    "master-port": "nothing here: each replica gets its own",
    "master-addr": "nothing here: replicas have one shard",
    "shard-uds-path": "nothing here: each replica gets its own",
    "api-key": "API_KEY in engine.env, as ${NAME}: command lines can be read by anyone",
    "ngrok": "nothing here: the router is the endpoint",
    "ngrok-authtoken": "nothing here: the router is the endpoint",
    "ngrok-edge": "nothing here: the router is the endpoint",
    "env": "nothing here: it only prints",
}
_RESERVED_ENV = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PORT")

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


class TgiEngine:
    """text-generation-inference from 1.4 on."""

    name = "tgi"
    dialect = "tgi"
    uses_gpu = True

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        yield from check_version(engine.version)
        version = parse_version(engine.version) or LATEST
        for path, args in engine.all_args():
            for bad in check_args(args, FLAGS, _RESERVED, version):
                yield Mismatch(path + bad.path, bad.found, bad.expected)
        for name in engine.env:
            if name in _RESERVED_ENV:
                expected = "models[].devices" if "DEVICE" in name else "runtime.first_port"
                yield Mismatch(("env", name), "a variable that the launcher sets itself", expected)

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        version = parse_version(engine.version) or LATEST
        yield from check_values(model, version)
        yield from check_limits(model, version)

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        version = parse_version(spec.engine_version) or LATEST
        prometheus_port, master_port = _other_ports(port)
        own: dict[str, Arg] = {
            "model-id": spec.model_id,
            "revision": spec.revision,
            "num-shard": 1,
            "hostname": host,
            "port": port,
            "master-port": master_port,
            "shard-uds-path": f"/tmp/gpu-fleet-tgi-{port}",
            **_limit_flags(spec, version),
            "dtype": spec.dtype,
            "quantize": spec.quantize,
        }
        if version >= FLAGS["usage-stats"].since:
            own["usage-stats"] = "off"
        elif FLAGS["disable-usage-stats"].is_in(version):
            own["disable-usage-stats"] = True
        extra_ports: tuple[int, ...] = (master_port,)
        if version >= (3, 3, 0):
            own["prometheus-port"] = prometheus_port
            extra_ports = (master_port, prometheus_port)
        argv = ("text-generation-launcher", *to_argv({**own, **spec.args}))
        return Command(argv, self._env(spec), "/health", spec.start_timeout_s, extra_ports)

    def phase_of(self, log_line: str) -> str | None:
        return phase_of(log_line)

    def token_budget_of(self, log_line: str) -> int | None:
        return token_budget_of(log_line)

    def _env(self, spec: "ReplicaSpec") -> dict[str, str]:
        """The GPU by id in the bus order that `nvidia-smi` shows; the token by both its names."""
        env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(spec.devices)}
        known = {**self._environ, **spec.env}
        token = next((known[name] for name in TOKEN_VARIABLES if known.get(name)), None)
        if token is not None:
            env |= dict.fromkeys(TOKEN_VARIABLES, token)
        return {**env, **spec.env}


def _limit_flags(spec: "ReplicaSpec", version: Version) -> dict[str, Arg]:
    input_tokens, total_tokens = limits(spec.max_input_tokens, spec.max_total_tokens, version)
    input_flag = "max-input-tokens" if version >= (2, 0, 0) else "max-input-length"
    flags: dict[str, Arg] = {input_flag: input_tokens, "max-total-tokens": total_tokens}
    if version < (2, 0, 0) and input_tokens is not None and input_tokens > 4096:
        flags["max-batch-prefill-tokens"] = input_tokens  # its default, 4096, would be refused
    return flags


def _other_ports(port: int) -> tuple[int, int]:
    """Ports for metrics and the shards' rendezvous; below the HTTP port near the end of range."""
    sign = 1 if port + OFFSETS_END <= 65_535 else -1
    return port + sign * PROMETHEUS_PORT_OFFSET, port + sign * MASTER_PORT_OFFSET
