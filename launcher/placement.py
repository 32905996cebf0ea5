"""Which replicas a config asks for, and on which GPUs. Pure: the machine's GPUs are an argument.

Called by the supervisor at every change of the config, and by every verb that names replicas. A
spec's fingerprint says whether a running replica is still what the config wants; ports and
addresses are no part of it. Where the machine tells no GPUs, devices stay as they were written.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.assignment import assign
from launcher.config import MAX_REPLICAS, ClusterConfig, EngineConfig, ModelConfig, RuntimeConfig
from launcher.device_request import Group
from launcher.engines import ENGINES
from launcher.engines.base import Mount
from launcher.engines.flags import Arg
from launcher.gpu import Inventory
from launcher.gpu_wishes import Assigned, wanted_models
from launcher.replica_ids import short_names
from router.errors import PlacementError

_WHAT_THEN = "see to that, then run `launcher up` again"
# What each kind of engine calls the number of requests that it works on at a time.
_PERMIT_FLAGS = ("max-concurrent-requests", "max-num-seqs", "parallel")


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica as the config wants it. `model` is the name clients use, `model_id` the hub's.

    `devices` are GPU UUIDs, or `cuda:N` where the machine does not tell them; several: one shard
    on each; none: it needs no GPU. `memory_fraction` is how much of each it may use.
    """

    id: str
    model: str
    model_id: str
    revision: str | None
    dtype: str | None
    quantize: str | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    devices: tuple[str, ...]
    memory_fraction: float | None
    engine_name: str
    engine_version: str | None
    image: str | None
    args: Mapping[str, Arg] = field(hash=False)
    env: Mapping[str, str] = field(hash=False, repr=False)  # may hold an access token
    volumes: tuple[Mount, ...]
    shm_bytes: int | None
    start_timeout_s: float
    fingerprint: str
    trouble: str = ""
    """Why it cannot be started before somebody has seen to it; what runs of it runs on."""

    @property
    def shards(self) -> int:
        return max(1, len(self.devices))

    @property
    def dialect(self) -> str:
        """What the router must speak to this replica."""
        return ENGINES[self.engine_name].dialect

    @property
    def max_requests(self) -> int | None:
        """Requests at a time, if the config says so; else the router learns it."""
        return next(filter(None, (_whole(self.args.get(flag)) for flag in _PERMIT_FLAGS)), None)

    @property
    def max_tokens(self) -> int | None:
        """Tokens at a time, if the config says so; else the router learns it."""
        return _whole(self.args.get("max-batch-total-tokens"))


@dataclass(frozen=True, slots=True)
class Sizing:
    """What is decided by what fits: how weights are compressed, and the share of the GPU."""

    quantize: str | None = None
    dtype: str | None = None
    memory_fraction: float | None = None


class UnknownCard(PlacementError):
    """What fits cannot be decided, as the GPU cannot be asked."""


Size = Callable[[ModelConfig, EngineConfig, tuple[str, ...]], Sizing]


def as_written(model: ModelConfig, engine: EngineConfig, devices: tuple[str, ...]) -> Sizing:
    """Nothing is decided: `quantize: auto` stays so. Enough for verbs that start nothing."""
    return Sizing(model.quantize, model.dtype)


def replica_specs(
    config: ClusterConfig,
    inventory: Inventory | None = None,
    running: Mapping[str, tuple[str, ...]] = {},
    size: Size = as_written,
    names: Mapping[str, str] = {},
    fingerprints: Mapping[str, str] | None = None,
) -> list[ReplicaSpec]:
    """Every replica, in the config's order; ids are stable as long as models keep their names.

    `names`: by model, what ids of its replicas that are there already begin with.
    `fingerprints`: of what runs, by replica id. With it a machine that has lost a GPU or its driver
    is refused nothing: replicas that it hits have `trouble`, and run on as they are if they do.
    `running`: by replica id, the devices of what runs, which stays there where devices are chosen.
    Raises PlacementError when the GPUs are not there, or are not enough.
    """
    short = short_names([model.served_name for model in config.models], names)
    groups = assign(
        wanted_models(config),
        inventory,
        [_running_of(name, running) for name in short],
        is_lenient=fingerprints is not None,
    )
    around = _around(config.runtime)
    return [
        _spec(
            f"{name}-{one.position}",
            model,
            config.engine_of(model),
            one,
            size,
            around,
            fingerprints or {},
        )
        for name, model, given in zip(short, config.models, groups, strict=True)
        for one in given
    ]


def _running_of(name: str, running: Mapping[str, Group]) -> list[Group | None]:
    return [running.get(f"{name}-{position}") for position in range(MAX_REPLICAS if running else 0)]


def _spec(
    replica_id: str,
    model: ModelConfig,
    engine: EngineConfig,
    given: Assigned,
    size: Size,
    around: Mapping[str, Any],
    running: Mapping[str, str],
) -> ReplicaSpec:
    trouble, sizing = given.trouble, as_written(model, engine, given.devices)
    try:
        if not trouble:
            sizing = size(model, engine, given.devices)
    except UnknownCard as exc:
        if replica_id not in running:
            raise
        trouble = str(exc)
    wanted: dict[str, Any] = {
        "model_id": model.id,
        "revision": model.revision,
        "dtype": sizing.dtype,
        "quantize": sizing.quantize,
        "max_input_tokens": model.max_input_tokens,
        "max_total_tokens": model.max_total_tokens,
        "devices": given.devices,
        "memory_fraction": sizing.memory_fraction,
        "engine_name": engine.name,
        "engine_version": engine.version,
        "image": engine.image,
        "args": engine.args_at(given.position),
        "env": dict(engine.env),
        "volumes": tuple(engine.volumes),
        "shm_bytes": engine.shm_size,
    }
    identity = {**wanted, **around, **_named(model, engine)}
    if trouble:  # another spec than the one without: that one is to be started at once
        identity["trouble"] = trouble
    is_kept = bool(trouble) and replica_id in running
    return ReplicaSpec(
        id=replica_id,
        model=model.served_name,
        start_timeout_s=engine.start_timeout_s,
        fingerprint=running[replica_id] if is_kept else _fingerprint(identity),
        trouble=trouble and f"{'; '.join(trouble.splitlines())}; {_WHAT_THEN}",
        **wanted,
    )


def _named(model: ModelConfig, engine: EngineConfig) -> dict[str, str]:
    """Engines that speak OpenAI's API are told the name; renaming the model replaces those."""
    return {"name": model.served_name} if ENGINES[engine.name].dialect == "openai" else {}


def _around(runtime: RuntimeConfig) -> dict[str, Any]:
    """What a container is made with beside its spec."""
    if runtime.name != "docker":
        return {}
    names = ("gpu_injection", "cache_dir", "network", "memory", "user")
    return {name: str(getattr(runtime.docker, name)) for name in names}


def _fingerprint(wanted: dict[str, Any]) -> str:
    """Changes when a running replica would have to be replaced, and only then."""
    text = json.dumps(wanted, sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(value: Arg) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
