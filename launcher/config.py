"""What an operator can write in a cluster config: each field's meaning, unit, default and trap.

`load_cluster_config` is called by every launcher verb. Here only what is written is judged; whether
the devices are there and the models fit is another file's question.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from launcher.engines import ENGINES
from launcher.engines.flags import Arg
from router.config import RouterConfig, StrictModel, load_model, read_source
from router.config.mismatch import Mismatch, refuse
from router.config.mismatch import Path as KeyPath
from router.config.models import Seconds, ShorthandModel
from router.config.words import count, quoted

MAX_REPLICAS = 256
_MAX_STATE_DIR_BYTES = 90  # unix sockets live there; their whole path may have 107
_DEVICE = re.compile(r"(?:cuda:)?(\d{1,3})|((?:GPU|MIG)-[0-9a-fA-F][0-9a-fA-F/-]*)")


def _device(value: Any) -> Any:
    """`0`, `"0"` and `cuda:0` are one device; UUIDs stay as they are."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    match = _DEVICE.fullmatch(str(value))
    if match is None:
        raise ValueError("a CUDA index like 0 or cuda:0, or a UUID like GPU-8c0f...")
    return match[2] or str(int(match[1]))


DeviceId = Annotated[
    str,
    BeforeValidator(_device),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}),
]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class EngineConfig(ShorthandModel):
    """The model server that each replica runs. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["simulator", "tgi"] = Field(
        "simulator", description="simulator needs no GPU and is no language model; tgi is real."
    )
    version: str | None = Field(
        None, description='The engine\'s version, in quotes ("3.3.5"); default: the newest known.'
    )
    args: dict[str, Arg] = Field(
        default={},
        description="Flags of the engine, without dashes: `max-batch-size: 8`; true: flag alone.",
    )
    env: dict[EnvName, str] = Field(
        default={},
        repr=False,
        description="Environment variables. Write ${NAME} to keep secrets out of the file.",
    )
    per_replica: list[dict[str, Arg]] | None = Field(
        None, description="Flags that differ: the first entry is for each model's first replica."
    )
    start_timeout_s: Seconds = Field(
        1800.0, description="From start to ready, in seconds. A first download takes long."
    )

    @model_validator(mode="after")
    def possible(self) -> Self:
        refuse(ENGINES[self.name].check_engine(self))
        return self

    def all_args(self) -> Iterator[tuple[KeyPath, dict[str, Arg]]]:
        """Every mapping of flags, with its place below `engine`."""
        yield ("args",), self.args
        for position, args in enumerate(self.per_replica or ()):
            yield ("per_replica", position), args

    def args_at(self, position: int) -> dict[str, Arg]:
        """The flags of a model's replica number `position`, counted from 0."""
        own = self.per_replica or []
        return {**self.args, **(own[position] if position < len(own) else {})}


