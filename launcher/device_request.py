"""What `devices` in a config asks for: GPUs to be chosen, or named ones, one group per replica.

Parsed by `launcher.config`, turned into physical GPUs by `assignment.py`. Pure. The short form
`cuda:N` is the N-th GPU in PCI bus order, as `nvidia-smi` and `launcher devices` number them.
Haystack's serialised devices are taken where one replica's may stand.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.device import Device, DeviceType
from router.config.mismatch import Mismatch, Mismatches, Path, refuse
from router.config.words import describe, quoted

Kind = Literal["auto", "all", "count", "cpu", "named"]
Group = tuple[str, ...]

MAX_DEVICES = 256
_INDEX = re.compile(r"(?:cuda:)?(\d{1,3})", re.ASCII)
_UUID = re.compile(r"(?:GPU|MIG|MIG-GPU)-[0-9a-fA-F][0-9a-fA-F/-]*")
_A_DEVICE = "a GPU like cuda:0 (or its index), or a UUID like GPU-8c0f... or MIG-..."
_NOT_GPUS = frozenset(str(kind) for kind in DeviceType) - {str(DeviceType.GPU)}
_NO_SHARDS = "engines keep all of a model on GPUs"
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

    def place(self, position: int) -> Path:
        """Where the group of replica number `position` stands, from the model on."""
        return ("devices",) if len(self.groups) == 1 else ("devices", position)


def parse_devices(value: Any) -> DeviceRequest:
    """Every form an operator may write. Raises ValueError that says what was expected, and
    `Mismatches` (one, too) for what is wrong inside a list or a map, with the place."""
    match value:
        case DeviceRequest():
            return value
        case "auto" | "all" | "cpu":
            return DeviceRequest(value)
        case "cuda":  # some GPU, as Haystack writes its default
            return DeviceRequest("auto")
        case bool():
            raise ValueError(_FORMS)
        case int():
            if not 1 <= value <= MAX_DEVICES:
                raise ValueError(f"a number of GPUs from 1 to {MAX_DEVICES}; GPU 0 is cuda:0")
            return DeviceRequest("count", value)
        case str():
            return DeviceRequest("named", groups=((_alone(value),),))
        case list() | tuple():
            return DeviceRequest("named", groups=_groups(value))
        case Mapping() if _is_serialised(value):
            return _deserialised(value)
        case Mapping():
            return DeviceRequest("named", groups=(_group(value, ()),))
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
    if text.partition(":")[0] in _NOT_GPUS:
        raise ValueError(f"{_A_DEVICE}: {_NO_SHARDS}")
    if text == "cuda":
        raise ValueError(f"{_A_DEVICE}; for any of them write devices: auto, or how many")
    raise ValueError(_A_DEVICE)


def index_of(device: str) -> int | None:
    """N of `cuda:N`; None for a UUID."""
    match = _INDEX.fullmatch(device)
    return int(match[1]) if match else None


def _alone(text: str) -> str:
    """One device for one replica, without a list around it."""
    if text.isdecimal():
        raise ValueError(f"cuda:{text} for that GPU, or {text} without quotes for so many")
    try:
        return parse_device(text)
    except ValueError as exc:  # it may have been meant as any of the forms
        raise ValueError(str(exc) if _NO_SHARDS in str(exc) else _FORMS) from exc


def _groups(items: Sequence[Any]) -> tuple[Group, ...]:
    """One replica per entry: a device, or a list or map of those it is divided over."""
    if not 1 <= len(items) <= MAX_DEVICES:
        raise ValueError(f"1 to {MAX_DEVICES} entries, one for each replica")
    wrong: list[Mismatch] = []
    groups: list[Group] = []
    for position, item in enumerate(items):
        try:
            groups.append(_entry(item, position))
        except Mismatches as exc:
            wrong += exc.mismatches
    refuse(wrong)
    return tuple(groups)


def _entry(item: Any, position: int) -> Group:
    if isinstance(item, Mapping) and _is_serialised(item):
        try:
            request = _deserialised(item)
        except Mismatches as exc:
            raise Mismatches(
                Mismatch((position, *bad.path), bad.found, bad.expected) for bad in exc.mismatches
            ) from exc
        if request.kind == "named":
            return request.groups[0]
        found = f"the device {quoted(str(item['device']))}"
        raise Mismatches([Mismatch((position, "device"), found, _A_DEVICE)])
    if isinstance(item, Mapping | list | tuple):
        return _group(item, (position,))
    return (_at((position,), item),)


def _group(value: Mapping[Any, Any] | Sequence[Any], path: Path) -> Group:
    """The devices of one replica. A map's keys are names for people: `{shard0: cuda:0, ...}`."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    wrong: list[Mismatch] = []
    group: list[str] = []
    for key, device in items:
        try:
            group.append(_at((*path, key), device))
        except Mismatches as exc:
            wrong += exc.mismatches
    if not group and not wrong:
        wrong.append(Mismatch(path, "no device", "at least one device for each replica"))
    refuse(wrong)
    return tuple(group)


def _at(path: Path, value: Any) -> str:
    try:
        return parse_device(value)
    except ValueError as exc:
        raise Mismatches([Mismatch(path, describe(value, None), str(exc))]) from exc


# ---- Haystack's serialised forms


def _is_serialised(value: Mapping[Any, Any]) -> bool:
    """`ComponentDevice.to_dict()` made it: `{type: single, device: cuda:0}`, or a device_map."""
    return "type" in value and (
        value["type"] in ("single", "multiple") or bool({"device", "device_map"} & value.keys())
    )


def _deserialised(value: Mapping[Any, Any]) -> DeviceRequest:
    """One replica: on that device, or divided over those of the map, each in it once.

    Keys beyond Haystack's are ignored, as it does.
    """
    match value["type"]:
        case "single":
            return _single(value.get("device"))
        case "multiple":
            return DeviceRequest("named", groups=(_of_device_map(value.get("device_map")),))
    found = describe(value["type"], None)
    raise Mismatches([Mismatch(("type",), found, "single or multiple, as Haystack writes it")])


def _single(value: Any) -> DeviceRequest:
    match _haystack_device(value):
        case Device(type=DeviceType.CPU):
            return DeviceRequest("cpu")
        case Device(type=DeviceType.GPU, id=None):
            return DeviceRequest("auto")
    return DeviceRequest("named", groups=((_at(("device",), value),),))


def _of_device_map(value: Any) -> Group:
    """Layers share devices, so that each stands there many times."""
    if not isinstance(value, Mapping):
        expected = "a mapping of parts of the model to devices, such as {layer1: cuda:0}"
        raise Mismatches([Mismatch(("device_map",), describe(value, None), expected)])
    return tuple(dict.fromkeys(_group(value, ("device_map",))))


def _haystack_device(value: Any) -> Device | None:
    """None for what is no device to Haystack, such as a UUID."""
    try:
        return Device.from_str(value)
    except (TypeError, ValueError):
        return None
