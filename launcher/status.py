"""What a cluster looks like right now: written by the supervisor, read by every other command.

The record on disk says what the supervisor last saw. It is believed only as far as the processes it
names still run: `read` checks each one, so a dead launcher's word is never passed on as the truth.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher import processes
from launcher.cluster import Cluster
from launcher.desired import expected
from launcher.instance import Phase
from launcher.processes import ProcessId
from launcher.router_client import RouterAway, RouterClient, replica_states
from launcher.router_process import running_routers
from launcher.runtimes import Handle
from launcher.state import STATUS_RECORD
from router.errors import RuntimeAway

FAILED_STARTS = 3  # in a row: not a single accident, so the operator is told
_RUNNING = (Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING)
_HEALTH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica. `ref` is the runtime's own name of its process; `*_at` are wall-clock."""

    id: str
    model: str
    phase: Phase = Phase.STOPPED
    url: str | None = None
    restarts: int = 0
    pid: int | None = None
    ref: str = ""
    shown: str = ""  # how people find it: `pid 4711`, `container 3f2a9c1b7d10`
    generation: int = 0
    failed_starts: int = 0
    is_stuck: bool = False  # it will not start before somebody has seen to it
    progress: str = ""
    reason: str = ""
    started_at: float | None = None
    max_tokens: int | None = None
    in_flight: int | None = None  # calls, from the router; None when it does not tell
    drained: bool = False  # by an operator: it runs, and could take calls
    devices: tuple[str, ...] = ()
    dialect: str = "tgi"
    is_outdated: bool = False  # runs as an older config wanted it; replaced in its turn
    shunned: str = ""  # the router's word for why it sends nothing to a ready one; "" if it does
    gpu_trouble: str = ""  # what is wrong with a GPU of a ready one: it gets fewer calls, or none

    @property
    def container(self) -> str | None:
        """The container's id, where it is one."""
        return self.ref if self.shown.startswith("container") else None

    @property
    def is_running(self) -> bool:
        return bool(self.ref)

    @property
    def is_in_trouble(self) -> bool:
        """It is not there as the config wants it, and waiting for that is not worth while."""
        if self.is_up and not self.is_outdated:
            return False
        has_failed = self.phase is Phase.FAILED or self.failed_starts >= FAILED_STARTS
        return has_failed or self.is_stuck

    @property
    def is_up(self) -> bool:
        """It serves, or would if no operator had taken it out."""
        return self.phase is Phase.READY or self.drained

    @property
    def is_shunned(self) -> bool:
        """It is ready, and the router finds it unwell and sends it nothing."""
        return self.phase is Phase.READY and bool(self.shunned)

    @property
    def serves(self) -> bool:
        """It takes calls."""
        return self.phase is Phase.READY and not self.shunned

    @property
    def word(self) -> str:
        """How it is, in one word: its phase, or what the router finds where that is worse."""
        return self.shunned.partition(":")[0] if self.is_shunned else str(self.phase)


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """The router; `phase` is starting, ready or stopped."""

    phase: Phase = Phase.STOPPED
    pid: int | None = None
    restarts: int = 0
    failed_starts: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Everything; `launcher_pid` is None when no launcher runs."""

    cluster: str
    endpoint: str | None
    replicas: tuple[ReplicaStatus, ...]
    router: RouterStatus = RouterStatus()
    launcher_pid: int | None = None
    adopted: int = 0  # replicas that ran before this launcher came
    is_stopping: bool = False
    notes: tuple[str, ...] = ()  # what the launcher decided when it began, for the operator
    change_id: str = ""  # the last request to follow a changed config, and why it was refused
    change_error: str = ""
    trouble: str = ""  # why what is shown may not be so
    curl_options: tuple[str, ...] = ()  # what curl needs to be let in, beside the endpoint

    @property
    def is_ready(self) -> bool:
        """Every replica is up, drained ones included, and the router serves."""
        served = all(replica.is_up and not replica.is_outdated for replica in self.replicas)
        return served and self.router_serves

    @property
    def router_serves(self) -> bool:
        return self.router.phase is Phase.READY

    @property
    def runs(self) -> bool:
        """Whether anything of this cluster runs."""
        return (
            self.launcher_pid is not None
            or self.router.pid is not None
            or any(replica.is_running for replica in self.replicas)
        )

    @property
    def summary(self) -> str:
        """How many take calls, of how many there are to be."""
        serving = sum(replica.serves for replica in self.replicas)
        are = "serve" if any(replica.is_shunned for replica in self.replicas) else "ready"
        drained = sum(replica.drained for replica in self.replicas)
        outdated = sum(replica.is_outdated for replica in self.replicas)
        text = f"{serving} of {len(self.replicas)} replicas {are}"
        text += f", {drained} drained" if drained else ""
        return text + (f", {outdated} to be replaced" if outdated else "")

    def as_json(self) -> dict[str, Any]:
        """The shape that `launcher status --json` promises to scripts."""
        return {
            "cluster": self.cluster,
            "endpoint": self.endpoint,
            "replicas": [
                {
                    "id": replica.id,
                    "phase": str(replica.phase),
                    "url": replica.url,
                    "restarts": replica.restarts,
                    "pid": replica.pid,
                    "container": replica.container,
                    "devices": list(replica.devices),
                    "outdated": replica.is_outdated,
                    "model": replica.model,
                    "progress": replica.progress,
                    "reason": replica.reason,
                    "shunned": replica.shunned,
                    "serves": replica.serves,
                    "gpu_trouble": replica.gpu_trouble,
                }
                for replica in self.replicas
            ],
            "router": {
                "phase": str(self.router.phase),
                "pid": self.router.pid,
                "restarts": self.router.restarts,
            },
            "launcher": {"pid": self.launcher_pid},
            "trouble": self.trouble,
        }

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def recorded(cluster: Cluster) -> ClusterStatus | None:
    """The supervisor's last word as it stands; None when there is none or it is unreadable."""
    record = cluster.folder.read_record(STATUS_RECORD) or {}
    record.pop("version", None)
    with suppress(KeyError, TypeError, ValueError):
        replicas = (
            ReplicaStatus(
                **{
                    **fields,
                    "phase": Phase(fields["phase"]),
                    "devices": tuple(fields.get("devices", ())),
                }
            )
            for fields in record.pop("replicas")
        )
        router = record.pop("router")
        router["phase"] = Phase(router["phase"])
        for name in ("notes", "curl_options"):
            record[name] = tuple(record.get(name, ()))
        return ClusterStatus(**record, replicas=tuple(replicas), router=RouterStatus(**router))
    return None


