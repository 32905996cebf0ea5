"""The flags an engine knows, and whether a config's `args` are among them.

A table per engine is checked before anything is started: a misspelled flag would otherwise be
found minutes later, in the log of a replica that ended. Pure; used by the engines.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from launcher.engines.versions import LATEST, Version, show_version
from router.config.mismatch import Mismatch
from router.config.words import describe, did_you_mean

NOT_AT_ALL = "nothing here"
"""How the place where an operator sets a flag instead begins, when there is none."""

Arg = str | int | float | bool | None
Kind = Literal["switch", "toggle", "on-off", "whole", "number", "json", "text"]

_MANY = 50  # more than so many flags are not told one by one


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: what value it takes, and in which versions (`since` <= version < `until`).

    A toggle is a switch that is on by itself; on-off takes one of the words on, off and auto. The
    keys of a json flag may be flags of their own, as in `speculative-config.method`.
    """

    kind: Kind = "text"
    since: Version = (0, 0, 0)
    until: Version = (LATEST[0] + 1, 0, 0)
    choices: tuple[str, ...] = ()

    def is_in(self, version: Version) -> bool:
        return self.since <= version < self.until


def check_args(
    args: Mapping[str, Arg],
    flags: Mapping[str, Flag],
    reserved: Mapping[str, str],
    version: Version,
) -> Iterator[Mismatch]:
    """`reserved`: flags the launcher writes itself, and where the operator sets them instead."""
    for name, value in args.items():
        flag = _find(name, flags)
        if name in reserved:
            yield Mismatch((name,), _found_reserved(reserved[name]), reserved[name])
        elif flag is None:
            known = [flag for flag in flags if flags[flag].is_in(version)]
            yield Mismatch((name,), "a flag this engine does not have", _of_those(name, known))
        elif not flag.is_in(version):
            yield Mismatch((name,), f"a flag that {_instead(flag, version)}", "another one")
        elif (expected := _expected(flag, value)) is not None:
            yield Mismatch((name,), describe(value, None), expected)


def to_argv(args: Mapping[str, Arg]) -> list[str]:
    """`{"speed": 0.5, "json-output": True}` as command-line words; false and null say nothing."""
    words: list[str] = []
    for name, value in args.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False and value is not None:
            words += [f"--{name}", str(value)]
    return words


def _of_those(name: str, known: list[str]) -> str:
    """All that could be meant, or where they are too many the ones that look alike."""
    if len(known) <= _MANY:
        return did_you_mean(name, known)
    alike = difflib.get_close_matches(name.replace("_", "-"), known, n=3, cutoff=0.6)
    return f"one of {len(known)} others" + (f" (did you mean {', '.join(alike)}?)" if alike else "")


def _found_reserved(instead: str) -> str:
    is_set = not instead.startswith(NOT_AT_ALL)
    return "a flag that the launcher sets itself" if is_set else "a flag that replicas cannot have"


def _find(name: str, flags: Mapping[str, Flag]) -> Flag | None:
    whole, dot, _ = name.partition(".")
    if dot and whole in flags and flags[whole].kind == "json":
        return replace(flags[whole], kind="text")
    return flags.get(name)


def _instead(flag: Flag, version: Version) -> str:
    has = "the newest version" if version >= LATEST else f"version {show_version(version)}"
    if version < flag.since:
        return f"{has} does not have: it came with {show_version(flag.since)}"
    return f"{has} does not have any more: it went with {show_version(flag.until)}"


def _expected(flag: Flag, value: Arg) -> str | None:
    """What the flag would take, if it does not take `value`. A text may spell a number."""
    if value is None or value is False:
        return None
    match flag.kind:
        case "switch" | "toggle":
            return None if value is True else "true or false"
        case "on-off":
            return None if value in (True, "on", "off", "auto") else "one of: on, off, auto"
        case "whole":
            is_fine = not isinstance(value, float) and value is not True and _is_whole(value)
            return None if is_fine else "a whole number, 0 or more"
        case "number":
            return None if value is not True and _is_number(value) else "a number, 0 or more"
        case "json":
            return None if isinstance(value, str) and _is_json(value) else "a text with JSON in it"
    if value is True:
        return "a value: this flag does not stand alone"
    if flag.choices and value not in flag.choices:
        return did_you_mean(str(value), flag.choices)
    return None


def _is_whole(value: str | int) -> bool:
    return value.isascii() and value.isdecimal() if isinstance(value, str) else value >= 0


def _is_number(value: str | int | float) -> bool:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and number >= 0


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
