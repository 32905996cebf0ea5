"""Reads a model's folder: config.json and, of the weights, headers and sizes only.

`find_shape` is what `launcher plan` asks: a folder, a download in the hub's cache, or one of the
well-known models. Best first: tensors listed in safetensors headers, the family's formula checked
against a *.bin index, a *.gguf file's own metadata. What cannot be used is a ModelError that says
what is wrong with which file; nothing is downloaded and no weight is read.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from launcher.gguf_header import read_gguf
from launcher.known_models import known_shape
from launcher.model_config import architecture_of, quantization_from, quantization_of
from launcher.model_shape import (
    Architecture,
    ModelError,
    ModelShape,
    Quantization,
    has_formula,
    parameters_of,
    rough_parameters,
)
from launcher.quantization import dtype_bytes
from launcher.safetensors_header import Tensor, read_header
from launcher.tensor_counts import count_parameters

MAX_JSON_BYTES = 64 * 1024 * 1024
_OLDER_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_STORED = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NO_MODEL = ("training_args", "optimizer", "scheduler", "adapter_model")  # *.bin that are no model


def find_shape(
    model: str, *, cache_folder: Path | None = None, revision: str | None = None
) -> ModelShape | None:
    """Of a local folder or *.gguf file, else of a hub id: as downloaded, else as generally known.

    None: nothing is known about it here. A download that is not complete still has its config.
    """
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return read_gguf(path)
    if path.is_dir() or model.startswith((".", "/", "~")):
        return read_model_folder(path)
    snapshot = None
    if cache_folder is not None:
        snapshot = cached_snapshot(cache_folder, model, revision)
    if snapshot is None:
        return known_shape(model)
    try:
        return read_model_folder(snapshot)
    except ModelError as exc:
        known = _from_config_only(snapshot, f"the download is not complete: {exc}")
        return known or known_shape(model)


def cached_snapshot(cache_folder: Path, model_id: str, revision: str | None = None) -> Path | None:
    """Where the hub's client keeps this model: models--org--name/snapshots/<commit>, if it does.

    Without a revision the branch `main`, else the newest snapshot.
    """
    home = cache_folder.expanduser() / ("models--" + model_id.strip("/").replace("/", "--"))
    wanted = revision or "main"
    path = PurePath(wanted)
    if ".." in path.parts or path.is_absolute() or not home.is_dir():
        return None
    ref = home / "refs" / wanted
    commit = ref.read_text(errors="replace").strip() if ref.is_file() else wanted
    snapshot = home / "snapshots" / PurePath(commit).name
    if PurePath(commit).name and snapshot.is_dir():
        return snapshot
    snapshots = [] if revision else [p for p in (home / "snapshots").glob("*") if p.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def read_model_folder(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, as exact as its files allow."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").exists():
        if ggufs:
            return _only_gguf(folder, ggufs)
        raise ModelError(_no_config(folder))
    config = _read_json(folder / "config.json")
    try:
        arch, quantization = architecture_of(config), quantization_of(config)
    except ModelError as exc:
        raise ModelError(f"{folder}: {exc}") from exc
    quantization = quantization or _older_quantization(folder)
    if (shards := _shards(folder, "safetensors")) is not None:
        return _from_safetensors(folder, arch, quantization, shards)
    if (shards := _shards(folder, "bin")) is not None:
        return _from_bin(folder, arch, quantization, shards)
    if ggufs:
        return _only_gguf(folder, ggufs)
    raise ModelError(f"{folder}: no weights, expected *.safetensors, pytorch_model*.bin or *.gguf")


def _from_safetensors(
    folder: Path, arch: Architecture, quantization: Quantization | None, shards: Sequence[Path]
) -> ModelShape:
    tensors = [tensor for shard in shards for tensor in read_header(shard)]
    if not tensors:
        raise ModelError(f"{folder}: its *.safetensors files hold no tensors")
    parameters = count_parameters(tensors, is_tied=arch.tied, quantization=quantization)
    notes = []
    if parameters.linear == 0 and has_formula(arch.family):  # names we do not know
        parameters = parameters_of(arch)
        notes.append("its tensors have unusual names: counted by the family's formula")
    elif quantization is None and has_formula(arch.family):
        notes += _differs(parameters.total, parameters_of(arch).total)
    if any(_is_weights(path) for path in folder.glob("*.bin")):
        notes.append("*.bin files lie beside the *.safetensors: engines load the latter")
    return ModelShape(
        name=str(folder),
        architecture=_with_dtype(arch, _dtype(tensors)),
        parameters=parameters,
        quantization=quantization,
        stored_bytes=sum(tensor.size_bytes for tensor in tensors),
        sources=_sources(f"headers of {_files(shards, 'safetensors')}"),
        notes=tuple(notes),
    )


def _from_bin(
    folder: Path, arch: Architecture, quantization: Quantization | None, shards: Sequence[Path]
) -> ModelShape:
    """Pickles are not opened: their size is all they tell."""
    stored_bytes = _indexed_bytes(folder / "pytorch_model.bin.index.json")
    source = "total_size of pytorch_model.bin.index.json"
    if stored_bytes is None:
        stored_bytes = sum(shard.stat().st_size for shard in shards)
        source = f"size of {_files(shards, 'bin')}"
    notes = ["weights are *.bin files: engines convert them first, which takes disk and time"]
    by_size = stored_bytes // dtype_bytes(arch.dtype or "float16")
    if has_formula(arch.family):
        parameters, source = parameters_of(arch), f"formula of the {arch.family} family"
        if quantization is None:
            notes += _differs(by_size, parameters.total)
    else:
        parameters = rough_parameters(arch, by_size)
    return ModelShape(
        name=str(folder),
        architecture=arch,
        parameters=parameters,
        quantization=quantization,
        stored_bytes=stored_bytes,
        sources=_sources(source),
        notes=tuple(notes),
    )


def _from_config_only(folder: Path, note: str) -> ModelShape | None:
    try:
        config = _read_json(folder / "config.json")
        arch = architecture_of(config)
        return ModelShape(
            name=str(folder),
            architecture=arch,
            parameters=parameters_of(arch),
            quantization=quantization_of(config) or _older_quantization(folder),
            sources=_sources(f"formula of the {arch.family} family"),
            notes=(note,),
        )
    except ModelError:
        return None


def _only_gguf(folder: Path, ggufs: Sequence[Path]) -> ModelShape:
    """One model per folder; a model in several parts is named by its first."""
    firsts = [path for path in ggufs if "-of-" not in path.stem or "-00001-of-" in path.stem]
    if len(firsts) == 1:
        return read_gguf(firsts[0])
    names = ", ".join(path.name for path in ggufs[:3])
    raise ModelError(f"{folder}: {len(ggufs)} *.gguf files ({names} ...); give the path of one")


def _shards(folder: Path, kind: str) -> list[Path] | None:
    """The files that make up the weights; None if there are none of this kind."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{kind}.index.json"
    if index.exists():
        return _indexed_shards(folder, index)
    single = folder / f"{stem}.{kind}"
    if single.exists():
        return [single]
    found = sorted(path for path in folder.glob(f"*.{kind}") if _is_weights(path))
    plain = [path for path in found if not path.name.startswith("consolidated")]
    return plain or found or None


