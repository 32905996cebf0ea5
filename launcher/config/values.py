"""Kinds of values that several parts of a cluster config have, as they may be written."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from launcher.device_request import DeviceRequest, parse_devices
from launcher.engines.base import Mount
from launcher.max_memory import parse_max_memory
from launcher.sizes import parse_size_bytes
from router.config.mismatch import Mismatch, Mismatches

_NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
_HOST_PATH = re.compile(r"(/|~/|~$)")


def _volume(value: Any) -> Any:
    """`HOST:CONTAINER`, or with `:ro` behind, as `docker run -v` takes it."""
    if isinstance(value, Mount):
        return value
    source, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    target, _, mode = rest.partition(":")
    is_fine = _HOST_PATH.match(source) and target.startswith("/")
    if not is_fine or mode not in ("", "ro", "rw"):
        raise ValueError("/host/folder:/folder/in/container, with :ro behind to protect it")
    return Mount(os.path.expanduser(source), target, mode == "ro")


def _size(value: Any) -> Any:
    return value if value is None else parse_size_bytes(value)


def _max_memory(value: Any) -> Any:
    """A size, or sizes by GPU. YAML's keys arrive as texts here: `{0: 20GiB}` has the key "0"."""
    if not isinstance(value, Mapping):
        return _size(value)
    try:
        return parse_max_memory({_gpu_number(key): size for key, size in value.items()})
    except Mismatches as exc:
        raise Mismatches(_as_written(bad) for bad in exc.mismatches) from exc


def _gpu_number(key: Any) -> Any:
    return int(key) if isinstance(key, str) and _NUMBER.fullmatch(key) else key


def _as_written(bad: Mismatch) -> Mismatch:
    return Mismatch(tuple(map(str, bad.path)), bad.found, bad.expected)


def _of_form(pattern: str, expected: str) -> AfterValidator:
    """A text of this form; people are told what was expected, not the pattern."""

    def check(value: str) -> str:
        if re.search(pattern, value) is None:
            raise ValueError(expected)
        return value

    return AfterValidator(check)


_IMAGE = r"^[^\s:@-][^\s]*$"
_DOCKER_URL = r"^(unix:///|tcp://|ssh://|https?://).+"
_LOG_SIZE = r"^[1-9][0-9]*[kmg]$"
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
        {"type": "object", "additionalProperties": {"type": ["string", "integer", "object"]}},
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
MaxMemory = Annotated[
    int | dict[int, int],
    BeforeValidator(_max_memory),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "integer"]},
                {"type": "object", "additionalProperties": {"type": ["string", "integer"]}},
            ]
        }
    ),
]
Image = Annotated[
    str,
    _of_form(_IMAGE, "an image like ghcr.io/org/name:tag, or one with a digest"),
    WithJsonSchema({"type": "string", "pattern": _IMAGE}),
]
DockerUrl = Annotated[
    str,
    _of_form(
        _DOCKER_URL, "unix:///path/of.sock, ssh://user@host, tcp://host:port or https://host:port"
    ),
    WithJsonSchema({"type": "string", "pattern": _DOCKER_URL}),
]
LogSize = Annotated[
    str,
    _of_form(_LOG_SIZE, "a size for Docker, like 10m: k, m or g behind a number"),
    WithJsonSchema({"type": "string", "pattern": _LOG_SIZE}),
]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
