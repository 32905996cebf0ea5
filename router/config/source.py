"""A config file becomes a checked model, or a `ConfigError` with every problem and its line.

Called by `router --config` and by every launcher verb. Reads one file; changes nothing. What
pydantic finds is put into the operator's words here, next to the line it is about.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from router.config.mismatch import Mismatch, Mismatches
from router.config.mismatch import Path as KeyPath
from router.config.words import describe, did_you_mean, dotted, expectation, is_secret, quoted
from router.config.yaml_tree import Place, parse_tree
from router.errors import ConfigError, ConfigProblem

MAX_FILE_BYTES = 1024 * 1024

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Source:
    """A config file as read: values, where each one stands, and what is already known wrong.

    `problems` (duplicate keys, unset variables ...) is raised by `load_model`, together with what
    the model finds. `spoiled` values are known wrong; `expanded` values came from the environment,
    with what stands for them in the file.
    """

    file: str
    value: dict[str, Any]
    places: dict[KeyPath, Place] = field(repr=False)
    problems: tuple[ConfigProblem, ...] = ()
    spoiled: frozenset[KeyPath] = frozenset()
    expanded: Mapping[str, str] = field(default_factory=dict, repr=False)

    def line(self, path: KeyPath, *, of_key: bool = False) -> int | None:
        """The line of the value (or its key) at `path`, or of the nearest mapping around it."""
        while path not in self.places and path:
            path = path[:-1]
        place = self.places.get(path)
        if place is None:
            return None
        return place.key_line if of_key else place.line

    def found(self, path: KeyPath, value: Any) -> str:
        """What stands at `path`, as written: an expanded `${NAME}` is shown as its name."""
        place = self.places.get(path)
        if place is not None and place.is_expanded:
            return f"what {quoted(place.text or '')} expands to"
        text = place.text if place is not None else None
        return describe(value, text, is_secret=is_secret(path))

    def redacted(self, message: str) -> str:
        """`message` without values from the environment, should a rule have repeated one."""
        for value, text in self.expanded.items():
            message = message.replace(value, text)
        return message


@dataclass(frozen=True, slots=True)
class _Finding:
    """One problem before it becomes a `ConfigProblem`: `kind` is pydantic's error type."""

    kind: str
    path: KeyPath
    found: str
    expected: str


def read_source(path: Path, env: Mapping[str, str] = os.environ) -> Source:
    """Read one YAML file. Raises ConfigError when it cannot be read as one YAML mapping."""
    file = os.fspath(path)
    tree = parse_tree(_read_text(path), file, env)
    return Source(file, tree.value, tree.places, tree.problems, tree.spoiled, tree.expanded)


def load_model(source: Source, model: type[Model]) -> Model:
    """`source` as a checked `model`. Raises ConfigError with all problems, in the file's order."""
    findings: list[_Finding] = []
    checked: Model | None = None
    try:
        checked = model.model_validate(source.value)
    except ValidationError as exc:
        findings = _findings(exc, source, model)
        findings += _hidden_findings(findings, source, model)
    problems = [*source.problems, *_problems(findings, source)]
    if checked is None or problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    return checked


