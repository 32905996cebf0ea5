"""What pydantic finds in a config, in the operator's words and next to the line it is about.

Called by `source.py`. Our own rules report through `Mismatches`; for everything else pydantic's
error types are translated. Values from the environment are never repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from router.config.mismatch import Mismatch, Mismatches
from router.config.mismatch import Path as KeyPath
from router.config.words import did_you_mean, dotted, expectation, is_secret, quoted
from router.config.yaml_tree import Place
from router.errors import ConfigProblem

if TYPE_CHECKING:
    from router.config.source import Source

_MAX_ROUNDS = 4
_MAX_SET_ASIDE = 200  # a file with more problems than this is told of these first
_GONE = object()


@dataclass(frozen=True, slots=True)
class _Finding:
    """One problem before it becomes a `ConfigProblem`: `kind` is pydantic's error type."""

    kind: str
    path: KeyPath
    found: str
    expected: str


def problems_of(
    error: ValidationError, source: "Source", model: type[BaseModel]
) -> Iterator[ConfigProblem]:
    """One problem per path: where a value may be of several types, they are joined by "or"."""
    findings = _findings(error, source, model)
    findings += _hidden_findings(findings, source, model)
    by_path: dict[KeyPath, list[_Finding]] = {}
    for finding in findings:
        if finding.path not in source.spoiled:
            by_path.setdefault(finding.path, []).append(finding)
    for path, same in by_path.items():
        expected = " or ".join(dict.fromkeys(finding.expected for finding in same))
        found, expected = source.redacted(same[0].found), source.redacted(expected)
        line = source.line(path, of_key=same[0].kind == "extra_forbidden")
        yield ConfigProblem(source.file, line, dotted(path), found, expected)


def _findings(error: ValidationError, source: "Source", model: type[BaseModel]) -> list[_Finding]:
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


def _rule(base: KeyPath, mismatch: Mismatch, source: "Source") -> _Finding:
    """What a rule of ours found; a value that came from the environment is not repeated."""
    path = base + mismatch.path
    place = source.places.get(path)
    is_expanded = place is not None and place.is_expanded
    found = source.found(path, None) if is_expanded else mismatch.found
    return _Finding("value_error", path, found, mismatch.expected)


def _hidden_findings(
    known: list[_Finding], source: "Source", model: type[BaseModel]
) -> list[_Finding]:
    """What rules over several keys find once the values already refused are set aside.

    pydantic skips such a rule as soon as one of the model's keys is wrong; the operator would hear
    of it only after mending the first.
    """
    hidden: list[_Finding] = []
    fresh = known if len(known) <= _MAX_SET_ASIDE else []
    for _ in range(_MAX_ROUNDS):
        if not fresh:
            break
        for finding in fresh:
            source = replace(source, value=_set_aside(finding, source))
        try:
            model.model_validate(source.value)
        except ValidationError as exc:
            found = _findings(exc, source, model)
            fresh = [item for item in found if _is_news(item, known + hidden)]
            hidden += fresh
        else:
            break
    return hidden


def _is_news(finding: _Finding, known: list[_Finding]) -> bool:
    """Not what follows only from setting things aside: below a mapping whose meaning is unclear."""
    if finding.kind == "missing":
        return False
    for earlier in known:
        parent = earlier.path[:-1]
        is_deeper = finding.path[: len(parent)] == parent and len(finding.path) > len(parent) + 1
        if finding.path == earlier.path:
            return False
        if parent and is_deeper and earlier.kind in ("extra_forbidden", "literal_error"):
            return False
    return True


def _set_aside(finding: _Finding, source: "Source") -> Any:
    """The values without the key at fault; a number that should be a text becomes that text."""
    path = finding.path
    place = source.places.get(path)
    if finding.kind == "string_type" and place is not None and place.text is not None:
        return _with(source.value, path, place.text)
    while path and not isinstance(path[-1], str):
        path = path[:-1]
    return _with(source.value, path, _GONE) if path else source.value


def _with(value: Any, path: KeyPath, item: Any) -> Any:
    """A copy of `value` with `item` at `path`, or without that key if `item` is `_GONE`."""
    if not path:
        return item
    if not _holds(value, path[0]):
        return value
    head = path[0]
    inner = _with(value[head], path[1:], item)
    if isinstance(value, list):
        return [inner if index == head else old for index, old in enumerate(value)]
    if inner is _GONE:
        return {key: old for key, old in value.items() if key != head}
    return {**value, head: inner}


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
