"""Who hears of a sequence's tokens: a streamed body, or a call that waits for the whole text.

``Service`` makes one for each call; the engine calls them through ``Listener``.
"""

from __future__ import annotations

import asyncio

from launcher.simulator.errors import ApiError
from launcher.simulator.faults import Fault, failure
from launcher.simulator.generation import Sequence
from launcher.simulator.stream_body import StreamBody, StreamFormat
from launcher.simulator.tokens import Token


class StreamListener:
    """Hands one sequence's tokens to a body; the body ends with the last of its listeners."""

    def __init__(self, body: StreamBody, form: StreamFormat, group: Countdown) -> None:
        self._body = body
        self._form = form
        self._group = group

    def token(self, sequence: Sequence, token: Token) -> None:
        self._body.send(self._form.token(sequence, token))
        if sequence.finish_reason is not None and self._group.count_down():
            self._body.finish()

    def fail(self, error: ApiError) -> None:
        self._body.send(self._form.error(error))
        self._body.finish()


class Countdown:
    """How many sequences of one reply are still running."""

    __slots__ = ("_left",)

    def __init__(self, count: int) -> None:
        self._left = count

    def count_down(self) -> bool:
        """One sequence is over; True if it was the last."""
        self._left -= 1
        return self._left == 0


class Collector:
    """Waits until all sequences of a unary call are over."""

    def __init__(self, sequences: int, fault: Fault | None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._countdown = Countdown(sequences)
        self._fault = fault

    def token(self, sequence: Sequence, token: Token) -> None:
        fault = self._fault
        error = failure(fault, is_stream=False)
        if fault and error and len(sequence.tokens) > fault.after_events:
            self.fail(error)
        if sequence.ask.parameters.top_n_tokens:
            sequence.top_tokens.append(sequence.ranked())
        is_over = sequence.finish_reason is not None and self._countdown.count_down()
        if is_over and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: ApiError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
