"""The ``bpe`` token model: everything that makes resuming a real model's text hard.

Theory: tokens are byte strings. The model writes some words in two halves that the tokeniser would
merge, so ``prompt + part of the answer`` can have fewer tokens than were generated, and since the
next token depends on the last few token ids, it can continue differently. Characters beyond
ASCII are written byte by byte: a token has empty text until its character is complete. A BOS token
is prepended and counted. Special tokens have a text but are no part of the generated text.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from launcher.simulator.tokens import (
    BOS_ID,
    BOS_TEXT,
    EOS,
    Cursor,
    Piece,
    Token,
    is_end,
    logprob_of,
    salt_of,
    scramble,
)
from launcher.simulator.vocabulary import WORDS, surface

SEPARATOR = Token(259, "<|sep|>", -0.5, True)
_FIRST_BYTE_ID = 3
_FIRST_WORD_ID = 260

_WIDE = ("é", "ü", "—", "漢", "字", "🙂", "🚀")
#: Wide characters the tokeniser has a merged token for; the others stay single bytes.
_MERGED = ("é", "—", "漢")

_WORD = re.compile(r" ?\w+|[^\w\s]|\s")
_LONGEST_BYTES = 16
#: Token ids that decide the next token.
_WINDOW = 8
_PACKED = struct.Struct(f"<{_WINDOW}H")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Token bytes by id and back, and the ids the generator picks from."""

    by_id: dict[int, bytes]
    by_bytes: dict[bytes, int]
    words: tuple[int, ...]
    first_halves: tuple[int, ...]
    second_halves: dict[int, tuple[int, ...]]
    marks: tuple[int, ...]


def _build() -> _Vocabulary:
    by_id = {_FIRST_BYTE_ID + value: bytes([value]) for value in range(256)}
    by_bytes = {piece: number for number, piece in by_id.items()}

    def add(piece: bytes) -> int:
        if piece not in by_bytes:
            number = _FIRST_WORD_ID + len(by_bytes) - 256
            by_id[number], by_bytes[piece] = piece, number
        return by_bytes[piece]

    words, second_halves = [], dict[int, list[int]]()
    for kind, members in WORDS.items():
        for word in members:
            text = surface(kind, word).encode()
            words.append(add(text))
            if len(text) > 5:
                first, second = add(text[:4]), add(text[4:])
                second_halves.setdefault(first, []).append(second)
    for wide in _MERGED:
        add(wide.encode())
    return _Vocabulary(
        by_id=by_id,
        by_bytes=by_bytes,
        words=tuple(words),
        first_halves=tuple(second_halves),
        second_halves={first: tuple(seconds) for first, seconds in second_halves.items()},
        marks=(by_bytes[b"."], by_bytes[b","]),
    )


_VOCABULARY = _build()
_LEAD_BYTES = tuple(dict.fromkeys(wide.encode()[0] for wide in _WIDE))


def _next_bytes() -> dict[bytes, tuple[int, ...]]:
    """Bytes that may follow an unfinished character."""
    following: dict[bytes, list[int]] = {}
    for wide in _WIDE:
        encoded = wide.encode()
        for i in range(1, len(encoded)):
            following.setdefault(encoded[:i], []).append(encoded[i])
    return {prefix: tuple(dict.fromkeys(values)) for prefix, values in following.items()}


_NEXT_BYTES = _next_bytes()


