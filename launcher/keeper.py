"""Keeps one replica running: start, wait until it is ready, notice its end, start again.

One keeper per replica, owned by the supervisor, the only writer of its `Instance`. It decides
nothing about how long to wait (`restarts`) or what to run (`placement`), and it never touches a
replica when it is cancelled: what runs goes on running.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from launcher import log_files
from launcher.engines import Engine
from launcher.engines.base import Fault
from launcher.instance import Instance, Phase
from launcher.placement import ReplicaSpec
from launcher.races import first_of
from launcher.restarts import RestartPolicy, next_start
from launcher.runtimes.base import Exit, Handle, Runtime
from launcher.turns import LoadGate, ReplaceTurn
from router.errors import OperatorError

log = logging.getLogger("launcher")

_FIRST_LOOK_S = 0.05
_LOOK_GROWTH = 1.3
_LONGEST_LOOK_S = 1.0
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_REASON_CHARS = 300
_QUOTED_CHARS = 160
_FAULT_LOOK_S = 2.0


Drained = Callable[[str], Coroutine[Any, Any, None]]
"""Returns once no call is in flight at a replica that leaves, or waiting longer makes no sense."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one start of the replica went: why it ended, and for how long it had been ready."""

    cause: str
    ready_for_s: float | None = None
    recoverable: bool = True
    is_slow: bool = False


