"""text-generation-inference: `text-generation-launcher` on the PATH, or its image.

One server per replica, one shard per GPU. As processes of one machine, everything that two servers
would fight over (ports, the shards' socket) is told apart; in a container all that is its own.
Flags follow the version; `engine.version` unset means the newest known. Access tokens travel in the
environment, never on the command line.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from launcher.engines.base import Command, ContainerCommand, Fault, Mount
from launcher.engines.checks import check_env, check_gpus, check_version, check_volumes
from launcher.engines.flags import Arg, check_args, to_argv
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
from launcher.engines.tgi_flags import FLAGS, RESERVED, RESERVED_ENV
from launcher.engines.tgi_limits import (
    EXAMPLE,
    check_batch_flags,
    check_batches,
    check_limits,
    check_values,
    limits,
)
from launcher.engines.tgi_log import fault_of, phase_of, serving_fault_of, token_budget_of
from launcher.engines.versions import Version
from launcher.engines.visible_devices import cuda_env, order_env
from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec

IMAGE = "ghcr.io/huggingface/text-generation-inference"
NEWEST = "3.3.5"  # of the images; the repository has newer tags
FIRST: Version = (1, 4, 0)  # the flag table tells nothing of older ones

# Each replica's other ports lie this far above its HTTP port, where no other replica's can be.
PROMETHEUS_PORT_OFFSET = 600
MASTER_PORT_OFFSET = 1200
OFFSETS_END = 1800

_PROGRAM = "text-generation-launcher"
_CONTAINER_PORT = 80
_BINDS_PORT_80 = "NET_BIND_SERVICE"
_ON_CPU = "-intel-cpu"  # the images with this behind their version need no GPU
_MODEL = "/model"
_CACHE = "/data"
# Of each shard: they exchange through it. One alone needs next to none; Docker's 64 MiB are too
# few for several, which then end with `Error while creating shared memory segment`.
_SHM_BYTES_PER_SHARD = 1024**3

# The entrypoint of these is a shell script that takes no signals and passes none on: a stop would
# always end in a kill. The later ones' script becomes the launcher. Either passes its arguments on
# unquoted, so what a shell would split or expand travels by environment instead, as it does for an
# image of one's own that starts with such a script.
_DEAF_SINCE, _DEAF_UNTIL = (2, 0, 0), (2, 4, 0)
_SHELL_WOULD_CHANGE = re.compile(r"[\s*?\[\]]|^$")


class TgiEngine:
    """text-generation-inference from 1.4 on."""

    name = "tgi"
    dialect = "tgi"
    uses_gpu = True
    runs_on_cpu = False
    downloads = True

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        yield from check_version(engine.version, FIRST, EXAMPLE)
        version = version_of_config(engine, IMAGE)
        for path, args in engine.all_args():
            for bad in (*check_args(args, FLAGS, RESERVED, version), *check_batch_flags(args)):
                yield Mismatch(path + bad.path, bad.found, bad.expected)
        yield from check_env(engine, RESERVED_ENV)
        yield from check_volumes(engine, _MODEL)

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        version = version_of_config(engine, IMAGE)
        if not (engine.version or "").endswith(_ON_CPU):
            yield from check_gpus(model, self.name)
        yield from check_values(model, version)
        yield from check_limits(model, version)
        yield from check_batches(model, engine, version)

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        version = version_of_spec(spec, IMAGE)
        prometheus_port, master_port = _other_ports(port)
        own = {
            **_model_flags(spec, host_path(spec.model_id), version),
            "hostname": host,
            "port": port,
            "master-port": master_port,
            "shard-uds-path": f"/tmp/gpu-fleet-tgi-{port}",
        }
        extra_ports: tuple[int, ...] = (master_port,)
        if version >= (3, 3, 0):
            own["prometheus-port"] = prometheus_port
            extra_ports = (master_port, prometheus_port)
        argv = (_PROGRAM, *to_argv({**own, **spec.args}))
        env = {**cuda_env(spec.devices), **hub_tokens(self._environ, spec.env), **spec.env}
        return Command(argv, env, "/health", spec.start_timeout_s, extra_ports)

    def container(self, spec: "ReplicaSpec", cache_dir: str) -> ContainerCommand:
        version = version_of_spec(spec, IMAGE)
        model_id, mount = _source(spec, cache_dir)
        args = {**_model_flags(spec, model_id, version), **spec.args}
        is_deaf = _DEAF_SINCE <= version < _DEAF_UNTIL
        awkward = _awkward(args) if version >= _DEAF_SINCE else {}
        env = {
            **order_env(spec.devices),
            # 2.3.0 moved downloads to a folder below; said always, all versions share them.
            **({"HUGGINGFACE_HUB_CACHE": _CACHE} if mount and mount.target == _CACHE else {}),
            **hub_tokens(self._environ, spec.env),
            **awkward,
            **spec.env,
        }
        return ContainerCommand(
            image=spec.image or f"{IMAGE}:{spec.engine_version or NEWEST}",
            argv=tuple(to_argv({n: v for n, v in args.items() if _variable(n) not in awkward})),
            env=env,
            port=_CONTAINER_PORT,
            mounts=joined([mount] if mount else [], spec.volumes),
            shm_bytes=spec.shm_bytes or spec.shards * _SHM_BYTES_PER_SHARD,
            ready_path="/health",
            ready_timeout_s=spec.start_timeout_s,
            entrypoint=(_PROGRAM,) if is_deaf else None,
            capabilities=(READS_AND_WRITES_FOLDERS, _BINDS_PORT_80),
            user_env=nobody_special("/tmp"),  # with a local model it has no folder that stays
        )

    def phase_of(self, log_line: str) -> str | None:
        return phase_of(log_line)

    def token_budget_of(self, log_line: str) -> int | None:
        return token_budget_of(log_line)

    def fault_of(self, log_line: str) -> Fault | None:
        return fault_of(log_line)

    def serving_fault_of(self, log_line: str) -> Fault | None:
        return serving_fault_of(log_line)


def _model_flags(spec: "ReplicaSpec", model_id: str, version: Version) -> dict[str, Arg]:
    """What is the same for a process and a container, in the order people write it."""
    # `auto` that nobody has resolved means what it means to the engine: as the model's files say.
    quantize = None if spec.quantize == "auto" else spec.quantize
    flags: dict[str, Arg] = {
        "model-id": model_id,
        "revision": spec.revision,
        # Refused beside most ways to quantize, of which `auto` may have chosen one.
        "dtype": spec.dtype if quantize is None or "bitsandbytes" in quantize else None,
        "quantize": quantize,
        "num-shard": spec.shards,  # else counted from variables that not every runtime sets
        **_limit_flags(spec, version),
    }
    if spec.memory_fraction is not None:
        flags["cuda-memory-fraction"] = round(spec.memory_fraction, 4)
    if version >= FLAGS["usage-stats"].since:
        flags["usage-stats"] = "off"
    elif FLAGS["disable-usage-stats"].is_in(version):
        flags["disable-usage-stats"] = True
    return flags


def _limit_flags(spec: "ReplicaSpec", version: Version) -> dict[str, Arg]:
    input_tokens, total_tokens = limits(spec.max_input_tokens, spec.max_total_tokens, version)
    input_flag = "max-input-tokens" if version >= (2, 0, 0) else "max-input-length"
    flags: dict[str, Arg] = {input_flag: input_tokens, "max-total-tokens": total_tokens}
    if version < (2, 0, 0) and input_tokens is not None and input_tokens > 4096:
        flags["max-batch-prefill-tokens"] = input_tokens  # its default, 4096, would be refused
    return flags


def _source(spec: "ReplicaSpec", cache_dir: str) -> tuple[str, Mount | None]:
    """The model as the container sees it, and what has to be mounted for that.

    A local one may be written to: weights in an old format are converted beside the originals.
    """
    if not is_local(spec.model_id):
        return spec.model_id, Mount(cache_dir, _CACHE)
    if is_inside(spec.model_id, spec.volumes):
        return spec.model_id, None
    return _MODEL, Mount(host_path(spec.model_id), _MODEL)


def _awkward(args: Mapping[str, Arg]) -> dict[str, str]:
    """Flags whose values a shell would change, as the environment variables they have, too."""
    return {
        _variable(name): value
        for name, value in args.items()
        if isinstance(value, str) and _SHELL_WOULD_CHANGE.search(value)
    }


def _variable(flag: str) -> str:
    return flag.upper().replace("-", "_")


def _other_ports(port: int) -> tuple[int, int]:
    """Ports for metrics and the shards' rendezvous; below the HTTP port near the end of range."""
    sign = 1 if port + OFFSETS_END <= 65_535 else -1
    return port + sign * PROMETHEUS_PORT_OFFSET, port + sign * MASTER_PORT_OFFSET
