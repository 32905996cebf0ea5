"""A whole cluster config, and what its parts cannot be together."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from launcher.config.engine import EngineConfig
from launcher.config.model import MAX_REPLICAS, ModelConfig, leaves_room
from launcher.config.runtime import RuntimeConfig
from launcher.engines import ENGINES
from router.config import RouterConfig, StrictModel, load_model, read_source
from router.config.mismatch import Mismatch, refuse
from router.config.mismatch import Path as KeyPath
from router.config.words import count, did_you_mean, quoted

_ARGS_THAT_NAME = frozenset({"lora-modules", "alias"})
"""Of engines: they serve under more names than the config has, which keys may have as well."""


class ClusterConfig(StrictModel):
    """One cluster: what it serves, on what, and the endpoint in front of it."""

    cluster: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$",
        description="Name of the cluster; two on one machine need two names.",
    )
    models: list[ModelConfig] = Field(min_length=1, description="What is served: at least one.")
    engine: EngineConfig = Field(
        default=EngineConfig(), description="The model server that replicas run."
    )
    runtime: RuntimeConfig = Field(
        default=RuntimeConfig(), description="What starts replicas, and where they listen."
    )
    router: RouterConfig = Field(
        default=RouterConfig(), description="The endpoint: address, policy, queue, limits."
    )

    @property
    def state_dir(self) -> Path:
        """Where this cluster's logs and state are kept."""
        if self.runtime.state_dir is not None:
            return self.runtime.state_dir
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(base) / "gpu-fleet" / self.cluster

    @property
    def runs_here(self) -> bool:
        """Whether replicas run on the machine of this process, not on a Docker Engine elsewhere."""
        if self.runtime.name != "docker":
            return True
        url = self.runtime.docker.url or os.environ.get("DOCKER_HOST") or "unix://"
        return url.startswith("unix://")

    def engine_of(self, model: ModelConfig) -> EngineConfig:
        return model.engine or self.engine

    @model_validator(mode="after")
    def possible(self) -> Self:
        refuse(dict.fromkeys(self._mismatches()))
        return self

    def _mismatches(self) -> Iterator[Mismatch]:
        yield from self._same_names()
        for index, model in enumerate(self.models):
            yield from self._engine_mismatches(index, model)
        yield from self._shared_devices()
        yield from self._all_devices()
        yield from self._models_of_keys()
        total = sum(model.replica_count or 1 for model in self.models)
        if self.runtime.first_port + total > 65_536:
            expected = f"at most {65_536 - total}, so that {count(total, 'replica')} get ports"
            yield Mismatch(("runtime", "first_port"), str(self.runtime.first_port), expected)

    def _same_names(self) -> Iterator[Mismatch]:
        names: list[str] = []
        for index, model in enumerate(self.models):
            if model.served_name in names:
                first = names.index(model.served_name)
                found = f"the name {quoted(model.served_name)}, which models[{first}] has"
                key = "name" if model.name else "id"
                yield Mismatch(("models", index, key), found, "a name of its own for each model")
            names.append(model.served_name)

    def _engine_mismatches(self, index: int, model: ModelConfig) -> Iterator[Mismatch]:
        config = self.engine_of(model)
        place: KeyPath = ("models", index, "engine") if model.engine else ("engine",)
        for bad in ENGINES[config.name].check_model(model, config):
            yield Mismatch(("models", index, *bad.path), bad.found, bad.expected)
        users = [user for user in self.models if self.engine_of(user) is config]
        most = max(user.replica_count or MAX_REPLICAS for user in users)
        if len(config.per_replica or ()) > most:
            found = count(len(config.per_replica or ()), "entry", "entries")
            expected = f"at most {most}, as many as replicas"
            yield Mismatch((*place, "per_replica"), found, expected)

    def uses_gpus(self, model: ModelConfig) -> bool:
        """Whether its replicas need GPUs of this machine."""
        engine = ENGINES[self.engine_of(model).name]
        return engine.uses_gpu and model.wanted_devices.kind != "cpu"

    def _shared_devices(self) -> Iterator[Mismatch]:
        """One GPU, one engine, unless both are told to leave room for the other."""
        owners: dict[str, tuple[int, bool]] = {}
        for index, model in enumerate(self.models):
            if not self.uses_gpus(model):
                continue
            shares = leaves_room(model, self.engine_of(model))
            request = model.wanted_devices
            for position, group in enumerate(request.groups):
                for device in group:
                    owner, owner_shares = owners.setdefault(device, (index, shares))
                    if owner != index and not (shares and owner_shares):
                        found = f"{quoted(device)}, which models[{owner}] has"
                        expected = "each device once, or max_memory for both models"
                        place = ("models", index, *request.place(position))
                        yield Mismatch(place, found, expected)

    def _all_devices(self) -> Iterator[Mismatch]:
        for index, model in enumerate(self.models):
            if model.wanted_devices.kind == "all" and not self.uses_gpus(model):
                engine = self.engine_of(model).name
                expected = f"replicas: N instead, as engine {engine} needs no GPU"
                yield Mismatch(("models", index, "devices"), "all", expected)
        users = [index for index, model in enumerate(self.models) if self.uses_gpus(model)]
        for index in users:
            if self.models[index].wanted_devices.kind == "all" and len(users) > 1:
                other = next(user for user in users if user != index)
                expected = f"a number of GPUs or named ones, as models[{other}] needs some, too"
                yield Mismatch(("models", index, "devices"), "all", expected)

    def _models_of_keys(self) -> Iterator[Mismatch]:
        """A key for a model that nobody serves lets its holder do nothing, without a word."""
        names = [model.served_name for model in self.models]
        if any(_may_name_others(self.engine_of(model)) for model in self.models):
            return
        for index, key in enumerate(self.router.keys):
            if unknown := [name for name in key.models or () if name not in names]:
                expected = did_you_mean(unknown[0], names)
                found = ", ".join(map(quoted, unknown))
                yield Mismatch(("router", "keys", index, "models"), found, expected)


def _may_name_others(engine: EngineConfig) -> bool:
    given = (engine.args, *(engine.per_replica or ()))
    return any(not _ARGS_THAT_NAME.isdisjoint(args) for args in given)


def load_cluster_config(path: Path) -> ClusterConfig:
    """The checked config. Raises router.errors.ConfigError with every problem in the file."""
    return load_model(read_source(path), ClusterConfig)
