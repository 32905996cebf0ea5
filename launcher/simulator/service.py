"""From checked requests to replies: permits, validation, sequences, clean-up.

Every generation route goes through ``collect`` (one body) or ``stream`` (events). Whatever way a
call ends, its permits come back and its sequences leave the batch: a handler is cancelled when its
client leaves, and the clean-up is in ``finally``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence as Listed
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpVersion11

from launcher.simulator.broken_reply import faulty_reply
from launcher.simulator.engine import Engine
from launcher.simulator.errors import ApiError, incomplete
from launcher.simulator.faults import Fault, Faults, breaks_stream, refusal
from launcher.simulator.generation import Sequence
from launcher.simulator.gpu_presets import tokenise_s
from launcher.simulator.listeners import Collector, Countdown, StreamListener
from launcher.simulator.metrics import Metrics
from launcher.simulator.parameters import Ask, Parameters, check, check_streamable
from launcher.simulator.settings import Settings
from launcher.simulator.stream_body import FaultyBody, StreamBody, StreamFormat
from launcher.simulator.tokens import TokenModel

COMMENT_EVERY_S = 15.0
#: Faults that show before a stream has begun.
_BEFORE_HEAD = ("hang", "garbage")


@dataclass(frozen=True, slots=True)
class Collected:
    """The sequences of a unary call, in the order of prompts, and when things happened."""

    sequences: list[Sequence]
    arrived_s: float
    finished_s: float


class Service:
    """What routes need; built once per process."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        model: TokenModel,
        metrics: Metrics,
        faults: Faults,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.model = model
        self.metrics = metrics
        self.faults = faults
        self._busy: set[asyncio.Transport | None] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def enter(self, transport: asyncio.Transport | None) -> None:
        """A call has arrived on a connection, which has one call at a time."""
        self._busy.add(transport)
        self._is_idle.clear()

    def leave(self, transport: asyncio.Transport | None) -> None:
        """The call on a connection is over."""
        self._busy.discard(transport)
        if not self._busy:
            self._is_idle.set()

    def is_busy(self, transport: asyncio.Transport | None) -> bool:
        """Whether a call is in flight on this connection."""
        return transport in self._busy

    async def wait_until_idle(self) -> None:
        """Wait until no call is in flight."""
        await self._is_idle.wait()

    async def collect(
        self, prompts: Listed[str], parameters: Parameters, fault: Fault | None = None
    ) -> Collected:
        """Generate for all prompts and wait; raises ``ApiError``."""
        arrived_s = self._now_s()
        self.metrics.count("tgi_request_count")
        best_of = min(max(parameters.best_of or 1, 1), self.settings.limits.max_best_of)
        permits = len(prompts) * best_of
        sequences: list[Sequence] = []
        try:
            self._refuse_if(fault)
            self.engine.take_permits(permits)
        except ApiError as error:
            raise self._counted(error) from None
        try:
            asks = [await self._checked(prompt, parameters) for prompt in prompts]
            collector = Collector(sum(ask.sequences for ask in asks), fault)
            for ask in asks:
                sequences += [self._sequence(ask, collector) for _ in range(ask.sequences)]
            for sequence in sequences:
                self.engine.submit(sequence)
            await collector.done
        except ApiError as error:
            raise self._counted(error) from None
        except asyncio.CancelledError:
            self.metrics.count("tgi_request_failure", err="dropped")
            raise
        finally:
            self._release(permits, sequences)
        self._count_success(sequences, arrived_s)
        return Collected(sequences, arrived_s, self._now_s())

    async def stream(
        self,
        request: web.Request,
        prompts: Listed[str],
        parameters: Parameters,
        forms: Listed[StreamFormat],
    ) -> web.StreamResponse:
        """Answer with events, one format for each prompt; errors are events too."""
        fault = self.faults.take()
        if fault and fault.mode in _BEFORE_HEAD and not fault.after_events:
            return await faulty_reply(request, fault, b"")
        characters = sum(len(prompt) for prompt in prompts)
        response = web.StreamResponse(headers=self._stream_headers(characters))
        is_chunked = request.version >= HttpVersion11
        if is_chunked:
            response.enable_chunked_encoding()
        await response.prepare(request)
        # The response is the handler's until it returns, so its transport may be written to.
        transport = request.transport
        if transport is None:
            return response
        body = StreamBody(transport, is_chunked)
        if fault and breaks_stream(fault):
            body = FaultyBody(transport, is_chunked, fault, forms[0], self.settings.era)
        try:
            await self._fill(body, prompts, parameters, forms, fault)
        except ApiError as error:
            body.send(forms[0].error(self._counted(error)))
        body.end(forms[0].end())
        return response

    async def _fill(
        self,
        body: StreamBody,
        prompts: Listed[str],
        parameters: Parameters,
        forms: Listed[StreamFormat],
        fault: Fault | None,
    ) -> None:
        arrived_s = self._now_s()
        self.metrics.count("tgi_request_count")
        self._refuse_if(fault)
        if not self._may_stream(body, parameters, forms[0]):
            return
        self.engine.take_permits(len(prompts))
        sequences: list[Sequence] = []
        try:
            asks = [await self._checked(prompt, parameters) for prompt in prompts]
            group = Countdown(len(asks))
            for ask, form in zip(asks, forms, strict=True):
                sequences.append(self._sequence(ask, StreamListener(body, form, group)))
            for sequence in sequences:
                self.engine.submit(sequence)
            pace = self.settings.pace
            await body.wait(pace.waited_s(COMMENT_EVERY_S) or COMMENT_EVERY_S)
        except asyncio.CancelledError:
            self.metrics.count("tgi_request_failure", err="dropped")
            raise
        finally:
            self._release(len(prompts), sequences)
        self._count_success(sequences, arrived_s)

    def _may_stream(self, body: StreamBody, parameters: Parameters, form: StreamFormat) -> bool:
        try:
            check_streamable(parameters)
        except ApiError as error:
            # TGI reports the cause, and then also that the stream had no end.
            body.send(form.error(self._counted(error)))
            has_own_words = self.settings.era.incomplete_stream_words
            body.send(form.error(incomplete(is_stream=has_own_words)))
            return False
        return True

    async def _checked(self, prompt: str, parameters: Parameters) -> Ask:
        settings = self.settings
        wait_s = settings.pace.waited_s(tokenise_s(len(prompt)))
        started_s = self._now_s()
        if wait_s:
            await asyncio.sleep(wait_s)
        ask = check(prompt, parameters, settings.era, settings.limits, self.model)
        self.metrics.observe("tgi_request_validation_duration", self._now_s() - started_s)
        self.metrics.observe("tgi_request_input_length", ask.input_tokens)
        self.metrics.observe("tgi_request_max_new_tokens", ask.max_new_tokens)
        return ask

    def _sequence(self, ask: Ask, listener: StreamListener | Collector) -> Sequence:
        seed = None
        if ask.parameters.samples:
            given = ask.parameters.seed
            seed = given if given is not None else secrets.randbits(64)
        return Sequence(ask, seed, self.model, self.settings.era, listener)

    def _refuse_if(self, fault: Fault | None) -> None:
        error = refusal(fault)
        if error is not None:
            raise error

    def _release(self, permits: int, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence.finish_reason is None:
                self.engine.drop(sequence)
        self.engine.give_permits(permits)

    def _counted(self, error: ApiError) -> ApiError:
        self.metrics.count("tgi_request_failure", err=error.counter)
        return error

    def _count_success(self, sequences: list[Sequence], arrived_s: float) -> None:
        metrics = self.metrics
        for sequence in sequences:
            if sequence.finish_reason is None:
                metrics.count("tgi_request_failure", err="generation")
                continue
            inference_s = sequence.finished_s - sequence.started_s
            metrics.count("tgi_request_success")
            metrics.observe("tgi_request_duration", sequence.finished_s - arrived_s)
            metrics.observe("tgi_request_queue_duration", sequence.queue_s)
            metrics.observe("tgi_request_inference_duration", inference_s)
            metrics.observe("tgi_request_generated_tokens", len(sequence.tokens))
            metrics.observe(
                "tgi_request_mean_time_per_token_duration", inference_s / len(sequence.tokens)
            )

    def _stream_headers(self, characters: int) -> dict[str, str]:
        return {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-compute-type": self.compute_type,
            "x-compute-characters": str(characters),
            "x-accel-buffering": "no",
        }

    @property
    def compute_type(self) -> str:
        return "1-" + self.settings.gpu.device_name.lower().replace(" ", "-")

    @staticmethod
    def _now_s() -> float:
        return time.monotonic()
