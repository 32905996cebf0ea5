"""The printed command line makes the container that the launcher makes: docker is asked."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from launcher.docker.client_settings import read_proxies
from launcher.docker.container import Container, create_body
from launcher.docker.gpu_injection import Injection
from launcher.docker.run_words import docker_run_words
from launcher.engines.base import Mount

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker's own CLI")

PRINT_GPUS = (
    "import os; print(*(f'{k}={v}' for k, v in os.environ.items() if k.startswith('NVIDIA_')))"
)


@pytest.fixture
def container(simulator_image, images, tmp_path):
    return Container(
        name="gpu-fleet.t.replica-0",
        image=simulator_image,
        entrypoint=images.PYTHON,
        argv=("-c", PRINT_GPUS),
        env={"LEVEL": "2", "HF_TOKEN": "hf_secret"},
        labels={"io.gpu-fleet.cluster": "t", "io.gpu-fleet.devices": ""},
        mounts=(Mount(str(tmp_path), "/model", is_read_only=True), Mount(str(tmp_path), "/data")),
        host="127.0.0.1",
        host_port=24_500,
        port=80,
        gpus=Injection(),
        shm_bytes=1024**3,
        memory_bytes=512 * 1024**2,
        capabilities=("DAC_OVERRIDE",),
        user="1000:1000",
        network=None,
        has_init=True,
        open_files=65_536,
        proxies={},
        log_max_size="10m",
        log_max_files=3,
    )


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """``settings(proxies)``: of docker's own command line."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return lambda text: (tmp_path / "config.json").write_text(json.dumps(text))


@pytest.fixture
def docker_cli(engine):
    def run(*words):
        env = {**os.environ, **engine.env, "HF_TOKEN": "hf_secret"}
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def by_words(docker_cli, container):
    run = docker_run_words(container)
    return docker_cli("docker", "create", *run[3:])


def by_body(docker_client, container):
    made = docker_client.api.create_container_from_config(create_body(container), "by-body")
    return made["Id"]


def told(docker_client, container_id):
    """What the engine holds of it, without what only its making decides."""
    found = docker_client.api.inspect_container(container_id)
    config, host = found["Config"], found["HostConfig"]
    for key in ("Hostname", "AttachStdout", "AttachStderr", "OnBuild"):
        config.pop(key, None)
    host.pop("ConsoleSize", None)
    # Said by the CLI as its default, by us not at all.
    host["NetworkMode"] = {"default": "bridge"}.get(host["NetworkMode"], host["NetworkMode"])
    host["CapAdd"] = [name.removeprefix("CAP_") for name in host["CapAdd"] or ()]
    config["Env"], host["Binds"] = sorted(config["Env"]), sorted(host["Binds"])
    return {key: value or None for part in (config, host) for key, value in part.items()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            "user": None,
            "memory_bytes": None,
            "shm_bytes": None,
            "has_init": False,
            "open_files": None,
        },
        {"network": "models", "capabilities": ()},
        {"entrypoint": None, "argv": ("--port", "80", "--text", "a b 'c'")},
    ],
)
def test_the_words_make_the_same_container_as_the_body(
    docker_cli, docker_client, container, change
):
    container = replace(container, **change)
    if container.network:
        docker_client.networks.create(container.network)
    words = told(docker_client, by_words(docker_cli, container))
    assert words == told(docker_client, by_body(docker_client, container))


@pytest.mark.parametrize("env", [{}, {"HTTP_PROXY": "http://mine"}, {"https_proxy": ""}])
@pytest.mark.parametrize("is_default", [True, False])
def test_proxies_of_dockers_own_settings_are_those_that_docker_run_adds(
    engine, docker_cli, docker_client, container, settings, env, is_default
):
    keys = ("httpProxy", "httpsProxy", "ftpProxy", "noProxy", "allProxy")
    mine = {key: f"http://me:secret@{key}" for key in keys}
    settings({"proxies": {"default": mine} if is_default else {"default": {}, engine.url: mine}})
    container = replace(container, env=env, proxies=read_proxies(engine.url))
    words = told(docker_client, by_words(docker_cli, container))
    assert words == told(docker_client, by_body(docker_client, container))
    assert "no_proxy=http://me:secret@noProxy" in words["Env"]
    assert "secret" not in json.dumps(docker_run_words(container)) + repr(container)


@pytest.mark.parametrize("count", [1, 2])
def test_gpus_asked_for_in_words_are_those_of_the_body(
    docker_cli, docker_client, docker_engines, container, count
):
    ids = docker_engines.GPUS[:count]
    # Not every engine these tests find may raise limits; that is for starts.
    container = replace(container, gpus=Injection(ids=ids), open_files=None)
    seen = []
    for container_id in (
        by_words(docker_cli, container),
        by_body(docker_client, replace(container, host_port=24_501)),
    ):
        docker_client.api.start(container_id)
        docker_client.api.wait(container_id)
        output = docker_client.api.logs(container_id).decode()
        seen.append(
            sorted(word for word in output.split() if "_VISIBLE_" in word or "CAPA" in word)
        )
    assert seen[0] == seen[1]
    assert f"NVIDIA_VISIBLE_DEVICES={','.join(ids)}" in seen[0]
    assert "hf_secret" not in json.dumps(docker_run_words(container))
