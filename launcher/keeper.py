"""Keeps one replica running: start, wait until it is ready, notice its end, start again.

One keeper per replica, owned by the supervisor, the only writer of its `Instance`. It decides
nothing about how long to wait (`restarts`) or what to run (`placement`), and it never touches a
replica when it is cancelled: what runs goes on running.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from launcher import log_files
from launcher.engines import Engine
from launcher.instance import Instance, Phase
from launcher.placement import ReplicaSpec
from launcher.restarts import RestartPolicy, next_start
from launcher.runtimes.base import Handle, Runtime
from router.errors import OperatorError

log = logging.getLogger("launcher")

_FIRST_LOOK_S = 0.05
_LOOK_GROWTH = 1.3
_LONGEST_LOOK_S = 1.0
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Run:
    """How one start of the replica went: why it ended, and for how long it had been ready."""

    cause: str
    ready_for_s: float | None = None
    recoverable: bool = True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all keepers share. `slots` bounds how many load at once; `changed` is called on news."""

    runtime: Runtime
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore
    policy: RestartPolicy
    stop_grace_s: float
    changed: Callable[[], None]


class ReplicaKeeper:
    """Keeps the replica of `spec`; `run` never returns unless it is given up."""

    def __init__(self, spec: ReplicaSpec, engine: Engine, around: Surroundings) -> None:
        self.spec = spec
        self._engine = engine
        self._around = around
        self.instance = Instance(
            spec.id,
            spec.model,
            spec.dialect,
            generation=around.runtime.last_generation(spec.id),
            max_tokens=spec.max_tokens,
        )

    async def run(self, adopted: Handle | None = None, outdated: Handle | None = None) -> None:
        """Adopt what runs, or replace what is outdated, or start; then keep it running."""
        if outdated is not None:
            await self._until_it_lasts(lambda: self._replace(outdated))
        elif adopted is not None:
            await self._until_it_lasts(lambda: self._adopt(adopted))
        else:
            await self._until_it_lasts(self._start)

    async def stop(self, grace_s: float) -> None:
        """End it for good; raises StopError. Call it only after `run` has been cancelled."""
        instance = self.instance
        # Without a handle, too: it may have been cancelled while it cleared up after an end.
        if instance.phase in (Phase.STARTING, Phase.LOADING, Phase.READY):
            self._move(Phase.DRAINING, "asked to stop")
        if instance.handle is not None:
            await self._around.runtime.stop(instance.handle, grace_s)
            instance.handle = None
        if instance.phase is not Phase.STOPPED:
            self._move(Phase.STOPPED, "stopped")

    # ---- one start after the other

    async def _until_it_lasts(self, first: Callable[[], Coroutine[Any, Any, Run]]) -> None:
        attempt = first
        while True:
            run = await self._guarded(attempt)
            attempt = self._start
            decision = next_start(
                self._around.policy,
                self.instance.history,
                run.ready_for_s,
                run.cause,
                recoverable=run.recoverable,
            )
            self.instance.history = decision.history
            if decision.delay_s is None:
                self._move(Phase.FAILED, decision.reason)
                return
            self._move(Phase.PENDING, decision.reason)
            await asyncio.sleep(decision.delay_s)
            self.instance.restarts += 1

    async def _guarded(self, attempt: Callable[[], Coroutine[Any, Any, Run]]) -> Run:
        """One attempt, which leaves nothing running when it ends, whatever went wrong."""
        try:
            run = await attempt()
        except OperatorError as exc:
            run = Run(str(exc), recoverable=getattr(exc, "recoverable", True))
        except Exception as exc:  # one replica's trouble must not stop the others' keepers
            log.exception("%s: unexpected", self.spec.id)
            run = Run(f"a bug in the launcher: {exc!r} (see its log)")
        handle, self.instance.handle = self.instance.handle, None
        if handle is not None:
            try:
                await self._around.runtime.stop(handle, 0.0)
            except OperatorError as exc:
                log.error("%s: %s", self.spec.id, exc)
        return run

    async def _start(self) -> Run:
        instance = self.instance
        async with self._around.slots:
            generation = max(instance.generation, self._last_generation()) + 1
            instance.handle = await self._around.runtime.start(self.spec, generation)
            instance.generation, instance.started_at = generation, time.time()
            self._move(Phase.STARTING, f"pid {instance.pid}, {instance.url}")
            cause = await self._until_ready(instance.handle)
        return Run(cause) if cause else await self._while_ready(instance.handle)

    async def _adopt(self, handle: Handle) -> Run:
        self.instance.handle, self.instance.generation = handle, handle.generation
        if await self._is_healthy(handle):
            self._move(Phase.READY, f"adopted, pid {handle.pid}")
        else:
            self._move(Phase.LOADING, f"adopted, pid {handle.pid}")
            if cause := await self._until_ready(handle):
                return Run(cause)
        return await self._while_ready(handle)

    async def _replace(self, outdated: Handle) -> Run:
        """It serves until its turn comes, so that no more than the slots' number is ever away."""
        self.instance.handle, self.instance.generation = outdated, outdated.generation
        self._move(Phase.READY, "runs with an older config; to be replaced")
        async with self._around.slots:
            self._move(Phase.DRAINING, "its config changed")
            await self._around.runtime.stop(outdated, self._around.stop_grace_s)
            self.instance.handle = None
            self._move(Phase.PENDING, "its config changed")
        return await self._start()

    # ---- watching

    async def _until_ready(self, handle: Handle) -> str | None:
        """None once it is ready, else why it never will be."""
        reader = log_files.LogReader(self._around.runtime.log_path(self.spec.id))
        deadline_s = time.monotonic() + self.spec.start_timeout_s
        look_s = _FIRST_LOOK_S
        while True:
            self._read_progress(reader)
            if ended := self._around.runtime.poll(handle):
                return self._why_it_ended(ended.detail)
            if await self._is_healthy(handle):
                if not self._around.runtime.is_serving_itself(handle):
                    return f"{handle.base_url} is answered by another program"
                self._read_progress(reader)
                self._move(Phase.READY, "answers /health")
                return None
            if time.monotonic() >= deadline_s:
                limit = f"engine.start_timeout_s, {self.spec.start_timeout_s:g} s"
                return f"not ready in time ({limit}); it was at: {self.instance.progress or '?'}"
            await asyncio.sleep(look_s)
            look_s = min(look_s * _LOOK_GROWTH, _LONGEST_LOOK_S)

    async def _while_ready(self, handle: Handle) -> Run:
        ready_since_s = time.monotonic()
        ended = await self._around.runtime.wait(handle)
        return Run(self._why_it_ended(ended.detail), time.monotonic() - ready_since_s)

    def _read_progress(self, reader: log_files.LogReader) -> None:
        instance, before = self.instance, self.instance.progress
        lines = reader.read_new()
        for line in lines:
            instance.progress = self._engine.phase_of(line) or instance.progress
            if (tokens := self._engine.token_budget_of(line)) and self.spec.max_tokens is None:
                instance.max_tokens = tokens
        if lines and instance.phase is Phase.STARTING:
            progress = instance.progress
            self._move(Phase.LOADING, "it writes its log")
            instance.progress = progress
        if instance.progress != before:
            self._around.changed()

    async def _is_healthy(self, handle: Handle) -> bool:
        try:
            url = f"{handle.base_url}/health"
            async with self._around.session.get(url, timeout=_HEALTH_TIMEOUT) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False

    def _why_it_ended(self, detail: str) -> str:
        """The exit and, as that says little, the engine's own last words."""
        failed = self.instance.progress if self.instance.progress.startswith("failed") else ""
        said = log_files.last_words(self._around.runtime.log_path(self.spec.id))
        words = "; ".join(
            part for part in (failed, f"its log says: {said}" if said else "") if part
        )
        return f"{detail} ({words})"[:_REASON_CHARS] if words else detail

    # ---- telling

    def _last_generation(self) -> int:
        return self._around.runtime.last_generation(self.spec.id)

    def _move(self, phase: Phase, reason: str) -> None:
        before = self.instance.phase
        if self.instance.move(phase, reason, time.monotonic()):
            is_bad = phase is Phase.FAILED or (before, phase) == (Phase.READY, Phase.PENDING)
            level = logging.WARNING if is_bad else logging.INFO
            generation = self.instance.generation
            text = "%s generation=%d: %s -> %s (%s)"
            log.log(level, text, self.spec.id, generation, before, phase, reason)
        self._around.changed()
