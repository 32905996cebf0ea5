"""YAML text becomes nodes with their lines, or a `ConfigError` that says what is wrong with it.

Called by `yaml_tree.py` only. Nothing is constructed here: no tag can run code.
"""

import re
from collections.abc import Iterator

import yaml

from router.config.words import quoted
from router.errors import ConfigError, ConfigProblem

TAG = "tag:yaml.org,2002:"

_CONTENT = re.compile(r" *[^ #]")
_MARKERS = re.compile(r"^ *(?:- +)*")


class _Loader(yaml.SafeLoader):
    """Finds types as YAML 1.2 does where YAML 1.1 surprises: 010 and 1:30 stay texts."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (TAG + "int", TAG + "float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    TAG + "int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def compose(text: str, file: str) -> yaml.MappingNode:
    """The one mapping that `text` is. Raises ConfigError for anything else."""
    try:
        nodes = list(_documents(text))
    except yaml.MarkedYAMLError as exc:
        raise ConfigError([_syntax_problem(exc, file, text)]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        found = f"the control character U+{ord(text[exc.position]):04X}"
        raise fatal(file, line, found, "printable text") from exc
    except RecursionError as exc:
        raise too_deep(file) from exc
    except (ValueError, OverflowError) as exc:  # an escape such as "\UFFFFFFFF" is no character
        raise fatal(file, None, "an escape that is no character", "valid YAML") from exc
    if not nodes:
        raise fatal(file, None, "an empty file", "a mapping (key: value lines)")
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise fatal(file, line, "a second document after ---", "one document per file")
    root = nodes[0]
    if not isinstance(root, yaml.MappingNode):
        is_empty = isinstance(root, yaml.ScalarNode) and not root.value
        found = "an empty file" if is_empty else kind_of(root)
        line = root.start_mark.line + 1
        raise fatal(file, None if is_empty else line, found, "a mapping (key: value lines)")
    return root


def _documents(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            if (node := loader.get_node()) is not None:
                yield node
    finally:
        loader.dispose()


def kind_of(node: yaml.Node) -> str:
    """A node in the operator's words."""
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
    return f"a single value {quoted(node.value)}"


def fatal(file: str, line: int | None, found: str, expected: str) -> ConfigError:
    """The error for a file of which no part can be used."""
    return ConfigError([ConfigProblem(file, line, "", found, expected)])


def too_deep(file: str) -> ConfigError:
    return fatal(file, None, "lists or mappings nested too deep", "a few levels")


def _syntax_problem(error: yaml.MarkedYAMLError, file: str, text: str) -> ConfigProblem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    if mark is not None and text[max(mark.index - 1, 0) : mark.index + 1] == "${":
        found, expected = "${ inside [ ] or { }", 'quotes around it there: "${NAME}"'
        return ConfigProblem(file, line, "", found, expected)
    problem = error.problem or error.context or "unreadable YAML"
    depth = _wrong_depth(problem, mark, text) if mark else None
    found, expected = depth or _syntax_words(problem)
    return ConfigProblem(file, line, "", found, expected)


def _wrong_depth(problem: str, mark: yaml.Mark, text: str) -> tuple[str, str] | None:
    """Found and expected where a line stands between two depths, or None if it is not that."""
    lines = text.splitlines()[: mark.line + 1]
    above = next((n for n in reversed(range(mark.line)) if _CONTENT.match(lines[n])), None)
    if above is None:
        return None
    key_deep = len(lines[above]) - len(_MARKERS.sub("", lines[above]))
    as_above = f"as deep as line {above + 1} ({_spaces(key_deep)})"
    # 1. A deeper line after a whole value: to YAML it goes on with that value.
    if problem.startswith("mapping values are not allowed"):
        own_deep = len(lines[-1]) - len(lines[-1].lstrip())
        is_first_key = ": " not in f"{lines[-1]} "[: mark.column]
        if own_deep > key_deep and is_first_key:
            return f"a key deeper than line {above + 1}, which has its value already", as_above
        return None
    # 2. A line less deep than the one above, and not as deep as any further up.
    ends = ("'<block mapping start>'", "'<block sequence start>'", "'?'")
    if not (problem.startswith("expected <block end>") and problem.endswith(ends)):
        return None
    is_item = problem.endswith("'<block sequence start>'")
    deep = len(lines[above]) - len(lines[above].lstrip()) if is_item else key_deep
    if mark.column >= deep:
        return None
    what = "a list item" if is_item else "a key"
    return (
        f"{what} less deep than line {above + 1}",
        f"as deep as line {above + 1} ({_spaces(deep)}), or as one further up",
    )


def _spaces(number: int) -> str:
    return "1 space" if number == 1 else f"{number} spaces"


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
        "<block end>": "the end of this block",
        "'<block mapping start>'": "a deeper key (is the indentation right?)",
        "'<block sequence start>'": "a list item (is the indentation right?)",
        "'<scalar>'": "a text that does not belong here",
        "'<block end>'": "the end of this block",
        "'<stream end>'": "the end of the file",
        "'<document start>'": "a new document (---)",
    }.get(words, words)
