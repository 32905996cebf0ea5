"""What happens to GPUs, and on them, while replicas come and run there."""

import os

import pytest

GIB = 2**30


@pytest.fixture
def cluster(fleet):
    """Two replicas' config; nothing runs."""
    fleet.use_tgi(["cuda:0", "cuda:1"])
    return fleet


def replica(record, number):
    return record["replicas"][number]


def test_a_strangers_process_is_named_before_a_replica_is_put_there(cluster):
    cluster.nvml.add_process(cluster.nvml.gpus[1], os.getpid(), 4 * GIB)
    lines = cluster.run("up", "-d").stdout.splitlines()
    (noted,) = [at for at, line in enumerate(lines) if "not alone on GPU" in line]
    assert lines[noted].startswith(f"replica-1: not alone on GPU {cluster.nvml.gpus[1].uuid}")
    assert f"pid {os.getpid()} (" in lines[noted]
    assert "4.0 GiB" in lines[noted]
    assert noted < next(at for at, line in enumerate(lines) if line.startswith("replica-1: start"))


def test_a_replica_of_ours_is_no_stranger_to_the_next_launcher(cluster):
    cluster.up()
    for number, gpu in enumerate(cluster.nvml.gpus[:2]):
        pid = cluster.container(f"replica-{number}").attrs["State"]["Pid"]
        cluster.nvml.add_process(gpu, pid, 70 * GIB)
    cluster.kill(cluster.record()["launcher_pid"])
    said = cluster.run("up", "-d").stdout
    assert "not alone" not in said


@pytest.mark.parametrize("way", ["lost", "xid"])
def test_a_gpu_that_fails_takes_its_replica_out_and_the_reason_is_shown(
    cluster, docker_engines, way
):
    before = cluster.up()
    gpu = cluster.nvml.gpus[1]
    # A host whose GPU is gone cannot start a container with it either.
    cluster.engine.set_gpus(*(uuid for uuid in docker_engines.GPUS if uuid != gpu.uuid))
    if way == "lost":
        cluster.nvml.lose(gpu)
    else:
        cluster.nvml.inject_xid(gpu, 79)
    cluster.until(lambda r: replica(r, 1)["is_stuck"], "it waits for somebody to see to it")
    shown, log = cluster.look(), cluster.log("launcher")
    assert shown.returncode == 1
    assert "1 of 2 replicas ready" in shown.stdout
    assert f"GPU {gpu.uuid} (replica-1): " in log
    assert "fallen off the bus" in log
    assert "unknown device" in shown.stdout
    after = cluster.status()
    assert replica(after, 0)["container"] == replica(before, 0)["container"]
    assert replica(after, 1)["container"] is None
    assert [one.name for one in cluster.containers] == ["gpu-fleet.tgi.replica-0"]
    assert {cluster.who_generates() for _ in range(4)} == {"replica-0"}


def test_a_launcher_that_finds_a_gpu_lost_takes_over_all_others(cluster, docker_engines):
    before = cluster.up()
    gpu = cluster.nvml.gpus[1]
    cluster.kill(cluster.record()["launcher_pid"])
    cluster.container("replica-1").kill()
    cluster.engine.set_gpus(*(uuid for uuid in docker_engines.GPUS if uuid != gpu.uuid))
    cluster.nvml.lose(gpu)
    stderr = cluster.run("up", "-d", rc=1).stderr
    assert "models[0].devices[1]: found cuda:1, expected one of: cuda:0 (" in stderr
    assert "cuda:1: GPU is lost" in stderr
    during = cluster.status()
    assert cluster.look().returncode == 1
    assert replica(during, 0)["container"] == replica(before, 0)["container"]
    assert replica(during, 1)["container"] is None
    assert "cuda:1: GPU is lost" in replica(during, 1)["reason"]
    assert cluster.who_generates() == "replica-0"
    cluster.engine.set_gpus(*docker_engines.GPUS)
    cluster.nvml.bring_back(gpu)
    cluster.run("up")
    after = cluster.status()
    assert replica(after, 0)["container"] == replica(before, 0)["container"]
    assert replica(after, 1)["devices"] == [gpu.uuid]


def test_a_driver_that_was_updated_without_a_reboot_keeps_nobody_from_taking_over(cluster):
    before = cluster.up()
    cluster.kill(cluster.record()["launcher_pid"])
    cluster.nvml.fail_init(18)
    assert "adopted" in cluster.run("up", "-d").stdout
    after = cluster.status()
    for number in (0, 1):
        assert replica(after, number) | {"reason": ""} == replica(before, number) | {"reason": ""}
    assert cluster.look().returncode == 0
