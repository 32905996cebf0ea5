"""Which image a replica's container is made from, and which engine version that holds. Pure."""

from typing import TYPE_CHECKING

from launcher.engines.versions import LATEST, Version, parse_version

if TYPE_CHECKING:
    from launcher.config import EngineConfig
    from launcher.placement import ReplicaSpec


def version_of_spec(spec: "ReplicaSpec", repository: str) -> Version:
    return _version(spec.engine_version, spec.image, repository)


def version_of_config(engine: "EngineConfig", repository: str) -> Version:
    return _version(engine.version, engine.image, repository)


def _version(version: str | None, image: str | None, repository: str) -> Version:
    """As configured, else as the tag of the engine's own image says, else the newest known."""
    if version is None and image is not None and image.startswith(f"{repository}:"):
        version = image.removeprefix(f"{repository}:").partition("@")[0]
    return parse_version(version) or LATEST