def _read_text(path: Path) -> str:
    file = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise _unreadable(file, "no such file", "a YAML config") from exc
    except IsADirectoryError as exc:
        raise _unreadable(file, "a directory", "a YAML file") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = getattr(exc, "strerror", None) or str(exc)
        raise _unreadable(file, f"a file that cannot be read ({reason})", "a YAML file") from exc
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(file, "more than 1 MiB", "a config of at most 1 MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        found = f"a byte that is not UTF-8 (0x{data[exc.start]:02x})"
        raise ConfigError([ConfigProblem(file, line, "", found, "a file in UTF-8")]) from exc


def _unreadable(file: str, found: str, expected: str) -> ConfigError:
    return ConfigError([ConfigProblem(file, None, "", found, expected)])


def _problems(findings: list[_Finding], source: Source) -> Iterator[ConfigProblem]:
    """One problem per path: where a value may be of several types, they are joined by "or"."""
    by_path: dict[KeyPath, list[_Finding]] = {}
    for finding in findings:
        if finding.path not in source.spoiled:
            by_path.setdefault(finding.path, []).append(finding)
    for path, same in by_path.items():
        expected = " or ".join(dict.fromkeys(finding.expected for finding in same))
        found, expected = source.redacted(same[0].found), source.redacted(expected)
        line = source.line(path, of_key=same[0].kind == "extra_forbidden")
        yield ConfigProblem(source.file, line, dotted(path), found, expected)


def _findings(error: ValidationError, source: Source, model: type[BaseModel]) -> list[_Finding]:
    found: list[_Finding] = []
    for item in error.errors(include_url=False):
        kind, context = item["type"], item.get("ctx", {})
        path, value = _resolve(item["loc"], source.value, kind)
        cause = context.get("error")
        if isinstance(cause, Mismatches):
            found += [_rule(path, mismatch, source) for mismatch in cause.mismatches]
        elif kind == "extra_forbidden":
            known = did_you_mean(str(path[-1]), _keys_at(model, path[:-1]))
            found.append(_Finding(kind, path, "an unknown key", known))
        elif kind == "missing":
            found.append(_Finding(kind, path, "nothing", _missing(model, path)))
        elif kind == "literal_error":
            allowed = [word.strip("'") for word in _words(context["expected"])]
            expected = (
                did_you_mean(value, allowed) if isinstance(value, str) else ", ".join(allowed)
            )
            found.append(_Finding(kind, path, source.found(path, value), expected))
        else:
            expected = expectation(kind, dict(context), item["msg"])
            if not is_secret(path):
                expected += _quote_hint(kind, value, source.places.get(path))
            found.append(_Finding(kind, path, source.found(path, value), expected))
    return found


def _rule(base: KeyPath, mismatch: Mismatch, source: Source) -> _Finding:
    """What a rule of ours found; a value that came from the environment is not repeated."""
    path = base + mismatch.path
    place = source.places.get(path)
    is_expanded = place is not None and place.is_expanded
    found = source.found(path, None) if is_expanded else mismatch.found
    return _Finding("value_error", path, found, mismatch.expected)


def _hidden_findings(
    known: list[_Finding], source: Source, model: type[BaseModel]
) -> list[_Finding]:
    """What rules over several keys find once the values already refused are left out.

    pydantic skips such a rule as soon as one of the model's keys is wrong; the operator would hear
    of it only after mending the first.
    """
    value = source.value
    for finding in known:
        if finding.path and isinstance(finding.path[-1], str):
            value = _without(value, finding.path)
    pruned = replace(source, value=value)
    try:
        model.model_validate(value)
    except ValidationError as exc:
        return [f for f in _findings(exc, pruned, model) if _is_news(f, known)]
    return []


def _is_news(finding: _Finding, known: list[_Finding]) -> bool:
    """Leaves out what follows from the pruning itself: in or deep below a mapping with an error."""
    if finding.kind == "missing":
        return False
    for earlier in known:
        parent = earlier.path[:-1]
        if finding.path == earlier.path:
            return False
        if parent and finding.path[: len(parent)] == parent and len(finding.path) > len(parent) + 1:
            return False
    return True


def _without(value: Any, path: KeyPath) -> Any:
    """A copy of `value` without the key at `path`."""
    head, *rest = path
    if isinstance(value, dict) and head in value:
        if not rest:
            return {key: item for key, item in value.items() if key != head}
        return {**value, head: _without(value[head], tuple(rest))}
    if isinstance(value, list) and isinstance(head, int) and head < len(value) and rest:
        return [*value[:head], _without(value[head], tuple(rest)), *value[head + 1 :]]
    return value


def _resolve(loc: tuple[str | int, ...], value: Any, kind: str) -> tuple[KeyPath, Any]:
    """pydantic's location without the names of union members, which stand in no file."""
    path: list[str | int] = []
    for part in loc:
        if _holds(value, part):
            value = value[part]
            path.append(part)
        elif kind == "missing" and part == loc[-1]:
            path.append(part)
    return tuple(path), value


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _missing(model: type[BaseModel], path: KeyPath) -> str:
    owner = _model_at(model, path[:-1])
    info = owner.model_fields.get(str(path[-1])) if owner else None
    words = (info.description or "").rstrip(".") if info else ""
    return words[:1].lower() + words[1:] if words else "a value"


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    owner = _model_at(model, path)
    return list(owner.model_fields) if owner else []


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model that checks the mapping at `path`."""
    owner: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and owner is not None:
            info = owner.model_fields.get(part)
            owner = _model_in(info.annotation) if info else None
    return owner


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside `list[Model]`, `Model | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _words(listed: str) -> list[str]:
    """`'a', 'b' or 'c'` as its words."""
    return listed.replace(" or ", ", ").split(", ")


def _quote_hint(kind: str, value: Any, place: Place | None) -> str:
    """Numbers, booleans and dates that were meant as texts lose their spelling unless quoted."""
    is_scalar = value is not None and not isinstance(value, str | dict | list)
    if kind != "string_type" or not is_scalar or place is None or place.text is None:
        return ""
    return f": write {quoted(place.text)}, with the quotes"
