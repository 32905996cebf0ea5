"""What cannot work is refused in words that say what to do, and leaves nothing half-made."""

import json
import socket
import subprocess
from contextlib import contextmanager

import pytest
import yaml

NOTHING = "localhost:1/gpu-fleet/nothing:1"


@pytest.fixture
def cluster(fleet):
    """A config like the example's with one replica, and nothing that runs."""
    fleet.use_tgi(1)
    return fleet


def refused(cluster, rc=1, verbs=("up -d",)):
    """What `launcher up` says, without its lines of progress; afterwards nothing is there."""
    cluster.write()
    for verb in verbs:
        done = cluster.run(*verb.split(), rc=rc)
        assert cluster.left() == []
        assert "Traceback" not in done.stderr + cluster.log("launcher")
    return done.stderr


BOTH = ("up", "up -d")


# ---- GPUs


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("GPU-99999999-9999-9999-9999-999999999999", "GPU-99999999"),
        ("cuda:9", "cuda:9"),
        (["cuda:1", "GPU-11111111-1111-1111-1111-111111111111"], "a second time"),
        (5, "found 4 free GPUs"),
    ],
    ids=["unknown uuid", "unknown number", "one gpu twice", "more than there are"],
)
def test_gpus_that_are_not_there(cluster, devices, said):
    cluster.config["models"][0]["devices"] = devices
    stderr = refused(cluster)
    assert said in stderr
    assert "models[0]" in stderr


def test_a_model_that_cannot_fit(cluster):
    for gpu in cluster.nvml.gpus:
        cluster.nvml.change(gpu, name="NVIDIA L4", total=24 * 2**30, cc=(8, 9))
    cluster.config["models"][0] |= {"id": "meta-llama/Llama-2-70b-hf", "max_total_tokens": 2048}
    stderr = refused(cluster, verbs=BOTH)
    assert "meta-llama/Llama-2-70b-hf cannot fit on NVIDIA L4 (24.0 GiB)" in stderr


def test_a_driver_that_is_broken(cluster):
    cluster.nvml.fail_init(999)
    stderr = refused(cluster)
    assert "NVIDIA driver cannot be used" in stderr


def test_the_driver_knows_a_gpu_that_the_engine_does_not(cluster, docker_engines):
    cluster.engine.set_gpus(*docker_engines.GPUS[1:])
    stderr = refused(cluster)
    assert "unknown device" in stderr
    assert "nvidia-smi -L" in stderr


# ---- flags


def test_a_flag_that_the_version_lacks(cluster):
    cluster.config["engine"] |= {"version": "2.0.4", "args": {"kv-cache-dtype": "fp8_e5m2"}}
    stderr = refused(cluster, rc=2)
    assert "kv-cache-dtype" in stderr
    assert "2.0.4" in stderr


def test_a_flag_that_the_engine_itself_refuses_is_named_and_not_tried_again(cluster, images):
    """The image has an older version than its tag says."""
    older = images.tgi_image(cluster.engine, "localhost:1/gpu-fleet/tgi:2.0.4")
    cluster.config["engine"]["image"] = older
    stderr = refused(cluster)
    assert "--usage-stats" in stderr
    assert "exited with code 2" in stderr
    assert cluster.log("launcher").count("asked to start") == 1


# ---- images


def test_an_image_that_is_not_there_and_must_not_be_pulled(cluster):
    cluster.config["engine"]["image"] = NOTHING
    cluster.config["runtime"]["docker"] = {"pull": "never"}
    stderr = refused(cluster)
    assert f"docker pull {NOTHING}" in stderr


def test_an_image_that_cannot_be_pulled(cluster):
    cluster.config["engine"]["image"] = "ghcr.io/nobody/nothing:1"
    stderr = refused(cluster)
    assert "cannot pull the image ghcr.io/nobody/nothing:1" in stderr
    assert "the registry cannot be reached" in stderr


# ---- ports


def test_the_endpoints_port_is_taken(cluster):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cluster.config["router"]["port"] = port
        stderr = refused(cluster, verbs=BOTH)
    assert f"127.0.0.1:{port}" in stderr


def test_taken_ports_of_replicas_are_gone_around(cluster):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cluster.config["runtime"]["first_port"] = port
        cluster.write()
        url = cluster.up()["replicas"][0]["url"]
    assert url != f"http://127.0.0.1:{port}"
    assert cluster.who_generates() == "replica-0"


# ---- the engine and the disk


def test_no_engine_answers(cluster):
    cluster.engine.stop()
    try:
        for verb in BOTH:
            stderr = cluster.run(*verb.split(), rc=1).stderr
            assert f"no Docker Engine answers at {cluster.engine.url}" in stderr
            assert cluster.processes() == []
    finally:
        cluster.engine.start()
    assert cluster.left() == []


def test_the_engine_dies_while_replicas_start(cluster):
    cluster.config["models"][0]["devices"] = 4
    cluster.config["engine"]["env"]["SIMULATOR_ARGS"] = "--load-s 2"
    cluster.write()
    starting = cluster.start("up", "-d")
    cluster.until(lambda r: r["replicas"][0]["phase"] == "loading", "the first one loads")
    cluster.engine.kill()
    cluster.engine.start()
    assert starting.wait(timeout=60) == 0, cluster.output_of(starting)
    assert [one.status for one in cluster.containers] == ["running"] * 4
    assert cluster.who_generates()


def test_down_without_an_engine_says_what_is_left_and_later_takes_it_away(cluster):
    cluster.up()
    cluster.engine.kill()
    stderr = cluster.run("down", rc=1).stderr
    assert f"no Docker Engine answers at {cluster.engine.url}" in stderr
    assert f"`launcher down -c {cluster.path}` again removes them" in stderr
    assert cluster.processes() == []
    cluster.engine.start()
    assert cluster.left() != []
    cluster.run("down")
    assert cluster.left() == []


@contextmanager
def tiny_disk(folder, size):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(cluster):
    with tiny_disk(cluster.state_home, "64k"):
        (cluster.state_home / "ballast").write_bytes(bytes(60_000))
        stderr = refused(cluster, verbs=BOTH)
    assert f"{cluster.state_dir}: found " in stderr
    assert "of free disk" in stderr


# ---- others


def test_another_launcher_with_the_same_name_on_the_same_engine(cluster):
    cluster.write()
    before = cluster.up()
    other = json.loads(json.dumps(cluster.config))
    other["runtime"]["state_dir"] = str(cluster.folder / "other")
    path = cluster.folder / "other.yaml"
    path.write_text(yaml.safe_dump(other))
    for args in (("up",), ("up", "-d")):
        done = cluster.run_bare(*args, "-c", str(path))
        assert done.returncode == 1
        assert str(cluster.state_dir) in done.stderr
        assert "another name" in done.stderr
    assert cluster.run_bare("down", "-c", str(path)).returncode == 0
    assert cluster.status() == before
    assert cluster.who_generates() == "replica-0"
