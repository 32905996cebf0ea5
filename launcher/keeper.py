"""Keeps one replica running: start, wait until it is ready, notice its end, start again.

One keeper per replica, owned by the supervisor, the only writer of its `Instance`. It decides
nothing about how long to wait (`restarts`) or what to run (`placement`), and it never touches a
replica when it is cancelled: what runs goes on running.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from launcher import log_files
from launcher.engines import Engine
from launcher.engines.base import Fault
from launcher.instance import Instance, Phase
from launcher.placement import ReplicaSpec
from launcher.races import first_of
from launcher.restarts import Decision, History, next_start
from launcher.runtimes.base import Exit, Handle
from launcher.stopping import until_stopped
from launcher.surroundings import Surroundings
from launcher.turns import ReplaceTurn
from router.errors import OperatorError, StartError

log = logging.getLogger("launcher")

_FIRST_LOOK_S = 0.05
_LOOK_GROWTH = 1.3
_LONGEST_LOOK_S = 1.0
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_REASON_CHARS = 300
_QUOTED_CHARS = 160
_FAULT_LOOK_S = 2.0
_HEALTH_TRIES = 3
_OUTDATED = "runs with an older config"


@dataclass(frozen=True, slots=True)
class Run:
    """How one start of the replica went: why it ended, and for how long it had been ready."""

    cause: str
    ready_for_s: float | None = None
    recoverable: bool = True
    is_slow: bool = False


class ReplicaKeeper:
    """Keeps the replica of `spec`; `run` never returns unless it is given up."""

    def __init__(self, spec: ReplicaSpec, engine: Engine, around: Surroundings) -> None:
        self.spec = spec
        self._engine = engine
        self._around = around
        self._fault: Fault | None = None  # in this start's log
        self._trouble = asyncio.Event()
        self._trouble_text = ""
        self._nap: asyncio.Event | None = None  # while it waits to try again
        self.instance = Instance(
            spec.id,
            spec.model,
            spec.dialect,
            generation=around.runtime.last_generation(spec.id),
            max_tokens=spec.max_tokens,
        )

    @property
    def turn(self) -> ReplaceTurn:
        """The turn it holds while it is out; its model may be renamed meanwhile."""
        return self._around.turn

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it runs; where it will, if nothing of it does. An outdated one may be elsewhere."""
        handle = self.instance.handle
        return handle.devices if handle and handle.devices else self.spec.devices

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

    async def retire(self, may_leave: Coroutine[Any, Any, None]) -> None:
        """Drain it once it `may_leave`, and end it for good, however long it resists. Only after
        `run` has been cancelled."""
        handle = self.instance.handle
        if self.instance.phase is Phase.READY and handle is not None:
            self._move(Phase.READY, "no longer in the config; serves until others of its model do")
            if not await self._unless_it_ends(handle, may_leave):
                self._move(Phase.DRAINING, "no longer in the config")
                await self._around.drained(self.spec.id)
        else:
            may_leave.close()
        self._ask_to_stop()
        await self._end(self._around.rules.stop_grace_s)
        self._move(Phase.STOPPED, "stopped")

    async def stop(self, grace_s: float) -> None:
        """End it for good; raises StopError. Call it only after `run` has been cancelled."""
        instance = self.instance
        # Without a handle, too: it may have been cancelled while it cleared up after an end.
        self._ask_to_stop()
        if instance.handle is not None:
            await self._around.runtime.stop(instance.handle, grace_s)
            instance.handle = None
        if instance.phase is not Phase.STOPPED:
            self._move(Phase.STOPPED, "stopped")

    def _ask_to_stop(self) -> None:
        if self.instance.phase in (Phase.STARTING, Phase.LOADING, Phase.READY):
            self._move(Phase.DRAINING, "asked to stop")

    def report(self, trouble: str) -> None:
        """Something outside it, its GPU for one, says that it cannot go on as it is."""
        self._trouble_text = trouble
        self._trouble.set()

    def try_now(self) -> None:
        """Somebody has seen to it: what it waits to try again is tried now, with a clean slate."""
        if self._nap is not None:
            self.instance.history = History()
            self._nap.set()

    def wait_for(self, what: str, *, is_stuck: bool) -> None:
        """Shown as the reason why it does not start yet."""
        instance = self.instance
        reason = f"{_OUTDATED}; {what}" if instance.phase is Phase.READY else what
        before = instance.reason, instance.history
        instance.reason, instance.history = reason, replace(instance.history, is_stuck=is_stuck)
        if before != (instance.reason, instance.history):
            self._around.changed()

    # ---- one start after the other

    async def _until_it_lasts(self, first: Callable[[], Coroutine[Any, Any, Run]]) -> None:
        attempt = first
        while True:
            run = await self._guarded(attempt)
            attempt = self._start
            decision = self._decide(run)
            if decision.delay_s is None:
                self._move(Phase.FAILED, decision.reason)
                return
            self._move(Phase.PENDING, decision.reason)
            await self._pause(decision.delay_s)
            self.instance.restarts += 1

    async def _guarded(self, attempt: Callable[[], Coroutine[Any, Any, Run]]) -> Run:
        """One attempt, which leaves nothing running when it ends, whatever went wrong."""
        try:
            run = await attempt()
        except Exception as exc:  # one replica's trouble must not stop the others' keepers
            run = _run_of(exc, self.spec.id)
        await self._end(0.0)
        return run

    async def _start(self) -> Run:
        if self.spec.trouble:
            raise StartError(self.spec.trouble, is_slow=True)
        await self._around.free(self)
        async with self._around.gate.turn():
            failed = await self._load()
        return failed or await self._serve()

    async def _load(self) -> Run | None:
        """None once it is ready. In its turn to load."""
        instance = self.instance
        self._fault, self._trouble_text = None, ""
        self._trouble.clear()
        self._move(Phase.STARTING, "asked to start")
        generation = max(instance.generation, self._last_generation()) + 1
        instance.handle = await self._around.runtime.start(self.spec, generation, self._say)
        instance.generation, instance.started_at = generation, time.time()
        instance.is_admitted = False
        instance.progress = ""
        self._move(Phase.STARTING, f"{instance.handle.shown}, {instance.url}")
        return await self._until_ready(instance.handle)

    async def _serve(self) -> Run:
        handle = self.instance.handle
        assert handle is not None, "it has just become ready"
        self._around.gate.open()
        return await self._while_ready(handle)

    async def _adopt(self, handle: Handle) -> Run:
        self.instance.handle, self.instance.generation = handle, handle.generation
        if await self._is_healthy(handle):
            self._move(Phase.READY, f"adopted, {handle.shown}")
        else:
            self._move(Phase.LOADING, f"adopted, {handle.shown}")
            if failed := await self._until_ready(handle):
                return replace(failed, recoverable=True)  # it may have served; so may its log
        return await self._serve()

    async def _replace(self, outdated: Handle) -> Run:
        """It serves, and is watched, until its successor could start at once: until then, nothing
        that the successor lacks takes it out."""
        self.instance.handle, self.instance.generation = outdated, outdated.generation
        self._move(Phase.READY, f"{_OUTDATED}; to be replaced")
        async with AsyncExitStack() as held:
            ended = await self._unless_it_ends(outdated, self._until_it_may_go(held))
            self.instance.history = History()  # so far it was about its successor
            if ended:  # it is out: nobody follows before it is back
                self._around.turn.join(self)
                return ended
            self._move(Phase.DRAINING, "its config changed")
            await self._around.drained(self.spec.id)
            await self._end(self._around.rules.stop_grace_s)
            self._move(Phase.PENDING, "its config changed")
            failed = await self._load()
        return failed or await self._serve()

    async def _until_it_may_go(self, held: AsyncExitStack) -> None:
        """What its successor needs is here, its GPU is free, and both it and the load may go on:
        one of a model's replicas at a time."""
        await self._fetch()
        await self._around.free(self)
        await self._around.turn.take(self)
        await held.enter_async_context(self._around.gate.turn())

    async def _fetch(self) -> None:
        """Until all is here; nobody is out for that, so no turn is held either."""
        while failed := await self._failure_to_fetch():
            decision = self._decide(failed)
            reason = f"{_OUTDATED}; what replaces it cannot start: {failed.cause}"
            if decision.delay_s is None:
                self.instance.history = replace(decision.history, is_stuck=True)
                reason += "; `launcher up` tries it again"
            if reason != self.instance.reason:
                log.warning("%s: %s", self.spec.id, reason)
            self._move(Phase.READY, reason)
            await self._pause(decision.delay_s)
        self.instance.history, self.instance.progress = History(), ""
        self._move(Phase.READY, f"{_OUTDATED}; to be replaced")

    async def _failure_to_fetch(self) -> Run | None:
        try:
            await self._around.runtime.fetch(self.spec, self._say)
        except Exception as exc:  # one replica's trouble must not stop the others' keepers
            return _run_of(exc, self.spec.id)
        return None

    async def _end(self, grace_s: float) -> None:
        """What runs has ended when it returns; until then it keeps its GPU, and is not forgotten,
        even by whoever takes over from here."""
        instance, before = self.instance, self.instance.history
        if instance.handle is None:
            return
        await until_stopped(
            self._around.runtime,
            instance.handle,
            grace_s,
            self._around.rules.policy,
            self._resists,
            self._pause,
        )
        if instance.resists:
            instance.resists, instance.history = False, replace(before, is_stuck=False)
        instance.handle = None

    def _resists(self, why: str, is_lasting: bool) -> None:
        reason = f"cannot be stopped: {why}"
        if reason != self.instance.reason:
            log.error("%s: %s", self.spec.id, reason)
        self.instance.resists = True
        self.instance.history = replace(self.instance.history, is_stuck=is_lasting)
        self._move(Phase.DRAINING, reason)

    def _decide(self, run: Run) -> Decision:
        decision = next_start(
            self._around.rules.policy,
            self.instance.history,
            run.ready_for_s,
            run.cause,
            recoverable=run.recoverable,
            is_slow=run.is_slow,
        )
        self.instance.history = decision.history
        return decision

    async def _pause(self, delay_s: float | None) -> None:
        """Until it is time to try again, or somebody asks for it."""
        self._nap = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._nap.wait()
        finally:
            self._nap = None

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
                self._fault = None  # got over: no reason for how it may end one day
                self._move(Phase.READY, "answers /health")
                return None
            if time.monotonic() >= deadline_s:
                limit = f"engine.start_timeout_s, {self.spec.start_timeout_s:g} s"
                return Run(f"not ready in time ({limit}); it was at: {instance.progress or '?'}")
            await asyncio.sleep(look_s)
            look_s = min(look_s * _LOOK_GROWTH, _LONGEST_LOOK_S)

    async def _while_ready(self, handle: Handle) -> Run:
        ended = await self._unless_it_ends(handle, self._admission())
        assert ended is not None, "never is never"
        return ended

    async def _admission(self) -> None:
        """The next one may be taken out only when this one is back for clients; never over."""
        await self._around.admitted(self.spec.id, self.instance.generation)
        self.instance.is_admitted = True
        self._around.turn.give_back(self)
        self._around.changed()
        await _never()

    async def _unless_it_ends(
        self, handle: Handle, wanted: Coroutine[Any, Any, None]
    ) -> Run | None:
        """None once what is wanted has come. A Run if it ends before that, or something says that
        it does not serve any more, though it runs."""
        ready_since_s = time.monotonic()
        run = await first_of(
            self._until_it_ends(handle), self._until_trouble(), self._until_fault(), wanted
        )
        return run and replace(run, ready_for_s=time.monotonic() - ready_since_s)

    async def _until_it_ends(self, handle: Handle) -> Run:
        return self._ended(await self._around.runtime.wait(handle))

    async def _until_trouble(self) -> Run:
        await self._trouble.wait()
        return Run(self._trouble_text, is_slow=True)

    async def _until_fault(self) -> Run:
        """Its log says that its GPU is lost, and it is not well either: the log alone proves
        nothing, as clients may have a part in it. One that is lost and says that it is well is
        taken out by the router, as its calls fail."""
        path = self._around.runtime.log_path(self.spec.id)
        reader = log_files.LogReader(path, from_end=True)
        while True:
            await asyncio.sleep(_FAULT_LOOK_S)
            lines = reader.read_new()
            faulty = [line for line in lines if self._engine.serving_fault_of(line)]
            if faulty and not await self._is_well():
                fault = self._engine.serving_fault_of(faulty[0])
                return Run(f"{fault}; its log says: {faulty[0][:_QUOTED_CHARS]}")

    async def _is_well(self) -> bool:
        """Whether it says so in one of several tries: one that is busy may be late."""
        for _ in range(_HEALTH_TRIES):
            if (handle := self.instance.handle) is None or await self._is_healthy(handle):
                return True
            await asyncio.sleep(_FAULT_LOOK_S)
        return False

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
        if fault is None:
            return Run(cause)
        return Run(cause, recoverable=fault.recoverable, is_slow=fault.is_slow)

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
        self._around.changed()


def _run_of(exc: Exception, replica_id: str) -> Run:
    if not isinstance(exc, OperatorError):
        log.error("%s: unexpected", replica_id, exc_info=exc)
        return Run(f"a bug in the launcher: {exc!r} (see its log)")
    return Run(
        str(exc).removeprefix(f"{replica_id}: "),  # it is told beside the id
        recoverable=getattr(exc, "recoverable", True),
        is_slow=getattr(exc, "is_slow", False),
    )


async def _never() -> None:
    await asyncio.Event().wait()
