"""Replicas as plain processes of this machine, each in its own session with its own log file.

Starting order, so that no crash leaves an unknown orphan: the generation is recorded, then the
child starts carrying its marks, then its identity is recorded. What has no record is found by its
marks, what has scrubbed its environment by its record. Stopping asks the leader first (engines pass
the signal on in the right order: text-generation-inference finishes calls before it stops its
shards), then its whole session, then kills what is left.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher import exits, log_files, ports, processes
from launcher.config import ClusterConfig
from launcher.engines import ENGINES
from launcher.engines.base import Command
from launcher.placement import ReplicaSpec
from launcher.processes import Marks, ProcessId
from launcher.runtimes.base import Exit, Handle, Say
from launcher.runtimes.records import Records
from launcher.spawn import require_program, spawn
from launcher.state import StateFolder
from router.errors import StartError, StateError, StopError

CommandOf = Callable[[ReplicaSpec, int, str], Command]
_KILL_WAIT_S = 10.0
_ROLE = "replica:"


class ProcessRuntime:
    """Runs one cluster's replicas; `command_of(spec, port, host)` says what to execute."""

    name = "process"

    def __init__(
        self, folder: StateFolder, command_of: CommandOf, host: str, first_port: int
    ) -> None:
        self._folder = folder
        self._command_of = command_of
        self._host = host
        self._first_port = first_port
        self._children = exits.Children()
        self._records = Records(folder)
        # By replica, its own port first: given out, and kept for its next start.
        self._ports: dict[str, tuple[int, ...]] = {}

    @classmethod
    def of(cls, config: ClusterConfig, folder: StateFolder) -> "ProcessRuntime":
        return cls(folder, _engine_command, config.runtime.host, config.runtime.first_port)

    def use(self, config: ClusterConfig) -> None:
        self._host, self._first_port = config.runtime.host, config.runtime.first_port

    async def prepare(
        self, specs: Sequence[ReplicaSpec], say: Say, config: ClusterConfig | None = None
    ) -> None:
        """Nothing to do: this machine answers, and the lock on the state folder says whose."""

    async def fetch(self, spec: ReplicaSpec, say: Say) -> None:
        """The program is here; which port it will get does not matter to that."""
        require_program(self._command_of(spec, self._first_port, self._host).argv[0])

    async def start(self, spec: ReplicaSpec, generation: int, say: Say) -> Handle:
        with ports.choosing():
            port, command = self._choose_port(spec)
            handle = Handle(
                self.name,
                spec.id,
                generation,
                "",
                ports.url_of(self._host, port),
                spec.fingerprint,
                devices=spec.devices,
            )
            try:
                self._folder.create()
                self._records.write(handle)
                log_files.rotate(self.log_path(spec.id))
            except StateError as exc:
                raise StartError(str(exc)) from exc
            oom_kills_before = exits.oom_kills()
            process = spawn(command.argv, self._environ(command, handle), self.log_path(spec.id))
        self._children.add(process, oom_kills_before)
        started = _with_process(handle, process)
        await self._record_or_kill(started)
        return started

    async def wait(self, handle: Handle) -> Exit:
        process = ProcessId.parse(handle.ref)
        await exits.wait_ended(process)
        return self._children.exit_of(process)

    async def poll(self, handle: Handle) -> Exit | None:
        process = ProcessId.parse(handle.ref)
        return None if processes.is_running(process) else self._children.exit_of(process)

    async def stop(self, handle: Handle, grace_s: float) -> None:
        process = ProcessId.parse(handle.ref)
        if processes.send_signal(process, signal.SIGTERM):
            processes.send_signal(process, signal.SIGCONT)  # a stopped process takes no signal
            if not await exits.has_ended(process, grace_s / 2):
                # A wrapper that does not pass the signal on: tell those behind it.
                exits.signal_all(processes.session_members(process), signal.SIGTERM)
                await exits.has_ended(process, grace_s / 2)
        await self._kill_rest(handle, process)

    async def owned(self) -> list[Handle]:
        by_ref = {handle.ref: handle for handle in self._recorded()}
        starts = {(handle.replica_id, handle.generation) for handle in by_ref.values()}
        for handle in self._marked():
            # A leader may have dropped its marks and its children kept theirs: that is one start.
            if (handle.replica_id, handle.generation) not in starts:
                by_ref.setdefault(handle.ref, handle)
        for handle in by_ref.values():
            with suppress(ValueError):
                self._ports.setdefault(handle.replica_id, (ports.port_of(handle.base_url),))
        return list(by_ref.values())

    async def clear_away(self) -> None:
        """A process that ended leaves its log, which is kept."""

    async def is_serving_itself(self, handle: Handle) -> bool:
        pids = ports.holders_of(ports.port_of(handle.base_url))
        # Nobody to be seen: a sandbox hides /proc/net, or the engine is another user's.
        if not pids or handle.pid is None:
            return True
        members = {member.pid for member in self._members(handle)}
        return any(pid in members for pid in pids)

    def last_generation(self, replica_id: str) -> int:
        return self._records.last_generation(replica_id)

    def log_path(self, replica_id: str) -> Path:
        return self._folder.log(replica_id)

    async def catch_up_log(self, replica_id: str) -> None:
        """Nothing to do: replicas write their logs themselves."""

    async def aclose(self) -> None:
        """Nothing to do: nothing is held."""

    # ---- starting

    def _choose_port(self, spec: ReplicaSpec) -> tuple[int, Command]:
        """A free port, its last one if that is free, and the command for it."""
        others = {p for owner, given in self._ports.items() if owner != spec.id for p in given}
        others |= {ports.port_of(url) for url in processes.marked_urls()}
        preferred = self._ports.get(spec.id, (None,))[0]
        for port in ports.free_ports(self._host, self._first_port, others, preferred):
            command = self._command_of(spec, port, self._host)
            if all(ports.is_free(self._host, p) and p not in others for p in command.extra_ports):
                self._ports[spec.id] = (port, *command.extra_ports)
                return port, command
        raise StartError(
            f"no free port from {self._first_port} on {self._host}; set runtime.first_port"
        )

    def _environ(self, command: Command, handle: Handle) -> dict[str, str]:
        marks = Marks(
            self._folder.path,
            _ROLE + handle.replica_id,
            handle.generation,
            handle.base_url,
            handle.fingerprint,
        )
        return processes.without_marks(dict(os.environ)) | dict(command.env) | marks.as_env()

    async def _record_or_kill(self, handle: Handle) -> None:
        try:
            self._records.write(handle)
        except StateError as exc:
            await self.stop(handle, grace_s=0.0)
            raise StartError(str(exc)) from exc

    # ---- stopping

    async def _kill_rest(self, handle: Handle, process: ProcessId) -> None:
        deadline_s = time.monotonic() + _KILL_WAIT_S
        seen: set[ProcessId] = set()
        while True:
            # One that is being taken down has no marks any more, but still holds its GPU.
            seen.update(self._members(handle))
            members = [member for member in seen if processes.is_running(member)]
            if not members:
                break
            if time.monotonic() >= deadline_s:
                raise StopError(_unkillable(handle, members))
            exits.signal_all(members, signal.SIGKILL)
            await asyncio.sleep(0.02)
        self._children.exit_of(process)

    def _members(self, handle: Handle) -> list[ProcessId]:
        """All that belongs to one start: its session, and whatever carries its marks."""
        members = set(processes.session_members(ProcessId.parse(handle.ref)))
        role = _ROLE + handle.replica_id
        for found in processes.marked(self._folder.path):
            if (found.marks.role, found.marks.generation) == (role, handle.generation):
                members.add(found.process)
        return list(members)

    # ---- finding again

    def _recorded(self) -> Iterable[Handle]:
        for handle in self._records.handles(self.name):
            with suppress(ValueError):
                process = ProcessId.parse(handle.ref)
                if processes.is_running(process):
                    yield _with_process(handle, process)

    def _marked(self) -> Iterable[Handle]:
        """Per start, its leader; an orphaned member stands for a start whose leader is gone."""
        by_start: dict[tuple[str, int], list[processes.Found]] = {}
        for found in processes.marked(self._folder.path):
            if found.marks.role.startswith(_ROLE):
                key = (found.marks.role, found.marks.generation)
                by_start.setdefault(key, []).append(found)
        for group in by_start.values():
            leader = next((found for found in group if found.is_leader), None)
            marks = group[0].marks
            yield _with_process(
                Handle(
                    self.name,
                    marks.role.removeprefix(_ROLE),
                    marks.generation,
                    "",
                    marks.url,
                    marks.fingerprint if leader else "",
                ),
                (leader or group[0]).process,
            )


def _engine_command(spec: ReplicaSpec, port: int, host: str) -> Command:
    return ENGINES[spec.engine_name].command(spec, port, host)


def _with_process(handle: Handle, process: ProcessId) -> Handle:
    return replace(handle, ref=str(process), pid=process.pid)


def _unkillable(handle: Handle, members: list[ProcessId]) -> str:
    stuck = ", ".join(f"pid {m.pid} (state {processes.state_letter(m) or '?'})" for m in members)
    return (
        f"{handle.replica_id}: {stuck} survives SIGKILL; state D means it is stuck in a driver: "
        "look at dmesg, the machine may need a reboot"
    )
