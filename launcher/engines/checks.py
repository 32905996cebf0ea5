"""What several engines refuse in a config, in the same words. Pure; used by their checks."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from launcher.engines.versions import Version, parse_version, show_version
from router.config.mismatch import Mismatch
from router.config.words import did_you_mean, quoted

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig

DEVICE_VARIABLES = dict.fromkeys(
    ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"), "models[].devices"
)


def check_version(version: str | None, first: Version, example: str) -> Iterator[Mismatch]:
    """`first`: the oldest that is known here."""
    parsed = parse_version(version)
    if parsed is None:
        yield Mismatch(("version",), f"a text {quoted(version or '')}", f"a version like {example}")
    elif parsed < first:
        yield Mismatch(("version",), str(version), f"{show_version(first)} or later")


def check_env(engine: "EngineConfig", reserved: Mapping[str, str]) -> Iterator[Mismatch]:
    """`reserved`: variables the launcher sets, and where the operator says the same."""
    for name in engine.env:
        if name in reserved:
            found = "a variable that the launcher sets itself"
            yield Mismatch(("env", name), found, reserved[name])


def check_volumes(engine: "EngineConfig", *own_targets: str) -> Iterator[Mismatch]:
    """A volume that would hide the folder where the launcher puts a local model."""
    for position, volume in enumerate(engine.volumes):
        if any(PurePosixPath(volume.target) == PurePosixPath(own) for own in own_targets):
            found = f"{volume.target}, where the launcher mounts local models"
            yield Mismatch(("volumes", position), found, "another folder in the container")


def check_gpus(model: "ModelConfig", engine_name: str) -> Iterator[Mismatch]:
    if model.wanted_devices.kind == "cpu":
        yield Mismatch(("devices",), "cpu", f"GPUs: engine {engine_name} does not run without")


def check_no_input_limit(model: "ModelConfig", engine_name: str) -> Iterator[Mismatch]:
    if model.max_input_tokens is not None:
        expected = f"max_total_tokens: {engine_name} limits prompt and answer together"
        yield Mismatch(("max_input_tokens",), str(model.max_input_tokens), expected)


def check_choice(name: str, value: str | None, known: tuple[str, ...]) -> Iterator[Mismatch]:
    if value is not None and value not in known:
        yield Mismatch((name,), f"a text {quoted(value)}", did_you_mean(value, known))
