"""llama.cpp's server: `llama-server` on the PATH, or its image. Runs on GPUs and on none.

The model is a GGUF file of this machine, or `org/repo:QUANT` of the hub. It serves a fixed number
of slots, and its `--ctx-size` is divided by them: so that each call gets the tokens that
`max_total_tokens` promises, that many are asked for every slot.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from launcher.engines.base import Command, ContainerCommand, Fault, Mount
from launcher.engines.checks import DEVICE_VARIABLES, check_env, check_no_input_limit, check_volumes
from launcher.engines.flags import Arg, check_args, to_argv
from launcher.engines.llamacpp_flags import FLAGS, RESERVED
from launcher.engines.llamacpp_log import fault_of, phase_of, token_budget_of
from launcher.engines.model_source import (
    READS_AND_WRITES_FOLDERS,
    host_path,
    hub_tokens,
    is_inside,
    is_local,
    joined,
)
from launcher.engines.versions import LATEST
from launcher.engines.visible_devices import cuda_env, order_env
from router.config.mismatch import Mismatch
from router.config.words import dotted, quoted

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec

IMAGE = "ghcr.io/ggml-org/llama.cpp"
ON_OFF_SINCE_BUILD = 6325  # August 2025: `--flash-attn` takes a word and was alone before
FIRST_BUILD = 4500  # January 2025: `org/repo:QUANT`, --slots and today's names of the flags

_PROGRAM = "llama-server"
_CONTAINER_PORT = 8080
_MODELS = "/models"
_CACHE = "/cache"
_ALL_LAYERS = 999
_USUAL_SLOTS = 4
_NEWEST = 999_999
_BUILD = re.compile(r"b?(\d{1,6})")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_RESERVED_ENV = {
    **DEVICE_VARIABLES,
    "LLAMA_ARG_PORT": "runtime.first_port",
    "LLAMA_ARG_HOST": "runtime.host",
    "LLAMA_ARG_MODEL": "models[].id",
    "LLAMA_ARG_CTX_SIZE": "models[].max_total_tokens, for each slot",
    "LLAMA_ARG_N_PARALLEL": "engine.args.parallel",
}


class LlamaCppEngine:
    """llama-server from build 4500 on."""

    name = "llamacpp"
    dialect = "openai"
    uses_gpu = True
    runs_on_cpu = True
    downloads = True

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        build = _build(engine.version)
        if build is None:
            yield Mismatch(("version",), f"a text {quoted(engine.version or '')}", "a build: b5000")
        elif build < FIRST_BUILD:
            yield Mismatch(("version",), str(engine.version), f"b{FIRST_BUILD} or later")
        for path, args in engine.all_args():
            for bad in check_args(args, FLAGS, RESERVED, LATEST):
                yield Mismatch(path + bad.path, bad.found, bad.expected)
        yield from check_env(engine, _RESERVED_ENV)
        yield from check_volumes(engine, _MODELS)

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        yield from check_no_input_limit(model, self.name)
        if is_local(model.id) and not model.id.endswith(".gguf"):
            yield Mismatch(("id",), quoted(model.id), "the path of a .gguf file")
        elif not is_local(model.id) and not _HUB_ID.fullmatch(model.id):
            expected = "/path/to/model.gguf, or org/repo:Q4_K_M of the hub"
            yield Mismatch(("id",), quoted(model.id), expected)
        if model.quantize not in (None, "auto"):
            expected = "a file that is quantized, or models[].id: org/repo:Q4_K_M"
            yield Mismatch(("quantize",), str(model.quantize), expected)
        if model.dtype is not None:
            yield Mismatch(("dtype",), model.dtype, "nothing here: the GGUF file says it")
        if model.revision is not None:
            yield Mismatch(("revision",), model.revision, "nothing here: it takes the newest")
        if model.max_total_tokens is None:
            yield from _divided_context(engine)

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        own = {**_model_flags(spec, host_path(spec.model_id)), "host": host, "port": port}
        env = {**cuda_env(spec.devices), **hub_tokens(self._environ, spec.env), **spec.env}
        return Command((_PROGRAM, *_argv(spec, own)), env, "/health", spec.start_timeout_s)

    def container(self, spec: "ReplicaSpec", cache_dir: str) -> ContainerCommand:
        model_id, mount = _source(spec, cache_dir)
        own = {**_model_flags(spec, model_id), "host": "0.0.0.0", "port": _CONTAINER_PORT}
        env = {
            **order_env(spec.devices),
            # Builds of 2026 keep downloads as the hub's own client does, older ones in one folder.
            "HF_HUB_CACHE": _CACHE,
            "LLAMA_CACHE": f"{_CACHE}/llama.cpp",
            **hub_tokens(self._environ, spec.env),
            **spec.env,
        }
        return ContainerCommand(
            image=spec.image or _image(spec),
            argv=tuple(_argv(spec, own)),
            env=env,
            port=_CONTAINER_PORT,
            mounts=joined([mount] if mount else [], spec.volumes),
            shm_bytes=spec.shm_bytes,
            ready_path="/health",
            ready_timeout_s=spec.start_timeout_s,
            capabilities=(READS_AND_WRITES_FOLDERS,),
        )

    def phase_of(self, log_line: str) -> str | None:
        return phase_of(log_line)

    def token_budget_of(self, log_line: str) -> int | None:
        return token_budget_of(log_line)

    def fault_of(self, log_line: str) -> Fault | None:
        return fault_of(log_line)

    def serving_fault_of(self, log_line: str) -> Fault | None:
        return None  # it ends when CUDA fails, and its log repeats what it refuses, word by word


def _divided_context(engine: "EngineConfig") -> Iterator[Mismatch]:
    """Several slots of a context that nobody has named: each would get a part of the model's."""
    for path, args in engine.all_args():
        if (slots := args.get("parallel")) not in (None, 1, "1"):
            found = f"{slots} slots ({dotted(('engine', *path))}.parallel) and no size for them"
            yield Mismatch(("max_total_tokens",), found, "the tokens that each slot shall hold")