class ModelConfig(ShorthandModel):
    """One model and its replicas. A plain text is its id."""

    shorthand: ClassVar[str] = "id"

    id: str = Field(min_length=1, description="Hub id or local path of the model.")
    name: str | None = Field(
        None, min_length=1, description="Name that clients ask for; default: the id."
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit; pin it.")
    dtype: str | None = Field(None, description="float16 or bfloat16; not beside quantize.")
    quantize: str | None = Field(
        None, description="How weights are compressed, for example awq, gptq, eetq or fp8."
    )
    max_input_tokens: int | None = Field(
        None, ge=1, description="Longest prompt; default: max_total_tokens - 1, if that is given."
    )
    max_total_tokens: int | None = Field(
        None, ge=2, description="Longest prompt and answer together; default: the engine's."
    )
    replicas: int = Field(
        1, ge=1, le=MAX_REPLICAS, description="How many run; default: one per device, or 1."
    )
    devices: list[DeviceId] | None = Field(
        None,
        min_length=1,
        max_length=MAX_REPLICAS,
        description="One replica on each: CUDA indices (0, cuda:0) or GPU UUIDs.",
    )
    engine: EngineConfig | None = Field(
        None, description="Instead of the cluster's engine section, as a whole."
    )

    @property
    def served_name(self) -> str:
        return self.name or self.id

    @model_validator(mode="before")
    @classmethod
    def one_replica_per_device(cls, value: Any) -> Any:
        if isinstance(value, dict) and "replicas" not in value:
            devices = value.get("devices")
            if isinstance(devices, list) and 1 <= len(devices) <= MAX_REPLICAS:
                return {**value, "replicas": len(devices)}
        return value

    @model_validator(mode="after")
    def possible(self) -> Self:
        refuse(self._mismatches())
        return self

    def _mismatches(self) -> Iterator[Mismatch]:
        longest, total = self.max_input_tokens, self.max_total_tokens
        if longest is not None and total is not None and longest >= total:
            expected = f"less than max_total_tokens ({total}): an answer needs room"
            yield Mismatch(("max_input_tokens",), str(longest), expected)
        devices = self.devices or []
        if devices and len(devices) != self.replicas:
            expected = f"{self.replicas}, as many as replicas"
            yield Mismatch(("devices",), count(len(devices), "device"), expected)
        for position, device in enumerate(devices):
            if device in devices[:position]:
                found = f"{quoted(device)} a second time"
                yield Mismatch(("devices", position), found, "each device once")


class RestartConfig(StrictModel):
    """How soon a replica that ended is started again."""

    first_s: float = Field(0.0, ge=0, le=3600, description="Wait before the first restart.")
    base_s: Seconds = Field(1.0, description="Wait before the second; doubles each time.")
    max_s: Seconds = Field(300.0, description="Longest wait.")
    reset_after_s: Seconds = Field(
        600.0, description="Ready for this long, a replica counts as never having failed."
    )
    max_failures: int | None = Field(
        None, ge=1, description="Failed starts in a row before giving up; default: never."
    )

    @model_validator(mode="after")
    def growing(self) -> Self:
        if self.base_s > self.max_s:
            expected = f"at most max_s ({self.max_s:g})"
            refuse([Mismatch(("base_s",), f"{self.base_s:g}", expected)])
        return self


class RuntimeConfig(ShorthandModel):
    """What starts the replicas, and where they listen. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["process"] = Field("process", description="One process per replica.")
    state_dir: Path | None = Field(
        None,
        description="Logs and state; default: $XDG_STATE_HOME or ~/.local/state, then "
        "gpu-fleet/CLUSTER. Two launchers must not share one.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address that replicas listen on.")
    first_port: int = Field(
        31_000, ge=1024, le=65_000, description="Replicas take free ports from here on."
    )
    stop_grace_s: float = Field(
        90.0, ge=0, le=3600, description="From asking a replica to stop to killing it."
    )
    restart: RestartConfig = RestartConfig()

    @field_validator("state_dir", mode="after")
    @classmethod
    def absolute(cls, state_dir: Path | None) -> Path | None:
        if state_dir is None:
            return None
        if str(state_dir).startswith("~"):
            try:
                state_dir = state_dir.expanduser()
            except RuntimeError as exc:
                raise ValueError("a folder in a home directory that exists") from exc
        if not state_dir.is_absolute():
            raise ValueError("an absolute path, or one that begins with ~/")
        if len(os.fsencode(state_dir)) > _MAX_STATE_DIR_BYTES:
            raise ValueError(f"at most {_MAX_STATE_DIR_BYTES} bytes: unix sockets live there")
        return state_dir


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
        total = sum(model.replicas for model in self.models)
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
        most = max(user.replicas for user in users)
        if len(config.per_replica or ()) > most:
            found = count(len(config.per_replica or ()), "entry", "entries")
            expected = f"at most {most}, as many as replicas"
            yield Mismatch((*place, "per_replica"), found, expected)

    def _shared_devices(self) -> Iterator[Mismatch]:
        """One GPU, one engine, unless both are told to leave room for the other."""
        owners: dict[str, tuple[int, bool]] = {}
        for index, model in enumerate(self.models):
            config = self.engine_of(model)
            if not ENGINES[config.name].uses_gpu:
                continue
            shares = "cuda-memory-fraction" in config.args
            for position, device in enumerate(model.devices or ()):
                owner, owner_shares = owners.setdefault(device, (index, shares))
                if owner != index and not (shares and owner_shares):
                    found = f"{quoted(device)}, which models[{owner}] has"
                    expected = "each device once, or cuda-memory-fraction for both engines"
                    yield Mismatch(("models", index, "devices", position), found, expected)
        if any(not device.isdecimal() for device in owners):
            for index, model in enumerate(self.models):
                if ENGINES[self.engine_of(model).name].uses_gpu and not model.devices:
                    expected = "devices for every model, because others name theirs by UUID"
                    yield Mismatch(("models", index), "no devices", expected)


def load_cluster_config(path: Path) -> ClusterConfig:
    """The checked config. Raises router.errors.ConfigError with every problem in the file."""
    return load_model(read_source(path), ClusterConfig)
