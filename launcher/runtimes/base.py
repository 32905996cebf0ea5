"""What starts replicas: the Protocol every runtime satisfies, and the values that cross it.

The supervisor decides what runs; a runtime starts it, watches it and stops it, and finds again what
an earlier launcher started. `tests/contracts/test_runtimes.py` holds each runtime to this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.config import ClusterConfig
from launcher.exits import Exit
from launcher.placement import ReplicaSpec
from launcher.state import StateFolder

__all__ = ["Exit", "Handle", "Runtime", "Say"]

Say = Callable[[str], None]
"""Told how far a start is, for people: `pulling the image: 1.2 of 9.8 GB`."""


@dataclass(frozen=True, slots=True)
class Handle:
    """One start of one replica."""

    runtime: str
    replica_id: str
    generation: int  # grows with every start of this replica, also across launchers
    ref: str  # the runtime's own name for it: pid/start time/boot, or a container's id
    base_url: str
    fingerprint: str  # "" for one whose spec is not known
    pid: int | None = None  # as this machine sees it; None where that is not known
    devices: tuple[str, ...] = ()  # what it was given, so that a new plan can leave it there

    @property
    def shown(self) -> str:
        """How people find it: `pid 4711`, or `container 3f2a9c1b7d10`."""
        if self.runtime == "docker":
            return f"container {self.ref[:12]}"
        return f"pid {self.pid}"


class Runtime(Protocol):
    """Starts, watches and stops replicas. Everything may be called again without harm.

    RuntimeAway (recoverable) is raised wherever what runs replicas does not answer.
    """

    name: str

    @classmethod
    def of(cls, config: ClusterConfig, folder: StateFolder) -> "Runtime":
        """For that cluster, whose state is in `folder`. Connects to nothing yet."""

    def use(self, config: ClusterConfig) -> None:
        """Later starts follow this edited config; what runs goes on as it is. Cannot fail: whether
        it can be followed was asked of `prepare`."""

    async def prepare(
        self, specs: Sequence[ReplicaSpec], say: Say, config: ClusterConfig | None = None
    ) -> None:
        """Make sure that all could start: what runs replicas answers, and nobody else has this
        cluster; with the edited `config` where one is given, which is not used yet.

        Raises StartError, RuntimeAway; fetches nothing and changes nothing.
        """

    async def fetch(self, spec: ReplicaSpec, say: Say) -> None:
        """Get what a start needs beside the GPU, and refuse what it would refuse, while another
        replica may still be there. Raises StartError, RuntimeAway; starts nothing."""

    async def start(self, spec: ReplicaSpec, generation: int, say: Say) -> Handle:
        """Start it and return once it runs; raises StartError. Leaves nothing behind then."""

    async def wait(self, handle: Handle) -> Exit:
        """Return when it has ended. Cancelling the wait does nothing to the replica."""

    async def poll(self, handle: Handle) -> Exit | None:
        """None while it runs, or while nobody can tell."""

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """End it and all it started: politely, and by force after `grace_s`.

        Idempotent, and never touches anything else. StopError when it survives even force.
        """

    async def owned(self) -> list[Handle]:
        """All that runs for this cluster, whoever started it; an unknown one has no fingerprint.
        Only looks."""

    async def clear_away(self) -> None:
        """Remove what is left of starts that have ended. For who brings the cluster up or down;
        does nothing while another launcher runs it. Raises StartError, RuntimeAway."""

    async def is_serving_itself(self, handle: Handle) -> bool:
        """Whether what answers at its URL is this replica, not another program on its port."""

    def last_generation(self, replica_id: str) -> int:
        """The highest generation ever started; 0 when there was none."""

    def log_path(self, replica_id: str) -> Path:
        """The log of the replica's latest start."""

    async def catch_up_log(self, replica_id: str) -> None:
        """Bring that file up to date where no launcher has done so."""

    async def aclose(self) -> None:
        """Let go of connections and threads; replicas run on."""
