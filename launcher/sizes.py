"""Sizes as operators write them (`20GiB`, `600MB`) and as they are shown. Pure.

The units are accelerate's, so that a `max_memory` copied from a Transformers program means the same
here: kB, MB, GB and TB are powers of 1000, KiB to TiB powers of 1024. Where accelerate reads
something that nobody meant (`1gb` is a gigabit to it) the text is refused, never reinterpreted.
A refusal is a ValueError whose message says what was expected, as the config's validators do.
"""

import re
from decimal import Decimal

KIB = 1024
MIB = KIB**2
GIB = KIB**3
TIB = KIB**4

_UNITS = {
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": TIB,
}
_SHOWN = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
_SIZE = re.compile(r" *(\d{1,18}(?:\.\d{1,18})?) *([A-Za-z]+)", re.ASCII)
_PLAIN_NUMBER = re.compile(r" *\d{1,18}(?:\.\d{0,18})? *", re.ASCII)
_EXAMPLES = "a size like 20GiB or 600MB"


def parse_size_bytes(size: object) -> int:
    """Bytes of `size`: a whole number of bytes, or a text with a unit. ValueError for all else."""
    if isinstance(size, bool):
        raise ValueError(f"{_EXAMPLES}, not true or false")
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{_EXAMPLES}, not less than nothing")
        return size
    if not isinstance(size, str):
        raise ValueError(f"{_EXAMPLES}, or a whole number of bytes")
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(_EXAMPLES + _hint(size))
    number, unit = match.groups()
    return int(Decimal(number) * _factor(number, unit))


def show_bytes(size_bytes: float) -> str:
    """`13.5 GiB`, `600 MiB`, `512 B`: one decimal where it says something."""
    for factor, unit in _SHOWN:
        if abs(size_bytes) >= factor:
            text = f"{size_bytes / factor:.1f}"
            return f"{text.removesuffix('.0') if factor < GIB else text} {unit}"
    return f"{size_bytes:.0f} B"


def _factor(number: str, unit: str) -> int:
    """How many bytes one `unit` is; the hint repeats the number, so that it can be pasted."""
    factor = _UNITS.get(unit.upper())
    if factor is None:
        raise ValueError(_EXAMPLES + _unknown_unit(number, unit))
    # 1. `1gb`, `1Gb`: bits by the book, and to accelerate; bytes to everyone who writes it.
    # 2. `1Gib`: bits by the book, bytes to accelerate. `1gib` is no book's spelling: bytes.
    is_binary = "I" in unit.upper()
    if unit.endswith("b") and not (is_binary and unit.islower()):
        right = "GiB" if is_binary else "GB"
        right = unit[0].upper() + right[1:]
        raise ValueError(f"{_EXAMPLES}: a small b means bits, write {number}{right}")
    return factor


def _unknown_unit(number: str, unit: str) -> str:
    letter = unit[0].upper()
    if len(unit) == 1 and letter in "KMGT":
        return f": write {number}{letter}iB (powers of 1024) or {number}{letter}B (of 1000)"
    if "bit" in unit.lower():
        return ": bytes, not bits"
    return "; the units are KB, MB, GB, TB and KiB, MiB, GiB, TiB"


def _hint(text: str) -> str:
    """What is likely wrong with a text of another form."""
    if _PLAIN_NUMBER.fullmatch(text):
        return f": a unit is missing, write {text.strip()}GiB, or the bytes without quotes"
    if text != text.rstrip() and _SIZE.fullmatch(text.rstrip()):
        return ", with nothing after the unit: there is white space"
    if text.lstrip().startswith("-"):
        return ", not less than nothing"
    if "," in text:
        return ", with a point for decimals and no other marks"
    return ""
