"""The front of a *.gguf file (llama.cpp's): its metadata and tensor list, without any tensor.

Little-endian: magic, version, counts, then key-value pairs, then one entry per tensor. Called by
`model_files` for llama.cpp's models. What is loaded is the file as it is, so its size is the size
of the weights. Whatever does not add up is a ModelError.
"""

import os
import re
import struct
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from launcher.model_shape import (
    Architecture,
    ModelError,
    ModelShape,
    Parameters,
    Quantization,
)

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_FORMATS |= {12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_STRING_BYTES = 16 * 1024 * 1024
_MAX_ENTRIES = 10_000_000
_MAX_DIMENSIONS = 8
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


class _Unsound(Exception):
    """The file says something that cannot be."""


def read_gguf(path: Path) -> ModelShape:
    """The shape of a model in one *.gguf file, or in several of which this is the first."""
    parts = _parts(path)
    counts = Counter[str]()
    metadata: dict[str, Any] = {}
    for part in parts:
        own_metadata, tensors = _read(part)
        metadata = metadata or own_metadata  # the first part's; the others have little
        for name, dimensions in tensors:
            counts[_kind(name, dimensions)] += prod(dimensions)
    if not counts:
        raise ModelError(f"{path}: holds no tensors")
    arch = _architecture(path, metadata, is_tied=counts["head"] == 0)
    return ModelShape(
        name=str(path),
        architecture=arch,
        parameters=Parameters(
            linear=counts["linear"],
            biases=counts["biases"],
            embedding=counts["embedding"],
            head=counts["head"],
            other=counts["other"],
        ),
        quantization=Quantization("gguf"),
        stored_bytes=sum(part.stat().st_size for part in parts),
        sources=(("dimensions", f"metadata of {path.name}"), ("parameters", f"{path.name}")),
    )


def _parts(path: Path) -> list[Path]:
    match = _PART.fullmatch(path.stem)
    if match is None:
        return [path]
    stem, _, count = match.groups()
    parts = [path.with_name(f"{stem}-{n:05}-of-{count}.gguf") for n in range(1, int(count) + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ModelError(f"{path.parent}: {len(missing)} parts are missing ({missing[0]} ...)")
    return parts


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...]]]]:
    """Metadata, and name and dimensions of every tensor."""
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{path}: no GGUF file")
            version = _number(file, "I")
            if version not in _VERSIONS:
                raise ModelError(f"{path}: GGUF version {version}, expected 2 or 3")
            tensors, pairs = _count(file), _count(file)
            metadata = {_string(file): _value(file, _number(file, "I")) for _ in range(pairs)}
            listed = [_tensor(file) for _ in range(tensors)]
            last_byte = file.tell() + max((offset for _, _, offset in listed), default=0)
            if last_byte >= os.fstat(file.fileno()).st_size:
                raise _Unsound("cut off in its tensors")
            return metadata, [(name, dimensions) for name, dimensions, _ in listed]
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    except _Unsound as exc:
        raise ModelError(f"{path}: {exc}; download it again") from exc


def _architecture(path: Path, metadata: Mapping[str, Any], *, is_tied: bool) -> Architecture:
    family = str(metadata.get("general.architecture", ""))

    def whole(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{family}.{key}", default)
        if isinstance(value, list):  # one per layer
            value = max((n for n in value if isinstance(n, int)), default=None)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{path}: {family}.{key}: found {value!r:.40}, expected a number")
        return value

    hidden, heads = whole("embedding_length"), whole("attention.head_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return Architecture(
        family=family,
        layers=whole("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=whole("attention.head_count_kv", heads),
        head_dim=whole("attention.key_length", max(1, hidden // heads)),
        intermediate=whole("feed_forward_length", 4 * hidden),
        vocab=whole("vocab_size", tokens if isinstance(tokens, int) else None),
        max_position=whole("context_length"),
        tied=is_tied,
        dtype="float16",
    )


def _kind(name: str, dimensions: tuple[int, ...]) -> str:
    """A field of Parameters."""
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "head"
    if name.startswith("blk.") and len(dimensions) > 1:
        return "linear"
    return "biases" if name.endswith(".bias") and "norm" not in name else "other"


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...], int]:
    """Name, dimensions and where its data begins, counted from the end of the front."""
    name, dimensions = _string(file), _number(file, "I")
    if not 0 <= dimensions <= _MAX_DIMENSIONS:
        raise _Unsound(f"a tensor of {dimensions} dimensions")
    shape = tuple(_number(file, "Q") for _ in range(dimensions))
    _number(file, "I")  # its type
    return name, shape, _number(file, "Q")


def _value(file: BinaryIO, kind: int) -> Any:
    """Of one pair. Of an array of texts (the vocabulary) only how many there are."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _format(kind))
    item, length = _number(file, "I"), _count(file)
    if item == _STRING:
        for _ in range(length):
            _string(file)
        return length
    width = struct.calcsize(_format(item))
    return list(struct.unpack(f"<{length}{_format(item)}", _exactly(file, width * length)))


def _string(file: BinaryIO) -> str:
    length = _number(file, "Q")
    if length > _MAX_STRING_BYTES:
        raise _Unsound(f"a text of {length} bytes")
    return _exactly(file, length).decode(errors="replace")


def _count(file: BinaryIO) -> int:
    count = _number(file, "Q")
    if count > _MAX_ENTRIES:
        raise _Unsound(f"{count} entries")
    return int(count)


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise _Unsound(f"a value of type {kind}")
    return _FORMATS[kind]


def _number(file: BinaryIO, form: str) -> Any:
    (number,) = struct.unpack(f"<{form}", _exactly(file, struct.calcsize(f"<{form}")))
    return number


def _exactly(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) < size_bytes:
        raise _Unsound("cut off in its front")
    return data
