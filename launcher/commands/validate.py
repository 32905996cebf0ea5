"""`launcher validate FILE`: what the launcher understood, or everything that is wrong.

Prints and returns an exit code (0, or 2 with the problems on standard error). Starts nothing and
looks at no device.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cluster import require_default
from router.errors import ConfigError

if TYPE_CHECKING:
    from launcher.config import ClusterConfig, ModelConfig
    from router.config import RouterConfig, RouterFile


def run(file: Path) -> int:
    try:
        lines = list(summary(file))
    except ConfigError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)
        found = len(exc.problems)
        print(f"{file}: {found} problem{'' if found == 1 else 's'}", file=sys.stderr)
        return exc.exit_code
    print(f"{file}: fine")
    for name, value in lines:
        print(f"  {name:<9}{value}")
    return 0


def summary(file: Path) -> Iterator[tuple[str, str]]:
    """Label and text of each line. Raises ConfigError."""
    from launcher.config import ClusterConfig
    from router.config import RouterFile, load_model, read_source

    require_default(file)
    source = read_source(file)
    if "replicas" in source.value and "models" not in source.value:
        return _router_lines(load_model(source, RouterFile))
    return _cluster_lines(load_model(source, ClusterConfig))


def _cluster_lines(config: "ClusterConfig") -> Iterator[tuple[str, str]]:
    yield "cluster", f"{config.cluster}, state in {config.state_dir}"
    yield "endpoint", _endpoint(config.router)
    for model in config.models:
        yield "model", _model(config, model)
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
    return f"http://{host}:{port}, policy {router.policy}"


def _model(config: "ClusterConfig", model: "ModelConfig") -> str:
    engine = config.engine_of(model)
    plural = "" if model.replicas == 1 else "s"
    text = f"{model.served_name}: {model.replicas} replica{plural} of {engine.name}"
    text += f" {engine.version}" if engine.version else ""
    text += f", on {', '.join(model.devices)}" if model.devices else ""
    return text + (f", {model.quantize}" if model.quantize else "")
