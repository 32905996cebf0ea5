"""The launcher's heart: observe what runs, plan, act, and keep the router told.

It runs while it holds the cluster's lock. Each replica has a keeper (`crew`) and so has the router;
this file starts them, publishes what they report (status record, replica list for the router),
follows a changed config, and takes everything down in the right order: the router first, as it
finishes calls that replicas still serve. A supervisor that dies changes nothing for clients; the
next one adopts what runs.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp

from launcher import changes, log_files, status
from launcher.changes import ChangeRequest
from launcher.cluster import Cluster
from launcher.crew import Crew
from launcher.desired import desired, files_are_here, gpu_notes
from launcher.instance import Instance, Phase
from launcher.keeper import ReplicaKeeper
from launcher.placement import ReplicaSpec
from launcher.plan import Plan, make_plan
from launcher.races import first_of
from launcher.router_client import PushRefused, RouterAway, RouterClient, replica_states
from launcher.router_process import LOG_NAME, RouterKeeper
from launcher.runtimes import RUNTIMES, Runtime
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus
from router.errors import OperatorError, StateError, StopError

log = logging.getLogger("launcher")

BEAT_S = 2.0  # the full list goes to the router at least this often
_LOG_BOUND_EVERY = 30  # beats
_CALLS_LEFT_EVERY_S = 0.5
_DRAIN_LOOK_S = 0.05


class Supervisor:
    """Runs one cluster until it is asked to stop. The caller holds the cluster's lock."""

    def __init__(
        self, cluster: Cluster, on_change: Callable[[ClusterStatus], None] = lambda _: None
    ) -> None:
        self._cluster = cluster
        self._on_change = on_change
        self._runtime = make_runtime(cluster)
        self._client = RouterClient(cluster.folder.admin_socket)
        self._router = RouterKeeper(cluster.folder, cluster.config, self._client, self._changed)
        self._crew: Crew | None = None
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._change = asyncio.Event()
        self._change_id, self._change_error = "", ""
        self._news = asyncio.Event()
        self._router_state: dict[str, Any] = {}
        self._published: ClusterStatus | None = None
        self._adopted = 0
        self._notes: tuple[str, ...] = ()
        self._epoch = 0
        self._troubled_beats = 0

    def request_stop(self) -> None:
        """Asked once: stop gracefully. Asked again: at once."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    def request_change(self) -> None:
        """The config was edited: read what `changes` left in the state folder, and follow it."""
        self._change.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    async def run(self) -> None:
        """Until `request_stop`; nothing of the cluster runs when it returns.

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
        config = self._cluster.config
        owned = await self._runtime.owned()
        specs = await asyncio.to_thread(desired, config, owned)
        await self._runtime.prepare(specs, log.info)
        plan = make_plan(specs, owned)
        strangers = await asyncio.to_thread(gpu_notes, config, specs, owned)
        changes.forget(self._cluster.folder)
        self._keep_config()
        await self._router.open()
        self._crew = Crew(
            self._runtime, session, self._drained, self._is_here, changed=self._changed
        )
        self._restore(plan, specs, strangers)
        # A bug that ends the keeping takes nothing down: clients are served, and the next
        # launcher adopts it all.
        await self._keep_all(plan)
        await self._take_down()

    # ---- acting

    @property
    def _keepers(self) -> list[ReplicaKeeper]:
        return list(self._crew) if self._crew is not None else []

    def _keep_config(self) -> None:
        try:
            text = self._cluster.path.read_text(encoding="utf-8")
        except OSError as exc:
            raise StateError(f"{self._cluster.path}: cannot read it again: {exc.strerror}") from exc
        self._cluster.folder.write_text(self._cluster.folder.config_copy.name, text)

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

        self._adopted = len(plan.adopt) + len(plan.replace)
        self._notes = (*_notes(plan, {spec.id for spec in specs}), *strangers)
        self._crew.hire(specs, self._cluster.config.runtime, plan, restore)

    async def _keep_all(self, plan: Plan) -> None:
        assert self._crew is not None
        async with asyncio.TaskGroup() as group:
            self._crew.begin(group, plan)
            router = group.create_task(self._router.run())
            tell = group.create_task(self._tell())
            while not self._stop.is_set():
                await first_of(_set(self._stop), _set(self._change))
                if self._change.is_set() and not self._stop.is_set():
                    self._change.clear()
                    router = await self._follow_change(group, router)
            for task in (router, tell):
                task.cancel()
            self._crew.dismiss()

    # ---- following a changed config

    async def _follow_change(
        self, group: asyncio.TaskGroup, router: "asyncio.Task[None]"
    ) -> "asyncio.Task[None]":
        """Whatever is refused leaves everything as it was, and is told to who asked."""
        request = changes.read(self._cluster.folder)
        if request is None:
            return router
        error = ""
        try:
            router = await self._change_to(request, group, router)
            log.info("config: read again from %s", request.path)
        except OperatorError as exc:
            log.error("config: not followed: %s", exc)
            error = str(exc)
        except Exception as exc:  # a bug here must not end what serves
            log.exception("config: not followed")
            error = f"a bug in the launcher: {exc!r} (see its log)"
        self._change_id, self._change_error = request.id, error
        self._changed()
        return router

    async def _change_to(
        self, request: ChangeRequest, group: asyncio.TaskGroup, router: "asyncio.Task[None]"
    ) -> "asyncio.Task[None]":
        assert self._crew is not None
        cluster = Cluster.load(request.path)
        changes.require_possible(self._cluster, cluster)
        handles = self._crew.handles
        specs = await asyncio.to_thread(desired, cluster.config, handles)
        self._runtime.use(cluster.config)
        await self._runtime.prepare(specs, log.info)
        strangers = await asyncio.to_thread(gpu_notes, cluster.config, specs, handles)
        opened = self._router.prepare_change(cluster.config)
        self._cluster = cluster
        self._keep_config()
        self._notes = tuple(strangers)
        if opened:
            router.cancel()
            await asyncio.wait([router])
            self._router.change()
            router = group.create_task(self._router.run())
        await self._crew.change(specs, cluster.config.runtime)
        return router

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
        if not self._router.answering.is_set():
            return False
        if await asyncio.to_thread(self._router.is_handing_over):
            return True  # the router before this one may still have calls there
        try:
            seen = replica_states(await self._client.state()).get(replica_id)
        except RouterAway:
            return False
        return seen is not None and (seen.get("phase") != Phase.DRAINING or bool(seen["requests"]))

    # ---- telling

    def _changed(self) -> None:
        self._publish()
        self._news.set()

    async def _tell(self) -> None:
        """Push at every change and every beat; the router may be away at any time."""
        beat = 0
        while True:
            self._news.clear()
            await self._push()
            self._publish()
            beat += 1
            if beat % _LOG_BOUND_EVERY == 0:
                await asyncio.to_thread(log_files.bound, self._logs())
            try:
                # While no router answers, its coming is the news to wait for.
                answering = self._router.answering.is_set()
                async with asyncio.timeout(BEAT_S if answering else 0.2):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _push(self) -> None:
        self._epoch = max(self._epoch + 1, time.time_ns())
        replicas = [_as_pushed(keeper.instance, keeper.spec) for keeper in self._keepers]
        trouble = ""
        try:
            await self._client.push(self._cluster.config.cluster, self._epoch, replicas)
            self._router_state = await self._client.state()
        except PushRefused as exc:
            trouble = f"it refused the replica list: {exc}"
            await self._catch_up_epoch()
        except RouterAway as exc:
            trouble = str(exc) if self._router.answering.is_set() else ""
        self._note_trouble(trouble)

    def _note_trouble(self, trouble: str) -> None:
        """Once, and only if it lasts: a single miss is a router that has just ended."""
        self._troubled_beats = self._troubled_beats + 1 if trouble else 0
        if self._troubled_beats == 2:
            log.warning("router: %s", trouble)

    async def _catch_up_epoch(self) -> None:
        """The clock was set back since the last launcher: go on from the router's epoch."""
        try:
            self._epoch = max(self._epoch, int((await self._client.state()).get("epoch", 0)))
        except (RouterAway, ValueError):
            return

    def _publish(self) -> None:
        current = self.snapshot()
        if current == self._published:
            return
        self._log_drains(self._published, current)
        self._published = current
        try:
            self._on_change(current)
        except Exception:  # what is shown must not end what serves
            log.exception("the display failed; nothing else did")
        try:
            # After a power cut nothing of it would be true: no need to wait for the disk.
            record = current.as_record()
            self._cluster.folder.write_record(status.RECORD, record, is_durable=False)
        except StateError as exc:  # a full disk must not end what serves
            log.error("%s", exc)

    def _log_drains(self, before: ClusterStatus | None, after: ClusterStatus) -> None:
        """The router owns drains; this log has them, too, as its `ready` would mislead."""
        were = {replica.id for replica in before.replicas if replica.drained} if before else set()
        for replica in after.replicas:
            if replica.drained and replica.id not in were:
                log.info("%s: drained by an operator, gets no calls", replica.id)
            elif replica.id in were and replica.phase is Phase.READY:
                log.info("%s: undrained by an operator, gets calls again", replica.id)

    def snapshot(self) -> ClusterStatus:
        view = self._router.view
        phase = Phase.READY if view.is_answering else Phase.STARTING
        router = RouterStatus(
            phase if view.process else Phase.STOPPED,
            view.process.pid if view.process else None,
            view.restarts,
            view.failed_starts,
            view.reason,
        )
        replicas = (_as_status(keeper) for keeper in self._keepers)
        return ClusterStatus(
            self._cluster.config.cluster,
            self._router.endpoint,
            status.overlay(replicas, self._router_state),
            router,
            os.getpid(),
            self._adopted,
            self.is_stopping,
            self._notes,
            self._change_id,
            self._change_error,
        )

    def _logs(self) -> list[Any]:
        names = [keeper.spec.id for keeper in self._keepers]
        return [self._cluster.folder.log(name) for name in (*names, LOG_NAME, "launcher")]

    # ---- taking down

    async def _take_down(self) -> None:
        """Gracefully, unless asked again meanwhile; then whatever is left is killed."""
        self._publish()
        async with asyncio.TaskGroup() as group:
            graceful = group.create_task(self._stop_all())
            helpers = [group.create_task(self._hurry(graceful))]
            helpers.append(group.create_task(self._show_calls_left()))
            await asyncio.wait([graceful])
            for helper in helpers:
                helper.cancel()
        await take_down_rest(self._cluster, self._runtime, self._router)
        self._router_state = {}
        self._publish()
        self._cluster.folder.forget_run()

    async def _hurry(self, graceful: "asyncio.Task[None]") -> None:
        await self._stop_at_once.wait()
        log.warning("asked again: killing what is left")
        graceful.cancel()

    async def _show_calls_left(self) -> None:
        while True:
            try:
                self._router_state = await self._client.state()
            except RouterAway:
                self._router_state = {}
            self._publish()
            await asyncio.sleep(_CALLS_LEFT_EVERY_S)

    async def _stop_all(self) -> None:
        await self._router.stop()
        if self._crew is not None:
            await self._crew.stop_all()


