"""YAML text becomes plain values, and each value remembers its line and how it was written.

Called by `source.py` only. Two kinds of trouble: what makes the text unreadable raises
`ConfigError` at once; what spoils single values (a duplicate key, a missing environment variable)
is collected, so that it can be told together with what the checked models find. Keys are always
texts, as written; `${NAME}` expands in values only, and the expanded value is never part of a
message.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from router.config.mismatch import Path
from router.config.words import dotted, quoted
from router.config.yaml_syntax import TAG, compose, fatal, kind_of, too_deep
from router.errors import ConfigProblem

MAX_VALUES = 100_000  # aliases can multiply: nine lines can stand for a billion values
MAX_WHOLE_NUMBER = 2**63
_MIN_SECRET_LENGTH = 6  # shorter values would turn up in messages by chance

_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands. `text` is a scalar as written, before `${NAME}` was expanded."""

    line: int
    key_line: int
    text: str | None = None
    is_expanded: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole file: values, their places, and the problems that spoil single values."""

    value: dict[str, Any]
    places: dict[Path, Place]
    problems: tuple[ConfigProblem, ...]
    spoiled: frozenset[Path]
    expanded: dict[str, str] = field(repr=False)  # values from the environment -> as written
    unset: dict[Path, tuple[str, ...]]  # names of variables that a value lacks


def parse_tree(text: str, file: str, env: Mapping[str, str]) -> Tree:
    """The mapping that `text` is; raises ConfigError where it is no single YAML mapping."""
    root = compose(text, file)
    builder = _Builder(file, env)
    try:
        value = builder.top_level(root)
    except RecursionError as exc:
        raise too_deep(file) from exc
    return Tree(
        value,
        builder.places,
        tuple(builder.problems),
        frozenset(builder.spoiled),
        builder.expanded,
        builder.unset,
    )


class _Builder:
    """Walks composed nodes once; one instance per file."""

    def __init__(self, file: str, env: Mapping[str, str]) -> None:
        self.file = file
        self.env = env
        self.places: dict[Path, Place] = {}
        self.problems: dict[ConfigProblem, None] = {}  # an alias tells the same one again
        self.spoiled: set[Path] = set()
        self.expanded: dict[str, str] = {}
        self.unset: dict[Path, tuple[str, ...]] = {}
        self._open: set[int] = set()  # ids of the nodes being walked: an alias to one is a loop
        self._seen = 0  # keys and values, through every alias

    def top_level(self, root: yaml.MappingNode) -> dict[str, Any]:
        """The file's mapping. Keys that begin with `x-` only hold anchors and are left out."""
        self.places[()] = Place(root.start_mark.line + 1, root.start_mark.line + 1)
        self._open.add(id(root))
        pairs = self._pairs(root, ())
        return {
            key: self._value(node, (key,), line)
            for key, (line, node) in pairs.items()
            if not key.startswith("x-")
        }

    def _value(self, node: yaml.Node, path: Path, key_line: int) -> Any:
        line = node.start_mark.line + 1
        self._count(line)
        if id(node) in self._open:
            self._spoil(path, line, "an alias inside what it stands for", "no loops")
            return None
        self.places[path] = Place(line, key_line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, key_line)
        if node.tag not in (TAG + "map", TAG + "seq"):
            self._spoil(path, line, f"the tag {quoted(node.tag)}", "a value without a tag")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                pairs = self._pairs(node, path)
                return {k: self._value(v, (*path, k), at) for k, (at, v) in pairs.items()}
            return [
                self._value(item, (*path, i), item.start_mark.line + 1)
                for i, item in enumerate(node.value)
            ]
        finally:
            self._open.discard(id(node))

    def _pairs(self, node: yaml.MappingNode, path: Path) -> dict[str, tuple[int, yaml.Node]]:
        """Keys with their lines and values; what `<<` brings in gives way to the mapping's own."""
        own: dict[str, tuple[int, yaml.Node]] = {}
        merged: dict[str, tuple[int, yaml.Node]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            self._count(line)
            if key_node.tag == TAG + "merge":
                for key, pair in self._merged(value_node, path, line).items():
                    merged.setdefault(key, pair)
            elif not isinstance(key_node, yaml.ScalarNode):
                self._spoil(path, line, f"{kind_of(key_node)} as a key", "a text as key")
            elif _is_unusable(key_node.value):
                self._spoil(path, line, "a key with a NUL or half a character", "a text as key")
            elif key_node.value in own:
                first = own[key_node.value][0]
                found = f"this key a second time (first in line {first})"
                self._problem((*path, key_node.value), line, found, "each key once")
            else:
                own[key_node.value] = (line, value_node)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Path, line: int) -> dict[str, tuple[int, yaml.Node]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        pairs: dict[str, tuple[int, yaml.Node]] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._spoil(
                    path, line, f"<< with {kind_of(source)}", "<< with an alias of a mapping"
                )
            elif id(source) in self._open:
                self._spoil(path, line, "<< with what it stands in", "no loops")
            else:
                self._open.add(id(source))
                for key, pair in self._pairs(source, path).items():
                    pairs.setdefault(key, pair)
                self._open.discard(id(source))
        return pairs

    def _count(self, line: int) -> None:
        self._seen += 1
        if self._seen > MAX_VALUES:
            found = f"aliases that stand for more than {MAX_VALUES:,} values"
            raise fatal(self.file, line, found, "a smaller file")

    def _scalar(self, node: yaml.ScalarNode, path: Path, key_line: int) -> Any:
        line = node.start_mark.line + 1
        if _is_unusable(node.value):
            self._spoil(path, line, "a text with a NUL or half a character", "a plain text")
            return None
        value, is_expanded = self._typed(node, path, line)
        self.places[path] = Place(line, key_line, node.value, is_expanded)
        return value

    def _typed(self, node: yaml.ScalarNode, path: Path, line: int) -> tuple[Any, bool]:
        match node.tag.removeprefix(TAG):
            case "str" | "value":
                return self._expanded(node.value, path, line)
            case "null":
                return None, False
            case "bool" if node.value.lower() in yaml.SafeLoader.bool_values:
                return yaml.SafeLoader.bool_values[node.value.lower()], False
            case "int" | "float" | "timestamp" as kind:
                try:
                    return _CONVERTERS[kind](node.value), False
                except (ValueError, OverflowError, AttributeError):
                    found = f"{quoted(node.value)} as a {kind}"
                    self._spoil(path, line, found, "a smaller number, or quotes around a text")
                    return None, False
        self._spoil(path, line, f"the tag {quoted(node.tag)}", "a value without a tag")
        return None, False

    def _expanded(self, text: str, path: Path, line: int) -> tuple[str, bool]:
        """`${NAME}` and `${NAME:-default}` filled in; `$${` stands for `${`."""
        if "${" not in text:
            return text, False

        def fill(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            reference = _REFERENCE.fullmatch(match[1])
            if reference is None:
                self._spoil(path, line, quoted(match[0]), "${NAME} or ${NAME:-default}")
                return match[0]
            name, default = reference.groups()
            value = self.env.get(name)
            if default is not None:
                return value or default
            if value is None:
                self.unset[path] = (*self.unset.get(path, ()), name)
                expected = f"{name} in the environment, or a default: ${{{name}:-value}}"
                self._spoil(path, line, f"${{{name}}}, which is not set", expected)
                return match[0]
            return value

        filled = _VARIABLE.sub(fill, text)
        if _is_unusable(filled):
            self._spoil(path, line, f"{quoted(text)} with half a character in it", "a plain text")
        if len(filled) >= _MIN_SECRET_LENGTH and not filled.isdecimal():
            self.expanded[filled] = text
        return filled, filled != text

    def _spoil(self, path: Path, line: int, found: str, expected: str) -> None:
        """A problem that leaves no usable value: what the model says of this path is not news."""
        self.spoiled.add(path)
        self._problem(path, line, found, expected)

    def _problem(self, path: Path, line: int, found: str, expected: str) -> None:
        self.problems[ConfigProblem(self.file, line, dotted(path), found, expected)] = None


def _whole_number(text: str) -> int:
    digits = text.replace("_", "")
    value = int(digits, 0)
    if abs(value) >= MAX_WHOLE_NUMBER:
        raise OverflowError
    return value


def _number(text: str) -> float:
    plain = text.replace("_", "").lower()
    return float(plain.replace(".inf", "inf").replace(".nan", "nan"))


def _date(text: str) -> datetime.date:
    """A date or a time; no option takes one, so the time of day does not matter."""
    return datetime.date.fromisoformat(text[:10])


_CONVERTERS: dict[str, Any] = {"int": _whole_number, "float": _number, "timestamp": _date}


def _is_unusable(text: str) -> bool:
    """No process can be given such a text: NUL ends it, half a surrogate pair has no bytes."""
    return "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)
