"""Disks: models that are here, room for those that are not, the state folder. Makes nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.checkup.base import Check, Finding, failed, failed_by, passed, skipped, warned
from launcher.checkup.subject import Subject
from launcher.config import ClusterConfig, ModelConfig
from launcher.desired import files_are_here
from launcher.engines import ENGINES
from launcher.engines.model_source import host_path, is_inside, is_local
from launcher.model_shape import ModelError, ModelShape
from launcher.placement import ReplicaSpec
from launcher.quantization import WIDE_BYTES, dtype_bytes, linear_bytes_of, stored_scheme
from launcher.sizes import GIB, show_bytes
from launcher.sizing import Shapes
from launcher.state import SOCKET_PATH_LIMIT_BYTES, StateFolder
from router.errors import StateError

_LOG_ROOM_BYTES = GIB
_MODEL_ROOM_BYTES = 20 * GIB  # for one of unknown size
_MODEL_CACHE = "runtime.docker.model_cache"
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


# ---- models


def _models(subject: Subject) -> Iterator[Finding]:
    """Each model once; a broken or missing local one is seen before anything starts."""
    config = subject.config
    assert config is not None
    shapes = Shapes(config)
    for model, spec in _loaded(subject):
        if is_local(model.id):
            yield _local(model, spec, shapes)
        elif _is_here(spec, subject):
            yield passed("downloaded", about=model.id)
        else:
            yield _to_download(model, shapes)


def _loaded(subject: Subject) -> Iterator[tuple[ModelConfig, ReplicaSpec]]:
    """Models whose weights engines load, and one replica of each."""
    config = subject.config
    assert config is not None
    first = {spec.model: spec for spec in reversed(subject.specs)}
    for model in config.models:
        spec = first.get(model.served_name)
        if spec is not None and ENGINES[spec.engine_name].downloads:
            yield model, spec


def _local(model: ModelConfig, spec: ReplicaSpec, shapes: Shapes) -> Finding:
    if is_inside(model.id, spec.volumes):
        return skipped("comes with a volume, and is not looked into", about=model.id)
    path = Path(host_path(model.id))
    if not _exists(path):
        return failed("no such file or folder", "see models[].id", about=model.id)
    try:
        shape = shapes.of(model)
    except ModelError as exc:
        return failed_by(exc, about=model.id)
    except OSError as exc:
        return failed(f"cannot be read ({exc.strerror})", "let this user read it", about=model.id)
    if shape is None:
        return skipped("is there; nothing is known of its kind", about=model.id)
    for note in shape.notes:
        return warned(note, "the engine may refuse it", about=model.id)
    return passed(f"{shape.parameters.total / 1e9:.1f} B parameters", about=model.id)


def _to_download(model: ModelConfig, shapes: Shapes) -> Finding:
    size_bytes = _download_bytes(model, shapes)
    if size_bytes is None:
        return passed("would be downloaded; its size is not known here", about=model.id)
    return passed(f"would be downloaded, about {show_bytes(size_bytes)}", about=model.id)


def _download_bytes(model: ModelConfig, shapes: Shapes) -> int | None:
    """Engines fetch weights in one format only, as they are stored."""
    try:
        shape = shapes.of(model)
    except ModelError:
        return None
    return None if shape is None else _stored_bytes(shape)


def _stored_bytes(shape: ModelShape) -> int:
    if shape.stored_bytes is not None:
        return shape.stored_bytes
    scheme, parameters = stored_scheme(shape), shape.parameters
    if scheme is None:
        return parameters.total * dtype_bytes(shape.architecture.dtype or "float16")
    linear_bytes = parameters.linear * linear_bytes_of(scheme, shape.quantization)
    return int(linear_bytes) + parameters.wide * WIDE_BYTES


def _is_here(spec: ReplicaSpec, subject: Subject) -> bool:
    assert subject.config is not None
    return files_are_here(spec, subject.config)


# ---- folders


def _cache(subject: Subject) -> Iterator[Finding]:
    """Where downloads go: writable, and large enough for what is missing."""
    config = subject.config
    assert config is not None
    shapes, missing = Shapes(config), []
    for model, spec in _loaded(subject):
        if not is_local(model.id) and not _is_here(spec, subject):
            missing.append((model.id, _download_bytes(model, shapes)))
    folder = _cache_folder(config, subject)
    if not _is_writable(folder):
        hint = f"set {_MODEL_CACHE}" if subject.uses_docker else "set HF_HOME in engine.env"
        yield failed(f"{folder}: this user may not write there", f"{hint} to another folder")
        return
    free_bytes = _free_bytes(folder)
    text = f"{folder}{'' if _exists(folder) else ' (will be made)'}: {show_bytes(free_bytes)} free"
    needed_bytes = sum(size for _, size in missing if size is not None)
    unknown = [name for name, size in missing if size is None]
    if needed_bytes > free_bytes:
        wanted = f"expected {show_bytes(needed_bytes)} for what is to be downloaded"
        yield failed(f"{text}, {wanted}", "free some, or take another disk")
    elif unknown and free_bytes < needed_bytes + _MODEL_ROOM_BYTES:
        names = ", ".join(unknown)
        yield warned(f"{text}; it is not known how much {names} takes", "free some, to be safe")
    elif needed_bytes:
        yield passed(f"{text}, {show_bytes(needed_bytes)} needed")
    else:
        yield passed(text)


def _cache_folder(config: ClusterConfig, subject: Subject) -> Path:
    if config.runtime.name == "docker":
        return config.runtime.docker.cache_dir
    known = dict(subject.environ)
    for model in config.models:
        known |= config.engine_of(model).env
    for name in _CACHE_VARIABLES:
        if known.get(name):
            return Path(known[name]).expanduser()
    home = known.get("HF_HOME")
    base = Path(home).expanduser() if home else Path.home() / ".cache" / "huggingface"
    return base / "hub"


def _state(subject: Subject) -> Iterator[Finding]:
    assert subject.cluster is not None
    folder = subject.cluster.folder
    length = len(os.fsencode(folder.admin_socket))
    if length > SOCKET_PATH_LIMIT_BYTES:
        found = f"{folder.path}: too long for a unix socket in it ({length} bytes)"
        yield failed(found, "set runtime.state_dir to a shorter one")
        return
    if not _is_writable(folder.path):
        advice = "set runtime.state_dir to a folder you may write to"
        yield failed(f"{folder.path}: this user may not write there", advice)
        return
    try:
        StateFolder(_nearest(folder.path)).require_space()
    except StateError as exc:
        yield failed_by(exc)
        return
    free_bytes = _free_bytes(folder.path)
    text = f"{folder.path}: {show_bytes(free_bytes)} free"
    if free_bytes < _LOG_ROOM_BYTES:
        yield warned(text, "logs grow: free some, or set runtime.state_dir to another disk")
    else:
        yield passed(text)


def _nearest(path: Path) -> Path:
    """The folder itself, or the one above in which it would be made."""
    while not _exists(path) and path != path.parent:
        path = path.parent
    return path


def _is_writable(path: Path) -> bool:
    nearest = _nearest(path)
    is_folder = os.path.isdir(nearest)
    return is_folder and os.access(nearest, os.W_OK | os.X_OK, effective_ids=True)


def _exists(path: Path) -> bool:
    """As far as this user can see; `Path.exists` raises where it may not look."""
    return os.path.exists(path)


def _free_bytes(path: Path) -> int:
    found = os.statvfs(_nearest(path))
    return found.f_bavail * found.f_frsize


def _downloads(subject: Subject) -> bool:
    config = subject.config
    if config is None:
        return False
    return any(
        ENGINES[config.engine_of(model).name].downloads and not is_local(model.id)
        for model in config.models
    )


def _loads(subject: Subject) -> bool:
    config = subject.config
    return config is not None and any(
        ENGINES[config.engine_of(model).name].downloads for model in config.models
    )


CHECKS = (
    Check("model", _models, _loads, limit_s=120.0),
    Check("model cache", _cache, _downloads, limit_s=60.0),
    Check("state folder", _state, lambda subject: subject.cluster is not None),
)
