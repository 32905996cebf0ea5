"""What is written down about each replica's latest start, for the launcher that comes after us.

Written before anything starts, so that no generation is ever given twice. Used by the runtimes; a
record is no proof that anything runs: they look for themselves.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from launcher.runtimes.base import Handle
from launcher.state import StateFolder


class Records:
    """One file per replica in the state folder."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def write(self, handle: Handle) -> None:
        """Replace the replica's record. StateError when that fails."""
        self._folder.write_record(
            _name(handle.replica_id),
            {
                "runtime": handle.runtime,
                "replica_id": handle.replica_id,
                "generation": handle.generation,
                "ref": handle.ref,
                "url": handle.base_url,
                "fingerprint": handle.fingerprint,
                "devices": list(handle.devices),
            },
        )

    def handles(self, runtime: str) -> Iterator[Handle]:
        """Every replica's latest start by that runtime, whether it still runs or not."""
        for path in sorted((self._folder.path / "replicas").glob("*.json")):
            record = self._folder.read_record(f"replicas/{path.name}") or {}
            if record.get("runtime") == runtime:
                with suppress(KeyError, TypeError, ValueError):
                    yield _handle_from(record)

    def last_generation(self, replica_id: str) -> int:
        """The highest generation ever started; 0 when there was none."""
        name = _name(replica_id)
        generation = (self._folder.read_record(name) or {}).get("generation")
        if isinstance(generation, int):
            return generation
        # A broken record must not make the router take a new start for an old one.
        return int(time.time()) if (self._folder.path / name).exists() else 0


def _name(replica_id: str) -> str:
    return f"replicas/{replica_id}.json"


def _handle_from(record: dict[str, Any]) -> Handle:
    return Handle(
        str(record["runtime"]),
        str(record["replica_id"]),
        int(record["generation"]),
        str(record["ref"]),
        str(record["url"]),
        str(record["fingerprint"]),
        devices=tuple(map(str, record["devices"])),
    )
