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

from launcher.device_request import DeviceRequest, parse_devices
from launcher.engines import ENGINES
from launcher.engines.base import Mount
from launcher.engines.flags import Arg
from router.config import RouterConfig, StrictModel, load_model, read_source
from router.config.mismatch import Mismatch, refuse
from router.config.mismatch import Path as KeyPath
from router.config.models import Seconds, ShorthandModel
from router.config.words import count, quoted

MAX_REPLICAS = 256
_MAX_STATE_DIR_BYTES = 90  # unix sockets live there; their whole path may have 107
_HOST_PATH = re.compile(r"(/|~/|~$)")


def _volume(value: Any) -> Any:
    """`HOST:CONTAINER`, or with `:ro` behind, as `docker run -v` takes it."""
    if not isinstance(value, str):
        return value
    source, separator, rest = value.partition(":")
    target, _, mode = rest.partition(":")
    is_fine = separator and _HOST_PATH.match(source) and target.startswith("/")
    if not is_fine or mode not in ("", "ro", "rw"):
        raise ValueError("/host/folder:/folder/in/container, with :ro behind to protect it")
    return Mount(os.path.expanduser(source), target, mode == "ro")


def _size(value: Any) -> Any:
    from launcher.sizes import parse_size_bytes

    return value if value is None else parse_size_bytes(value)