async def read(cluster: Cluster) -> ClusterStatus:
    """The truth: the record, checked against what runs, and the router's own view on top."""
    status = _with_config(recorded(cluster), cluster)
    launcher = cluster.folder.holder()
    routers = running_routers(cluster.folder)
    running, trouble = await _running(status, cluster, supervised=launcher is not None)
    known = status.replicas if launcher else tuple(_with_unrecorded(status.replicas, running))
    replicas = await _checked(known, running, supervised=launcher is not None)
    if launcher is None and (routers or any(replica.is_running for replica in replicas)):
        replicas = tuple(_unwatched(replica, cluster.command("up")) for replica in replicas)
    router = replace(status.router, pid=routers[0].process.pid if routers else None)
    if not routers:
        router = replace(router, phase=Phase.STOPPED)
    status = replace(
        status,
        launcher_pid=launcher.pid if launcher else None,
        replicas=replicas,
        router=router,
        is_stopping=status.is_stopping and launcher is not None,
        trouble=trouble,
    )
    return await _with_router_view(status, cluster) if routers else status


SHUNNED = frozenset({"suspect", "unhealthy", "ejected"})


def overlay(
    replicas: Iterable[ReplicaStatus], router_state: dict[str, Any]
) -> tuple[ReplicaStatus, ...]:
    """A ready replica that an operator took out, as the router says, is draining."""
    known = replica_states(router_state)
    return tuple(_overlaid(replica, known.get(replica.id, {})) for replica in replicas)


def _overlaid(replica: ReplicaStatus, seen: dict[str, Any]) -> ReplicaStatus:
    # The record may be a beat old: what it shows as drained may be back by now.
    phase = Phase.READY if replica.drained and seen else replica.phase
    drained = phase is Phase.READY and seen.get("admin", "active") != "active"
    health = str(seen.get("health", ""))
    shunned = f"{health}: {seen['reason']}" if seen.get("reason") else health
    return replace(
        replica,
        phase=Phase.DRAINING if drained else phase,
        in_flight=seen.get("requests"),
        shunned=shunned if phase is Phase.READY and health in SHUNNED else "",
        gpu_trouble=_gpu_trouble(seen) if phase is Phase.READY else "",
        drained=drained or (replica.drained and not seen),
    )


def _gpu_trouble(seen: dict[str, Any]) -> str:
    if fault := seen.get("fault"):
        return f"used only where no other serves: {fault}"
    slowed = seen.get("slowed")
    return f"gets fewer calls: {slowed}" if slowed else ""