def _indexed_shards(folder: Path, index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map, expected tensor names and their files")
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if PurePath(name).name != name]:
        raise ModelError(f"{index}: names {outside[0]!r:.80}, expected files beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing ({shown}); "
            "download them again"
        )
    return [folder / name for name in names]


def _indexed_bytes(index: Path) -> int | None:
    if not index.exists():
        return None
    metadata = _read_json(index).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    is_number = isinstance(total, int | float) and not isinstance(total, bool) and total > 0
    return int(total) if is_number and total is not None else None


def _older_quantization(folder: Path) -> Quantization | None:
    """From what AutoGPTQ and AutoAWQ wrote beside config.json."""
    for name, method in _OLDER_CONFIGS.items():
        if (folder / name).exists():
            return quantization_from(_read_json(folder / name), method)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(text) > MAX_JSON_BYTES:
        raise ModelError(f"{path}: over {MAX_JSON_BYTES} bytes, no model's")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: no JSON; download it again") from exc
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a mapping")
    return content


def _no_config(folder: Path) -> str:
    if not any(folder.iterdir()):
        return f"{folder}: empty, expected a model's config.json and weights"
    if (folder / "adapter_config.json").exists():
        return f"{folder}: an adapter (LoRA), no model; give the model it was made for"
    if (folder / "snapshots").is_dir():
        return f"{folder}: the hub's cache of a model; give one of the folders in its snapshots/"
    return f"{folder}: no config.json, so no model's folder"


def _differs(found: int, expected: int) -> list[str]:
    if abs(found - expected) <= expected // 50:
        return []
    return [f"the files hold {found / 1e9:.2f} G parameters, by config.json {expected / 1e9:.2f} G"]


def _dtype(tensors: Sequence[Tensor]) -> str | None:
    """What most of the bytes are; quantised ones say nothing."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if (dtype := _STORED.get(tensor.dtype)) is not None:
            sizes[dtype] = sizes.get(dtype, 0) + tensor.size_bytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _with_dtype(arch: Architecture, dtype: str | None) -> Architecture:
    return arch if dtype is None else replace(arch, dtype=dtype)


def _sources(parameters: str) -> tuple[tuple[str, str], ...]:
    return ("dimensions", "config.json"), ("parameters", parameters)


def _files(paths: Sequence[Path], kind: str) -> str:
    return paths[0].name if len(paths) == 1 else f"{len(paths)} {kind} files"


def _is_weights(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(_NO_MODEL)
