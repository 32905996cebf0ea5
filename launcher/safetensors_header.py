"""The header of a *.safetensors file: which tensors it holds, without reading any.

Eight bytes say how long the header is, the header is JSON, the data follows. Called by
`model_files`; a file that is cut off, or something else under that name, is a ModelError.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from launcher.model_shape import ModelError
from launcher.sizes import show_bytes

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses more
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header. `size_bytes` as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_header(path: Path) -> list[Tensor]:
    """The file's tensors. Checks that all the data the header promises is there."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header = _json(path, file, file_bytes)
            data_bytes = file_bytes - file.tell()
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = [_tensor(path, name, entry) for name, entry in entries.items()]
    promised_bytes = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if promised_bytes > data_bytes:
        raise ModelError(
            f"{path}: cut off, {show_bytes(data_bytes)} of {show_bytes(promised_bytes)} of tensors "
            "are there; download it again"
        )
    return tensors


def _json(path: Path, file: BinaryIO, file_bytes: int) -> dict[str, Any]:
    start = file.read(8)
    if _LFS_POINTER.startswith(start) and len(start) == 8:
        raise ModelError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` there")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > file_bytes - 8:
        raise ModelError(f"{path}: cut off in its header, or no safetensors file")
    if length > MAX_HEADER_BYTES:
        raise ModelError(
            f"{path}: its header would have {show_bytes(length)}, expected at most "
            f"{show_bytes(MAX_HEADER_BYTES)}; no safetensors file"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: its header is no JSON; download it again") from exc
    if not isinstance(header, dict):
        raise ModelError(f"{path}: its header is no mapping; download it again")
    return header


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            is_sound = 0 <= first <= last and all(isinstance(n, int) and n >= 0 for n in shape)
            if is_sound:
                return Tensor(name, dtype, tuple(shape), last - first)
    raise ModelError(f"{path}: tensor {name!r:.80} in its header is malformed; download it again")