class BpeCursor:
    """Remembers the newest token ids and the bytes of an unfinished character."""

    __slots__ = ("_eos_rate", "_ids", "_pending", "_picked", "_salt")

    def __init__(self, ids: list[int], seed: int | None, eos_rate: float) -> None:
        self._ids = tuple([BOS_ID] * _WINDOW + ids)[-_WINDOW:]
        self._pending = b""
        self._salt = salt_of(seed)
        self._eos_rate = eos_rate
        self._picked = EOS

    def advance(self) -> Token:
        draw = scramble(zlib.crc32(_PACKED.pack(*self._ids)), self._salt)
        self._picked = self._token(self._pick(draw, self._ids[-1]), draw)
        self._ids = (*self._ids[1:], self._picked.id)
        return self._picked

    def _pick(self, draw: int, last: int) -> int:
        # 1. An unfinished character is finished first, 2. then an unfinished word.
        choice = draw >> 9
        if self._pending:
            following = _NEXT_BYTES[self._pending]
            return _FIRST_BYTE_ID + following[choice % len(following)]
        if last in _VOCABULARY.second_halves:
            seconds = _VOCABULARY.second_halves[last]
            return seconds[choice % len(seconds)]
        if is_end(draw, self._eos_rate):
            return EOS.id
        # 3. Else anything may come, most often a whole word.
        kind = draw % 100
        if kind < 2:
            return SEPARATOR.id
        if kind < 12:
            return _FIRST_BYTE_ID + _LEAD_BYTES[choice % len(_LEAD_BYTES)]
        if kind < 20:
            return _VOCABULARY.marks[choice % 2]
        pool = _VOCABULARY.first_halves if kind < 45 else _VOCABULARY.words
        return pool[choice % len(pool)]

    def _token(self, number: int, draw: int) -> Token:
        if number == EOS.id:
            return EOS
        if number == SEPARATOR.id:
            return SEPARATOR
        self._pending += _VOCABULARY.by_id[number]
        if self._pending in _NEXT_BYTES:
            return Token(number, "", logprob_of(draw), False)
        text, self._pending = self._pending.decode(), b""
        return Token(number, text, logprob_of(draw), False)

    def ranked(self, count: int) -> list[Token]:
        ranked = [self._picked]
        for number in _VOCABULARY.words:
            if len(ranked) >= count:
                break
            if number != self._picked.id:
                text = _VOCABULARY.by_id[number].decode()
                ranked.append(Token(number, text, self._picked.logprob - len(ranked), False))
        return ranked[:count]


class BpeModel:
    """Realistic trouble at the seam; see the module's theory."""

    def __init__(self, eos_rate: float = 0.0) -> None:
        self._eos_rate = eos_rate

    def count(self, text: str) -> int:
        return 1 + sum(len(_split(word)) for word in _WORD.findall(text))

    def pieces(self, text: str) -> list[Piece]:
        pieces = [Piece(BOS_ID, BOS_TEXT, 0, 0)]
        for match in _WORD.finditer(text):
            byte_at = _character_of_byte(match[0])
            position = 0
            for number in _split(match[0]):
                end = position + len(_VOCABULARY.by_id[number])
                start, stop = match.start() + byte_at[position], match.start() + byte_at[end - 1]
                pieces.append(Piece(number, text[start : stop + 1], start, stop + 1))
                position = end
        return pieces

    def keep_last(self, text: str, tokens: int) -> str:
        room = max(tokens - 1, 0)
        pieces = self.pieces(text)[1:]
        return text[pieces[-room].start :] if 0 < room < len(pieces) else text if room else ""

    def cursor(self, text: str, seed: int | None) -> Cursor:
        ids = [number for word in _WORD.findall(text[-256:]) for number in _split(word)]
        return BpeCursor(ids, seed, self._eos_rate)


def _split(word: str) -> list[int]:
    """Token ids of one word: the longest known piece first, single bytes where none fits."""
    encoded = word.encode()
    whole = _VOCABULARY.by_bytes.get(encoded)
    if whole is not None:
        return [whole]
    ids, position = [], 0
    while position < len(encoded):
        for end in range(min(len(encoded), position + _LONGEST_BYTES), position, -1):
            number = _VOCABULARY.by_bytes.get(encoded[position:end])
            if number is not None:
                ids.append(number)
                position = end
                break
    return ids


def _character_of_byte(word: str) -> list[int]:
    return [index for index, character in enumerate(word) for _ in character.encode()]
