"""Which replicas a config asks for, and on which devices. Pure: it looks at no machine.

Called by the supervisor, at every change of the config. A spec's fingerprint says whether a running
replica is still what the config wants; ports and addresses are no part of it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from launcher.config import ClusterConfig, EngineConfig, ModelConfig
from launcher.engines import ENGINES
from launcher.engines.flags import Arg

_MAX_SLUG = 40


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica as the config wants it. `model` is the name clients use, `model_id` the hub's."""

    id: str
    model: str
    model_id: str
    revision: str | None
    dtype: str | None
    quantize: str | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    devices: tuple[str, ...]
    engine_name: str
    engine_version: str | None
    args: Mapping[str, Arg] = field(hash=False)
    env: Mapping[str, str] = field(hash=False, repr=False)  # may hold an access token
    start_timeout_s: float
    fingerprint: str

    @property
    def dialect(self) -> str:
        """What the router must speak to this replica."""
        return ENGINES[self.engine_name].dialect

    @property
    def max_requests(self) -> int | None:
        """Requests at a time, if the config says so; else the router learns it."""
        return _whole(self.args.get("max-concurrent-requests"))

    @property
    def max_tokens(self) -> int | None:
        """Tokens at a time, if the config says so; else the router learns it."""
        return _whole(self.args.get("max-batch-total-tokens"))


def replica_specs(config: ClusterConfig) -> list[ReplicaSpec]:
    """Every replica, in the config's order; ids are stable as long as models keep their names."""
    specs: list[ReplicaSpec] = []
    indices = _free_indices(config)
    slugs = _slugs([model.served_name for model in config.models])
    for model, slug in zip(config.models, slugs, strict=True):
        engine = config.engine_of(model)
        for position in range(model.replicas):
            device = _device(model, engine, position, indices)
            specs.append(_spec(f"{slug}-{position}", model, engine, position, device))
    return specs


def _spec(
    replica_id: str, model: ModelConfig, engine: EngineConfig, position: int, device: str | None
) -> ReplicaSpec:
    wanted: dict[str, Any] = {
        "model_id": model.id,
        "revision": model.revision,
        "dtype": model.dtype,
        "quantize": model.quantize,
        "max_input_tokens": model.max_input_tokens,
        "max_total_tokens": model.max_total_tokens,
        "devices": () if device is None else (device,),
        "engine_name": engine.name,
        "engine_version": engine.version,
        "args": engine.args_at(position),
        "env": dict(engine.env),
    }
    return ReplicaSpec(
        id=replica_id,
        model=model.served_name,
        start_timeout_s=engine.start_timeout_s,
        fingerprint=_fingerprint(wanted),
        **wanted,
    )


def _fingerprint(wanted: dict[str, Any]) -> str:
    """Changes when a running replica would have to be replaced, and only then."""
    text = json.dumps(wanted, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _device(
    model: ModelConfig, engine: EngineConfig, position: int, indices: Iterator[str]
) -> str | None:
    """The named device; for an engine that needs one and has none named, the next free index."""
    if model.devices:
        return model.devices[position]
    return next(indices) if ENGINES[engine.name].uses_gpu else None


def _free_indices(config: ClusterConfig) -> Iterator[str]:
    named = {device for model in config.models for device in model.devices or ()}
    index = 0
    while True:
        if str(index) not in named:
            yield str(index)
        index += 1


def _slugs(names: list[str]) -> list[str]:
    """Short, unlike ids for models: the last part of the name, or all of it, or with a digest."""
    if len(names) == 1:
        return ["replica"]
    short = [_slug(PurePath(name).name) for name in names]
    full = [_slug(name) for name in names]
    slugs = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    return [
        slug if slugs.count(slug) == 1 else f"{slug}-{_digest(name)}"
        for slug, name in zip(slugs, names, strict=True)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:_MAX_SLUG] or "model"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:4]


def _whole(value: Arg) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
