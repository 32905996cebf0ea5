"""`launcher doctor` on a real engine: what it proves about GPUs, and that nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.checkup import gpu_access
from launcher.checkup.base import Verdict
from launcher.checkup.runner import examine
from launcher.checkup.subject import Subject

WAIT_S = 90
HELD_S = 20


@pytest.fixture
def write_config(tmp_path):
    """A cluster config for an engine; more lines go into its sections."""

    def write(engine, devices, *, image=None, docker=""):
        lines = [
            "cluster: doctor",
            f"models: [{{id: {tmp_path}/model, devices: {json.dumps(list(devices))}}}]",
            "engine: {name: tgi" + (f", image: {json.dumps(image)}" if image else "") + "}",
            "runtime:",
            "  name: docker",
            f"  state_dir: {tmp_path}/state",
            f"  docker: {{url: {engine.url}, model_cache: {tmp_path}/cache{docker}}}",
            "router: {port: 0}",
        ]
        path = tmp_path / "cluster.yaml"
        path.write_text("\n".join(lines) + "\n")
        (tmp_path / "model").mkdir(exist_ok=True)
        return path

    return write


def doctor(path: Path, **environ):
    """Its exit code, and its findings by check."""
    argv = [sys.executable, "-m", "launcher", "doctor", "-c", str(path), "--json"]
    done = subprocess.run(
        argv, env=os.environ | environ, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.stdout, done.stderr
    findings = {}
    for finding in json.loads(done.stdout)["checks"]:
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


def containers(client):
    return client.containers.list(all=True)


def test_each_gpu_is_tried_in_a_container_that_does_not_stay(
    engine, docker_engines, docker_client, tgi_image, write_config
):
    _, found = doctor(write_config(engine, docker_engines.GPUS[:2]))
    (access,) = found["gpu access"]
    assert (access["verdict"], access["about"]) == ("pass", ", ".join(docker_engines.GPUS[:2]))
    assert "no nvidia-smi" in access["found"]
    assert [one["verdict"] for one in found["docker"]] == ["pass"]
    assert [(one["verdict"], one["about"]) for one in found["image"]] == [("pass", tgi_image)]
    assert [one["verdict"] for one in found["containers"]] == ["pass"]
    assert containers(docker_client) == []


def test_what_nvidia_smi_sees_inside_is_the_proof(
    engine, docker_engines, docker_client, shell_image, write_config
):
    own, other = docker_engines.GPUS[:2]
    path = write_config(
        engine, [own, other], image=shell_image(f"echo 'GPU 0: H100 (UUID: {own})'")
    )
    code, found = doctor(path)
    right, wrong = found["gpu access"]
    assert (right["verdict"], right["about"]) == ("pass", own)
    assert (wrong["verdict"], wrong["about"]) == ("fail", other)
    assert f"it said: GPU 0: H100 (UUID: {own})" in wrong["found"]
    assert code == 1
    assert containers(docker_client) == []


def test_an_nvidia_smi_that_fails_inside_is_quoted(
    engine, docker_engines, shell_image, write_config
):
    image = shell_image("echo 'Failed to initialize NVML: Unknown Error'; exit 255")
    _, found = doctor(write_config(engine, docker_engines.GPUS[:1], image=image))
    (access,) = found["gpu access"]
    assert access["verdict"] == "fail"
    assert "ended with code 255; it said: Failed to initialize NVML" in access["found"]


def test_a_gpu_that_the_engine_does_not_know_is_named_and_the_others_are_tried(
    engine, docker_engines, docker_client, images, write_config
):
    image = images.crash_image(engine, "localhost:1/gpu-fleet/crash:test", 0, "runs")
    good = docker_engines.GPUS[0]
    code, found = doctor(write_config(engine, ["GPU-ffffffff", good], image=image))
    verdicts = {one["about"]: one["verdict"] for one in found["gpu access"]}
    assert verdicts == {"GPU-ffffffff": "fail", good: "pass"}
    assert "this machine has no such GPU" in found["gpu access"][0]["found"]
    assert code == 1
    assert containers(docker_client) == []


def test_an_engine_without_nvidias_toolkit_fails_with_what_to_install(
    make_engine, docker_engines, images, write_config
):
    engine = make_engine(hook=False)
    image = images.crash_image(engine, "localhost:1/gpu-fleet/crash:test", 0, "runs")
    code, found = doctor(write_config(engine, docker_engines.GPUS[:2], image=image))
    (access,) = found["gpu access"]  # the same for both is told once
    assert access["verdict"] == "fail"
    assert "no GPUs to give: install the NVIDIA Container Toolkit" in access["found"]
    assert "docker run --rm --gpus" in access["advice"]
    assert code == 1
    client = engine.client()
    try:
        assert containers(client) == []
    finally:
        client.close()


def test_images_that_are_not_there_are_not_pulled(engine, docker_engines, write_config):
    missing = "localhost:1/gpu-fleet/missing:test"
    gpus = docker_engines.GPUS[:1]
    _, found = doctor(write_config(engine, gpus, image=missing))
    assert [(one["verdict"], one["about"]) for one in found["image"]] == [("warn", missing)]
    assert [one["verdict"] for one in found["gpu access"]] == ["skip"]
    assert f"docker pull {missing}" in found["gpu access"][0]["advice"]
    _, found = doctor(write_config(engine, gpus, image=missing, docker=", pull: never"))
    assert [one["verdict"] for one in found["image"]] == ["fail"]


def test_a_way_that_the_engine_does_not_have_is_told(
    engine, docker_engines, tgi_image, write_config
):
    way = ", gpu_injection: runtime"
    _, found = doctor(write_config(engine, docker_engines.GPUS[:1], docker=way))
    assert [one["verdict"] for one in found["gpu access"]] == ["fail"]
    assert "has no runtime nvidia" in found["gpu access"][0]["found"]


def test_an_engine_that_is_down_is_one_failure(engine, docker_engines, write_config):
    path = write_config(engine, docker_engines.GPUS[:1])
    engine.stop()
    code, found = doctor(path)
    assert code == 1
    assert [one["verdict"] for one in found["docker"]] == ["fail"]
    assert "systemctl start docker" in found["docker"][0]["advice"]
    assert {one["verdict"] for one in found["gpu access"] + found["image"]} == {"skip"}


def test_an_engine_that_hangs_holds_the_command_up_only_once(engine, docker_engines, write_config):
    subject = Subject.load(write_config(engine, docker_engines.GPUS[:1]), docker_limit_s=2.0)
    engine.pause()
    began_s = time.monotonic()
    found = {
        result.check: result.finding
        for result in examine(checks("docker", "docker storage", "image", "gpu access"), subject)
    }
    assert time.monotonic() - began_s < HELD_S
    assert found["docker"].verdict is Verdict.FAIL
    assert {found[name].verdict for name in ("docker storage", "image", "gpu access")} == {
        Verdict.SKIP
    }


def test_what_a_killed_check_left_is_removed_by_the_next(
    engine, docker_engines, docker_client, tgi_image, write_config, monkeypatch
):
    left = docker_client.containers.create(tgi_image, labels={gpu_access.LABEL: "1"})
    subject = Subject.load(write_config(engine, docker_engines.GPUS[:1]))
    list(examine(checks("gpu access"), subject))
    assert [one.id for one in containers(docker_client)] == [left.id]  # it may still be at work
    monkeypatch.setattr(gpu_access, "_STRAY_AFTER_S", -1.0)
    list(examine(checks("gpu access"), subject))
    assert containers(docker_client) == []


def test_ctrl_c_takes_the_container_with_it(
    engine, docker_engines, docker_client, shell_image, write_config
):
    path = write_config(engine, docker_engines.GPUS[:1], image=shell_image("sleep 60"))
    argv = [sys.executable, "-m", "launcher", "doctor", "-c", str(path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + WAIT_S
    while not docker_client.containers.list():
        assert time.monotonic() < deadline_s, "no container was started"
    process.send_signal(signal.SIGINT)
    assert process.wait(HELD_S) == 130
    assert containers(docker_client) == []


@pytest.fixture
def shell_image(engine, images):
    """The tag of an image whose nvidia-smi is a line of shell."""

    def make(script):
        return images.program_image(engine, "localhost:1/gpu-fleet/smi:test", "nvidia-smi", script)

    return make


def checks(*names):
    from launcher.checkup import CHECKS

    return [check for check in CHECKS if check.name in names]
