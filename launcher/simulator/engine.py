"""The pretended GPU: permits, the step loop, and the time each step takes.

Handlers take permits and submit sequences; the loop asks the scheduler for a step, lets its time
pass, and hands each sequence in it one token. Everything runs on one event loop and nothing here
awaits between a check and the change it guards.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import cast

from launcher.simulator.errors import overloaded
from launcher.simulator.generation import Sequence
from launcher.simulator.metrics import Metrics
from launcher.simulator.prefix_cache import PrefixCache
from launcher.simulator.scheduler import ChunkingScheduler, PaddedScheduler, Scheduler, Step
from launcher.simulator.settings import Settings

#: The loop's timers count in milliseconds; shorter steps have to be allowed to catch up.
_TIMER_LAG_S = 0.005


def scheduler_for(settings: Settings) -> Scheduler:
    """The scheduler that the version to imitate has."""
    era, batch = settings.era, settings.batch
    if not era.chunking:
        return PaddedScheduler(batch, era.block_tokens, era.zero_room_means_no_cap)
    cache = PrefixCache(batch.max_batch_total_tokens) if settings.prefix_caching else None
    return ChunkingScheduler(batch, era.block_tokens, cache)


class Engine:
    """Owns the permits, the scheduler and the batch's progress."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._scheduler = scheduler_for(settings)
        self._permits_left = settings.limits.max_concurrent_requests
        self._arrival = asyncio.Event()
        self._step_waiters: list[asyncio.Future[None]] = []
        self._is_stepping = False
        self._step_end_s = 0.0
        self._noise = random.Random(settings.pace.noise_seed)
        self._is_proven = settings.era.healthy_at_start
        self._leaving: list[Sequence] = []

    @property
    def permits_left(self) -> int:
        """Generations that could start now before the answer is "overloaded"."""
        return self._permits_left

    def take_permits(self, count: int) -> None:
        """Take permits without waiting, all or none; raises the overload error."""
        if count > self._permits_left:
            raise overloaded()
        self._permits_left -= count

    def give_permits(self, count: int) -> None:
        """Give back what ``take_permits`` took, exactly once."""
        self._permits_left += count

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence into the queue; its listener hears from now on."""
        sequence.enqueued_s = time.monotonic()
        self._scheduler.arrive(sequence)
        self._metrics.add_gauge("tgi_queue_size", 1)
        self._arrival.set()

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence nobody waits for; it leaves the batch at the next step."""
        sequence.is_dropped = True
        self._leaving.append(sequence)

    async def health(self) -> None:
        """Answer as the engine's own thread would: after the step under way.

        Versions that do not trust a fresh engine run a prefill of one token first.
        """
        if self._is_stepping:
            waiter = asyncio.get_running_loop().create_future()
            self._step_waiters.append(waiter)
            await waiter
        if not self._is_proven:
            await asyncio.sleep(self.step_wait_s(self._settings.gpu.prefill_s(1)))
            self._is_proven = True

    def step_wait_s(self, gpu_s: float) -> float:
        """Real seconds that ``gpu_s`` of the preset GPU's work take here and now."""
        pace = self._settings.pace
        noise = 1.0 + pace.noise * self._noise.uniform(-1.0, 1.0)
        return pace.waited_s(gpu_s * noise / pace.speed)

    async def run(self) -> None:
        """Step for ever; cancelled by its owner at shutdown."""
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            while (step := self._scheduler.next_step()) is not None:
                self._publish(step)
                await self._pass_time(step)
                self._finish(step)
            self._publish(None)

    async def _pass_time(self, step: Step) -> None:
        gpu = self._settings.gpu
        duration_s = self.step_wait_s(gpu.step_s(step.prefill_tokens, step.decoding))
        now_s = time.monotonic()
        # The GPU does not wait for this process to write its events, nor for timers that fire a
        # little late: the next step starts where the last one ended, unless that is long ago.
        lag_s = now_s - self._step_end_s
        start_s = self._step_end_s if lag_s < max(duration_s, _TIMER_LAG_S) else now_s
        self._step_end_s = start_s + duration_s
        self._is_stepping = True
        for entry in step.emits:
            sequence = cast(Sequence, entry)
            sequence.started_s = sequence.started_s or now_s
        await asyncio.sleep(max(self._step_end_s - now_s, 0.0))
        self._metrics.step("prefill" if step.prefill_tokens else "decode", duration_s)

    def _finish(self, step: Step) -> None:
        self._is_stepping = False
        if self._settings.era.real_traffic_proves_health:
            self._is_proven = True
        waiters, self._step_waiters = self._step_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        for entry in step.emits:
            if not entry.is_dropped:
                self._emit(cast(Sequence, entry))
        for sequence in self._leaving:
            self._scheduler.leave(sequence)
        self._leaving.clear()

    def _emit(self, sequence: Sequence) -> None:
        token = sequence.advance()
        if sequence.finish_reason is not None:
            self._scheduler.leave(sequence)
            if sequence.begin_next_slice(self._settings.limits.max_total_tokens):
                self._scheduler.arrive(sequence)
            else:
                sequence.finished_s = time.monotonic()
        sequence.listener.token(sequence, token)

    def _publish(self, step: Step | None) -> None:
        scheduler, metrics = self._scheduler, self._metrics
        metrics.set_gauge("tgi_batch_current_size", scheduler.running)
        metrics.set_gauge("tgi_batch_current_max_tokens", scheduler.reserved_tokens)
        metrics.set_gauge("tgi_queue_size", scheduler.waiting)
        if step is not None and step.admitted:
            metrics.observe("tgi_batch_next_size", step.admitted)
            if step.concat_reason:
                metrics.count("tgi_batch_concat", reason=step.concat_reason)
