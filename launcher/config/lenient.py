"""A cluster config for verbs that start nothing, where the shell at hand lacks variables it uses.

What is to be stopped or looked at was started from another shell, with a token, say, that nobody
needs to stop it. Values that lack a variable stay as they are written, or are left out where that
is not allowed. But no guess is made at which cluster this is: `down` would tell that nothing runs.
Called by `Cluster.load_leniently` and `launcher down`.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config.cluster import ClusterConfig
from router.config import Source, load_model, read_source
from router.config.mismatch import Path as KeyPath
from router.config.words import dotted
from router.errors import ConfigError

_IDENTITY: tuple[KeyPath, ...] = (
    ("cluster",),
    ("runtime",),
    ("runtime", "name"),
    ("runtime", "state_dir"),
    ("runtime", "docker", "url"),
)


def read_leniently(path: Path) -> tuple[Source, ClusterConfig]:
    """The file as it was read, with what it lacks in `unset`, and what is left of it as a config.

    Raises ConfigError as a strict reading does, if anything else is wrong.
    """
    source = read_source(path)
    if not source.unset or any(place in source.unset for place in _IDENTITY):
        return source, load_model(source, ClusterConfig)
    names = {name for lacking in source.unset.values() for name in lacking}
    written = read_source(path, {**os.environ, **{name: f"${{{name}}}" for name in names}})
    try:
        return source, load_model(written, ClusterConfig)
    except ConfigError as exc:
        left_out = _refused(exc, source.unset)
    value = _without(written.value, (), left_out)
    try:
        return source, load_model(replace(written, value=value), ClusterConfig)
    except ConfigError:
        return source, load_model(source, ClusterConfig)  # tells of the variables, too


def _refused(error: ConfigError, unset: Mapping[KeyPath, object]) -> Collection[KeyPath]:
    """Those at, or below, what was refused; all if it was none of them."""
    bad = {problem.path for problem in error.problems}
    at_fault = [
        path for path in unset if any(dotted(path[:end]) in bad for end in range(1, len(path) + 1))
    ]
    return at_fault or list(unset)


def _without(value: Any, path: KeyPath, left_out: Collection[KeyPath]) -> Any:
    """A list that would be empty then goes as a whole: few may be."""
    if isinstance(value, dict):
        kept = {
            key: _without(item, (*path, key), left_out)
            for key, item in value.items()
            if (*path, key) not in left_out
        }
        return {key: item for key, item in kept.items() if item != [] or value[key] == []}
    if isinstance(value, list):
        return [
            _without(item, (*path, place), left_out)
            for place, item in enumerate(value)
            if (*path, place) not in left_out
        ]
    return value
