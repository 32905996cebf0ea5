"""How values, paths and pydantic's findings read in a message for an operator.

Pure; called by `yaml_tree.py` and `source.py`. Types are named as YAML users know them (a text, a
whole number, a list, a mapping), never as Python's.
"""

import datetime
import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from router.config.mismatch import Path

_MAX_SHOWN = 60
_SECRET = re.compile(r"(?:^|[_-])(?:keys?|hash|token|secret|password)$", re.IGNORECASE)
"""`keys` and `hash` as well: somebody may write a key itself there."""


def dotted(path: Path) -> str:
    """`("models", 1, "devices")` as `models[1].devices`; odd keys in quotes."""
    return "".join(map(_step, path)).removeprefix(".")


def _step(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    is_plain = part.isprintable() and 0 < len(part) <= _MAX_SHOWN
    return f".{part}" if is_plain else f"[{quoted(part)}]"


def quoted(text: str) -> str:
    """A text on one line, in double quotes, shortened where it is long."""
    short = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return json.dumps(short, ensure_ascii=not short.isprintable())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known words and the one probably meant: `one of: host, port (did you mean port?)`."""
    known = list(known)
    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(word.replace("_", "-"), known, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"one of: {', '.join(known)}{hint}"


def describe(value: Any, text: str | None, *, is_secret: bool = False) -> str:
    """What stands in the file. `text`: a scalar as it was written there, if that is known."""
    match value:
        case None:
            return "nothing"
        case dict():
            return f"a mapping of {count(len(value), 'key')}"
        case list():
            return f"a list of {count(len(value), 'entry', 'entries')}"
        case _ if is_secret:
            return f"{_kind(value)} (not shown)"
        case bool():
            word = "true" if value else "false"
            return word if text in (None, word) else f"{text}, which YAML reads as {word}"
        case str():
            return f"a text {quoted(value if text is None else text)}"
    return f"{_kind(value)} {text if text is not None else value}"


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "true or false"
        case int():
            return "the whole number"
        case float():
            return "the number"
        case datetime.date():
            return "the date"
    return "a text"


def is_secret(path: Path) -> bool:
    """Whether a value at this path may be a credential, so that messages must not show it."""
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    return "env" in path[:-1] or bool(_SECRET.search(name))


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def expectation(kind: str, context: dict[str, Any], message: str) -> str:
    """What pydantic's error of this kind would have accepted."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return words.format(context[name])
    match kind:
        case "string_too_short":
            return f"a text of at least {count(context['min_length'], 'character')}"
        case "string_too_long":
            return f"a text of at most {count(context['max_length'], 'character')}"
        case "too_short":
            return f"at least {count(context['min_length'], 'entry', 'entries')}"
        case "too_long":
            return f"at most {count(context['max_length'], 'entry', 'entries')}"
        case "string_pattern_mismatch":
            return f"a text of the form {context['pattern']}"
        case "value_error":
            return str(context["error"])
    return message.removeprefix("Input should be ").removeprefix("a valid ")


_PLAIN = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value lines)",
    "mapping_type": "a mapping (key: value lines)",
    "model_type": "a mapping (key: value lines)",
    "model_attributes_type": "a mapping (key: value lines)",
    "list_type": "a list",
    "path_type": "a path",
}
_BOUNDS = {
    "greater_than": ("more than {:g}", "gt"),
    "greater_than_equal": ("at least {:g}", "ge"),
    "less_than": ("less than {:g}", "lt"),
    "less_than_equal": ("at most {:g}", "le"),
}
