"""An entry of `models`: what is served, on which devices, how much of them it may take."""

from collections.abc import Iterator
from typing import ClassVar, Self

from pydantic import Field, model_validator

from launcher.config.engine import EngineConfig
from launcher.config.values import Devices, MaxMemory
from launcher.device_request import DeviceRequest
from router.config.mismatch import Mismatch, refuse
from router.config.models import ShorthandModel
from router.config.words import count, quoted

MAX_REPLICAS = 256
_FRACTION_FLAGS = ("cuda-memory-fraction", "gpu-memory-utilization")


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
    max_memory: MaxMemory | None = Field(
        None,
        description='GPU memory that replicas may fill: "20GiB", or by GPU, {0: "20GiB"} for '
        "cuda:0; default: what the engine takes, nearly all.",
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
            expected = "no replicas beside devices: all, which makes one on every GPU"
            yield Mismatch(("replicas",), str(self.replicas), expected)
        made = request.replicas(self.shards)
        if request.kind == "count" and request.count % self.shards:
            expected = f"a multiple of gpus_per_replica ({self.shards})"
            yield Mismatch(("devices",), count(request.count, "GPU"), expected)
        elif made is not None and self.replicas is not None and made != self.replicas:
            found = f"devices for {count(made, 'replica')}"
            yield Mismatch(("devices",), found, f"{self.replicas}, as many as replicas")
        for position, group in enumerate(request.groups):
            if self.gpus_per_replica not in (None, len(group)):
                expected = f"{self.gpus_per_replica}, as gpus_per_replica says"
                yield Mismatch(request.place(position), count(len(group), "device"), expected)
        if self.gpus_per_replica and request.kind == "cpu":
            expected = "no gpus_per_replica beside devices: cpu"
            yield Mismatch(("gpus_per_replica",), str(self.gpus_per_replica), expected)
        seen: set[str] = set()
        for position, group in enumerate(request.groups):
            for device in group:
                if device in seen:
                    found = f"{quoted(device)} a second time"
                    yield Mismatch(request.place(position), found, "each device once")
                seen.add(device)


def leaves_room(model: ModelConfig, engine: EngineConfig) -> bool:
    """Whether its replicas are told how much of a GPU they may use."""
    return model.max_memory is not None or any(f in engine.args for f in _FRACTION_FLAGS)
