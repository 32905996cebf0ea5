"""YAML text becomes plain values, and each value remembers its line and how it was written.

Called by `source.py` only. Two kinds of trouble: what makes the text unreadable raises
`ConfigError` at once; what spoils single values (a duplicate key, a missing environment variable)
is collected, so that it can be told together with what the checked models find. Keys are always
texts, as written; `${NAME}` expands in values only, and the expanded value is never part of a
message.
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from router.config.mismatch import Path
from router.config.words import dotted, quoted
from router.errors import ConfigError, ConfigProblem

MAX_VALUES = 100_000  # aliases can multiply: nine lines can stand for a billion values
MAX_WHOLE_NUMBER = 2**63
_MIN_SECRET_LENGTH = 6  # shorter values would turn up in messages by chance

_TAG = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """Finds types as YAML 1.2 does where YAML 1.1 surprises: 010 and 1:30 stay texts."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (_TAG + "int", _TAG + "float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _TAG + "int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


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


def parse_tree(text: str, file: str, env: Mapping[str, str]) -> Tree:
    """The mapping that `text` is; raises ConfigError where it is no single YAML mapping."""
    root = _compose(text, file)
    builder = _Builder(file, env)
    try:
        value = builder.top_level(root)
    except RecursionError as exc:
        raise _too_deep(file) from exc
    return Tree(
        value,
        builder.places,
        tuple(builder.problems),
        frozenset(builder.spoiled),
        builder.expanded,
    )


def _compose(text: str, file: str) -> yaml.MappingNode:
    try:
        nodes = list(_documents(text))
    except yaml.MarkedYAMLError as exc:
        raise ConfigError([_syntax_problem(exc, file)]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        found = f"the control character U+{ord(text[exc.position]):04X}"
        raise _fatal(file, line, found, "printable text") from exc
    except RecursionError as exc:
        raise _too_deep(file) from exc
    except (ValueError, OverflowError) as exc:  # an escape such as "\UFFFFFFFF" is no character
        raise _fatal(file, None, "an escape that is no character", "valid YAML") from exc
    if not nodes:
        raise _fatal(file, None, "an empty file", "a mapping (key: value lines)")
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise _fatal(file, line, "a second document after ---", "one document per file")
    root = nodes[0]
    if not isinstance(root, yaml.MappingNode):
        is_empty = isinstance(root, yaml.ScalarNode) and not root.value
        found = "an empty file" if is_empty else _kind(root)
        line = root.start_mark.line + 1
        raise _fatal(file, None if is_empty else line, found, "a mapping (key: value lines)")
    return root


def _documents(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            if (node := loader.get_node()) is not None:
                yield node
    finally:
        loader.dispose()


class _Builder:
    """Walks composed nodes once; one instance per file."""

    def __init__(self, file: str, env: Mapping[str, str]) -> None:
        self.file = file
        self.env = env
        self.places: dict[Path, Place] = {}
        self.problems: list[ConfigProblem] = []
        self.spoiled: set[Path] = set()
        self.expanded: dict[str, str] = {}
        self._open: set[int] = set()  # ids of the nodes being walked: an alias to one is a loop
        self._values = 0

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
        self._values += 1
        line = node.start_mark.line + 1
        if self._values > MAX_VALUES:
            found = f"aliases that stand for more than {MAX_VALUES:,} values"
            raise _fatal(self.file, line, found, "a smaller file")
        if id(node) in self._open:
            self._spoil(path, line, "an alias inside what it stands for", "no loops")
            return None
        self.places[path] = Place(line, key_line)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, key_line)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
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
            if key_node.tag == _TAG + "merge":
                for key, pair in self._merged(value_node, path, line).items():
                    merged.setdefault(key, pair)
            elif not isinstance(key_node, yaml.ScalarNode):
                self._spoil(path, line, f"{_kind(key_node)} as a key", "a text as key")
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
                self._spoil(path, line, f"<< with {_kind(source)}", "<< with an alias of a mapping")
            elif id(source) in self._open:
                self._spoil(path, line, "<< with what it stands in", "no loops")
            else:
                self._open.add(id(source))
                for key, pair in self._pairs(source, path).items():
                    pairs.setdefault(key, pair)
                self._open.discard(id(source))
        return pairs

    def _scalar(self, node: yaml.ScalarNode, path: Path, key_line: int) -> Any:
        line = node.start_mark.line + 1
        if _is_unusable(node.value):
            self._spoil(path, line, "a text with a NUL or half a character", "a plain text")
            return None
        value, is_expanded = self._typed(node, path, line)
        self.places[path] = Place(line, key_line, node.value, is_expanded)
        return value

    def _typed(self, node: yaml.ScalarNode, path: Path, line: int) -> tuple[Any, bool]:
        match node.tag.removeprefix(_TAG):
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
        problem = ConfigProblem(self.file, line, dotted(path), found, expected)
        if problem not in self.problems:
            self.problems.append(problem)


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


def _kind(node: yaml.Node) -> str:
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
    return f"a single value {quoted(node.value)}"


def _fatal(file: str, line: int | None, found: str, expected: str) -> ConfigError:
    return ConfigError([ConfigProblem(file, line, "", found, expected)])


def _too_deep(file: str) -> ConfigError:
    return _fatal(file, None, "lists or mappings nested too deep", "a few levels")


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> ConfigProblem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    found, expected = _syntax_words(error.problem or error.context or "unreadable YAML")
    return ConfigProblem(file, line, "", found, expected)


def _syntax_words(problem: str) -> tuple[str, str]:
    """The parser's words in ours, with what to do in the common cases."""
    if r"'\t'" in problem:
        return "a tab", "spaces: YAML is not indented with tabs"
    if problem.startswith("mapping values are not allowed"):
        return "a second ': ' in one line", "quotes around a text that has ': ' in it"
    if problem.startswith("could not find expected ':'"):
        return "a line without ':'", "key: value"
    if match := re.fullmatch(r"expected (.+?),? but (?:found|got) (.+)", problem):
        return _token(match[2]), _token(match[1])
    if problem.startswith("found "):
        return problem.removeprefix("found "), "valid YAML"
    return f"unreadable YAML ({problem})", "valid YAML"


def _token(words: str) -> str:
    """`<block end>` as a reader would say it."""
    return {
        "<block end>": "the end of this block (is the indentation right?)",
        "'<block mapping start>'": "a deeper key (is the indentation right?)",
        "'<block sequence start>'": "a list item (is the indentation right?)",
        "'<scalar>'": "a text that does not belong here",
        "'<block end>'": "the end of this block",
        "'<stream end>'": "the end of the file",
        "'<document start>'": "a new document (---)",
    }.get(words, words)
