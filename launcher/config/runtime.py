"""The section `runtime`: what starts replicas, where they listen, how they are started again."""

import os
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from launcher.config.model import MAX_REPLICAS
from launcher.config.values import DockerUrl, LogSize, Size
from router.config import StrictModel
from router.config.mismatch import Mismatch, refuse
from router.config.models import Seconds, ShorthandModel

_MAX_STATE_DIR_BYTES = 90  # unix sockets live there; their whole path may have 107


class RestartConfig(StrictModel):
    """How soon a replica that ended is started again."""

    first_s: float = Field(0.0, ge=0, le=3600, description="Wait before the first restart.")
    base_s: Seconds = Field(1.0, description="Wait before the second; doubles each time.")
    max_s: Seconds = Field(300.0, description="Longest wait.")
    reset_after_s: Seconds = Field(
        600.0, description="Ready for this long, a replica counts as never having failed."
    )
    max_failures: int | None = Field(
        None, ge=1, description="Failed starts in a row before giving up; default: never."
    )

    @model_validator(mode="after")
    def growing(self) -> Self:
        if self.base_s > self.max_s:
            expected = f"at most max_s ({self.max_s:g})"
            refuse([Mismatch(("base_s",), f"{self.base_s:g}", expected)])
        return self


def _absolute(path: Path) -> Path:
    if str(path).startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as exc:
            raise ValueError("a folder in a home directory that exists") from exc
    if not path.is_absolute():
        raise ValueError("an absolute path, or one that begins with ~/")
    return path


class DockerConfig(StrictModel):
    """How containers are made, where `runtime.name` is docker."""

    url: DockerUrl | None = Field(
        None,
        description="Where the Docker Engine answers; default: $DOCKER_HOST, or its usual socket.",
    )
    gpu_injection: Literal["auto", "request", "cdi", "runtime", "none"] = Field(
        "auto", description="How containers get their GPUs; auto asks the engine what it can do."
    )
    pull: Literal["missing", "always", "never"] = Field(
        "missing", description="When images are pulled; a start never waits for one it has."
    )
    model_cache: Path | None = Field(
        None,
        description="Folder for downloaded models, shared by all replicas; default: "
        "$XDG_CACHE_HOME or ~/.cache, then gpu-fleet/models.",
    )
    network: str | None = Field(
        None, min_length=1, description="A network of yours that containers join; default: bridge."
    )
    memory: Size | None = Field(
        None, description='Host memory of each container at most, like "64GiB"; default: no limit.'
    )
    user: str | None = Field(
        None, min_length=1, description="User (and :group) inside; default: the image's own."
    )
    log_max_size: LogSize = Field("10m", description="Docker's log file is rotated at this.")
    log_max_files: int = Field(3, ge=1, le=100, description="Rotated log files kept by Docker.")

    @field_validator("model_cache", mode="after")
    @classmethod
    def absolute(cls, model_cache: Path | None) -> Path | None:
        return None if model_cache is None else _absolute(model_cache)

    @property
    def cache_dir(self) -> Path:
        """Where models are downloaded to."""
        if self.model_cache is not None:
            return self.model_cache
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "gpu-fleet" / "models"


class RuntimeConfig(ShorthandModel):
    """What starts the replicas, and where they listen. A plain text is its name."""

    shorthand: ClassVar[str] = "name"

    name: Literal["process", "docker"] = Field(
        "process", description="One process, or one container, per replica."
    )
    state_dir: Path | None = Field(
        None,
        description="Logs and state; default: $XDG_STATE_HOME or ~/.local/state, then "
        "gpu-fleet/CLUSTER. Two launchers must not share one.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address that replicas listen on.")
    first_port: int = Field(
        31_000, ge=1024, le=65_000, description="Replicas take free ports from here on."
    )
    stop_grace_s: float = Field(
        90.0, ge=0, le=3600, description="From asking a replica to stop to killing it."
    )
    drain_timeout_s: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="How long calls in flight may take before their replica is replaced.",
    )
    max_loading: int = Field(
        2, ge=1, le=MAX_REPLICAS, description="Replicas with a GPU that load at the same time."
    )
    restart: RestartConfig = RestartConfig()
    docker: DockerConfig = DockerConfig()

    @field_validator("state_dir", mode="after")
    @classmethod
    def absolute(cls, state_dir: Path | None) -> Path | None:
        if state_dir is None:
            return None
        state_dir = _absolute(state_dir)
        if len(os.fsencode(state_dir)) > _MAX_STATE_DIR_BYTES:
            raise ValueError(f"at most {_MAX_STATE_DIR_BYTES} bytes: unix sockets live there")
        return state_dir
