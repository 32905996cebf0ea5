"""A config file becomes a checked model, or a `ConfigError` with every problem and its line.

Called by `router --config` and by every launcher verb. Reads one file; changes nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from router.config.findings import problems_of
from router.config.mismatch import Path as KeyPath
from router.config.words import describe, is_secret, quoted
from router.config.yaml_tree import Place, parse_tree
from router.errors import ConfigError, ConfigProblem

MAX_FILE_BYTES = 1024 * 1024

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Source:
    """A config file as read: its text, values, where each one stands, and what is known wrong.

    `problems` (duplicate keys, unset variables ...) is raised by `load_model`, together with what
    the model finds. `spoiled` values are known wrong; `expanded` values came from the environment,
    with what stands for them in the file. `unset` are the names of variables that values lack.
    """

    file: str
    text: str = field(repr=False)
    value: dict[str, Any]
    places: dict[KeyPath, Place] = field(repr=False)
    problems: tuple[ConfigProblem, ...] = ()
    spoiled: frozenset[KeyPath] = frozenset()
    expanded: Mapping[str, str] = field(default_factory=dict, repr=False)
    unset: Mapping[KeyPath, tuple[str, ...]] = field(default_factory=dict)

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


def read_source(path: Path, env: Mapping[str, str] = os.environ) -> Source:
    """Read one YAML file. Raises ConfigError when it cannot be read as one YAML mapping."""
    file = os.fspath(path)
    text = _read_text(path)
    tree = parse_tree(text, file, env)
    return Source(
        file,
        text,
        tree.value,
        tree.places,
        tree.problems,
        tree.spoiled,
        tree.expanded,
        tree.unset,
    )


def load_model(source: Source, model: type[Model]) -> Model:
    """`source` as a checked `model`. Raises ConfigError with all problems, in the file's order."""
    problems = list(source.problems)
    try:
        checked = model.model_validate(source.value)
    except ValidationError as exc:
        problems += problems_of(exc, source, model)
        raise _all_of(problems) from exc
    if problems:
        raise _all_of(problems)
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


def _all_of(problems: list[ConfigProblem]) -> ConfigError:
    return ConfigError(sorted(problems, key=lambda problem: problem.line or 0))


def _unreadable(file: str, found: str, expected: str) -> ConfigError:
    return ConfigError([ConfigProblem(file, None, "", found, expected)])
