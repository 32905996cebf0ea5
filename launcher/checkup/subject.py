"""What is examined: this machine, and the cluster that it is to run, if a config says which.

Everything slow, or able to hang, is a `Question` that is asked when the first check wants to know.
Properties raise NotTold where another check has the bad news. Changes nothing.
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.checkup.base import NotTold
from launcher.checkup.question import Question
from launcher.cluster import Cluster
from launcher.config import ClusterConfig
from launcher.desired import desired
from launcher.docker.engine import DockerEngine
from launcher.engines import ENGINES
from launcher.engines.base import ContainerCommand
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.gpu_view import Look
from launcher.gpus import GpuMonitor
from launcher.placement import ReplicaSpec, replica_specs
from launcher.runtimes import Handle
from router.config import RouterConfig, RouterFile, load_model, read_source
from router.errors import ConfigError, ConfigProblem, OperatorError

DRIVER_LIMIT_S = 30.0  # several GPUs that slept take seconds to wake
DOCKER_LIMIT_S = 15.0
CALL_S = 10.0
_RUNNING_LIMIT_S = 20.0
_PLACING_LIMIT_S = 45.0


@dataclass(frozen=True, slots=True)
class DockerLook:
    """What a Docker Engine tells of itself."""

    version: Mapping[str, Any]
    info: Mapping[str, Any]


@dataclass(eq=False)
class Subject:
    """Made once per run. Without a config `cluster` and `router` are None."""

    path: Path | None = None
    cluster: Cluster | None = None
    router: RouterConfig | None = None
    problems: tuple[ConfigProblem, ...] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    driver_limit_s: float = DRIVER_LIMIT_S
    docker_limit_s: float = DOCKER_LIMIT_S
    is_over: threading.Event = field(default_factory=threading.Event)
    """Somebody wants to leave: make nothing more, and remove what was made."""

    def __post_init__(self) -> None:
        self.engine = DockerEngine(self.config.runtime.docker.url if self.config else None)
        self.driver = Question(
            "the NVIDIA driver",
            _look,
            self.driver_limit_s,
            "does `nvidia-smi` hang, too? A GPU that died does that: look at `dmesg | grep -i "
            "xid`, then reboot",
        )
        self.docker = Question(
            f"the Docker Engine at {self.engine.url}",
            self._look_at_docker,
            self.docker_limit_s,
            "does `docker ps` hang, too? `sudo systemctl restart docker` helps most often",
        )
        self._running = Question("what runs", self._owned, _RUNNING_LIMIT_S, "try again")
        self.placed = Question("the placement", self._placed, _PLACING_LIMIT_S, "try again")

    @classmethod
    def load(cls, path: Path | None, **options: Any) -> "Subject":
        """A config that cannot be used is a finding, not an error."""
        if path is None:
            return cls(**options)
        try:
            if router := _router_alone(path):
                return cls(path, router=router, **options)
            cluster = Cluster.load(path)
        except ConfigError as exc:
            return cls(path, problems=tuple(exc.problems), **options)
        return cls(path, cluster, cluster.config.router, **options)

    # ---- what the config says

    @property
    def config(self) -> ClusterConfig | None:
        return self.cluster.config if self.cluster else None

    @property
    def uses_docker(self) -> bool:
        return self.config is not None and self.config.runtime.name == "docker"

    @property
    def uses_gpus(self) -> bool:
        config = self.config
        return config is not None and any(config.uses_gpus(model) for model in config.models)

    @property
    def looks_at_gpus(self) -> bool:
        """Whether this machine's GPUs matter: the config wants some, or nobody said what is."""
        if self.config is None:
            return self.router is None
        return self.uses_gpus and self.config.runs_here

    @property
    def looks_at_docker(self) -> bool:
        return self.uses_docker or (self.config is None and self.router is None)

    # ---- what the machine says

    @property
    def look(self) -> Look:
        """GPUs that answer. NotTold without a driver that works."""
        try:
            look = self.driver.answer()
        except OperatorError as exc:
            raise NotTold("the NVIDIA driver does not answer") from exc
        if look.inventory.state is not DriverState.OK:
            raise NotTold("the NVIDIA driver tells nothing here")
        return look

    @property
    def docker_look(self) -> DockerLook:
        try:
            return self.docker.answer()
        except OperatorError as exc:
            raise NotTold("the Docker Engine does not answer") from exc

    def require_docker(self) -> None:
        """NotTold where it does not answer: the check of that name says so."""
        self.docker_look  # noqa: B018  # asked, not used

    @property
    def running(self) -> list[Handle]:
        """What runs of the cluster already; it may have its ports and GPUs."""
        if self.cluster is None:
            return []
        if self.uses_docker:
            with suppress(OperatorError):
                self.docker.answer()  # one that hangs is waited for only once
                return self._running.answer()
            return []
        return self._running.answer()

    @property
    def specs(self) -> list[ReplicaSpec]:
        """The replicas; where they cannot be placed, with devices as the config has them."""
        if self.config is None:
            return []
        try:
            return self.placed.answer()
        except OperatorError:
            with suppress(OperatorError):
                return replica_specs(self.config)
            return []

    def containers(self) -> Iterator[tuple[ReplicaSpec, ContainerCommand]]:
        """How each replica would be started by the docker runtime."""
        assert self.config is not None
        cache = str(self.config.runtime.docker.cache_dir)
        for spec in self.specs:
            yield spec, ENGINES[spec.engine_name].container(spec, cache)

    def wanted_gpus(self) -> list[Gpu]:
        """GPUs that replicas are to have; all, if nobody says which."""
        inventory = self.look.inventory
        if self.config is None:
            return [*inventory.gpus, *inventory.slices]
        devices = dict.fromkeys(device for spec in self.specs for device in spec.devices)
        found = (inventory.find(device) for device in devices)
        return [gpu for gpu in found if gpu is not None]

    def _owned(self) -> list[Handle]:
        from launcher.commands.detached import owned

        assert self.cluster is not None
        return asyncio.run(owned(self.cluster))

    def _placed(self) -> list[ReplicaSpec]:
        assert self.config is not None
        if self.looks_at_gpus:
            self.driver.answer()  # a driver that hangs is waited for only once
        return desired(self.config, self.running, is_rehearsal=True)

    def _look_at_docker(self) -> DockerLook:
        with closing(self.engine.connect(min(CALL_S, self.docker_limit_s))) as api:
            try:
                return DockerLook(api.version(), api.info())
            except Exception as exc:
                raise self.engine.translated(exc) from exc


def named(gpu: Gpu) -> str:
    """As people name it."""
    return gpu.uuid if gpu.parent else f"cuda:{gpu.index}"


def named_device(device: str, inventory: Inventory | None) -> str:
    """The same for a spec's device; a UUID that nobody knows stays one."""
    gpu = inventory.find(device) if inventory else None
    return named(gpu) if gpu else device


def _look() -> Look:
    with GpuMonitor() as monitor:
        return Look(monitor.inventory, monitor.readings())


def _router_alone(path: Path) -> RouterConfig | None:
    source = read_source(path)
    if "replicas" in source.value and "models" not in source.value:
        return load_model(source, RouterFile).router
    return None
