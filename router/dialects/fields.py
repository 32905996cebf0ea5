"""Reads fields of replies from machines that may be broken: nothing here raises.

Every dialect reads JSON and header fields with these; what they mean is the dialect's affair.
"""

from collections.abc import Mapping
from typing import Any

import orjson


def parsed(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; empty when it is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return an_object(value)


def an_object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """The objects of an array."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def count(values: Mapping[str, Any], key: str) -> int | None:
    """A whole number above zero, or None."""
    value = values.get(key)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count else None


def whole(text: str | None) -> int | None:
    """The number that a header field's digits are; None for anything else, endless ones too."""
    is_whole = text is not None and text.isascii() and text.isdigit() and len(text) <= 15
    return int(text) if is_whole and text is not None else None


def looks_whole(headers: Mapping[str, str], body: bytes) -> bool:
    """First and last byte of a JSON document; other content types are not judged."""
    if "json" not in headers.get("content-type", ""):
        return True
    text = body.strip()
    return text[:1] + text[-1:] in (b"{}", b"[]")
