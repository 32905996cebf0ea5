"""The product's own image: built from this checkout without a network, in every role it has."""

import http.client
import json
import os
import shutil
import subprocess
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
MAX_ADDED_MB = 130
OFTEN = {"interval": 500_000_000, "timeout": 5_000_000_000, "start_period": 1_000_000, "retries": 8}
"""As the image's own health check, in nanoseconds, but not every ten seconds only."""
BRIDGE = "gfr-composed"
PING = 'import docker; docker.DockerClient(base_url="unix:///docker.sock").ping()'

# Building may take as long as the first of its tests would have for itself.
pytestmark = pytest.mark.timeout(900)


def run(client, image: str, *command: str, **options) -> str:
    """What a command says, in a container of its own."""
    return client.containers.run(image, list(command), remove=True, **options).decode()


@contextmanager
def running(client, image: str, command: list[str] | None = None, **options):
    """A container for as long as the block; one that never got so far says why."""
    container = client.containers.run(
        image, command, detach=True, healthcheck=OFTEN, stop_signal="SIGTERM", **options
    )
    try:
        yield container
    finally:
        container.remove(force=True)


def until_health(container, wanted: str) -> str:
    """The last line of its health check, once that has come to `wanted`."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        container.reload()
        state = container.attrs["State"]
        if state["Health"]["Status"] == wanted:
            return state["Health"]["Log"][-1]["Output"].strip()
        text = f"{state}\n{container.logs().decode()[-3000:]}"
        assert state["Running"], text
        assert time.monotonic() < deadline_s, text
        time.sleep(0.1)


def port_of(container) -> int:
    container.reload()
    return int(container.ports["8080/tcp"][0]["HostPort"])


def generate(port: int) -> tuple[str, str]:
    """The text, and which replica made it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({"inputs": "hello", "parameters": {"max_new_tokens": 3}})
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert reply.status == 200, text
    return json.loads(text)["generated_text"], reply.headers["x-fleet-replica"]


