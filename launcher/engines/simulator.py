"""The embedded default engine: `python -m launcher.simulator`, a stand-in that needs no GPU.

It speaks text-generation-inference's protocol and keeps its limits and timing, so that a cluster
config can be tried, and the router tested, on any machine. It is not a language model.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from launcher.engines.base import Command, ContainerCommand, Fault
from launcher.engines.checks import check_version
from launcher.engines.flags import Arg, Flag, check_args, to_argv
from launcher.engines.tgi_limits import EXAMPLE, check_limits, check_values, limits
from launcher.engines.tgi_log import fault_of, phase_of, serving_fault_of, token_budget_of
from launcher.engines.versions import LATEST, parse_version
from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec

RESERVED = {
    "model-id": "models[].id",
    "version": "engine.version",
    "max-input-tokens": "models[].max_input_tokens",
    "max-total-tokens": "models[].max_total_tokens",
    "max-input-length": "models[].max_input_tokens",
    "host": "runtime.host",
    "hostname": "runtime.host",
    "port": "runtime.first_port",
    "api-key": "API_KEY in engine.env, as ${NAME}: command lines can be read by anyone",
}

FLAGS: Mapping[str, Flag] = {
    "token-model": Flag(choices=("text", "bpe")),
    "gpu": Flag(choices=("a100", "a10g", "rtx4090")),
    "speed": Flag("number"),
    "time-scale": Flag("number"),
    "noise": Flag("number"),
    "seed-noise": Flag("whole"),
    "eos-rate": Flag("number"),
    "load-s": Flag("number"),
    "accept-then-close": Flag("switch"),
    "faults": Flag("switch"),
    "validation-workers": Flag("whole"),
    "max-concurrent-requests": Flag("whole"),
    "max-best-of": Flag("whole"),
    "max-stop-sequences": Flag("whole"),
    "max-top-n-tokens": Flag("whole"),
    "max-client-batch-size": Flag("whole"),
    "max-batch-prefill-tokens": Flag("whole"),
    "max-batch-total-tokens": Flag("whole"),
    "max-batch-size": Flag("whole"),
    "max-waiting-tokens": Flag("whole"),
    "waiting-served-ratio": Flag("number"),
    "enable-prefill-logprobs": Flag("switch"),
    "payload-limit": Flag("whole"),
    "cors-allow-origin": Flag(),
    "graceful-termination-timeout": Flag("whole"),
    "json-output": Flag("switch"),
}


_CONTAINER_PORT = 3000


class SimulatorEngine:
    """A process per replica, started with this Python, or a container of GPU Fleet's own image."""

    name = "simulator"
    dialect = "tgi"
    uses_gpu = False
    runs_on_cpu = True
    downloads = False

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        yield from check_version(engine.version, (0, 0, 0), EXAMPLE)
        version = parse_version(engine.version) or LATEST
        for path, args in engine.all_args():
            for bad in check_args(args, FLAGS, RESERVED, version):
                yield Mismatch(path + bad.path, bad.found, bad.expected)

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        version = parse_version(engine.version) or LATEST
        yield from check_values(model, version)
        yield from check_limits(model, version)

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        argv = (sys.executable, "-m", "launcher.simulator", *_argv(spec, host, port))
        return Command(argv, dict(spec.env), "/health", spec.start_timeout_s)

    def container(self, spec: "ReplicaSpec", cache_dir: str) -> ContainerCommand:
        return ContainerCommand(
            image=spec.image or _own_image(),
            argv=tuple(_argv(spec, "0.0.0.0", _CONTAINER_PORT)),
            env=dict(spec.env),
            port=_CONTAINER_PORT,
            mounts=spec.volumes,
            shm_bytes=spec.shm_bytes,
            ready_path="/health",
            ready_timeout_s=spec.start_timeout_s,
            entrypoint=("python", "-m", "launcher.simulator"),
        )

    def phase_of(self, log_line: str) -> str | None:
        return phase_of(log_line)

    def token_budget_of(self, log_line: str) -> int | None:
        return token_budget_of(log_line)

    def fault_of(self, log_line: str) -> Fault | None:
        return fault_of(log_line)

    def serving_fault_of(self, log_line: str) -> Fault | None:
        return serving_fault_of(log_line)


def _argv(spec: "ReplicaSpec", host: str, port: int) -> list[str]:
    engine = parse_version(spec.engine_version) or LATEST
    input_tokens, total_tokens = limits(spec.max_input_tokens, spec.max_total_tokens, engine)
    own: dict[str, Arg] = {
        "host": host,
        "port": port,
        "model-id": spec.model_id,
        "version": spec.engine_version,
        "max-input-tokens": input_tokens,
        "max-total-tokens": total_tokens,
    }
    return to_argv({**own, **spec.args})


def _own_image() -> str:
    from importlib.metadata import version

    return f"gpu-fleet:{version('gpu-fleet')}"
