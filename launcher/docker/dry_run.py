"""What a replica's container would be, without asking any engine. For `launcher up --dry-run`."""

from launcher.config import ClusterConfig
from launcher.docker.container import Container, container_of
from launcher.docker.gpu_injection import CDI_KIND, NVIDIA, EngineFacts
from launcher.docker.labels import Place
from launcher.engines import ENGINES
from launcher.placement import ReplicaSpec
from launcher.ports import url_of


def planned_container(
    spec: ReplicaSpec, config: ClusterConfig, port: int, generation: int = 1
) -> Container:
    """As it would be made on an engine that can do what `gpu_injection` says; with `auto`, on one
    that lists no CDI devices. Raises StartError for what must not be."""
    docker, host = config.runtime.docker, config.runtime.host
    command = ENGINES[spec.engine_name].container(spec, str(docker.cache_dir))
    home = str(config.state_dir.resolve())
    place = Place(config.cluster, home, generation, host, port, url_of(host, port))
    names = {CDI_KIND + device.removeprefix("cuda:") for device in spec.devices}
    facts = EngineFacts(
        runtimes=frozenset({NVIDIA}),
        cdi_devices=frozenset(names if docker.gpu_injection == "cdi" else ()),
    )
    return container_of(spec, command, place, docker, facts)