# ---- what is in it ----


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["launcher", "version"], "gpu-fleet "),
        (["router", "--version"], "router "),
        (["python", "-m", "launcher.simulator", "--help"], "usage: python -m launcher.simulator"),
        (["python", "-m", "launcher.healthcheck"], "nothing here serves HTTP"),
        (["id", "-u"], "10001"),
        (["launcher", "validate", "/etc/gpu-fleet/fleet.yaml"], "4 replicas of simulator"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_role_is_on_the_path_for_a_user_who_is_not_root(
    docker_client, product_image, command, said
) -> None:
    assert said in run(docker_client, product_image, *command)


def test_nothing_is_left_of_the_build(docker_client, product_image) -> None:
    script = "find() { for p; do [ ! -e $p ] || echo $p; done; }; cd /opt/gpu-fleet; "
    script += "find /build /wheels pip.conf bin/pip bin/pip3 lib/*/site-packages/pip "
    script += "lib/*/site-packages/setuptools lib/*/site-packages/tests /src /.env"
    assert run(docker_client, product_image, "sh", "-c", script) == ""


def test_labels_and_version_are_the_projects(docker_client, product_image) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = docker_client.images.get(product_image).labels
    label = "org.opencontainers.image."
    assert labels[f"{label}version"] == project["version"]
    assert labels[f"{label}licenses"] == project["license"]
    assert labels[f"{label}title"] == "GPU Fleet"


def test_its_size_is_known_and_small(docker_client, product_image, record_property) -> None:
    base = docker_client.images.get(docker_client.images.get(product_image).attrs["Parent"])
    layers = docker_client.images.get(product_image).history()
    added_mb = sum(layer["Size"] for layer in layers[:-1]) / 1e6
    record_property("added_mb", round(added_mb))
    print(f"the image adds {added_mb:.0f} MB to its base {base.short_id}")
    assert 1 < added_mb < MAX_ADDED_MB


# ---- what it does ----


def test_without_a_config_it_serves_simulators_and_ends_when_asked(
    docker_client, product_image
) -> None:
    ports = {"8080/tcp": ("127.0.0.1", 0)}
    with running(docker_client, product_image, ports=ports) as container:
        assert until_health(container, "healthy") == "http://127.0.0.1:8080/health: 200"
        text, replica = generate(port_of(container))
        assert text
        assert replica.startswith("replica-")
        container.stop(timeout=60)
        assert container.wait()["StatusCode"] == 0
        assert "stopped, nothing of it runs" in container.logs().decode()


def test_any_user_may_run_it(docker_client, product_image) -> None:
    with running(docker_client, product_image, user="4711:4711") as container:
        until_health(container, "healthy")
        listed = container.exec_run(["ls", "-n", "/var/lib/gpu-fleet"]).output.decode()
        assert " 4711 " in listed


def test_what_serves_no_http_is_never_unhealthy(docker_client, product_image) -> None:
    with running(docker_client, product_image, ["sleep", "100"]) as container:
        assert until_health(container, "healthy") == "nothing here serves HTTP"


def test_a_router_without_replicas_is_unhealthy(docker_client, product_image) -> None:
    command = ["router", "--replica=http://127.0.0.1:9"]
    with running(docker_client, product_image, command) as container:
        assert until_health(container, "unhealthy").endswith("/health: 503")


def test_the_sockets_group_is_what_lets_it_use_docker(docker_client, product_image, engine) -> None:
    import docker.errors  # slow to import

    group = engine.socket.stat().st_gid
    command = ["python", "-c", PING]
    volumes = {str(engine.socket): {"bind": "/docker.sock"}}
    run(docker_client, product_image, *command, volumes=volumes, group_add=[group])
    with pytest.raises(docker.errors.ContainerError, match="Permission denied"):
        run(docker_client, product_image, *command, volumes=volumes)


# ---- configs/compose-router.yaml, as far as no registry is needed ----


def options_of(service) -> dict:
    """A compose service's keys as the SDK calls them."""
    same = ("command", "read_only", "cap_drop", "security_opt")
    return {key: service[key] for key in same if key in service}


@pytest.fixture
def passage():
    """Another engine of this machine may have its packet filter drop what goes from one container
    to another, whoever's they are; ours are let through for as long as the test."""
    program = shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    rule = ["FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"]
    drops = program and "-P FORWARD DROP" in said_by(program, "-S", "FORWARD")
    if drops:
        said_by(program, "-I", *rule)
    yield
    if drops:
        said_by(program, "-D", *rule)


def said_by(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def composed(docker_client, product_image, passage):
    """The file's services under their names on one network; the router's port is a free one."""
    services = yaml.safe_load((ROOT / "configs" / "compose-router.yaml").read_text())["services"]
    named = {"com.docker.network.bridge.name": BRIDGE}
    network = docker_client.networks.create("composed", options=named)
    started = {}
    try:
        for name, service in sorted(services.items(), key=lambda item: "depends_on" in item[1]):
            ports = {"8080/tcp": ("127.0.0.1", 0)} if "ports" in service else {}
            started[name] = docker_client.containers.run(
                product_image,
                detach=True,
                name=name,
                network="composed",
                healthcheck=OFTEN,
                ports=ports,
                **options_of(service),
            )
        yield started
    finally:
        for container in started.values():
            container.remove(force=True)
        network.remove()


def test_the_router_serves_replicas_that_it_knows_by_name(composed) -> None:
    for name in ("replica-0", "replica-1"):
        assert until_health(composed[name], "healthy") == "http://127.0.0.1:80/health: 200"
    assert until_health(composed["router"], "healthy") == "http://127.0.0.1:8080/health: 200"
    port = port_of(composed["router"])
    until_used(port, "replica-0", "replica-1")
    composed["replica-0"].restart(timeout=5)
    until_used(port, "replica-0", "replica-1")


def until_used(port: int, *names: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    used: set[str] = set()
    while used != set(names):
        text, replica = generate(port)
        assert text
        used.add(replica)
        assert time.monotonic() < deadline_s, used
