"""The launcher's heart: observe what runs, plan, act, and keep the router told.

It runs while it holds the cluster's lock. Each replica has a keeper (`crew`) and so has the router;
this file starts them, publishes what they report (status record, replica list for the router),
follows a changed config, and takes everything down in the right order: the router first, as it
finishes calls that replicas still serve. A supervisor that dies changes nothing for clients; the
next one adopts what runs.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from launcher import changes, status
from launcher.asking import ask_aside
from launcher.changes import ChangeRequest
from launcher.cluster import Cluster
from launcher.crew import Crew
from launcher.desired import desired, files_are_here, gpu_notes
from launcher.gpu import GpuEvent, Inventory, Reading
from launcher.gpu_troubles import GpuTroubles
from launcher.gpu_watch import GpuWatch
from launcher.instance import Instance, Phase
from launcher.keeper import ReplicaKeeper
from launcher.placement import ReplicaSpec
from launcher.plan import Plan, make_plan
from launcher.races import first_of
from launcher.reporter import Beginning, Reporter
from launcher.router_client import RouterAway, RouterClient, replica_states
from launcher.router_process import RouterKeeper
from launcher.runtimes import RUNTIMES, Handle, Runtime
from launcher.status import ClusterStatus
from router.errors import OperatorError, StopError

log = logging.getLogger("launcher")

T = TypeVar("T")
_DRAIN_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A config that was found possible on this machine, and what it makes there."""

    cluster: Cluster
    specs: list[ReplicaSpec]
    notes: tuple[str, ...]


