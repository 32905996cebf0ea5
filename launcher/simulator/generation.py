"""One sequence being generated: its tokens, when it ends, and its 1024-token slices.

The engine moves it on; the listener (a reply under way) is told about each token. It knows
nothing of HTTP; times in it are written by the engine and only read elsewhere.
"""

from __future__ import annotations

from typing import Protocol

from launcher.simulator.era import Era
from launcher.simulator.errors import ApiError
from launcher.simulator.parameters import Ask, reserve_tokens
from launcher.simulator.prefix_cache import NO_PREFIX, prefix_of
from launcher.simulator.scheduler import Entry
from launcher.simulator.tokens import EOS, Token, TokenModel

#: TGI looks for stop sequences in this much of the newest text.
_STOP_WINDOW = 300


class Listener(Protocol):
    """Whoever waits for a sequence's tokens."""

    def token(self, sequence: Sequence, token: Token) -> None:
        """One more token; the last one if ``sequence.finish_reason`` is set."""
        ...

    def fail(self, error: ApiError) -> None:
        """The sequence ended without a finish reason."""
        ...


class Sequence(Entry):
    """A sequence from its arrival in the queue to its last token."""

    __slots__ = (
        "_cursor",
        "_era",
        "_model",
        "_slice_left",
        "_stop_tail",
        "ask",
        "enqueued_s",
        "finish_reason",
        "finished_s",
        "listener",
        "seed",
        "started_s",
        "text_parts",
        "tokens",
        "top_tokens",
    )

    def __init__(
        self, ask: Ask, seed: int | None, model: TokenModel, era: Era, listener: Listener
    ) -> None:
        was_absent = ask.parameters.max_new_tokens is None
        reserve = reserve_tokens(ask.max_new_tokens, was_absent, era)
        prefix = prefix_of(ask.context) if era.chunking else NO_PREFIX
        super().__init__(ask.input_tokens, reserve, prefix)
        self.ask = ask
        self.seed = seed
        self.listener = listener
        self.tokens: list[Token] = []
        #: Filled by listeners that show them; one list for each token.
        self.top_tokens: list[list[Token]] = []
        self.text_parts: list[str] = []
        self.finish_reason: str | None = None
        self.enqueued_s = 0.0
        #: When the batch took it in; 0 while it waits.
        self.started_s = 0.0
        self.finished_s = 0.0
        self._model = model
        self._era = era
        self._cursor = model.cursor(ask.context, seed)
        self._slice_left = reserve
        self._stop_tail = ""

    @property
    def queue_s(self) -> float:
        """Seconds from its arrival until the batch took it in."""
        return max(self.started_s - self.enqueued_s, 0.0)

    @property
    def text(self) -> str:
        """The generated text so far; special tokens are no part of it."""
        return "".join(self.text_parts)

    def advance(self) -> Token:
        """Generate one token and decide whether it is the last one."""
        token = self._cursor.advance()
        self.tokens.append(token)
        if not token.special:
            self.text_parts.append(token.text)
        self._slice_left -= 1
        if not self._slice_left:
            self.finish_reason = "length"
        elif token is EOS:
            self.finish_reason = "eos_token"
        elif self.ask.parameters.stop and self._meets_stop(token):
            self.finish_reason = "stop_sequence"
        return token

    def ranked(self) -> list[Token]:
        """The likeliest tokens at the position just passed, as many as were asked for."""
        return self._cursor.ranked(self.ask.parameters.top_n_tokens or 0)

    def begin_next_slice(self, max_total_tokens: int) -> bool:
        """Go on as a new queue entry after a slice's end; False if this was the real end.

        Each slice is as long as the first, so the end can lie beyond ``max_new_tokens``: TGI's
        own arithmetic.
        """
        reserve = self.reserve_tokens
        if self.finish_reason != "length" or len(self.tokens) >= self.ask.max_new_tokens:
            return False
        context = self.ask.context + self.text
        input_tokens = self._model.count(context)
        if input_tokens + reserve > max_total_tokens:
            return False
        self.input_tokens = input_tokens
        self.prefix = prefix_of(context) if self._era.chunking else NO_PREFIX
        self._slice_left = reserve
        self._cursor = self._model.cursor(context, self.seed)
        self._stop_tail = ""
        self.finish_reason = None
        return True

    def _meets_stop(self, token: Token) -> bool:
        self._stop_tail = (self._stop_tail + token.text)[-_STOP_WINDOW:]
        return any(stop in self._stop_tail for stop in self.ask.parameters.stop)
