"""What starts replicas: the Protocol every runtime satisfies, and the values that cross it.

The supervisor decides what runs; a runtime starts it, watches it and stops it, and finds again what
an earlier launcher started. `tests/contracts/test_runtimes.py` holds each runtime to this.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.exits import Exit
from launcher.placement import ReplicaSpec

__all__ = ["Exit", "Handle", "Runtime"]


@dataclass(frozen=True, slots=True)
class Handle:
    """One start of one replica."""

    runtime: str
    replica_id: str
    generation: int  # grows with every start of this replica, also across launchers
    ref: str  # the runtime's own name for it; for processes, pid/start time/boot
    base_url: str
    fingerprint: str
    pid: int | None = None


class Runtime(Protocol):
    """Starts, watches and stops replicas. Everything may be called again without harm."""

    name: str

    async def start(self, spec: ReplicaSpec, generation: int) -> Handle:
        """Start it and return at once; raises StartError. Leaves nothing behind when it raises."""

    async def wait(self, handle: Handle) -> Exit:
        """Return when it has ended. Cancelling the wait does nothing to the replica."""

    def poll(self, handle: Handle) -> Exit | None:
        """None while it runs."""

    async def stop(self, handle: Handle, grace_s: float) -> None:
        """End it and all it started: politely, and by force after `grace_s`.

        Idempotent, and never touches anything else. StopError when it survives even force.
        """

    async def owned(self) -> list[Handle]:
        """All that runs for this cluster, whoever started it; an unknown one has no fingerprint."""

    def is_serving_itself(self, handle: Handle) -> bool:
        """Whether what answers at its URL is this replica, not another program on its port."""

    def last_generation(self, replica_id: str) -> int:
        """The highest generation ever started; 0 when there was none."""

    def log_path(self, replica_id: str) -> Path:
        """The log of the replica's latest start."""
