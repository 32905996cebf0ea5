"""What an operator or a model's author calls a device: `cpu`, `cuda:0`, a map of layers to devices.

Haystack's four types (`haystack.utils`) with the strings it reads and its serialised forms, so that
device settings and serialised components move between the two. Used by whatever takes devices in
that notation. Wrong values are refused where they are made; every difference from Haystack is
listed, with its reason, in tests/launcher/test_device_parity.py.

`cuda:0` is a name here, not a piece of hardware: this file never looks for GPUs. It needs no torch;
only `ComponentDevice.resolve_device(None)` and `to_torch` import it.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from typing import Any, Self


class DeviceType(Enum):
    """Kinds of device, by the word that torch and Hugging Face use for them."""

    CPU = "cpu"
    GPU = "cuda"
    DISK = "disk"
    """Weights stay in a file; only a part of a model can be there."""
    MPS = "mps"
    XPU = "xpu"

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def from_str(cls, string: str) -> "DeviceType":
        """Exact and case-sensitive: `gpu`, `CUDA` and ` cuda` are unknown."""
        for member in cls:
            if member.value == string:
                return member
        raise ValueError(f"Unknown device type string '{string}'")


@dataclass(frozen=True, slots=True)
class Device:
    """One device. Without an id it is *some* device of its type, and unlike `:0`."""

    type: DeviceType
    id: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.type, DeviceType):
            raise TypeError(
                f"Device type must be a DeviceType, got {_shown(self.type)}; "
                "Device.from_str reads strings"
            )
        if self.id is None:
            return
        if not isinstance(self.id, int) or isinstance(self.id, bool):
            raise TypeError(f"Device id must be an int or None, got {_shown(self.id)}")
        if self.id < 0:
            raise ValueError(f"Device id must be >= 0, got {self.id}")

    def __str__(self) -> str:
        return str(self.type) if self.id is None else f"{self.type}:{self.id}"

    @classmethod
    def cpu(cls) -> Self:
        """The processor and its memory."""
        return cls(DeviceType.CPU)

    @classmethod
    def gpu(cls, id: int = 0) -> Self:
        """The GPU with this number."""
        return cls(DeviceType.GPU, id)

    @classmethod
    def disk(cls) -> Self:
        """The disk, in a map of devices."""
        return cls(DeviceType.DISK)

    @classmethod
    def mps(cls) -> Self:
        """Apple's GPU."""
        return cls(DeviceType.MPS)

    @classmethod
    def xpu(cls) -> Self:
        """Intel's GPU."""
        return cls(DeviceType.XPU)

    @classmethod
    def from_str(cls, string: str) -> Self:
        """Reads `TYPE` or `TYPE:ID`; the id is what Python's `int` reads."""
        if not isinstance(string, str):
            raise TypeError(
                f"Device must be a string such as 'cuda:0' or 'cpu', got {_shown(string)}"
            )
        kind, *ids = string.split(":")
        if len(ids) > 1:
            raise ValueError(
                f"Device '{string}' has more than one ':', expected TYPE or TYPE:ID, "
                "for example 'cuda:0'"
            )
        number = _id(ids[0]) if ids else None  # before the type, as in Haystack
        return cls(DeviceType.from_str(kind), number)


