"""A container as the `docker run` command line that makes the same one. Pure.

For `launcher up --dry-run`: what can be read, pasted and compared. Secrets are named, not shown:
`-e NAME` has docker take the value from the environment. Says exactly what `container.create_body`
says, but for proxies, which `docker run` adds by itself; a test holds the two together.
"""

import re
from collections.abc import Iterator

from launcher.docker.container import PIDS_LIMIT, Container
from launcher.docker.gpu_injection import Injection

_SECRET_NAME = re.compile(
    r"SECRET|PASSW|CREDENTIAL|APIKEY|(^|_)(TOKEN|KEY|AUTH|AUTHORIZATION|BEARER|PAT)(_|$)"
)
_SECRET_VALUE = re.compile(r"^(hf_|sk-|ghp_|github_pat_|glpat-|eyJ)|://[^/@\s]*:[^/@\s]+@")
_UNITS = (("g", 1024**3), ("m", 1024**2), ("k", 1024))


def docker_run_words(container: Container) -> tuple[str, ...]:
    """Word by word, unquoted; join with `shlex.join` to print it."""
    return ("docker", "run", "-d", *_options(container), container.image, *container.argv)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value must not be shown, by its name or by its look."""
    return bool(_SECRET_NAME.search(name.upper()) or _SECRET_VALUE.search(value))


def _options(container: Container) -> Iterator[str]:
    yield from ("--name", container.name)
    yield from _gpu_options(container.gpus)
    if container.shm_bytes is not None:
        yield from ("--shm-size", _size(container.shm_bytes))
    yield from ("-p", f"{_bracketed(container.host)}:{container.host_port}:{container.port}")
    for mount in container.mounts:
        yield from ("-v", str(mount))
    for name, value in container.env.items():
        yield from ("-e", name if is_secret(name, value) else f"{name}={value}")
    yield from _surroundings(container)
    yield from ("--cap-drop", "ALL")
    for capability in container.capabilities:
        yield from ("--cap-add", capability)
    yield from ("--security-opt", "no-new-privileges")
    yield from ("--pids-limit", str(PIDS_LIMIT))
    if (files := container.open_files) is not None:
        yield from ("--ulimit", f"nofile={files}:{files}")
    yield from ("--log-driver", "json-file", "--log-opt", f"max-size={container.log_max_size}")
    yield from ("--log-opt", f"max-file={container.log_max_files}")
    for name, value in container.labels.items():
        yield from ("--label", f"{name}={value}")
    if container.entrypoint is not None:
        yield from ("--entrypoint", container.entrypoint)


def _gpu_options(gpus: Injection) -> Iterator[str]:
    if gpus.runtime is not None:
        yield from ("--runtime", gpus.runtime)
    elif gpus.driver == "cdi":
        for name in gpus.ids:
            yield from ("--device", name)
    elif gpus.ids:
        ids = "device=" + ",".join(gpus.ids)
        # docker reads the value as CSV, so a comma needs quotes that reach docker.
        yield from ("--gpus", f'"{ids}"' if len(gpus.ids) > 1 else ids)


def _surroundings(container: Container) -> Iterator[str]:
    if container.memory_bytes is not None:
        size = _size(container.memory_bytes)
        yield from ("--memory", size, "--memory-swap", size)
    if container.user is not None:
        yield from ("--user", container.user)
    if container.network is not None:
        yield from ("--network", container.network)
    if container.has_init:
        yield "--init"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _size(size_bytes: int) -> str:
    for letter, unit_bytes in _UNITS:
        if size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{letter}"
    return str(size_bytes)
