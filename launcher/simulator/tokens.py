"""What a token model is: the seam between the engine and the two models.

``tokens_text`` and ``tokens_bpe`` implement it; the engine and the handlers use it. A model never
knows about requests, time or HTTP.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple, Protocol


class Token(NamedTuple):
    """One generated token, with the fields that TGI sends. ``text`` may be empty."""

    id: int
    text: str
    logprob: float
    special: bool


class Piece(NamedTuple):
    """One token of a given text; ``start`` and ``stop`` count characters of that text."""

    id: int
    text: str
    start: int
    stop: int


class Cursor(Protocol):
    """A generation under way: remembers what its model needs of the text so far."""

    def advance(self) -> Token:
        """Produce the next token and move behind it."""
        ...

    def ranked(self, count: int) -> list[Token]:
        """The ``count`` likeliest tokens at the position just passed, the chosen one first."""
        ...


class TokenModel(Protocol):
    """A tokeniser and what it generates, in one."""

    def count(self, text: str) -> int:
        """Input tokens that this text costs, a BOS token included where the model has one."""
        ...

    def pieces(self, text: str) -> list[Piece]:
        """The text's tokens in order."""
        ...

    def keep_last(self, text: str, tokens: int) -> str:
        """The end of the text that fits in ``tokens`` input tokens."""
        ...

    def cursor(self, text: str, seed: int | None) -> Cursor:
        """Start generating after ``text``; ``seed`` None is greedy."""
        ...


EOS = Token(2, "</s>", -0.125, True)
BOS_ID = 1
BOS_TEXT = "<s>"


def scramble(value: int, salt: int) -> int:
    """Spread a number over 32 bits; equal arguments give equal results in every process."""
    value = (value ^ salt) * 0x9E3779B1 & 0xFFFFFFFF
    value = (value ^ value >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    return value ^ value >> 13


def salt_of(seed: int | None) -> int:
    """A 32-bit salt from a seed: 0 for greedy, never 0 for a seed."""
    if seed is None:
        return 0
    return zlib.crc32(seed.to_bytes(8, "little")) | 1


def logprob_of(number: int) -> float:
    """A believable log probability; a multiple of 1/1024, so it prints in few digits."""
    return -((number >> 5) % 2048 + 1) / 1024


def is_end(number: int, eos_rate: float) -> bool:
    """Whether this draw ends the text."""
    return eos_rate > 0 and scramble(number, 0x5EED) < eos_rate * 2**32