_DEVICES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": ["auto", "all", "cpu"]},
        {"type": "integer", "minimum": 1},
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": ["string", "integer", "array", "object"]},
        },
        {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
    ]
}
Devices = Annotated[DeviceRequest, BeforeValidator(parse_devices), WithJsonSchema(_DEVICES_SCHEMA)]
Volume = Annotated[
    Mount, BeforeValidator(_volume), WithJsonSchema({"type": "string", "examples": ["/a:/b:ro"]})
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["20GiB", "1GB"]}),
]
_FRACTION_FLAGS = ("cuda-memory-fraction", "gpu-memory-utilization")
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class EngineConfig(ShorthandModel):
    """The model server that each replica runs. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["simulator", "tgi", "vllm", "aphrodite", "llamacpp"] = Field(
        "simulator", description="simulator needs no GPU and is no language model; others are real."
    )
    version: str | None = Field(
        None, description='The engine\'s version, in quotes ("3.3.5"); default: the newest known.'
    )
    image: str | None = Field(
        None,
        pattern=r"^[^\s:@-][^\s]*$",
        description="The container's image, with its tag or digest; default: the engine's own.",
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
    volumes: list[Volume] = Field(
        default=[],
        description="Folders of this machine for the container: /host/folder:/in/container[:ro].",
    )
    shm_size: Size | None = Field(
        None, description='Shared memory of the container, like "1GiB"; default: the engine\'s.'
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
        None,
        description="How weights are compressed, for example awq, gptq, eetq or fp8; auto: the "
        "least lossy way that fits the GPU.",
    )
    max_input_tokens: int | None = Field(
        None, ge=1, description="Longest prompt; default: max_total_tokens - 1, if that is given."
    )
    max_total_tokens: int | None = Field(
        None, ge=2, description="Longest prompt and answer together; default: the engine's."
    )
    replicas: int | None = Field(
        None, ge=1, le=MAX_REPLICAS, description="How many run; default: as devices say, or 1."
    )
    devices: Devices | None = Field(
        None,
        description="auto (default), all, cpu, a number of GPUs, or named ones: cuda:1, a UUID, a "
        "list with an entry for each replica. A map or list of several is one replica's.",
    )
    gpus_per_replica: int | None = Field(
        None,
        ge=1,
        le=16,
        description="GPUs that each replica is divided over, where devices does not name them.",
    )
    engine: EngineConfig | None = Field(
        None, description="Instead of the cluster's engine section, as a whole."
    )

    @property
    def served_name(self) -> str:
        return self.name or self.id

    @property
    def wanted_devices(self) -> DeviceRequest:
        return self.devices or DeviceRequest("auto")

    @property
    def shards(self) -> int:
        """GPUs of each replica; of named groups, those of the first."""
        if self.wanted_devices.groups:
            return len(self.wanted_devices.groups[0])
        return self.gpus_per_replica or 1

    @property
    def replica_count(self) -> int | None:
        """How many run; None for `devices: all`, where the machine decides."""
        if self.wanted_devices.kind == "all":
            return None
        return self.wanted_devices.replicas(self.shards) or self.replicas or 1

    @model_validator(mode="after")
    def possible(self) -> Self:
        refuse(self._mismatches())
        return self

    def _mismatches(self) -> Iterator[Mismatch]:
        longest, total = self.max_input_tokens, self.max_total_tokens
        if longest is not None and total is not None and longest >= total:
            expected = f"less than max_total_tokens ({total}): an answer needs room"
            yield Mismatch(("max_input_tokens",), str(longest), expected)
        yield from self._device_mismatches(self.wanted_devices)

    def _device_mismatches(self, request: DeviceRequest) -> Iterator[Mismatch]:
        if request.kind == "all" and self.replicas is not None:
            yield Mismatch(("replicas",), str(self.replicas), "nothing here: all decides it")
        if request.kind == "count" and request.count % self.shards:
            expected = f"a multiple of gpus_per_replica ({self.shards})"
            yield Mismatch(("devices",), count(request.count, "GPU"), expected)
        made = request.replicas(self.shards)
        if made is not None and self.replicas is not None and made != self.replicas:
            found = f"devices for {count(made, 'replica')}"
            yield Mismatch(("devices",), found, f"{self.replicas}, as many as replicas")
        if self.gpus_per_replica and any(len(g) != self.gpus_per_replica for g in request.groups):
            expected = f"{self.gpus_per_replica} for each replica, as gpus_per_replica says"
            yield Mismatch(("devices",), f"{_sizes(request)} devices", expected)
        if self.gpus_per_replica and request.kind == "cpu":
            yield Mismatch(("gpus_per_replica",), str(self.gpus_per_replica), "nothing beside cpu")
        seen: set[str] = set()
        for position, group in enumerate(request.groups):
            for device in group:
                if device in seen:
                    found = f"{quoted(device)} a second time"
                    yield Mismatch(("devices", position), found, "each device once")
                seen.add(device)


def _sizes(request: DeviceRequest) -> str:
    return ", ".join(map(str, dict.fromkeys(len(group) for group in request.groups)))


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


def _absolute(path: Path) -> Path:
    if str(path).startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as exc:
            raise ValueError("a folder in a home directory that exists") from exc
    if not path.is_absolute():
        raise ValueError("an absolute path, or one that begins with ~/")
    return path


class DockerConfig(StrictModel):
    """How containers are made, where `runtime.name` is docker."""

    url: str | None = Field(
        None,
        pattern=r"^(unix:///|tcp://|ssh://|http://|https://).+",
        description="Where the Docker Engine answers; default: $DOCKER_HOST, or its usual socket.",
    )
    gpu_injection: Literal["auto", "request", "cdi", "runtime", "none"] = Field(
        "auto", description="How containers get their GPUs; auto asks the engine what it can do."
    )
    pull: Literal["missing", "always", "never"] = Field(
        "missing", description="When images are pulled; a start never waits for one it has."
    )
    model_cache: Path | None = Field(
        None,
        description="Folder for downloaded models, shared by all replicas; default: "
        "$XDG_CACHE_HOME or ~/.cache, then gpu-fleet/models.",
    )
    network: str | None = Field(
        None, min_length=1, description="A network of yours that containers join; default: bridge."
    )
    memory: Size | None = Field(
        None, description='Host memory of each container at most, like "64GiB"; default: no limit.'
    )
    user: str | None = Field(
        None, min_length=1, description="User (and :group) inside; default: the image's own."
    )
    log_max_size: str = Field(
        "10m", pattern=r"^[1-9][0-9]*[kmg]$", description="Docker's log file is rotated at this."
    )
    log_max_files: int = Field(3, ge=1, le=100, description="Rotated log files kept by Docker.")

    @field_validator("model_cache", mode="after")
    @classmethod
    def absolute(cls, model_cache: Path | None) -> Path | None:
        return None if model_cache is None else _absolute(model_cache)

    @property
    def cache_dir(self) -> Path:
        """Where models are downloaded to."""
        if self.model_cache is not None:
            return self.model_cache
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "gpu-fleet" / "models"


class RuntimeConfig(ShorthandModel):
    """What starts the replicas, and where they listen. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["process", "docker"] = Field(
        "process", description="One process, or one container, per replica."
    )
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
    max_loading: int = Field(
        2, ge=1, le=MAX_REPLICAS, description="Replicas with a GPU that load at the same time."
    )
    restart: RestartConfig = RestartConfig()
    docker: DockerConfig = DockerConfig()

    @field_validator("state_dir", mode="after")
    @classmethod
    def absolute(cls, state_dir: Path | None) -> Path | None:
        if state_dir is None:
            return None
        state_dir = _absolute(state_dir)
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
        yield from self._all_devices()
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
            for position, group in enumerate(model.wanted_devices.groups):
                for device in group:
                    owner, owner_shares = owners.setdefault(device, (index, shares))
                    if owner != index and not (shares and owner_shares):
                        found = f"{quoted(device)}, which models[{owner}] has"
                        expected = "each device once, or max_memory for both models"
                        yield Mismatch(("models", index, "devices", position), found, expected)

    def _all_devices(self) -> Iterator[Mismatch]:
        users = [index for index, model in enumerate(self.models) if self.uses_gpus(model)]
        for index in users:
            if self.models[index].wanted_devices.kind == "all" and len(users) > 1:
                other = next(user for user in users if user != index)
                expected = f"fewer, as models[{other}] needs GPUs, too"
                yield Mismatch(("models", index, "devices"), "all", expected)


def leaves_room(model: ModelConfig, engine: EngineConfig) -> bool:
    """Whether its replicas are told how much of a GPU they may use."""
    return any(flag in engine.args for flag in _FRACTION_FLAGS)


def load_cluster_config(path: Path) -> ClusterConfig:
    """The checked config. Raises router.errors.ConfigError with every problem in the file."""
    return load_model(read_source(path), ClusterConfig)
