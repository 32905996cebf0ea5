"""The words both token models speak, and which kind of word may follow which.

Plain data: enough grammar for output that reads like English at a glance. Every word has at most
eight letters, the length at which the text model cuts longer words.
"""

from __future__ import annotations

WORDS: dict[str, tuple[str, ...]] = {
    "opener": ("The", "A", "Every", "This", "Our", "One", "Each", "Another"),
    "determiner": ("the", "a", "this", "every", "our", "another", "each", "its", "that", "some"),
    "adjective": (
        *("quiet", "small", "bright", "steady", "old", "careful", "early", "deep", "simple"),
        *("warm", "narrow", "gentle", "distant", "clear", "patient", "curious", "hidden", "plain"),
        *("sudden", "modest"),
    ),
    "noun": (
        *("river", "engine", "garden", "signal", "window", "letter", "teacher", "market", "bridge"),
        *("mountain", "question", "answer", "machine", "pattern", "morning", "station", "library"),
        *("village", "harbour", "lantern", "story", "memory", "number", "road", "forest", "clock"),
        *("model", "kitchen", "journey", "song", "shadow", "artist"),
    ),
    "verb": (
        *("follows", "carries", "builds", "finds", "keeps", "recalls", "changes", "watches"),
        *("answers", "crosses", "opens", "gathers", "measures", "repairs", "explains", "reaches"),
        *("leaves", "holds", "teaches", "turns"),
    ),
    "adverb": ("slowly", "often", "quietly", "again", "soon", "always", "nearby", "together"),
    "preposition": ("near", "behind", "across", "under", "with", "beyond", "inside", "after"),
    "conjunction": ("and", "but", "while", "because", "so"),
    "stop": (".",),
    "comma": (",",),
}

#: Kinds that may follow a kind; a repeated kind is a likelier one.
FOLLOWERS: dict[str, tuple[str, ...]] = {
    "opener": ("adjective", "noun", "noun"),
    "determiner": ("adjective", "noun", "noun"),
    "adjective": ("noun",),
    "noun": ("verb", "verb", "verb", "preposition", "stop", "comma"),
    "verb": ("determiner", "determiner", "determiner", "adverb", "preposition"),
    "adverb": ("preposition", "stop", "conjunction"),
    "preposition": ("determiner",),
    "conjunction": ("determiner",),
    "stop": ("opener",),
    "comma": ("conjunction",),
}

#: What follows text that holds none of our words, such as most prompts.
UNKNOWN = ("opener",)


def surface(kind: str, word: str) -> str:
    """A word as it appears in running text: punctuation clings, everything else has a space."""
    return word if kind in ("stop", "comma") else f" {word}"
