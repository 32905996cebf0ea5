"""What a replica's container is to be: from its engine's command and the config to arguments.

Pure: the GPUs' way in, the port and the folder that owns it are arguments. Called by the docker
runtime before a start, and by `launcher up --dry-run`, which prints it (`run_words`). Containers
get what engines need and no more: no capability but those an engine names, no way to gain others,
never the socket of a container engine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher.config import DockerConfig
from launcher.docker.gpu_injection import EngineFacts, Injection, device_requests, injection_of
from launcher.docker.labels import Place, labels_of
from launcher.engines.base import ContainerCommand, Mount
from launcher.placement import ReplicaSpec
from router.errors import StartError

# Against fork bombs only: shards of a large machine have some thousand threads.
PIDS_LIMIT = 16_384
# Files, and with them connections, that may be open: many engines' default is 1,024 of them, which
# as many clients use up, or without a limit, which some programs go through one by one.
OPEN_FILES = 65_536
# Whoever may speak to one of these is root on the machine.
ENGINE_SOCKETS = (
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
)
_OTHER_NETWORKS = ("host", "none", "container:")


@dataclass(frozen=True, slots=True)
class Container:
    """One container as it shall be made."""

    name: str
    image: str
    entrypoint: str | None
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # may hold an access token
    labels: Mapping[str, str]
    mounts: tuple[Mount, ...]
    host: str
    host_port: int
    port: int
    gpus: Injection
    shm_bytes: int | None
    memory_bytes: int | None
    capabilities: tuple[str, ...]
    user: str | None
    network: str | None
    has_init: bool
    open_files: int | None
    proxies: Mapping[str, str] = field(repr=False)  # variables; may hold a password
    log_max_size: str
    log_max_files: int


def container_name(cluster: str, replica_id: str) -> str:
    """One name per replica, so that no two of its starts ever run side by side."""
    return f"gpu-fleet.{cluster}.{replica_id}"


def container_of(
    spec: ReplicaSpec,
    command: ContainerCommand,
    place: Place,
    config: DockerConfig,
    facts: EngineFacts,
) -> Container:
    """The container for one start. Raises StartError for what must not or cannot be."""
    require_possible(command.mounts, config)
    gpus = injection_of(config.gpu_injection, spec.devices, facts)
    entrypoint, *first_words = command.entrypoint or (None,)
    return Container(
        name=container_name(place.cluster, spec.id),
        image=command.image,
        entrypoint=entrypoint,
        argv=(*filter(None, first_words), *command.argv),
        env={**_user_env(command, config.user), **command.env, **gpus.env},
        labels=labels_of(spec, place),
        mounts=command.mounts,
        host=place.host,
        host_port=place.port,
        port=command.port,
        gpus=gpus,
        shm_bytes=command.shm_bytes,
        memory_bytes=config.memory,
        capabilities=command.capabilities,
        user=config.user,
        network=config.network,
        has_init=facts.has_init,
        open_files=OPEN_FILES if facts.raises_limits else None,
        proxies=facts.proxies,
        log_max_size=config.log_max_size,
        log_max_files=config.log_max_files,
    )


def _user_env(command: ContainerCommand, user: str | None) -> Mapping[str, str]:
    is_root = user is None or user.partition(":")[0] in ("root", "0")
    return {} if is_root else command.user_env


def require_possible(mounts: Iterable[Mount], config: DockerConfig) -> None:
    """Refuses what would open the machine to the container, or could not work."""
    if config.network is not None and config.network.startswith(_OTHER_NETWORKS):
        raise StartError(
            f"runtime.docker.network: found {config.network!r}, expected the name of a network in "
            "which each container has a port of its own (bridge, or one you made)",
            recoverable=False,
        )
    for mount in mounts:
        if ":" in mount.source or ":" in mount.target:
            raise StartError(
                f"found the path {mount.source!r} for {mount.target!r}: Docker cannot mount a path "
                "with a colon in it",
                recoverable=False,
            )


def require_no_engine_socket(source: str, sockets: Iterable[str]) -> None:
    """`source` and `sockets` with all links resolved: it must not be, or hold, any of them."""
    for socket in sockets:
        if PurePosixPath(socket).is_relative_to(source):
            raise StartError(
                f"engine.volumes: {source} would put {socket} into the container, and with it this "
                "whole machine into its hands; mount a narrower folder",
                recoverable=False,
            )


def create_body(container: Container) -> dict[str, Any]:
    """The body of the engine's `POST /containers/create`; `run_words` says the same."""
    exposed, env = f"{container.port}/tcp", {**container.proxies, **container.env}
    body: dict[str, Any] = {
        "Image": container.image,
        "Cmd": list(container.argv) or None,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": dict(container.labels),
        "ExposedPorts": {exposed: {}},
        "HostConfig": _host_config(container, exposed),
    }
    if container.entrypoint is not None:
        body["Entrypoint"] = [container.entrypoint]
    if container.user is not None:
        body["User"] = container.user
    return body


def _host_config(container: Container, exposed: str) -> dict[str, Any]:
    binding = {"HostIp": container.host, "HostPort": str(container.host_port)}
    config: dict[str, Any] = {
        "Binds": [str(mount) for mount in container.mounts],
        "PortBindings": {exposed: [binding]},
        "DeviceRequests": device_requests(container.gpus),
        "RestartPolicy": {"Name": "no"},  # the launcher restarts
        "CapDrop": ["ALL"],
        "CapAdd": list(container.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": PIDS_LIMIT,
        "LogConfig": {
            "Type": "json-file",
            "Config": {
                "max-size": container.log_max_size,
                "max-file": str(container.log_max_files),
            },
        },
    }
    if container.has_init:
        # As the first process an engine would miss signals until it asks for them, and shards
        # that end would stay as zombies.
        config["Init"] = True
    if container.open_files is not None:
        files = container.open_files
        config["Ulimits"] = [{"Name": "nofile", "Soft": files, "Hard": files}]
    if container.shm_bytes is not None:
        config["ShmSize"] = container.shm_bytes
    if container.memory_bytes is not None:
        # The same for both: no swap, in which a model would crawl.
        config["Memory"] = config["MemorySwap"] = container.memory_bytes
    if container.network is not None:
        config["NetworkMode"] = container.network
    if container.gpus.runtime is not None:
        config["Runtime"] = container.gpus.runtime
    return config
