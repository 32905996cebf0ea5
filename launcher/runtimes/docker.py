"""Replicas as containers of a Docker Engine, found again by their labels.

One container per replica, named after it. What the engine has is the truth: `inspect` decides what
runs and how it ended, events only say when to look. Starting leaves nothing half-made, whatever
fails and whenever it is cancelled. An engine that is away is waited for; the containers run on.
Everything of the SDK is behind `launcher.docker`, and imported with the first call.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import exits, ports, processes
from launcher.config import ClusterConfig, DockerConfig
from launcher.docker import endings
from launcher.docker.client_settings import read_proxies
from launcher.docker.container import Container, container_name, container_of, require_possible
from launcher.docker.containers import Containers
from launcher.docker.engine import DockerEngine
from launcher.docker.events import Events
from launcher.docker.folders import require_folders
from launcher.docker.gpu_injection import (
    EngineFacts,
    facts_of,
    injection_of,
    require_api_version,
)
from launcher.docker.labels import (
    CLUSTER,
    DEVICES,
    FINGERPRINT,
    GENERATION,
    REPLICA,
    URL,
    Place,
)
from launcher.docker.logs import Logs
from launcher.docker.ownership import devices_of_others, is_marked, marks_of, require_no_other_home
from launcher.docker.pulls import Pulls
from launcher.docker.refusals import Refused, is_limit_refused, is_port_taken, start_error
from launcher.engines import ENGINES
from launcher.engines.base import ContainerCommand
from launcher.placement import ReplicaSpec
from launcher.runtimes.base import Exit, Handle, Say
from launcher.runtimes.records import Records
from launcher.state import StateFolder
from router.errors import OperatorError, RuntimeAway, StartError, StateError, StopError

log = logging.getLogger("launcher")

CommandOf = Callable[[ReplicaSpec, str], ContainerCommand]
_PORT_TRIES = 20
_LOOK_EVERY_S = 30.0  # should an event ever be lost
_LOG_END_S = 5.0
_KILL_WAIT_S = 10.0
_RUNNING = ("running", "paused", "restarting")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was so when a container was first looked at."""

    started_at: str
    oom_kills: int  # by this machine's kernel


