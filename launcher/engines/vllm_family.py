"""An engine of vLLM's family: the same server under two names, vLLM and its fork Aphrodite.

`vllm.py` and `aphrodite.py` say in a `Program` what differs. As a process it needs its GPUs by
number (`by_index.py`); in a container they are 0, 1 ... and nothing has to be said. What it
compiles is kept per replica: containers that start at once would write into the same files.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.engines.base import Command, ContainerCommand, Fault, Mount
from launcher.engines.checks import (
    DEVICE_VARIABLES,
    check_choice,
    check_env,
    check_gpus,
    check_no_input_limit,
    check_version,
    check_volumes,
)
from launcher.engines.flags import Arg, Flag, check_args
from launcher.engines.images import version_of_config, version_of_spec
from launcher.engines.model_source import (
    READS_AND_WRITES_FOLDERS,
    host_path,
    hub_tokens,
    is_inside,
    is_local,
    joined,
    nobody_special,
)
from launcher.engines.versions import Version
from launcher.engines.visible_devices import are_indexed, cuda_env, order_env
from launcher.engines.vllm_flags import RESERVED, argv
from launcher.engines.vllm_log import fault_of, phase_of, serving_fault_of, token_budget_of
from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec

# Enough for the tensors that the processes of one replica exchange.
SHM_BYTES = 2 * 1024**3

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
# The names of models[].quantize, and what these engines call the same.
QUANTIZE = {
    "awq": "awq",
    "gptq": "gptq",
    "fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes-nf4": "bitsandbytes",
}
# Names of their own, which are passed on.
OWN_QUANTIZE = (
    *("awq_marlin", "gptq_marlin", "modelopt", "modelopt_fp4", "gguf", "experts_int8"),
    *("fbgemm_fp8", "ptpc_fp8", "moe_wna16", "quark", "torchao", "auto-round", "mxfp4"),
)

_MODEL = "/model"
_CACHE = "/cache"  # root's own would be closed to `runtime.docker.user`
_BY_INDEX = "launcher.by_index"
_QUIET = {"DO_NOT_TRACK": "1"}  # else they report home
_LOGS_PROMPTS_UNTIL: Version = (0, 10, 0)


@dataclass(frozen=True, slots=True)
class Program:
    """What tells one of the family from the other."""

    name: str
    serve: tuple[str, ...]  # before the model, where it is a process
    image: str
    newest_tag: str
    first: Version  # older ones are started in other ways
    example: str
    port: int
    cache_variable: str  # where it keeps what it compiles
    api_key: str  # variable with the key it asks for
    flags: Mapping[str, Flag]
    reserved_env: Mapping[str, str] = field(default_factory=dict)


class FamilyEngine:
    """vLLM or Aphrodite, from 0.6 on."""

    dialect = "openai"
    uses_gpu = True
    runs_on_cpu = False
    downloads = True

    def __init__(self, program: Program, environ: Mapping[str, str]) -> None:
        self.name = program.name
        self._program = program
        self._environ = environ
        key = f"{program.api_key} in engine.env, as ${{NAME}}, and that in router.engine_api_key"
        self._reserved = {**RESERVED, "api-key": key, "api-keys": key}

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        program = self._program
        yield from check_version(engine.version, program.first, program.example)
        version = version_of_config(engine, program.image)
        for path, args in engine.all_args():
            for bad in check_args(args, program.flags, self._reserved, version):
                yield Mismatch(path + bad.path, bad.found, bad.expected)
        yield from check_env(engine, {**DEVICE_VARIABLES, **program.reserved_env})
        yield from check_volumes(engine, _MODEL)

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        yield from check_gpus(model, self.name)
        yield from check_no_input_limit(model, self.name)
        yield from check_choice("dtype", model.dtype, DTYPES)
        yield from check_choice("quantize", model.quantize, ("auto", *QUANTIZE, *OWN_QUANTIZE))

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        own = {**_model_flags(spec), "host": host, "port": port}
        by_index = () if are_indexed(spec.devices) else (sys.executable, "-m", _BY_INDEX)
        start = (*by_index, *self._program.serve, host_path(spec.model_id))
        tokens = hub_tokens(self._environ, spec.env)
        env = {**cuda_env(spec.devices), **_QUIET, **tokens, **spec.env}
        return Command((*start, *self._argv(spec, own)), env, "/health", spec.start_timeout_s)

    def container(self, spec: "ReplicaSpec", cache_dir: str) -> ContainerCommand:
        program = self._program
        tag = f"v{spec.engine_version.removeprefix('v')}" if spec.engine_version else None
        model_id, model = _source(spec)
        mounts = [*([model] if model else []), Mount(cache_dir, _CACHE)]
        compiled = f"{_CACHE}/{self.name}-compile/{spec.id}"
        env = {
            **order_env(spec.devices),
            **_QUIET,
            "HF_HOME": _CACHE,
            "HF_HUB_CACHE": _CACHE,  # the same layout as other engines', so that they share it
            program.cache_variable: compiled,
            **hub_tokens(self._environ, spec.env),
            **spec.env,
        }
        return ContainerCommand(
            image=spec.image or f"{program.image}:{tag or program.newest_tag}",
            argv=tuple(self._argv(spec, {"model": model_id, **_model_flags(spec)})),
            env=env,
            port=program.port,
            mounts=joined(mounts, spec.volumes),
            shm_bytes=spec.shm_bytes or SHM_BYTES,
            ready_path="/health",
            ready_timeout_s=spec.start_timeout_s,
            capabilities=(READS_AND_WRITES_FOLDERS,),
            user_env={
                **nobody_special(f"{compiled}/home"),
                "TRITON_CACHE_DIR": f"{compiled}/triton",
                "TORCHINDUCTOR_CACHE_DIR": f"{compiled}/inductor",
            },
        )

    def phase_of(self, log_line: str) -> str | None:
        return phase_of(log_line)

    def token_budget_of(self, log_line: str) -> int | None:
        return token_budget_of(log_line)

    def fault_of(self, log_line: str) -> Fault | None:
        return fault_of(log_line)

    def serving_fault_of(self, log_line: str) -> Fault | None:
        return serving_fault_of(log_line)

    def _argv(self, spec: "ReplicaSpec", own: Mapping[str, Arg]) -> list[str]:
        version = version_of_spec(spec, self._program.image)
        if version < _LOGS_PROMPTS_UNTIL:
            own = {**own, "disable-log-requests": True}
        return argv({**own, **spec.args}, self._program.flags, version)


def _model_flags(spec: "ReplicaSpec") -> dict[str, Arg]:
    """What is the same for a process and a container, but for the model itself."""
    quantization = QUANTIZE.get(spec.quantize or "", spec.quantize)
    flags: dict[str, Arg] = {
        "served-model-name": spec.model,
        "revision": spec.revision,
        "dtype": spec.dtype,
        # `auto` that nobody has resolved is what these do by themselves: as the model's files say.
        "quantization": None if quantization == "auto" else quantization,
        "max-model-len": spec.max_total_tokens,
        "tensor-parallel-size": spec.shards,
    }
    if spec.memory_fraction is not None:
        flags["gpu-memory-utilization"] = round(spec.memory_fraction, 4)
    if quantization == "bitsandbytes":
        flags["load-format"] = "bitsandbytes"  # older versions do not draw the conclusion
    return flags


def _source(spec: "ReplicaSpec") -> tuple[str, Mount | None]:
    """The model as the container sees it, and its mount if it is a folder of this machine."""
    if not is_local(spec.model_id) or is_inside(spec.model_id, spec.volumes):
        return spec.model_id, None
    return _MODEL, Mount(host_path(spec.model_id), _MODEL, is_read_only=True)