def _model_flags(spec: "ReplicaSpec", model: str) -> dict[str, Arg]:
    """What is the same for a process and a container."""
    slots = _slots(spec)
    flags: dict[str, Arg] = {
        ("model" if is_local(model) else "hf-repo"): model,
        "alias": spec.model,
        # 0: all the model was made for.
        "ctx-size": (spec.max_total_tokens or 0) * slots,
        "parallel": slots,
        "n-gpu-layers": _ALL_LAYERS if spec.devices else 0,
        "metrics": True,
        "slots": True,
    }
    return {name: value for name, value in flags.items() if name not in spec.args}


def _argv(spec: "ReplicaSpec", own: Mapping[str, Arg]) -> list[str]:
    """YAML reads a bare `on` as true, and llama-server wants the word."""
    has_words = (_build(spec.engine_version) or _NEWEST) >= ON_OFF_SINCE_BUILD
    args: dict[str, Arg] = dict(spec.args)
    for name, value in spec.args.items():
        if has_words and isinstance(value, bool) and FLAGS[name].kind == "on-off":
            args[name] = "on" if value else "off"
    return to_argv({**own, **args})


def _build(version: str | None) -> int | None:
    if version is None:
        return _NEWEST
    match = _BUILD.fullmatch(version)
    return int(match[1]) if match else None


def _slots(spec: "ReplicaSpec") -> int:
    asked = spec.args.get("parallel")
    if asked is not None and asked is not False:
        return int(asked)
    return _USUAL_SLOTS if spec.max_total_tokens else 1


def _source(spec: "ReplicaSpec", cache_dir: str) -> tuple[str, Mount | None]:
    """The file's folder, as a model may be several files; or where downloads are kept."""
    if not is_local(spec.model_id):
        return spec.model_id, Mount(cache_dir, _CACHE)
    if is_inside(spec.model_id, spec.volumes):
        return spec.model_id, None
    path = PurePosixPath(host_path(spec.model_id))
    return f"{_MODELS}/{path.name}", Mount(str(path.parent), _MODELS, is_read_only=True)


def _image(spec: "ReplicaSpec") -> str:
    tag = "server-cuda" if spec.devices else "server"
    build = _build(spec.engine_version) if spec.engine_version else None
    return f"{IMAGE}:{tag}-b{build}" if build else f"{IMAGE}:{tag}"