class DockerRuntime:
    """Runs one cluster's replicas; `command_of(spec, cache_dir)` says what is in a container."""

    name = "docker"

    def __init__(
        self,
        folder: StateFolder,
        config: ClusterConfig,
        command_of: CommandOf | None = None,
        engine: DockerEngine | None = None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._command_of = command_of or _engine_command
        self._engine = engine or DockerEngine(config.runtime.docker.url)
        self._containers = Containers(self._engine)
        self._logs = Logs(self._engine, folder)
        self._records = Records(folder)
        self._events = Events(self._engine, config.cluster)
        self._pulls = Pulls(self._engine)
        self._ports: dict[str, int] = {}  # by replica: given out, and kept for its next start
        self._starting: set[str] = set()
        self._raises_limits = True
        self._exits: dict[str, tuple[str, Exit]] = {}  # by replica: the container that ended last
        self._seen: dict[str, _Seen] = {}  # by container

    @classmethod
    def of(cls, config: ClusterConfig, folder: StateFolder) -> "DockerRuntime":
        return cls(folder, config)

    def use(self, config: ClusterConfig) -> None:
        self._config = config

    async def prepare(
        self, specs: Sequence[ReplicaSpec], say: Say, config: ClusterConfig | None = None
    ) -> None:
        docker = self._docker if config is None else config.runtime.docker
        if docker.url != self._docker.url:
            raise StartError(
                "runtime.docker.url: replicas run on the other Docker Engine; `launcher down` with "
                "the old config first",
                recoverable=False,
            )
        if not self._engine.is_local:
            raise StartError(
                f"the Docker Engine at {self._engine.url} is on another machine, where replicas' "
                "ports and folders would be; expected one of this machine: run the launcher there",
                recoverable=False,
            )
        with _translating("the Docker Engine"):
            require_api_version(await self._engine.look(lambda api: str(api.api_version)))
            facts = facts_of(await self._engine.look(lambda api: api.info()))
            of_that_name = {CLUSTER: self._config.cluster}
            require_no_other_home(await self._containers.labelled(of_that_name), self._marks)
        for spec in specs:
            if not spec.trouble:  # else it is not started
                injection_of(docker.gpu_injection, spec.devices, facts)
            mounts, cache = self._command_of(spec, str(docker.cache_dir)).mounts, docker.cache_dir
            require_possible(mounts, docker)
            require_folders([m for m in mounts if m.source == str(cache)], cache, None)

    async def fetch(self, spec: ReplicaSpec, say: Say) -> None:
        with _translating(spec.id):
            await self._fetch(spec, say)

    async def start(self, spec: ReplicaSpec, generation: int, say: Say) -> Handle:
        self._starting.add(spec.id)
        try:
            with _translating(spec.id):
                return await self._start(spec, generation, say)
        finally:
            self._starting.discard(spec.id)

    async def wait(self, handle: Handle) -> Exit:
        with self._events.listening(handle.ref) as bell:
            while True:
                bell.clear()
                if ended := await self.poll(handle):
                    return ended
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await bell.wait()

    async def poll(self, handle: Handle) -> Exit | None:
        try:
            return await self._look_at(handle)
        except (OperatorError, Refused) as exc:
            log.debug("%s: %s", handle.replica_id, exc)
            return None

    async def stop(self, handle: Handle, grace_s: float) -> None:
        try:
            await self._stop(handle, grace_s)
        except (RuntimeAway, StartError) as exc:
            raise StopError(f"{handle.replica_id}: {handle.shown} is not stopped: {exc}") from exc
        except Refused as exc:
            raise StopError(_unkillable(handle, exc)) from exc

    async def owned(self) -> list[Handle]:
        with _translating("the Docker Engine"):
            handles = [
                handle
                for listed in await self._containers.labelled(self._marks)
                if listed["State"] in _RUNNING
                and (handle := await self._owned_one(listed["Id"])) is not None
            ]
        for handle in handles:
            with suppress(ValueError):
                self._ports.setdefault(handle.replica_id, ports.port_of(handle.base_url))
        return handles

    async def clear_away(self) -> None:
        if self._is_run_by_another():
            return
        with _translating("the Docker Engine"):
            for listed in await self._containers.labelled(self._marks):
                replica_id = listed["Labels"].get(REPLICA, "")
                if listed["State"] not in _RUNNING and replica_id not in self._starting:
                    await self._clear_away(replica_id, listed["Id"])

    async def others_devices(self) -> dict[str, str]:
        """By device, which other cluster's container on this engine has it: `cluster chat`. None
        where no engine answers: who asks is told so elsewhere."""
        try:
            listed = await self._containers.running_with(DEVICES)
        except (OperatorError, Refused) as exc:
            log.debug("docker: other clusters' GPUs are not known: %s", exc)
            return {}
        return devices_of_others(listed, self._marks)

    async def is_serving_itself(self, handle: Handle) -> bool:
        try:
            found = await self._containers.inspect(handle.ref)
        except (OperatorError, Refused):
            return True  # nobody to be asked
        if found is None or not found["State"]["Running"]:
            return False
        bound = (found["NetworkSettings"].get("Ports") or {}).values()
        ours = str(ports.port_of(handle.base_url))
        return any(binding["HostPort"] == ours for bindings in bound for binding in bindings or ())

    def last_generation(self, replica_id: str) -> int:
        return self._records.last_generation(replica_id)

    def log_path(self, replica_id: str) -> Path:
        return self._folder.log(replica_id)

    async def catch_up_log(self, replica_id: str) -> None:
        try:
            found = await self._containers.inspect(container_name(self._config.cluster, replica_id))
            if found is not None and is_marked(found, self._marks):
                await self._logs.copy_once(replica_id, found["Id"])
        except (OperatorError, Refused, OSError) as exc:
            log.warning("%s: the log may lack its end: %s", replica_id, exc)

    async def aclose(self) -> None:
        self._events.close()
        self._logs.close()
        await self._engine.aclose()

    @property
    def _docker(self) -> DockerConfig:
        return self._config.runtime.docker

    @property
    def _marks(self) -> dict[str, str]:
        return marks_of(self._config.cluster, self._folder.path)

    def _command(self, spec: ReplicaSpec) -> ContainerCommand:
        return self._command_of(spec, str(self._docker.cache_dir))

    # ---- starting

    async def _start(self, spec: ReplicaSpec, generation: int, say: Say) -> Handle:
        command, facts = await self._fetch(spec, say)
        await self._clear_name(spec.id)
        self._logs.begin(spec.id)
        taken: set[int] = set()
        while len(taken) < _PORT_TRIES:
            place = self._place(spec.id, generation, taken)
            container = container_of(spec, command, place, self._docker, facts)
            handle = Handle(
                self.name, spec.id, generation, "", place.url, spec.fingerprint, None, spec.devices
            )
            self._records.write(handle)
            say("starting the container")
            try:
                return await self._run(container, handle)
            except Refused as exc:
                if is_limit_refused(exc) and facts.raises_limits:
                    log.info("docker: this engine may not raise limits; replicas have its own")
                    facts, self._raises_limits = replace(facts, raises_limits=False), False
                elif is_port_taken(exc):
                    taken.add(place.port)
                else:
                    raise
        raise StartError(f"{spec.id}: {_PORT_TRIES} ports in a row were taken on {place.host}")

    async def _fetch(self, spec: ReplicaSpec, say: Say) -> tuple[ContainerCommand, EngineFacts]:
        """Its image is here then, and so is all that it mounts."""
        command = self._command(spec)
        require_possible(command.mounts, self._docker)
        require_folders(command.mounts, self._docker.cache_dir, self._engine.socket_path)
        await self._pulls.ensure(command.image, self._docker.pull, say)
        facts = facts_of(await self._engine.look(lambda api: api.info()))
        facts = replace(
            facts,
            raises_limits=facts.raises_limits and self._raises_limits,
            proxies=await self._engine.look(lambda _: read_proxies(self._engine.url)),
        )
        injection_of(self._docker.gpu_injection, spec.devices, facts)
        return command, facts

    async def _run(self, container: Container, handle: Handle) -> Handle:
        oom_kills = exits.oom_kills()
        found = await self._containers.run(container)
        started = replace(handle, ref=found["Id"], pid=found["State"]["Pid"] or None)
        self._seen[started.ref] = _Seen(found["State"]["StartedAt"], oom_kills)
        self._logs.follow(started.replica_id, started.ref)
        return started

    async def _clear_name(self, replica_id: str) -> None:
        """Remove what an earlier start left under this replica's name."""
        name = container_name(self._config.cluster, replica_id)
        found = await self._containers.inspect(name)
        if found is None:
            return
        if not is_marked(found, self._marks):
            raise StartError(
                f"found a container {name} that this cluster did not make, expected that name to "
                f"be free: `docker rm -f {name}` removes it",
                is_slow=True,
            )
        await self._remove_leftover(replica_id, found["Id"])

    async def _remove_leftover(self, replica_id: str, container_id: str) -> None:
        with suppress(OSError, Refused):
            await self._logs.copy_once(replica_id, container_id)
        await self._containers.remove(container_id)

    def _place(self, replica_id: str, generation: int, taken: set[int]) -> Place:
        """Its last port if that is free, else the first free one."""
        runtime = self._config.runtime
        host = ports.address_of(runtime.host)
        with ports.choosing():
            others = {port for owner, port in self._ports.items() if owner != replica_id} | taken
            others |= {ports.port_of(url) for url in processes.marked_urls()}
            preferred = self._ports.get(replica_id)
            port = next(ports.free_ports(host, runtime.first_port, others, preferred), None)
        if port is None:
            raise StartError(
                f"no free port from {runtime.first_port} on {host}; set runtime.first_port"
            )
        self._ports[replica_id] = port
        url = ports.url_of(host, port)
        return Place(self._config.cluster, str(self._folder.path), generation, host, port, url)

    # ---- watching

    async def _look_at(self, handle: Handle) -> Exit | None:
        ref, known = self._exits.get(handle.replica_id, ("", None))
        if ref == handle.ref:
            return known
        found = await self._containers.inspect(handle.ref)
        if found is None:
            return self._remember(handle, endings.REMOVED)
        state, pump = found["State"], self._logs.follow(handle.replica_id, handle.ref)
        if state["Paused"]:
            log.warning("%s: %s was paused; it goes on", handle.replica_id, handle.shown)
            await self._containers.unpause(handle.ref)
            return None
        seen = self._seen.setdefault(handle.ref, _Seen(state["StartedAt"], exits.oom_kills()))
        memory_ran_out = exits.oom_kills() > seen.oom_kills
        ended = endings.ending_of(state, memory_ran_out=memory_ran_out)
        if ended is not None:
            await pump.has_ended(_LOG_END_S)  # its last words are wanted next
        elif state["StartedAt"] != seen.started_at:
            ended = endings.RESTARTED
        return None if ended is None else self._remember(handle, ended)

    def _remember(self, handle: Handle, ended: Exit) -> Exit:
        self._exits[handle.replica_id] = handle.ref, ended
        return ended

    # ---- stopping

    async def _stop(self, handle: Handle, grace_s: float) -> None:
        found = await self._containers.inspect(handle.ref)
        if found is not None:
            if found["State"]["Paused"]:
                await self._containers.unpause(handle.ref)
            if found["State"]["Running"]:
                await self._end(handle, found["Config"].get("StopSignal") or "SIGTERM", grace_s)
            if found["State"]["Status"] != "created":
                await self.poll(handle)
            await self._containers.remove(handle.ref)
        self._forget(handle)

    async def _end(self, handle: Handle, stop_signal: str, grace_s: float) -> None:
        if grace_s > 0:
            await self._containers.signal(handle.ref, stop_signal)
            if await self._has_ended(handle, grace_s):
                return
        await self._containers.signal(handle.ref, "SIGKILL")
        await self._has_ended(handle, _KILL_WAIT_S)  # if not, removing it says why

    async def _has_ended(self, handle: Handle, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self.wait(handle)
        except TimeoutError:
            return False
        return True

    def _forget(self, handle: Handle) -> None:
        self._seen.pop(handle.ref, None)
        self._logs.forget(handle.replica_id, handle.ref)

    # ---- finding again

    async def _owned_one(self, container_id: str) -> Handle | None:
        """None for one that is gone meanwhile."""
        found = await self._containers.inspect(container_id)
        if found is None:
            return None
        return _handle_of(found["Id"], found["Config"]["Labels"], found["State"]["Pid"] or None)

    async def _clear_away(self, replica_id: str, container_id: str) -> None:
        try:
            await self._remove_leftover(replica_id, container_id)
        except Refused as exc:  # in the way of nothing but a start, which will say so
            log.warning("%s: container %s stays: %s", replica_id, container_id[:12], exc.text)

    def _is_run_by_another(self) -> bool:
        """Which is about to start something, or to ask how it ended."""
        holder = self._folder.holder()
        return holder is not None and holder.pid != os.getpid()


@contextmanager
def _translating(what: str) -> Iterator[None]:
    try:
        yield
    except Refused as exc:
        raise start_error(exc, what) from exc
    except StateError as exc:
        raise StartError(str(exc)) from exc


def _handle_of(container_id: str, labels: Mapping[str, str], pid: int | None) -> Handle:
    generation = labels.get(GENERATION, "")
    return Handle(
        DockerRuntime.name,
        labels.get(REPLICA, ""),
        int(generation) if generation.isdecimal() else 0,
        container_id,
        labels.get(URL, ""),
        labels.get(FINGERPRINT, ""),
        pid,
        tuple(filter(None, labels.get(DEVICES, "").split(","))),
    )


def _engine_command(spec: ReplicaSpec, cache_dir: str) -> ContainerCommand:
    return ENGINES[spec.engine_name].container(spec, cache_dir)


def _unkillable(handle: Handle, exc: Refused) -> str:
    return (
        f"{handle.replica_id}: {handle.shown} cannot be removed: {exc.text}; if its process is in "
        "state D it is stuck in a driver: look at dmesg, the machine may need a reboot"
    )