class Supervisor:
    """Runs one cluster until it is asked to stop. The caller holds the cluster's lock."""

    def __init__(
        self, cluster: Cluster, on_change: Callable[[ClusterStatus], None] = lambda _: None
    ) -> None:
        self._cluster = cluster
        self._runtime = make_runtime(cluster)
        self._client = RouterClient(cluster.folder.admin_socket)
        self._router = RouterKeeper(cluster.folder, cluster.config, self._client, self._changed)
        self._router_task: asyncio.Task[None] | None = None
        self._crew: Crew | None = None
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._change = asyncio.Event()
        self._beginning = Beginning()
        self._gpus = GpuTroubles()
        self._reporter = Reporter(
            cluster,
            self._client,
            self._router,
            self._beginning,
            lambda: self._keepers,
            on_change,
            self._gpus.of,
        )

    def request_stop(self) -> None:
        """Asked once: stop gracefully. Asked again: at once."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()
        self._beginning.is_stopping = True

    def request_change(self) -> None:
        """The config was edited: read what `changes` left in the state folder, and follow it."""
        self._change.set()

    def request_reload(self) -> None:
        """The config it follows may have been edited: as `launcher up` with the same file."""
        try:
            changes.ask(self._cluster.folder, self._cluster.path)
        except OperatorError as exc:
            log.error("config: not read again: %s", exc)
            return
        self.request_change()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    async def run(self) -> None:
        """Until `request_stop`, also while it begins; nothing of the cluster runs then.

        Raises StartError when the endpoint cannot be opened; what ran before runs on then.
        """
        # Replicas answer one call per look; a pooled connection would outlive them.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        try:
            async with self._client, aiohttp.ClientSession(connector=connector) as session:
                await self._run(session)
        finally:
            await self._runtime.aclose()

    async def _run(self, session: aiohttp.ClientSession) -> None:
        owned = await self._unless_stopping(self._owned())
        if owned is not None:
            wanted = await self._unless_stopping(self._wanted(self._cluster, owned))
            if wanted is not None:
                await self._keep(make_plan(wanted.specs, owned), wanted, session)
        await self._take_down()

    async def _owned(self) -> list[Handle]:
        await self._runtime.clear_away()
        return await self._runtime.owned()

    async def _keep(self, plan: Plan, wanted: _Wanted, session: aiohttp.ClientSession) -> None:
        _keep_config(self._cluster)
        await self._router.open()
        self._crew = Crew(
            self._runtime,
            session,
            self._drained,
            self._reporter.admissions.until_in,
            self._is_here,
            changed=self._changed,
        )
        self._restore(plan, wanted.specs, list(wanted.notes))
        # A bug that ends the keeping takes nothing down: clients are served, and the next
        # launcher adopts it all.
        await self._keep_all(plan)

    async def _wanted(self, cluster: Cluster, handles: list[Handle]) -> _Wanted:
        """Whether all could start; raises what is against it. Nothing is changed here."""
        specs = await ask_aside(desired, cluster.config, handles)
        await self._runtime.prepare(specs, log.info, cluster.config)
        notes = await ask_aside(gpu_notes, cluster.config, specs, handles)
        return _Wanted(cluster, specs, tuple(notes))

    async def _unless_stopping(self, looking: Coroutine[Any, Any, T]) -> T | None:
        """None as soon as it is to stop: looking changes nothing, so it is just left."""
        return await first_of(_set(self._stop), looking)

    def _changed(self) -> None:
        self._reporter.changed()

    # ---- acting

    @property
    def _keepers(self) -> list[ReplicaKeeper]:
        return list(self._crew) if self._crew is not None else []

    def _is_here(self, spec: ReplicaSpec) -> bool:
        return files_are_here(spec, self._cluster.config)

    def _restore(self, plan: Plan, specs: list[ReplicaSpec], strangers: list[str]) -> None:
        """What runs on, and what the last launcher knew of it.

        Before anything is told: a first list without their addresses would have the router take
        them for ended, and cut their streams.
        """
        assert self._crew is not None
        before = status.recorded(self._cluster)
        known = {replica.ref: replica for replica in before.replicas} if before else {}

        def restore(instance: Instance) -> None:
            if instance.handle and (replica := known.get(instance.handle.ref)):
                instance.restarts = replica.restarts
                instance.started_at = replica.started_at
                instance.max_tokens = replica.max_tokens

        self._beginning.adopted = len(plan.adopt) + len(plan.replace)
        self._beginning.notes = (*_notes(plan, {spec.id for spec in specs}), *strangers)
        self._crew.hire(specs, self._cluster.config.runtime, plan, restore)

    async def _keep_all(self, plan: Plan) -> None:
        assert self._crew is not None
        async with asyncio.TaskGroup() as group:
            self._crew.begin(group, plan)
            self._router_task = group.create_task(self._router.run())
            tell = group.create_task(self._reporter.run())
            watch = group.create_task(GpuWatch(self._on_gpu_event, self._on_readings).run())
            self._change.set()  # it may have been asked for since the lock was taken
            while not self._stop.is_set():
                await first_of(_set(self._stop), _set(self._change))
                if self._change.is_set() and not self._stop.is_set():
                    self._change.clear()
                    await self._follow_change(group)
            for task in (self._router_task, tell, watch):
                task.cancel()
            self._crew.dismiss()

    def _on_gpu_event(self, event: GpuEvent) -> None:
        """A GPU that takes its engine down with it: the replica is started anew, not waited for.

        Faults of the program on it end that program; they are only noted, to explain its end.
        """
        self._gpus.happened(event)
        hit = {event.uuid, *event.slices}
        users = [keeper for keeper in self._keepers if not hit.isdisjoint(keeper.devices)]
        names = ", ".join(keeper.spec.id for keeper in users) or "no replica"
        level = logging.ERROR if event.is_fatal_for_gpu else logging.WARNING
        log.log(level, "GPU %s (%s): %s", event.uuid, names, event.message)
        for keeper in users:
            if event.is_fatal_for_gpu:
                keeper.report(f"GPU {event.uuid}: {event.message}")

    def _on_readings(self, readings: dict[str, Reading], inventory: Inventory) -> None:
        if self._gpus.read(readings, inventory):
            log.warning("GPUs: %s", self._gpus.heat or "none is throttled any more")
            self._changed()

    # ---- following a changed config

    async def _follow_change(self, group: asyncio.TaskGroup) -> None:
        """Whatever is refused leaves everything as it was, and is told to who asked."""
        try:
            request = changes.read(self._cluster.folder)
        except OperatorError as exc:
            log.error("config: not read again: %s", exc)
            return
        if request is None:
            return
        error = ""
        try:
            wanted = await self._unless_stopping(self._check(request))
            if wanted is None:
                raise OperatorError("the launcher is asked to stop")
            takes_new_router = self._get_ready(wanted.cluster)
        except OperatorError as exc:
            log.error("config: not followed: %s", exc)
            error = f"{exc}\nnothing was changed"
        except Exception as exc:  # a bug here must not end what serves
            log.exception("config: not followed")
            error = f"a bug in the launcher: {exc!r} (see its log)\nnothing was changed"
        else:
            error = await self._change_to(wanted, group, takes_new_router=takes_new_router)
        self._beginning.change_id, self._beginning.change_error = request.id, error
        self._changed()

    async def _check(self, request: ChangeRequest) -> _Wanted:
        assert self._crew is not None
        cluster = Cluster.load(request.path)
        changes.require_possible(self._cluster, cluster)
        return await self._wanted(cluster, self._crew.handles)

    def _get_ready(self, cluster: Cluster) -> bool:
        """What may fail still, the last of it on disk; whether there will be a new router."""
        takes_new_router = self._router.prepare_change(cluster.config)
        try:
            _keep_config(cluster)
        except BaseException:
            self._router.drop_change()
            raise
        return takes_new_router

    async def _change_to(
        self, wanted: _Wanted, group: asyncio.TaskGroup, *, takes_new_router: bool
    ) -> str:
        """Nothing here fails but for a bug, which is told: it takes no other part with it."""
        assert self._crew is not None
        before, config = self._cluster.config, wanted.cluster.config
        self._cluster = wanted.cluster
        self._runtime.use(config)
        self._gpus.seen_to()
        self._reporter.follow(wanted.cluster)
        self._beginning.notes = wanted.notes
        try:
            changed = [
                *changes.replica_changes(self._crew.specs, wanted.specs),
                *changes.runtime_changes(before, config),
                *changes.router_changes(before, config),
            ]
            if takes_new_router:
                await self._exchange_router(group)
            await self._crew.change(wanted.specs, config.runtime)
        except Exception as exc:  # a bug here must not end what serves
            log.exception("config: followed in part")
            return f"a bug in the launcher: {exc!r} (see its log); the config is followed in part"
        log.info("config: read again from %s", wanted.cluster.path)
        is_news = any(change.sign != "=" for change in changed)
        for line in changed if is_news else ["nothing changed"]:
            log.info("config: %s", line)
        return ""

    async def _exchange_router(self, group: asyncio.TaskGroup) -> None:
        assert self._router_task is not None
        self._router_task.cancel()
        await asyncio.wait([self._router_task])
        try:
            self._router.change()
        finally:  # whatever happened, one is looked after
            self._router_task = group.create_task(self._router.run())

    async def _drained(self, replica_id: str) -> None:
        """Until the router knows that it leaves and has no call of it; bounded."""
        bound_s = self._cluster.config.runtime.drain_timeout_s
        try:
            async with asyncio.timeout(bound_s):
                while await self._has_calls(replica_id):  # noqa: ASYNC110  # another process's state
                    await asyncio.sleep(_DRAIN_LOOK_S)
        except TimeoutError:
            text = "%s: still has calls after runtime.drain_timeout_s (%g s); stopped all the same"
            log.warning(text, replica_id, bound_s)

    async def _has_calls(self, replica_id: str) -> bool:
        """Also true as long as nobody can tell: only without a router there are none for sure."""
        if await asyncio.to_thread(self._router.is_handing_over):
            return True  # the router before this one may still have calls there
        try:
            seen = replica_states(await self._client.state()).get(replica_id)
        except RouterAway:
            return await asyncio.to_thread(self._router.is_there)
        return seen is not None and (seen.get("phase") != Phase.DRAINING or bool(seen["requests"]))

    # ---- taking down

    async def _take_down(self) -> None:
        """Gracefully, unless asked again meanwhile; then whatever is left is killed."""
        self._reporter.publish()
        async with asyncio.TaskGroup() as group:
            graceful = group.create_task(self._stop_all())
            helpers = [group.create_task(self._hurry(graceful))]
            helpers.append(group.create_task(self._reporter.show_calls_left()))
            await asyncio.wait([graceful])
            for helper in helpers:
                helper.cancel()
        await take_down_rest(self._cluster, self._runtime, self._router)
        self._reporter.publish_end()
        self._cluster.folder.forget_run()

    async def _hurry(self, graceful: "asyncio.Task[None]") -> None:
        await self._stop_at_once.wait()
        log.warning("asked again: killing what is left")
        graceful.cancel()

    async def _stop_all(self) -> None:
        await self._router.stop()
        if self._crew is not None:
            await self._crew.stop_all()
        else:  # stopped before it had adopted what runs
            await _stop_owned(self._runtime, self._cluster.config.runtime.stop_grace_s)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _keep_config(cluster: Cluster) -> None:
    """What was checked, letter for letter: the file may have been saved again in between."""
    cluster.folder.write_text(cluster.folder.config_copy.name, cluster.text)


def _notes(plan: Plan, wanted: set[str]) -> Iterator[str]:
    """What is done to running replicas that the config does not want as they are."""
    for spec, handle in plan.replace:
        yield f"{spec.id}: its config changed: replaced in its turn, {handle.shown} serves on"
    for stray in plan.strays:
        if stray.replica_id not in wanted:
            yield f"{stray.replica_id}: no longer in the config: stopped, {stray.shown}"


async def take_down_rest(cluster: Cluster, runtime: Runtime, router: RouterKeeper) -> None:
    """End, by force, everything of the cluster that still runs; raises StopError."""
    await router.stop(at_once=True)
    handles = await runtime.owned()
    ends = await asyncio.gather(*(runtime.stop(h, 0.0) for h in handles), return_exceptions=True)
    failed = [end for end in ends if isinstance(end, BaseException)]
    if failed:
        raise StopError("\n".join(map(str, failed))) from failed[0]
    await runtime.clear_away()


async def _stop_owned(runtime: Runtime, grace_s: float) -> None:
    """Raises nothing: what resists, or cannot be seen, is tried again by force."""
    with suppress(OperatorError):
        handles = await runtime.owned()
        stops = (runtime.stop(handle, grace_s) for handle in handles)
        await asyncio.gather(*stops, return_exceptions=True)


def make_runtime(cluster: Cluster) -> Runtime:
    """The runtime the config names."""
    return RUNTIMES[cluster.config.runtime.name].of(cluster.config, cluster.folder)
