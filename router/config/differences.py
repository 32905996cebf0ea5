"""What differs between two configs, one line per key, for an operator. Pure.

Used by `launcher up` beside a running launcher and by a router that reads its config again. Values
that may be credentials are never in a line.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from router.config.mismatch import Path
from router.config.words import dotted, is_secret

_MOST_CHARS = 60


def flat_differences(
    before: Mapping[str, Any], after: Mapping[str, Any], place: Path = ()
) -> Iterator[str]:
    """`queue.timeout_s: 60 -> 30` for each key that differs, however deep it is."""
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if all(value is None or isinstance(value, Mapping) for value in (old, new)):
            yield from flat_differences(old or {}, new or {}, (*place, key))
        else:
            yield difference((*place, key), old, new)


def difference(place: Path, old: Any, new: Any) -> str:
    if is_secret(place) or _holds_mappings(old) or _holds_mappings(new):
        return f"{dotted(place)}: changed (not shown)"
    return f"{dotted(place)}: {shown(old)} -> {shown(new)}"


def shown(value: Any) -> str:
    """As the config has it, on one line."""
    match value:
        case None | "" | () | []:
            return "none"
        case tuple() | list():
            text = ", ".join(shown(one) for one in value)
        case bool():
            return "true" if value else "false"
        case _:
            text = " ".join(str(value).split())
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."


def _holds_mappings(value: Any) -> bool:
    """Their keys would have to be looked at one by one to know what may be shown."""
    return isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value)
