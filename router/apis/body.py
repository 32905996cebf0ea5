"""Strict JSON: what one parser reads otherwise than another is refused, not guessed at.

Duplicate keys, NaN, lone surrogates and numbers beyond 64 bits mean different things to different
engines (RFC 8259, sections 4, 6 and 8). The error says which.
"""

import json
from collections import Counter
from math import inf
from typing import Any, Never

import orjson

from router.errors import InvalidRequest

MAX_INTEGER = 2**64 - 1
SURE_BELOW = 2.0**63
"""A float up to here was no whole number beyond 64 bits."""


def load_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises InvalidRequest for anything else."""
    if (plain := _plain_object(body)) is not None:
        return plain
    try:
        value = _decode(body.decode())
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the body is no UTF-8: byte {exc.start} is invalid") from None
    except RecursionError:
        raise InvalidRequest("the body nests too deeply") from None
    except ValueError as exc:
        raise InvalidRequest(f"the body is no valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {kind(value)}, expected a JSON object")
    return value


def _plain_object(body: bytes) -> dict[str, Any] | None:
    """What almost every body is, read by a parser that is faster and not strict about keys that
    stand twice or large numbers; None where that might matter, and where it is no object.

    Each member has one colon outside strings. If all colons are accounted for by what was read, no
    member was dropped: no key stands twice.
    """
    if b"\\u" in body:  # that may be a colon
        return None
    try:
        value = orjson.loads(body)
        if type(value) is dict and _colons(value) == body.count(b":"):
            return value
    except (orjson.JSONDecodeError, RecursionError):
        pass
    return None


def _colons(value: Any) -> float:
    """So many stood in its text; infinitely many if a number may have been another one."""
    kind = type(value)
    if kind is str:
        found: float = value.count(":")
    elif kind is dict:
        found = len(value)
        for key, item in value.items():
            found += key.count(":") + _colons(item)
    elif kind is list:
        found = sum(map(_colons, value))
    elif kind is float and not 0.0 < abs(value) < SURE_BELOW:
        found = inf
    else:
        found = 0
    return found


def kind(value: object) -> str:
    """The value's type in JSON's words, for messages."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value)) or ("an array" if isinstance(value, list) else "an object")


def text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if isinstance(value, str):
        return value
    found = f"found {kind(value)}" if key in values else "it is missing"
    raise InvalidRequest(f"`{key}` must be a string: {found}")


def optional_text(values: dict[str, Any], key: str) -> str | None:
    return None if values.get(key) is None else text(values, key)


def flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(f"`{key}` must be true or false: found {kind(value)}")


def whole(values: dict[str, Any], key: str, *, low: int = 0, high: int = 2**32 - 1) -> int | None:
    """A whole number in [low, high], or None when absent or null."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"`{key}` must be a whole number: found {kind(value)}")
    if not low <= value <= high:
        raise InvalidRequest(f"`{key}` must be between {low} and {high}")
    return value


def mapping(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = values.get(key)
    if value is None or isinstance(value, dict):
        return value
    raise InvalidRequest(f"`{key}` must be an object: found {kind(value)}")


def listed(values: dict[str, Any], key: str) -> list[Any]:
    value = values.get(key)
    if isinstance(value, list):
        return value
    found = f"found {kind(value)}" if key in values else "it is missing"
    raise InvalidRequest(f"`{key}` must be an array: {found}")


def _decode(document: str) -> Any:
    value = _DECODER.decode(document)
    if "\\u" in document:
        _refuse_surrogates(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {json.dumps(twice[:80])} stands twice")
    return values


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 21 else MAX_INTEGER + 1
    if not -(2**63) <= value <= MAX_INTEGER:
        raise ValueError("a whole number is beyond 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is beyond what a double holds")
    return value


def _constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON value")


def _refuse_surrogates(value: Any) -> None:
    """Half a surrogate pair is no character and cannot be sent on as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half a surrogate pair") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_constant,
    parse_int=_integer,
    parse_float=_number,
)
