"""What an engine is to the launcher: a way to write a command line, and to read its log.

Called by `config.py` (checks, before anything starts), and by the runtimes (the command, where the
replica starts). Engines are pure: they start nothing, and never look at devices or files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from router.config.mismatch import Mismatch

if TYPE_CHECKING:
    from launcher.config import EngineConfig, ModelConfig
    from launcher.placement import ReplicaSpec


@dataclass(frozen=True, slots=True)
class Command:
    """How one replica is started as a process of this machine.

    `env` is added to the launcher's own environment. `extra_ports` are bound by the engine beside
    its HTTP port; a runtime that shares the host's network must find them free, too.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # may hold an access token
    ready_path: str
    ready_timeout_s: float
    extra_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the machine, and where the container sees it."""

    source: str
    target: str
    is_read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}{':ro' if self.is_read_only else ''}"


@dataclass(frozen=True, slots=True)
class ContainerCommand:
    """How one replica is started as a container.

    `argv` follows the image's entrypoint, or `entrypoint` where that is given. `port` is the one it
    listens on inside; which port of the machine leads there is the runtime's choice.
    """

    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # may hold an access token
    port: int
    mounts: tuple[Mount, ...]
    shm_bytes: int | None
    ready_path: str
    ready_timeout_s: float
    entrypoint: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] = ()
    """Linux capabilities it cannot do without; all others are dropped."""
    user_env: Mapping[str, str] = field(default_factory=dict)
    """Under `env` where it runs as somebody else than root, for whom the image has no home."""


class Fault(StrEnum):
    """Why an engine ended or will never serve, where its own words tell. Asked of each log line."""

    HOST_MEMORY = "out of host memory"
    GPU_MEMORY = "out of GPU memory"
    GPU_LOST = "lost its GPU"
    BAD_FLAG = "bad flag"
    BAD_MODEL = "bad model"
    NO_ACCESS = "no access to the model"

    @property
    def recoverable(self) -> bool:
        """Whether the same start may go better another time."""
        return self not in (Fault.BAD_FLAG, Fault.BAD_MODEL)

    @property
    def is_slow(self) -> bool:
        """Whether somebody has to see to it first: the hub says the same of a token that is missing
        or expired, of a licence not accepted yet, and of a name that nobody has."""
        return self is Fault.NO_ACCESS


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
        """Whether each replica needs a device of its own, unless `devices: cpu` says otherwise."""

    @property
    def runs_on_cpu(self) -> bool:
        """Whether `devices: cpu` is possible."""

    @property
    def downloads(self) -> bool:
        """Whether it fetches models from the hub; the first replica then does so alone."""

    def check_engine(self, engine: "EngineConfig") -> Iterator[Mismatch]:
        """What cannot work in `version`, `args`, `env`, `per_replica`; paths start there."""

    def check_model(self, model: "ModelConfig", engine: "EngineConfig") -> Iterator[Mismatch]:
        """What this engine cannot do of what the model asks for; paths start at the model."""

    def command(self, spec: "ReplicaSpec", port: int, host: str) -> Command:
        """The command that serves `spec` on host:port of this machine."""

    def container(self, spec: "ReplicaSpec", cache_dir: str) -> ContainerCommand:
        """The container that serves `spec`; models are downloaded to `cache_dir` of the machine."""

    def phase_of(self, log_line: str) -> str | None:
        """How far a starting replica is, for people; None for lines that tell nothing."""

    def token_budget_of(self, log_line: str) -> int | None:
        """The tokens a replica can hold at a time, from the one log line that says so."""

    def fault_of(self, log_line: str) -> Fault | None:
        """What has gone wrong for good, if this line says so. Of one that serves nobody yet."""

    def serving_fault_of(self, log_line: str) -> Fault | None:
        """The same of one that serves: only lines that clients have no part in. What they send may
        be in its log, so an engine that cannot be told apart from them says None to everything."""
