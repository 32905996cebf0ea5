"""The ``text`` token model: the next token is a pure function of the text so far and the seed.

Theory: a token is a word of at most eight letters with the space before it, one punctuation mark,
or one white-space character. Every token it generates starts with a space or is a single mark, so
no token ever merges with what stands before it: ``tokens(prompt + text) == tokens(prompt) +
tokens(text)``, and a prompt with a part of the answer appended continues to the same answer.
"""

from __future__ import annotations

import re
import zlib

from launcher.simulator.tokens import (
    EOS,
    Cursor,
    Piece,
    Token,
    is_end,
    logprob_of,
    salt_of,
    scramble,
)
from launcher.simulator.vocabulary import FOLLOWERS, UNKNOWN, WORDS, surface

_TOKEN = re.compile(r" ?\w{1,8}|[^\w\s]|\s")
#: Characters of the text so far that decide the next token.
_WINDOW = 48

_Entry = tuple[int, str]


def _number_words() -> dict[str, list[_Entry]]:
    entries: dict[str, list[_Entry]] = {}
    number = 300
    for kind, words in WORDS.items():
        entries[kind] = []
        for word in words:
            entries[kind].append((number, surface(kind, word)))
            number += 1
    return entries


_ENTRIES = _number_words()
_IDS = {text: number for entries in _ENTRIES.values() for number, text in entries}
_KIND_OF = {word: kind for kind, words in WORDS.items() for word in words}


def _choices(kinds: tuple[str, ...]) -> tuple[_Entry, ...]:
    """Entries to pick from evenly: each kind fills one share, whatever its number of words."""
    share = max(len(_ENTRIES[kind]) for kind in kinds)
    return tuple(_ENTRIES[kind][i % len(_ENTRIES[kind])] for kind in kinds for i in range(share))


_AFTER = {word: _choices(FOLLOWERS[kind]) for word, kind in _KIND_OF.items()}
_AFTER_UNKNOWN = _choices(UNKNOWN)


def _token_id(text: str) -> int:
    known = _IDS.get(text)
    return known if known is not None else 1000 + zlib.crc32(text.encode()) % 31_000


class TextCursor:
    """Remembers the end of the text, which is all that decides what comes next."""

    __slots__ = ("_candidates", "_draw", "_eos_rate", "_picked", "_salt", "_tail")

    def __init__(self, text: str, seed: int | None, eos_rate: float) -> None:
        self._tail = text[-_WINDOW:]
        self._salt = salt_of(seed)
        self._eos_rate = eos_rate
        self._draw = 0
        self._picked = EOS
        self._candidates: tuple[_Entry, ...] = ()

    def advance(self) -> Token:
        tail = self._tail
        draw = self._draw = scramble(zlib.crc32(tail.encode()), self._salt)
        if is_end(draw, self._eos_rate):
            self._picked = EOS
            return EOS
        last_word = tail[-1:] if tail.endswith((".", ",")) else tail[tail.rfind(" ") + 1 :]
        self._candidates = _AFTER.get(last_word, _AFTER_UNKNOWN)
        number, text = self._candidates[(draw >> 7) % len(self._candidates)]
        self._tail = (tail + text)[-_WINDOW:]
        self._picked = Token(number, text, logprob_of(draw), False)
        return self._picked

    def ranked(self, count: int) -> list[Token]:
        ranked = [self._picked]
        seen = {self._picked.id}
        for number, text in self._candidates:
            if len(ranked) >= count:
                break
            if number not in seen:
                seen.add(number)
                ranked.append(Token(number, text, self._picked.logprob - len(ranked), False))
        return ranked[:count]


class TextModel:
    """Readable output, stable tokens; see the module's theory."""

    def __init__(self, eos_rate: float = 0.0) -> None:
        self._eos_rate = eos_rate

    def count(self, text: str) -> int:
        return len(_TOKEN.findall(text))

    def pieces(self, text: str) -> list[Piece]:
        return [Piece(_token_id(m[0]), m[0], *m.span()) for m in _TOKEN.finditer(text)]

    def keep_last(self, text: str, tokens: int) -> str:
        return "".join(_TOKEN.findall(text)[-tokens:])

    def cursor(self, text: str, seed: int | None) -> Cursor:
        return TextCursor(text, seed, self._eos_rate)