@dataclass(slots=True)
class DeviceMap:
    """Parts of a model by name, such as layers, and the device of each. The order counts."""

    mapping: dict[str, Device] = field(default_factory=dict)

    def __post_init__(self) -> None:
        items = _items(self.mapping)
        self.mapping = {}  # the caller's dict could change unchecked
        for key, device in items:
            self[key] = device

    def __getitem__(self, key: str) -> Device:
        return self.mapping[key]

    def __setitem__(self, key: str, value: Device) -> None:
        if not isinstance(value, Device):
            raise TypeError(
                f"Device map entry '{key}' must be a Device, got {_shown(value)}; "
                "Device.from_str reads strings"
            )
        self.mapping[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.mapping

    def __len__(self) -> int:
        return len(self.mapping)

    def __iter__(self) -> Iterator[tuple[str, Device]]:
        """Pairs, not keys."""
        return iter(self.mapping.items())

    @property
    def first_device(self) -> Device | None:
        """The first entry's, a disk included; None of an empty map."""
        return next(iter(self.mapping.values()), None)

    def to_dict(self) -> dict[str, str]:
        """The serialised form: strings only."""
        return {key: str(device) for key, device in self}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Self:
        """Reads what `to_dict` wrote."""
        return cls({key: Device.from_str(string) for key, string in _items(data)})

    @classmethod
    def from_hf(cls, hf_device_map: Mapping[str, Any]) -> Self:
        """Reads a model's `hf_device_map`: GPU numbers, strings and torch devices.

        Policies that are still to be worked out ("auto", "balanced") are no devices.
        """
        return cls({key: _from_hf(key, value) for key, value in _items(hf_device_map)})


@dataclass(frozen=True, slots=True)
class ComponentDevice:
    """Where a component runs: on one device, or its parts on several. Exactly one of the two."""

    _single_device: Device | None = None
    _multiple_devices: DeviceMap | None = None

    def __post_init__(self) -> None:
        single, multiple = self._single_device, self._multiple_devices
        if (single is None) == (multiple is None):
            raise ValueError(
                "The component device can neither be empty nor contain both a single device "
                "and a device map"
            )
        if single is not None and not isinstance(single, Device):
            raise TypeError(
                f"A single device must be a Device, got {_shown(single)}; "
                "ComponentDevice.from_str reads strings"
            )
        if multiple is not None and not isinstance(multiple, DeviceMap):
            raise TypeError(
                f"Multiple devices must be a DeviceMap, got {_shown(multiple)}; "
                "DeviceMap.from_dict and DeviceMap.from_hf read dicts"
            )
        if single is not None and single.type is DeviceType.DISK:
            raise ValueError("The disk device can only be used as a part of device maps")

    @classmethod
    def from_str(cls, device_str: str) -> Self:
        """One device, such as `cuda:0`."""
        return cls.from_single(Device.from_str(device_str))

    @classmethod
    def from_single(cls, device: Device) -> Self:
        """One device; the disk is none that something could run on."""
        return cls(_single_device=device)

    @classmethod
    def from_multiple(cls, device_map: DeviceMap) -> Self:
        """Several devices, even if the map has one entry or none."""
        return cls(_multiple_devices=device_map)

    @staticmethod
    def resolve_device(device: "ComponentDevice | None" = None) -> "ComponentDevice":
        """The device itself, or the best that torch finds here: CUDA, XPU, MPS, else the CPU.

        Importing torch takes seconds; without torch the default is the CPU.
        """
        if device is None:
            return ComponentDevice.from_single(_default_device())
        if not isinstance(device, ComponentDevice):
            raise ValueError(
                f"Invalid component device type '{type(device).__name__}'. "
                "Must either be None or ComponentDevice."
            )
        return device

    @property
    def has_multiple_devices(self) -> bool:
        """Made from a map, whatever its length."""
        return self._multiple_devices is not None

    @property
    def first_device(self) -> "ComponentDevice":
        """The single one, or the first of the map that is not the disk."""
        if self._multiple_devices is None:
            return ComponentDevice(_single_device=self._single_device)
        for _, device in self._multiple_devices:
            if device.type is not DeviceType.DISK:
                return ComponentDevice(_single_device=device)
        raise ValueError(
            "No usable device found in the device map; "
            "disk devices cannot be used as a single device"
        )

    def to_torch(self) -> Any:
        """A `torch.device`; ImportError without torch."""
        string = self.to_torch_str()
        return _torch().device(string)

    def to_torch_str(self) -> str:
        """What `torch.device` reads."""
        return str(self._single("PyTorch"))

    def to_spacy(self) -> int:
        """The GPU's number; -1 means the CPU and everything that spaCy does not know."""
        device = self._single("spaCy")
        if device.type is not DeviceType.GPU:
            return -1
        if device.id is None:
            raise ValueError("spaCy must be told which GPU, got 'cuda'; write for example 'cuda:0'")
        return device.id

    def to_hf(self) -> str | dict[str, int | str]:
        """A string for one device; for several a dict, in which GPUs are bare numbers."""
        if self._multiple_devices is None:
            return str(self._single_device)
        return {key: _to_hf(key, device) for key, device in self._multiple_devices}

    def update_hf_kwargs(self, hf_kwargs: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
        """Sets `device`, or `device_map` for several, in the given dict, and returns it.

        Without `overwrite` either key, whatever its value, keeps both as they are. With it, the one
        key is set and the other stays.
        """
        if overwrite or not {"device", "device_map"} & hf_kwargs.keys():
            hf_kwargs["device_map" if self.has_multiple_devices else "device"] = self.to_hf()
        return hf_kwargs

    def to_dict(self) -> dict[str, Any]:
        """The serialised form; GPUs are strings here, too."""
        if self._multiple_devices is None:
            return {"type": "single", "device": str(self._single_device)}
        return {"type": "multiple", "device_map": self._multiple_devices.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; further keys are ignored, missing ones are KeyErrors."""
        kind = data["type"]
        if kind == "single":
            return cls.from_str(data["device"])
        if kind == "multiple":
            return cls.from_multiple(DeviceMap.from_dict(data["device_map"]))
        raise ValueError(f"Unknown component device type '{kind}' in serialized data")

    def _single(self, wanted: str) -> Device:
        if self._single_device is None:
            raise ValueError(f"Only single devices can be converted to {wanted} format")
        return self._single_device


def _id(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as exc:
        raise ValueError(f"Device id must be an integer, got {digits}") from exc


def _items(mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"A device map must be a dict, got {_shown(mapping)}")
    return list(mapping.items())


def _from_hf(key: str, value: object) -> Device:
    if isinstance(value, str):
        return Device.from_str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Device.gpu(value)
    kind, index = getattr(value, "type", None), getattr(value, "index", None)
    if isinstance(kind, str) and isinstance(index, int | None):  # a torch.device, without torch
        return Device(DeviceType.from_str(kind), index)
    raise TypeError(
        f"Couldn't convert HuggingFace device map - unexpected device '{value}' for '{key}'"
    )


def _to_hf(key: str, device: Device) -> int | str:
    if device.type is not DeviceType.GPU:
        return str(device)
    if device.id is None:
        raise ValueError(
            f"Hugging Face must be told which GPU, got 'cuda' for '{key}'; "
            "write for example 'cuda:0'"
        )
    return device.id


def _default_device() -> Device:
    """What torch can use here. The variables are Haystack's; none switches CUDA off."""
    try:
        torch = _torch()
    except ImportError:
        return Device.cpu()
    if torch.cuda.is_available():
        return Device.gpu()
    if _is_on("XPU") and _is_available(getattr(torch, "xpu", None)):
        return Device.xpu()
    if _is_on("MPS") and _is_available(getattr(torch.backends, "mps", None)):
        return Device.mps()
    return Device.cpu()


def _is_on(kind: str) -> bool:
    """Only the exact word `false` switches off, as in Haystack."""
    return os.environ.get(f"HAYSTACK_{kind}_ENABLED") != "false"


def _is_available(backend: Any) -> bool:
    """Old versions of torch lack some backends, or the question."""
    return hasattr(backend, "is_available") and bool(backend.is_available())


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError as exc:
        raise ImportError(
            "torch devices need PyTorch, which cannot be imported here; "
            "install it with: pip install torch"
        ) from exc


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
