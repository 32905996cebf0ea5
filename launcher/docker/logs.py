"""The log files of a cluster's containers: one pump per running one, and catching up once.

Used by the docker runtime, which says when a start's log begins and when it is over.
"""

from pathlib import Path

from launcher import log_files
from launcher.docker.engine import DockerEngine
from launcher.docker.log_pump import LogPump, catch_up
from launcher.state import StateFolder


class Logs:
    """Of one cluster, by replica."""

    def __init__(self, engine: DockerEngine, folder: StateFolder) -> None:
        self._engine = engine
        self._folder = folder
        self._pumps: dict[str, LogPump] = {}

    def begin(self, replica_id: str) -> None:
        """The next start's log: the last one's is kept as `.1`. Raises StateError."""
        if pump := self._pumps.pop(replica_id, None):
            pump.close()
        self._folder.create()
        log_files.rotate(self._folder.log(replica_id))

    def follow(self, replica_id: str, container_id: str) -> LogPump:
        """The pump of its container, which may run already."""
        pump = self._pumps.get(replica_id)
        if pump is None or pump.container_id != container_id:
            if pump is not None:
                pump.close()
            path, note = self._folder.log(replica_id), self._note(replica_id)
            pump = self._pumps[replica_id] = LogPump(self._engine, container_id, path, note)
            pump.start()
        return pump

    async def copy_once(self, replica_id: str, container_id: str) -> None:
        """What is there now. Raises OSError, and what calls to the engine do."""
        path, note = self._folder.log(replica_id), self._note(replica_id)
        await self._engine.look(lambda api: catch_up(api, container_id, path, note))

    def forget(self, replica_id: str, container_id: str) -> None:
        """The container is gone; its log file stays."""
        pump = self._pumps.get(replica_id)
        if pump is not None and pump.container_id == container_id:
            pump.close()
            del self._pumps[replica_id]
            self._note(replica_id).unlink(missing_ok=True)

    def close(self) -> None:
        for pump in self._pumps.values():
            pump.close()

    def _note(self, replica_id: str) -> Path:
        return self._folder.path / "replicas" / f"{replica_id}.log-position"