def _with_config(status: ClusterStatus | None, cluster: Cluster) -> ClusterStatus:
    """Replicas the config has and the record has not are stopped: they never ran."""
    config = cluster.config
    router = config.router
    endpoint = f"{router.scheme}://{router.host}:{router.port}" if router.port else None
    status = status or ClusterStatus(config.cluster, endpoint, ())
    known = {replica.id for replica in status.replicas}
    missing = (
        ReplicaStatus(spec.id, spec.model) for spec in expected(config) if spec.id not in known
    )
    return replace(
        status, endpoint=status.endpoint or endpoint, replicas=(*status.replicas, *missing)
    )


Running = Mapping[str, Handle | None]
"""Starts that run, by their ref; None: nothing is known but that."""


async def _running(
    status: ClusterStatus, cluster: Cluster, *, supervised: bool
) -> tuple[Running, str]:
    """Which starts run; where nobody can tell, all that were recorded, and why."""
    refs = [replica.ref for replica in status.replicas if replica.ref]
    running: dict[str, Handle | None] = {}
    if cluster.config.runtime.name == "process":
        running = dict.fromkeys(filter(_runs, refs))
        if supervised:
            return running, ""
    from launcher.supervisor import make_runtime

    runtime = make_runtime(cluster)
    try:
        return running | {handle.ref: handle for handle in await runtime.owned()}, ""
    except RuntimeAway as exc:
        trouble = f"{exc}; what is shown of replicas is what was known last"
        return dict.fromkeys(refs), trouble
    finally:
        await runtime.aclose()


def _with_unrecorded(
    replicas: Iterable[ReplicaStatus], running: Running
) -> Iterator[ReplicaStatus]:
    """Replicas of which an unknown start runs: records may be lost."""
    found = {handle.replica_id: handle for handle in running.values() if handle}
    for replica in replicas:
        handle = found.get(replica.id)
        if handle is None or replica.ref in running:
            yield replica
            continue
        yield replace(
            replica,
            url=handle.base_url,
            pid=handle.pid,
            ref=handle.ref,
            shown=handle.shown,
            generation=handle.generation,
            devices=handle.devices,
        )


async def _checked(
    replicas: tuple[ReplicaStatus, ...], running: Running, *, supervised: bool
) -> tuple[ReplicaStatus, ...]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_check(r, running, supervised=supervised)) for r in replicas]
    return tuple(task.result() for task in tasks)


async def _check(replica: ReplicaStatus, running: Running, *, supervised: bool) -> ReplicaStatus:
    alive = replica.ref in running
    # 1. It runs. Without a launcher nobody noted how it went on, so it is asked itself.
    if alive:
        if supervised or replica.url is None:
            return replica
        healthy = await _is_healthy(replica.url)
        phase = Phase.READY if healthy else Phase.LOADING
        reason = "no launcher watches it"
        return replace(replica, phase=phase, progress="", reason=reason, drained=False)
    # 2. It does not, and a launcher is about to see to it.
    if supervised and replica.phase not in _RUNNING:
        return replica
    gone = replace(
        replica,
        pid=None,
        url=None,
        ref="",
        shown="",
        is_outdated=False,
        started_at=None,
        progress="",
        drained=False,
    )
    if supervised:
        return replace(gone, phase=Phase.PENDING, reason="it has just ended")
    # 3. It does not, and nobody will start it.
    ended = replica.phase is not Phase.FAILED
    return replace(gone, phase=Phase.STOPPED, reason="" if ended else replica.reason)


def _unwatched(replica: ReplicaStatus, up: str) -> ReplicaStatus:
    """Others run and this one does not: who reads it must not wait for its return."""
    if replica.is_running:
        return replica
    why = f"{replica.reason}; " if replica.reason else ""
    return replace(replica, reason=f"{why}no launcher restarts it; `{up}` does")


async def _with_router_view(status: ClusterStatus, cluster: Cluster) -> ClusterStatus:
    try:
        async with RouterClient(cluster.folder.admin_socket) as client:
            state = await client.state()
    except RouterAway:
        return replace(status, router=replace(status.router, phase=Phase.STARTING))
    replicas = overlay(status.replicas, state)
    return replace(status, replicas=replicas, router=replace(status.router, phase=Phase.READY))


def _runs(ref: str) -> bool:
    with suppress(ValueError):
        return processes.is_running(ProcessId.parse(ref))
    return False


async def _is_healthy(url: str) -> bool:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/health") as reply,
        ):
            return reply.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def uptime_s(replica: ReplicaStatus) -> float | None:
    return None if replica.started_at is None else max(0.0, time.time() - replica.started_at)
