"""Command line and config file -> what the router runs with. The command line wins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from router.config import (
    DialectName,
    ReplicaConfig,
    RouterConfig,
    RouterFile,
    load_model,
    read_source,
)
from router.config.models import parse_base_url
from router.errors import ConfigError, ConfigProblem, StartError
from router.fleet import ReplicaEntry, ReplicaList

DEFAULT_CLUSTER = "default"
"""What a cluster config without a name is called, by the launcher too."""


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """As given on the command line."""

    config: Path | None
    replica_urls: list[str]
    host: str | None
    port: int | None
    state_dir: Path | None
    policy: str | None
    dialect: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    config: RouterConfig
    replicas: ReplicaList | None
    """None: they come over the admin API, and until then from the state folder."""
    state_dir: Path | None
    cluster: str | None = None
    """As the cluster config names it; None without one."""


def resolve(options: RouterOptions, ids: Mapping[str, str] | None = None) -> Settings:
    """Raises ConfigError; the message says which option.

    `ids`, by URL, are those that a running router knows its replicas by: whoever has none in the
    file keeps the one it has, however the list was edited around it.
    """
    file = RouterFile()
    if options.config is not None:
        file = load_model(read_source(options.config), RouterFile)
    config = _overridden(file.router, options)
    configs = [_replica(url) for url in options.replica_urls] or list(file.replicas)
    dialect = _dialect(options.dialect)
    if not configs and options.state_dir is None:
        if file.models is not None:
            hint = f"`launcher up -c {options.config}`, which starts them, or --replica URL"
            raise _problem(str(options.config), "models to start, but no replicas", hint)
        raise _problem("--replica", "no replica", "at least one URL, or --state-dir for a launcher")
    if options.state_dir is not None:
        _prepare(options.state_dir)
    cluster = None if file.models is None else str(file.cluster or DEFAULT_CLUSTER)
    listed = _listed(configs, dialect, ids or {}) if configs else None
    return Settings(config, listed, options.state_dir, cluster)


def _overridden(config: RouterConfig, options: RouterOptions) -> RouterConfig:
    given: dict[str, Any] = {
        "host": options.host,
        "port": options.port,
        "policy": options.policy,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        checked = RouterConfig.model_validate({**changes})
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        raise _problem(f"--{error['loc'][0]}", repr(error["input"]), error["msg"]) from None
    return config.model_copy(update={key: getattr(checked, key) for key in changes})


def _replica(url: str) -> ReplicaConfig:
    try:
        return ReplicaConfig(url=parse_base_url(url))
    except ValueError as exc:
        raise _problem("--replica", repr(url), str(exc)) from None


def _dialect(given: str | None) -> DialectName:
    known: tuple[DialectName, ...] = get_args(DialectName)
    found = next((name for name in known if name == (given or "tgi")), None)
    if found is None:
        raise _problem("--dialect", repr(given), f"one of {', '.join(known)}")
    return found


def _listed(
    configs: list[ReplicaConfig], dialect: DialectName, ids: Mapping[str, str]
) -> ReplicaList:
    """The same URL or id twice is refused."""
    entries = [
        ReplicaEntry(
            id=replica_id,
            generation=1,
            url=config.url,
            model=config.model,
            dialect=config.dialect or dialect,
            max_requests=config.max_requests,
            max_tokens=config.max_tokens,
        )
        for config, replica_id in zip(configs, _ids(configs, ids), strict=True)
    ]
    urls, all_ids = [config.url for config in configs], [entry.id for entry in entries]
    for values, what in ((urls, "URL"), (all_ids, "id")):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise _problem("replicas", f"{twice!r} twice", f"each replica's own {what}")
    try:
        return ReplicaList(protocol=1, cluster="router", epoch=0, replicas=entries)
    except ValidationError as exc:
        raise _problem("replicas", "two dialects", str(exc.errors()[0]["ctx"]["error"])) from None


def _ids(configs: list[ReplicaConfig], known: Mapping[str, str]) -> Iterator[str]:
    """
    1. the one that is written;
    2. the one its URL is known by;
    3. its place in the list, or the next number that nobody is known by.
    """
    taken = {known[config.url] for config in configs if config.url in known and not config.id}
    for position, config in enumerate(configs):
        if config.id or config.url in known:
            yield config.id or known[config.url]
            continue
        numbers = chain([position], count())
        free = next(name for n in numbers if (name := f"replica-{n}") not in taken)
        taken.add(free)
        yield free


def _prepare(state_dir: Path) -> None:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"cannot use the state folder {state_dir}: {exc.strerror}") from exc


def _problem(option: str, found: str, expected: str) -> ConfigError:
    return ConfigError([ConfigProblem("command line", None, option, found, expected)])