async def _set(event: asyncio.Event) -> None:
    await event.wait()


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


def make_runtime(cluster: Cluster) -> Runtime:
    """The runtime the config names."""
    return RUNTIMES[cluster.config.runtime.name].of(cluster.config, cluster.folder)


def _as_pushed(instance: Instance, spec: ReplicaSpec) -> dict[str, Any]:
    return {
        "id": instance.replica_id,
        "generation": instance.generation,
        "url": instance.url,
        "model": instance.model,
        "dialect": instance.dialect,
        "phase": str(instance.phase),
        "max_requests": spec.max_requests,
        "max_tokens": instance.max_tokens,
    }


def _as_status(keeper: ReplicaKeeper) -> ReplicaStatus:
    instance, handle = keeper.instance, keeper.instance.handle
    return ReplicaStatus(
        id=instance.replica_id,
        model=instance.model,
        phase=instance.phase,
        url=instance.url,
        restarts=instance.restarts,
        pid=instance.pid,
        ref=handle.ref if handle else "",
        shown=handle.shown if handle else "",
        generation=instance.generation,
        failed_starts=instance.history.failed_starts,
        progress=instance.progress,
        reason=instance.reason,
        started_at=instance.started_at if handle else None,
        max_tokens=instance.max_tokens,
        devices=keeper.spec.devices,
        is_outdated=handle is not None and handle.fingerprint != keeper.spec.fingerprint,
    )
