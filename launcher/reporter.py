"""Tells how the cluster stands: the router (replica list), the disk (status record), people.

Owned by the supervisor. Level-triggered: the whole list at every change and every beat, so nothing
depends on a message that was lost. It changes nothing but what others see.
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import log_files, status
from launcher.admissions import Admissions
from launcher.cluster import Cluster
from launcher.gpu_troubles import Trouble
from launcher.instance import Instance, Phase
from launcher.keeper import ReplicaKeeper
from launcher.placement import ReplicaSpec
from launcher.router_client import PushRefused, RouterAway, RouterClient
from launcher.router_process import LOG_NAME, RouterKeeper
from launcher.state import STATUS_RECORD
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus
from router.config import RouterConfig
from router.errors import StateError

log = logging.getLogger("launcher")

BEAT_S = 2.0  # the full list goes to the router at least this often
_SOON_S = 0.2  # while something is about to change at the router: it comes, or it takes one in
_LOG_BOUND_EVERY = 30  # beats
_CALLS_LEFT_EVERY_S = 0.5


@dataclass(slots=True, eq=False)
class Beginning:
    """What the supervisor decided, for people; written by it alone."""

    adopted: int = 0
    is_stopping: bool = False
    notes: tuple[str, ...] = ()
    change_id: str = ""
    change_error: str = ""


class Reporter:
    """`run` until cancelled; `changed` may be called at any time from the event loop."""

    def __init__(
        self,
        cluster: Cluster,
        client: RouterClient,
        router: RouterKeeper,
        beginning: Beginning,
        keepers: Callable[[], Iterable[ReplicaKeeper]],
        on_change: Callable[[ClusterStatus], None],
        trouble_of: Callable[[Iterable[str]], Trouble] = lambda devices: Trouble(),
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._router = router
        self._beginning = beginning
        self._keepers = keepers
        self._on_change = on_change
        self._trouble_of = trouble_of
        self._news = asyncio.Event()
        self._router_state: dict[str, Any] = {}
        self.admissions = Admissions()
        self._published: ClusterStatus | None = None
        self._recorded: ClusterStatus | None = None
        self._disk_trouble = ""
        self._epoch = 0
        self._troubled_beats = 0

    def follow(self, cluster: Cluster) -> None:
        """Its config has changed."""
        self._cluster = cluster

    def changed(self) -> None:
        """Something has happened: show it, and tell the router at once."""
        self.publish()
        self._news.set()

    async def run(self) -> None:
        """Push at every change and every beat; the router may be away at any time."""
        beat = 0
        while True:
            self._news.clear()
            await self.push()
            self.publish()
            beat += 1
            if beat % _LOG_BOUND_EVERY == 0:
                await asyncio.to_thread(log_files.bound, self._logs())
            try:
                is_calm = self._router.answering.is_set() and not self._admissions_due
                async with asyncio.timeout(BEAT_S if is_calm else _SOON_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def push(self) -> None:
        """Give the router the whole list; one that is away gets the next."""
        self._epoch = max(self._epoch + 1, time.time_ns())
        replicas = [
            _as_pushed(keeper.instance, keeper.spec, self._trouble_of(keeper.devices))
            for keeper in self._keepers()
        ]
        trouble = ""
        try:
            await self._client.push(self._cluster.config.cluster, self._epoch, replicas)
            self._router_state = await self._client.state()
            self.admissions.learn(self._router_state)
        except PushRefused as exc:
            trouble = f"it refused the replica list: {exc}"
            await self._catch_up_epoch()
        except RouterAway as exc:
            next_step = f"asked again every {BEAT_S:g} s, and started anew if it stays silent"
            trouble = f"{exc}; {next_step}" if self._router.answering.is_set() else ""
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

    def publish(self) -> None:
        """Show and record how things stand, if that is news."""
        current = self.snapshot()
        if current != self._published:
            self._log_drains(self._published, current)
            self._published = current
            try:
                self._on_change(current)
            except Exception:  # what is shown must not end what serves
                log.exception("the display failed; nothing else did")
        if current != self._recorded:
            self._record(current)

    def _record(self, current: ClusterStatus) -> None:
        """A full disk must not end what serves; it gets with the next beat what it did not take."""
        try:
            # After a power cut nothing of it would be true: no need to wait for the disk.
            record = current.as_record()
            self._cluster.folder.write_record(STATUS_RECORD, record, is_durable=False)
        except StateError as exc:
            if str(exc) != self._disk_trouble:
                log.error("%s", exc)
            self._disk_trouble = str(exc)
        else:
            self._recorded, self._disk_trouble = current, ""

    def _log_drains(self, before: ClusterStatus | None, after: ClusterStatus) -> None:
        """The router owns drains; this log has them, too, as its `ready` would mislead."""
        were = {replica.id for replica in before.replicas if replica.drained} if before else set()
        for replica in after.replicas:
            if replica.drained and replica.id not in were:
                log.info("%s: drained by an operator, gets no calls", replica.id)
            elif replica.id in were and replica.phase is Phase.READY:
                log.info("%s: undrained by an operator, gets calls again", replica.id)

    def snapshot(self) -> ClusterStatus:
        """How things stand right now."""
        view = self._router.view
        phase = Phase.READY if view.is_answering else Phase.STARTING
        router = RouterStatus(
            phase if view.process else Phase.STOPPED,
            view.process.pid if view.process else None,
            view.restarts,
            view.failed_starts,
            view.reason,
        )
        replicas = (self.admissions.shown(_as_status(keeper)) for keeper in self._keepers())
        return ClusterStatus(
            self._cluster.config.cluster,
            self._router.endpoint,
            status.overlay(replicas, self._router_state),
            router,
            os.getpid(),
            self._beginning.adopted,
            self._beginning.is_stopping,
            self._beginning.notes,
            self._beginning.change_id,
            self._beginning.change_error,
            curl_options=_curl_options(self._cluster.config.router),
        )

    @property
    def _admissions_due(self) -> bool:
        return any(self.admissions.awaits(_as_status(keeper)) for keeper in self._keepers())

    async def show_calls_left(self) -> None:
        """While everything is taken down: nobody beats then."""
        while True:
            try:
                self._router_state = await self._client.state()
            except RouterAway:
                self._router_state = {}
            self.publish()
            await asyncio.sleep(_CALLS_LEFT_EVERY_S)

    def publish_end(self) -> None:
        """No router is left to ask."""
        self._router_state = {}
        self.publish()

    def _logs(self) -> list[Path]:
        names = [keeper.spec.id for keeper in self._keepers()]
        return [self._cluster.folder.log(name) for name in (*names, LOG_NAME, "launcher")]


def _curl_options(router: RouterConfig) -> tuple[str, ...]:
    """The key stays in its variable: what is shown can be pasted, and read by anybody."""
    options = ('-H "Authorization: Bearer $FLEET_API_KEY"',) if router.keys else ()
    return (*options, f"--cacert {shlex.quote(router.tls.certificate)}") if router.tls else options


def _as_pushed(instance: Instance, spec: ReplicaSpec, trouble: Trouble) -> dict[str, Any]:
    return {
        "id": instance.replica_id,
        "generation": instance.generation,
        "url": instance.url,
        "model": instance.model,
        "dialect": instance.dialect,
        "phase": str(instance.phase),
        "max_requests": spec.max_requests,
        "max_tokens": instance.max_tokens,
        **{key: text for key, text in asdict(trouble).items() if text},
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
        is_stuck=instance.history.is_stuck,
        progress=instance.progress,
        reason=instance.reason,
        started_at=instance.started_at if handle else None,
        max_tokens=instance.max_tokens,
        devices=keeper.spec.devices,
        dialect=instance.dialect,
        is_outdated=handle is not None and handle.fingerprint != keeper.spec.fingerprint,
    )
