"""Which beginnings of prompts the pretended GPU still holds keys and values for.

The chunking scheduler asks at admission and adds when a prefill is complete. It stands for TGI's
radix tree over token ids: here a prompt is cut into pieces of 64 characters, and each piece is
known by a checksum of everything up to its end. Least recently used beginnings go first.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass

_PIECE_CHARACTERS = 64
#: A piece is worth this many tokens when the cache's size is set from a token budget.
_PIECE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt as the cache sees it: a key for each 64 characters from its beginning."""

    keys: tuple[int, ...]
    characters: int


NO_PREFIX = Prefix((), 0)


def prefix_of(text: str) -> Prefix:
    """The keys of a prompt; an unfinished last piece has none."""
    keys, crc = [], 0
    for start in range(0, len(text) - _PIECE_CHARACTERS + 1, _PIECE_CHARACTERS):
        crc = zlib.crc32(text[start : start + _PIECE_CHARACTERS].encode(), crc)
        keys.append(crc << 32 | start)
    return Prefix(tuple(keys), len(text))


class PrefixCache:
    """A bounded set of known beginnings."""

    def __init__(self, budget_tokens: int) -> None:
        self._room = max(budget_tokens // _PIECE_TOKENS, 1)
        self._known: OrderedDict[int, None] = OrderedDict()

    def match(self, prefix: Prefix) -> float:
        """The share of the prompt, 0 to 1, that need not be prefilled again."""
        matched = 0
        for key in prefix.keys:
            if key not in self._known:
                break
            self._known.move_to_end(key)
            matched += 1
        return matched * _PIECE_CHARACTERS / prefix.characters if matched else 0.0

    def add(self, prefix: Prefix) -> None:
        """Remember a prompt's beginnings and forget the ones longest unused."""
        for key in prefix.keys:
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > self._room:
            self._known.popitem(last=False)
