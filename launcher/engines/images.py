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
    """As configured, else as the tag of the engine's image says, else the newest known.

    An image of the same last name is taken for the engine's own, kept in another registry.
    """
    if version is None and image is not None:
        name, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
        version = tag if tag and name == repository.rpartition("/")[2] else None
    return parse_version(version) or LATEST
