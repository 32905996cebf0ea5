"""What `devices` in a config asks for: GPUs to be chosen, or named ones, one group per replica.

Parsed by `config.py`, turned into physical GPUs by `placement.py`. Pure. The short form `cuda:N` is
the N-th GPU in PCI bus order, as `nvidia-smi` and `launcher devices` number them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["auto", "all", "count", "cpu", "named"]
Group = tuple[str, ...]

MAX_DEVICES = 256
_INDEX = re.compile(r"(?:cuda:)?(\d{1,3})")
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-fA-F][0-9a-fA-F/-]*")
_A_DEVICE = "a GPU like cuda:0 (or its index), or a UUID like GPU-8c0f... or MIG-..."
_FORMS = (
    "auto, all, cpu, a number of GPUs, or GPUs: cuda:0, a UUID like GPU-8c0f..., a list of them, "
    "one for each replica"
)


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """`count`: that many GPUs, chosen; `named`: each group is one replica's, in shard order."""

    kind: Kind
    count: int = 0
    groups: tuple[Group, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """Every device that is named, as `cuda:N` or by UUID."""
        return tuple(device for group in self.groups for device in group)

    def replicas(self, gpus_per_replica: int) -> int | None:
        """How many replicas it makes; None where that is not for the devices to say."""
        if self.kind == "named":
            return len(self.groups)
        return self.count // gpus_per_replica if self.kind == "count" else None


def parse_devices(value: Any) -> DeviceRequest:
    """Every form an operator may write. Raises ValueError that says what was expected."""
    match value:
        case DeviceRequest():
            return value
        case "auto" | "all" | "cpu":
            return DeviceRequest(value)
        case bool():
            raise ValueError(_FORMS)
        case int():
            if not 1 <= value <= MAX_DEVICES:
                raise ValueError(f"a number of GPUs from 1 to {MAX_DEVICES}; GPU 0 is cuda:0")
            return DeviceRequest("count", value)
        case str():
            if value.isdecimal():
                so_many = f"{value} without quotes for so many"
                raise ValueError(f"cuda:{value} for that GPU, or {so_many}")
            return DeviceRequest("named", groups=((parse_device(value),),))
        case list() | tuple():
            return DeviceRequest("named", groups=tuple(_groups(value)))
        case Mapping():
            return DeviceRequest("named", groups=(_group(value),))
    raise ValueError(_FORMS)


def parse_device(value: Any) -> str:
    """`0`, `"0"` and `cuda:0` are one device, `cuda:0`; UUIDs stay as they are."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(_A_DEVICE)
    text = str(value)
    if match := _INDEX.fullmatch(text):
        return f"cuda:{int(match[1])}"
    if _UUID.fullmatch(text):
        return text
    if text in ("cpu", "disk", "mps", "xpu"):
        raise ValueError(f"{_A_DEVICE}: an engine's shards are on GPUs")
    raise ValueError(_A_DEVICE)


def index_of(device: str) -> int | None:
    """N of `cuda:N`; None for a UUID."""
    match = _INDEX.fullmatch(device)
    return int(match[1]) if match else None


def _groups(items: list[Any] | tuple[Any, ...]) -> Iterator[Group]:
    """One replica per entry: a device, or a list or map of those it is divided over."""
    if not 1 <= len(items) <= MAX_DEVICES:
        raise ValueError(f"1 to {MAX_DEVICES} entries, one for each replica")
    for item in items:
        yield _group(item) if isinstance(item, Mapping | list | tuple) else (parse_device(item),)


def _group(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Group:
    """The devices of one replica. A map's keys are names for people: `{shard0: cuda:0, ...}`."""
    devices = value.values() if isinstance(value, Mapping) else value
    group = tuple(parse_device(device) for device in devices)
    if not group:
        raise ValueError("at least one device for each replica")
    return group
