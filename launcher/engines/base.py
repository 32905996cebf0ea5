"""What an engine is to the launcher: a way to write a command line, and to read its log.

Called by `config.py` (checks, before anything starts), and by the runtimes (the command, where the
replica starts). Engines are pure: they start nothing, and never look at devices or files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec


@dataclass(frozen=True, slots=True)
class Command:
    """How one replica is started.

    `env` is added to the launcher's own environment. `extra_ports` are bound by the engine beside
    its HTTP port; a runtime that shares the host's network must find them free, too.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # may hold an access token
    ready_path: str
    ready_timeout_s: float
    extra_ports: tuple[int, ...] = ()


class Engine(Protocol):
    """One kind of model server."""

    @property
    def name(self) -> str:
        """As in `engine.name`."""

    @property
    def dialect(self) -> str:
        """What its replicas speak, in the router's words."""

    @property
    def uses_gpu(self) -> bool:
        """Whether each replica needs a device of its own."""

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        """What cannot work in `version`, `args`, `env`, `per_replica`; paths start there."""

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        """What this engine cannot do of what the model asks for; paths start at the model."""

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        """The command that serves `spec` on host:port."""

    def phase_of(self, log_line: str) -> str | None:
        """How far a starting replica is, for people; None for lines that tell nothing."""

    def token_budget_of(self, log_line: str) -> int | None:
        """The tokens a replica can hold at a time, from the one log line that says so."""
