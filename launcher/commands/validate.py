"""`launcher validate FILE`: what the launcher understood, or everything that is wrong.

Prints and returns an exit code (0, or 2 with the problems on standard error). What is well written
but will hardly work here is a warning there, and still 0. Starts nothing and looks at no device.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cluster import require_default
from router.config.words import count
from router.errors import ConfigError, OperatorError, StartError

if TYPE_CHECKING:
    from launcher.config import ClusterConfig, ModelConfig
    from launcher.device_request import DeviceRequest
    from launcher.placement import ReplicaSpec
    from router.config import RouterConfig, RouterFile, TlsConfig


def run(file: Path) -> int:
    try:
        lines, warnings = summary(file)
    except ConfigError as exc:
        return _refused(file, list(map(str, exc.problems)))
    except StartError as exc:  # a router could not start with it
        return _refused(file, [f"{file}: {exc}"])
    print(f"{file}: fine")
    for name, value in lines:
        print(f"  {name:<9}{value}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _refused(file: Path, problems: list[str]) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{file}: {count(len(problems), 'problem')}", file=sys.stderr)
    return ConfigError.exit_code


Lines = list[tuple[str, str]]


def summary(file: Path) -> tuple[Lines, list[str]]:
    """Label and text of each line, and the warnings. Raises ConfigError, and StartError for a
    certificate and a key that are there and of no use."""
    from launcher.config import ClusterConfig
    from router.config import RouterFile, load_model, read_source

    require_default(file)
    source = read_source(file)
    if "replicas" in source.value and "models" not in source.value:
        alone = load_model(source, RouterFile)
        require_pair(alone.router)
        return list(_router_lines(alone)), list(open_endpoint(alone.router))
    config = load_model(source, ClusterConfig)
    require_pair(config.router)
    lines = list(_cluster_lines(config, source.value["models"]))
    warnings = [*_missing_programs(config), *_missing_tokens(config)]
    return lines, [*warnings, *open_endpoint(config.router)]


def _cluster_lines(config: "ClusterConfig", written: list[Any]) -> Iterator[tuple[str, str]]:
    yield "cluster", f"{config.cluster}, state in {config.state_dir}"
    yield "endpoint", _endpoint(config.router)
    for model, as_written in zip(config.models, written, strict=True):
        yield "model", _model(config, model, as_written)
    runtime = config.runtime
    yield "runtime", f"{runtime.name}, replicas on {runtime.host} from port {runtime.first_port}"


def _router_lines(config: "RouterFile") -> Iterator[tuple[str, str]]:
    yield "router", "alone: `router --config` takes this file, `launcher up` does not"
    yield "endpoint", _endpoint(config.router)
    for replica in config.replicas:
        yield "replica", f"{replica.url}, model {replica.model}"


def _endpoint(router: "RouterConfig") -> str:
    host = f"[{router.host}]" if ":" in router.host else router.host
    port = router.port or "(a free port)"
    return f"{router.scheme}://{host}:{port}, policy {router.policy}"


def _model(config: "ClusterConfig", model: "ModelConfig", written: Any) -> str:
    engine = config.engine_of(model)
    replicas = model.replica_count
    many = "a replica on every GPU" if replicas is None else count(replicas, "replica")
    text = f"{model.served_name}: {many} of {engine.name}"
    text += f" {engine.version}" if engine.version else ""
    if model.devices and model.devices.groups:  # as the operator wrote them
        text += f", on {_as_written(written['devices'], model.devices)}"
    return text + (f", {model.quantize}" if model.quantize else "")


def _as_written(devices: Any, request: "DeviceRequest") -> str:
    """The groups as they stand in the file: 0 and cuda:0 are the same. Not so Haystack's forms,
    in which other things stand as well."""
    groups = devices if isinstance(devices, list) else [devices]
    return ", ".join(
        _group(group, known) for group, known in zip(groups, request.groups, strict=True)
    )


def _group(written: Any, known: tuple[str, ...]) -> str:
    if isinstance(written, dict):
        written = known if "type" in written else list(written.values())
    return " + ".join(map(str, written)) if isinstance(written, list | tuple) else str(written)


# ---- warnings


def _missing_programs(config: "ClusterConfig") -> Iterator[str]:
    """Engines that could not be started from here; the same message once."""
    from launcher.engines import ENGINES

    if config.runtime.name != "process":
        return
    programs: dict[str, str] = {}
    for spec in _specs(config):
        command = ENGINES[spec.engine_name].command(
            spec, config.runtime.first_port, config.runtime.host
        )
        path = command.env.get("PATH", os.environ.get("PATH"))
        if shutil.which(command.argv[0], path=path) is None:
            programs[command.argv[0]] = spec.engine_name
    for program, engine in programs.items():
        yield f"engine {engine}: its program {program} is not on PATH of this machine"


def _specs(config: "ClusterConfig") -> "list[ReplicaSpec]":
    """The replicas, as far as they can be told; of a model on all GPUs one."""
    from launcher.imagined import imagined
    from launcher.placement import replica_specs

    shards = max(model.shards for model in config.models)
    for inventory in (None, imagined(f"{shards}xL4")):
        with suppress(OperatorError):
            return replica_specs(config, inventory)
    return []


def _missing_tokens(config: "ClusterConfig") -> Iterator[str]:
    from launcher.engines import ENGINES
    from launcher.engines.model_source import TOKEN_VARIABLES

    for model in config.models:
        engine = config.engine_of(model)
        known = {**os.environ, **engine.env}
        if not ENGINES[engine.name].downloads or model.id.startswith(("/", "~", ".")):
            continue
        if not any(known.get(name) for name in TOKEN_VARIABLES):
            yield (
                f"model {model.id}: neither HF_TOKEN nor engine.env sets a token of the hub; "
                "gated and private models cannot be downloaded without"
            )


def open_endpoint(router: "RouterConfig") -> Iterator[str]:
    """Without keys, who reaches the endpoint may use it; without TLS, others read what is said."""
    from router.config import is_loopback

    if not is_loopback(router.host):
        if not router.keys:
            yield (
                f"router.host: anybody who reaches {router.host} may use the endpoint, which asks "
                "for no key; set router.keys (`launcher key NAME`), keep it behind a firewall or a "
                "proxy that asks, or use 127.0.0.1"
            )
        elif router.tls is None:
            yield (
                f"router.keys: sent to {router.host} without TLS, keys can be read on the way; set "
                "router.tls, or keep the endpoint behind a proxy that has it"
            )
    if router.tls is not None:
        yield from _unreadable(router.tls)


def _unreadable(tls: "TlsConfig") -> Iterator[str]:
    """They may still have to be put there, or be readable only for who starts the router."""
    for field, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            found = f"a file that cannot be read ({exc.strerror})"
            yield f"router.tls.{field}: {path}: found {found}, expected a PEM file"


def require_pair(router: "RouterConfig") -> None:
    """Raises StartError when both files can be read and are of no use together."""
    from router.config.tls_files import server_context

    if router.tls is not None and not any(_unreadable(router.tls)):
        server_context(router.tls)