@dataclass(slots=True, eq=False)
class Rules:
    """What a change of the config changes for all keepers at once; written by the crew."""

    policy: RestartPolicy
    stop_grace_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What keepers share. `gate` says who may load, `turn` who is replaced; `changed` is called on
    news."""

    runtime: Runtime
    session: aiohttp.ClientSession
    rules: Rules
    gate: LoadGate
    turn: ReplaceTurn
    drained: Drained
    changed: Callable[[], None]


class ReplicaKeeper:
    """Keeps the replica of `spec`; `run` never returns unless it is given up."""

    def __init__(self, spec: ReplicaSpec, engine: Engine, around: Surroundings) -> None:
        self.spec = spec
        self._engine = engine
        self._around = around
        self._fault: Fault | None = None  # in this start's log
        self._trouble = asyncio.Event()
        self._trouble_text = ""
        self.instance = Instance(
            spec.id,
            spec.model,
            spec.dialect,
            generation=around.runtime.last_generation(spec.id),
            max_tokens=spec.max_tokens,
        )

    async def run(self, adopted: Handle | None = None, outdated: Handle | None = None) -> None:
        """Adopt what runs, or replace what is outdated, or start; then keep it running."""
        try:
            if outdated is not None:
                await self._until_it_lasts(lambda: self._replace(outdated))
            elif adopted is not None:
                await self._until_it_lasts(lambda: self._adopt(adopted))
            else:
                await self._until_it_lasts(self._start)
        except asyncio.CancelledError:
            self._around.turn.give_back(self)
            raise

    async def retire(self) -> None:
        """Drain it and end it for good; raises StopError. Only after `run` has been cancelled."""
        if self.instance.phase is Phase.READY and self.instance.handle is not None:
            self._move(Phase.DRAINING, "no longer in the config")
            await self._around.drained(self.spec.id)
        await self.stop(self._around.rules.stop_grace_s)

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

    def report(self, trouble: str) -> None:
        """Something outside it, its GPU for one, says that it cannot go on as it is."""
        self._trouble_text = trouble
        self._trouble.set()

    # ---- one start after the other

    async def _until_it_lasts(self, first: Callable[[], Coroutine[Any, Any, Run]]) -> None:
        attempt = first
        while True:
            run = await self._guarded(attempt)
            attempt = self._start
            decision = next_start(
                self._around.rules.policy,
                self.instance.history,
                run.ready_for_s,
                run.cause,
                recoverable=run.recoverable,
                is_slow=run.is_slow,
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
            run = _run_of(exc, self.spec.id)
        except Exception as exc:  # one replica's trouble must not stop the others' keepers
            log.exception("%s: unexpected", self.spec.id)
            run = Run(f"a bug in the launcher: {exc!r} (see its log)")
        handle, self.instance.handle = self.instance.handle, None
        if handle is not None:
            try:
                await self._around.runtime.stop(handle, 0.0)
            except OperatorError as exc:
                log.error("%s: %s", self.spec.id, exc)
            except asyncio.CancelledError:  # whoever takes over has to know what may still run
                self.instance.handle = handle
                raise
        return run

    async def _start(self) -> Run:
        instance = self.instance
        async with self._around.gate.turn():
            self._fault, self._trouble_text = None, ""
            self._trouble.clear()
            self._move(Phase.STARTING, "asked to start")
            generation = max(instance.generation, self._last_generation()) + 1
            instance.handle = await self._around.runtime.start(self.spec, generation, self._say)
            instance.generation, instance.started_at = generation, time.time()
            instance.progress = ""
            self._move(Phase.STARTING, f"{instance.handle.shown}, {instance.url}")
            if failed := await self._until_ready(instance.handle):
                return failed
        self._around.gate.open()
        return await self._while_ready(instance.handle)

    async def _adopt(self, handle: Handle) -> Run:
        self.instance.handle, self.instance.generation = handle, handle.generation
        if await self._is_healthy(handle):
            self._move(Phase.READY, f"adopted, {handle.shown}")
        else:
            self._move(Phase.LOADING, f"adopted, {handle.shown}")
            if failed := await self._until_ready(handle):
                return failed
        self._around.gate.open()
        return await self._while_ready(handle)

    async def _replace(self, outdated: Handle) -> Run:
        """It serves, and is watched, until its turn comes: one of a model's replicas at a time."""
        self.instance.handle, self.instance.generation = outdated, outdated.generation
        self._move(Phase.READY, "runs with an older config; to be replaced")
        await self._turn_or_end(outdated)
        self._move(Phase.DRAINING, "its config changed")
        await self._around.drained(self.spec.id)
        await self._around.runtime.stop(outdated, self._around.rules.stop_grace_s)
        self.instance.handle = None
        self._move(Phase.PENDING, "its config changed")
        return await self._start()

    async def _turn_or_end(self, outdated: Handle) -> None:
        """Until its turn; one that ends meanwhile is started anew without waiting for it."""
        await first_of(self._around.turn.take(self), self._gone(outdated))

    async def _gone(self, handle: Handle) -> None:
        await self._around.runtime.wait(handle)

    # ---- watching

    async def _until_ready(self, handle: Handle) -> Run | None:
        """None once it is ready, else why it never will be."""
        reader = log_files.LogReader(self._around.runtime.log_path(self.spec.id))
        instance, deadline_s = self.instance, time.monotonic() + self.spec.start_timeout_s
        look_s = _FIRST_LOOK_S
        while True:
            self._read_progress(reader)
            if ended := await self._around.runtime.poll(handle):
                self._read_progress(reader)
                return self._ended(ended)
            if self._trouble.is_set():
                return Run(self._trouble_text, is_slow=True)
            if await self._is_healthy(handle):
                if not await self._around.runtime.is_serving_itself(handle):
                    return Run(f"{handle.base_url} is answered by another program")
                self._read_progress(reader)
                self._move(Phase.READY, "answers /health")
                return None
            if time.monotonic() >= deadline_s:
                limit = f"engine.start_timeout_s, {self.spec.start_timeout_s:g} s"
                return Run(f"not ready in time ({limit}); it was at: {instance.progress or '?'}")
            await asyncio.sleep(look_s)
            look_s = min(look_s * _LOOK_GROWTH, _LONGEST_LOOK_S)

    async def _while_ready(self, handle: Handle) -> Run:
        """Until it ends, or something says that it does not serve any more, though it runs."""
        ready_since_s = time.monotonic()
        run = await first_of(
            self._until_it_ends(handle), self._until_trouble(), self._until_fault()
        )
        return replace(run, ready_for_s=time.monotonic() - ready_since_s)

    async def _until_it_ends(self, handle: Handle) -> Run:
        return self._ended(await self._around.runtime.wait(handle))

    async def _until_trouble(self) -> Run:
        await self._trouble.wait()
        return Run(self._trouble_text, is_slow=True)

    async def _until_fault(self) -> Run:
        """An engine that has lost its GPU may answer its health check for ever."""
        path = self._around.runtime.log_path(self.spec.id)
        reader = log_files.LogReader(path, from_end=True)
        while True:
            await asyncio.sleep(_FAULT_LOOK_S)
            for line in reader.read_new():
                if self._engine.fault_of(line) is Fault.GPU_LOST:
                    return Run(f"{Fault.GPU_LOST}; its log says: {line[:_QUOTED_CHARS]}")

    def _read_progress(self, reader: log_files.LogReader) -> None:
        instance, before = self.instance, self.instance.progress
        lines = reader.read_new()
        for line in lines:
            instance.progress = self._engine.phase_of(line) or instance.progress
            self._fault = self._engine.fault_of(line) or self._fault
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

    def _ended(self, found: Exit) -> Run:
        """The exit and, as that says little, the engine's own last words."""
        fault = Fault.HOST_MEMORY if found.oom else self._fault
        failed = self.instance.progress if self.instance.progress.startswith("failed") else ""
        said = log_files.last_words(self._around.runtime.log_path(self.spec.id))
        parts = (str(fault or ""), failed, f"its log says: {said}" if said else "")
        words = "; ".join(part for part in parts if part)
        cause = f"{found.detail} ({words})"[:_REASON_CHARS] if words else found.detail
        return Run(cause, recoverable=fault is None or fault.recoverable)

    # ---- telling

    def _say(self, progress: str) -> None:
        if progress != self.instance.progress:
            self.instance.progress = progress
            self._around.changed()

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
        if phase is Phase.READY and self.instance.handle is not None:
            self._give_turn_back_once_replaced()
        self._around.changed()

    def _give_turn_back_once_replaced(self) -> None:
        """Its successor is ready. The outdated one's being ready is not that."""
        handle = self.instance.handle
        if handle is not None and handle.fingerprint == self.spec.fingerprint:
            self._around.turn.give_back(self)


def _run_of(exc: OperatorError, replica_id: str) -> Run:
    return Run(
        str(exc).removeprefix(f"{replica_id}: "),  # it is told beside the id
        recoverable=getattr(exc, "recoverable", True),
        is_slow=getattr(exc, "is_slow", False),
    )
