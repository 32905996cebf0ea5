"""The Docker Engine: whether it can be used, and is set up so that replicas live long.

Asks it questions only. Whether containers really get GPUs is tried out by `gpu_access`.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from launcher.checkup.base import Check, Finding, failed, failed_by, passed, skipped, warned
from launcher.checkup.subject import CALL_S, DockerLook, Subject
from launcher.docker.container import ENGINE_SOCKETS, require_no_engine_socket
from launcher.engines.model_source import host_path, is_local
from launcher.sizes import GIB, show_bytes
from launcher.supervisor import make_runtime
from router.errors import OperatorError

_DAEMON_JSON = "/etc/docker/daemon.json"
_SLOW_DRIVERS = ("vfs", "devicemapper")
_LEAST_FREE_BYTES = GIB
_IMAGE_ROOM_BYTES = (
    30 * GIB
)  # an engine's image is 10 GB and more, packed and unpacked side by side


def _engine(subject: Subject) -> Iterator[Finding]:
    try:
        look = subject.docker.answer()
    except OperatorError as exc:
        if subject.uses_docker:
            yield failed_by(exc)
        else:
            found, _, advice = str(exc).partition("; ")
            yield skipped(found, advice or "only `runtime: docker` needs it")
        return
    version, api = look.version.get("Version", "?"), look.version.get("ApiVersion", "?")
    text = f"Docker Engine {version}, API {api}, at {subject.engine.url}"
    if subject.engine.is_local:
        yield passed(text)
    else:
        yield failed(
            f"{text}: that is another machine, where replicas' ports and folders would be",
            "run the launcher on that machine",
        )


def _storage(subject: Subject) -> Iterator[Finding]:
    look = subject.docker_look
    driver, root = str(look.info.get("Driver", "?")), str(look.info.get("DockerRootDir", ""))
    if driver in _SLOW_DRIVERS:
        yield warned(
            f"images are stored by {driver}, which is slow and takes much room",
            f'overlay2 is better: "storage-driver" in {_DAEMON_JSON} (images are pulled anew)',
        )
    try:
        free_bytes = shutil.disk_usage(root).free
    except OSError as exc:
        yield skipped(f"{driver} in {root}, whose free disk cannot be seen ({exc.strerror})")
        return
    text = f"{driver} in {root}, {show_bytes(free_bytes)} free"
    advice = "`docker system df` shows what Docker keeps, `docker image prune` frees some"
    if free_bytes < _LEAST_FREE_BYTES:
        yield failed(text, advice)
    elif free_bytes < _IMAGE_ROOM_BYTES and _missing_images(subject):
        yield warned(f"{text}; images of engines that are yet to be pulled take 10 GB each", advice)
    else:
        yield passed(text)


def _restarts(subject: Subject) -> Iterator[Finding]:
    if subject.docker_look.info.get("LiveRestoreEnabled"):
        yield passed("live-restore is on: replicas run on while Docker restarts")
        return
    advice = f'put "live-restore": true into {_DAEMON_JSON}, then `sudo systemctl reload docker`'
    if _is_swarm(subject.docker_look):
        advice = "a swarm cannot have it: `docker swarm leave`, if this machine needs none"
    yield warned("live-restore is off: a restart or update of Docker ends all replicas", advice)


def _cgroups(subject: Subject) -> Iterator[Finding]:
    info = subject.docker_look.info
    driver, version = info.get("CgroupDriver", "?"), info.get("CgroupVersion", "1")
    text = f"cgroup v{version}, driver {driver}"
    config = subject.config
    assert config is not None
    is_exposed = driver == "systemd" and subject.uses_gpus
    if is_exposed and config.runtime.docker.gpu_injection != "cdi":
        yield warned(
            f"{text}: `systemctl daemon-reload`, which updates do, may take the GPUs from running "
            "containers",
            "gpu_injection: cdi is safe from it (`sudo nvidia-ctk cdi generate "
            "--output=/etc/cdi/nvidia.yaml`)",
        )
    else:
        yield passed(text)


def _replicas(subject: Subject) -> Iterator[Finding]:
    """What the launcher itself makes sure of before it starts anything."""
    subject.require_docker()
    assert subject.cluster is not None
    asyncio.run(_prepare(subject))
    yield passed("nobody else has this cluster; containers can be made as the config asks")


async def _prepare(subject: Subject) -> None:
    assert subject.cluster is not None
    runtime = make_runtime(subject.cluster)
    try:
        await runtime.prepare(subject.specs, lambda text: None)
    finally:
        await runtime.aclose()


def _mounts(subject: Subject) -> Iterator[Finding]:
    """Folders of this machine that containers are to see, the model cache apart."""
    assert subject.config is not None
    cache = str(subject.config.runtime.docker.cache_dir)
    mounts = {mount for _, command in subject.containers() for mount in command.mounts}
    sources = sorted({mount.source for mount in mounts} - {cache})
    models = [Path(host_path(m.id)) for m in subject.config.models if is_local(m.id)]
    looked_into = {str(folder) for model in models for folder in (model, model.parent)}
    for source in sources:
        try:
            require_no_engine_socket(os.path.realpath(source), _sockets(subject))
        except OperatorError as exc:
            yield failed_by(exc)
            continue
        if os.path.exists(source):
            yield passed("is there", about=source)
        elif source not in looked_into:  # the check model has those
            yield failed("is not on this machine", "make it, or change the config", about=source)
    if not set(sources) - looked_into:
        yield passed("no folders but the models'")


def _sockets(subject: Subject) -> list[str]:
    own = [subject.engine.socket_path] if subject.engine.socket_path else []
    return [*ENGINE_SOCKETS, *own, *map(os.path.realpath, own)]


def _images(subject: Subject) -> Iterator[Finding]:
    assert subject.config is not None
    policy = subject.config.runtime.docker.pull
    for image, size_bytes in image_sizes(subject).items():
        if size_bytes is not None:
            again = ", and pulled again at each start" if policy == "always" else ""
            yield passed(f"is here, {show_bytes(size_bytes)}{again}", about=image)
        elif policy == "never":
            advice = f"`docker pull {image}`"
            yield failed("is not here, and runtime.docker.pull is never", advice, about=image)
        else:
            yield warned(
                "is not here and would be pulled; its size, and whether the registry gives it, "
                "cannot be told here",
                f"`docker pull {image}` beforehand shortens the first start",
                about=image,
            )


def image_sizes(subject: Subject) -> dict[str, int | None]:
    """Each image that the config needs; None: it is not on the engine. NotTold without one."""
    from docker.errors import ImageNotFound

    subject.require_docker()
    sizes: dict[str, int | None] = {}
    api: Any  # the SDK leaves its functions untyped
    with closing(subject.engine.connect(CALL_S)) as api:
        for _, command in subject.containers():
            try:
                sizes[command.image] = int(api.inspect_image(command.image).get("Size", 0))
            except ImageNotFound:
                sizes[command.image] = None
            except Exception as exc:
                raise subject.engine.translated(exc) from exc
    return sizes


def _missing_images(subject: Subject) -> bool:
    return subject.uses_gpus and None in image_sizes(subject).values()


def _is_swarm(look: DockerLook) -> bool:
    return (look.info.get("Swarm") or {}).get("LocalNodeState") == "active"


def _docker(subject: Subject) -> bool:
    return subject.uses_docker


CHECKS = (
    Check("docker", _engine, lambda subject: subject.looks_at_docker, limit_s=40.0),
    Check("docker storage", _storage, lambda subject: subject.looks_at_docker, limit_s=40.0),
    Check("docker restarts", _restarts, lambda subject: subject.looks_at_docker, limit_s=40.0),
    Check("cgroups", _cgroups, _docker, limit_s=40.0),
    Check("containers", _replicas, _docker, limit_s=90.0),
    Check("mounts", _mounts, _docker, limit_s=60.0),
    Check("image", _images, _docker, limit_s=60.0),
)
