"""The example config for TGI, as it is: four containers on four GPUs behind one endpoint.

One cluster for all of this file; its tests leave it as they found it, and the last one ends it.
"""

import json
import socket
import time
from pathlib import Path

import pytest

from launcher.router_client import RouterClient
from launcher.state import StateFolder

CONFIG = Path(__file__).parents[2] / "configs" / "tgi.yaml"
IDS = [f"replica-{number}" for number in range(4)]
TOKEN = "hf_nobody_may_read_this"
DEADLINE_S = 20


@pytest.fixture(scope="module")
def cluster(fleets):
    """Up and ready."""
    with fleets() as fleet:
        fleet.use(CONFIG)
        fleet.env["HF_TOKEN"] = TOKEN
        fleet.said = fleet.run("up", "-d").stdout
        yield fleet


def environ_of(container):
    """What its first process was really given, not what the engine was told."""
    raw = Path(f"/proc/{container.attrs['State']['Pid']}/environ").read_bytes()
    return dict(pair.split("=", 1) for pair in raw.decode().split("\0") if "=" in pair)


def test_up_tells_how_it_goes_and_ends_with_the_endpoint(cluster):
    lines = cluster.said.splitlines()
    assert "4 of 4 replicas ready" in lines
    assert "unhealthy" not in cluster.said  # Docker takes connections for an engine that loads
    endpoint = cluster.record()["endpoint"]
    assert f"ready: {endpoint}" in lines
    assert lines[-1].endswith("stops everything")
    assert f"replica-3: ready at {cluster.record()['replicas'][3]['url']}" in cluster.said


def test_each_container_has_exactly_its_own_gpu(cluster, docker_engines):
    inside = {one.name: environ_of(one)["NVIDIA_VISIBLE_DEVICES"] for one in cluster.containers}
    assert inside == {
        f"gpu-fleet.tgi.{name}": gpu for name, gpu in zip(IDS, docker_engines.GPUS, strict=True)
    }
    told = {replica["id"]: replica["devices"] for replica in cluster.status()["replicas"]}
    assert told == {name: [gpu] for name, gpu in zip(IDS, docker_engines.GPUS, strict=True)}


def test_the_access_token_is_in_the_containers_environment_and_nowhere_else(cluster):
    assert [environ_of(one)["HF_TOKEN"] for one in cluster.containers] == [TOKEN] * 4
    for one in cluster.containers:
        config = one.attrs["Config"]
        assert TOKEN not in json.dumps([config["Cmd"], config["Labels"]])
    assert TOKEN not in cluster.look("--json").stdout + cluster.run("up", "--dry-run").stdout
    files = [path for path in cluster.state_dir.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_calls_are_answered_by_all_four(cluster):
    assert {cluster.who_generates() for _ in range(16)} == set(IDS)


def test_chat_asks_for_the_model_by_its_name(cluster):
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "mistral-7b", "messages": messages, "max_tokens": 5}
    status, _, reply = cluster.post("/v1/chat/completions", body)
    assert status == 200, reply
    assert json.loads(reply)["choices"][0]["message"]["content"]


async def test_the_token_budget_of_the_start_up_log_reaches_the_router(cluster):
    (tokens,) = {replica["max_tokens"] for replica in cluster.record()["replicas"]}
    assert f"Setting max batch total tokens to {tokens}" in cluster.log("replica-0")
    async with RouterClient(StateFolder(cluster.state_dir).admin_socket) as client:
        (pool,) = (await client.state())["pools"]
    known = {replica["id"]: replica["capacity"]["tokens"] for replica in pool["replicas"]}
    assert known == dict.fromkeys(IDS, tokens)


def test_status_names_containers_and_scripts_get_the_same(cluster):
    shown, told = cluster.look(), cluster.status()
    assert shown.returncode == 0
    assert "4 of 4 replicas ready" in shown.stdout
    ids = {one.name.rpartition(".")[2]: one.id for one in cluster.containers}
    assert {replica["id"]: replica["container"] for replica in told["replicas"]} == ids
    assert all(ids[name][:12] in shown.stdout for name in IDS)
    assert told["trouble"] == ""


def test_logs_shows_what_the_engine_writes(cluster):
    assert "NVIDIA_VISIBLE_DEVICES=GPU-0" in cluster.run("logs", "replica-0").stdout
    assert "replica-2 generation=1" in cluster.run("logs", "launcher").stdout


def test_logs_follows_a_replica_from_one_container_to_the_next(cluster):
    following = cluster.start("logs", "-f", "replica-0")
    until(lambda: cluster.output_of(following).count("Connected") == 1)
    cluster.container("replica-0").kill()
    until(lambda: cluster.output_of(following).count("Connected") == 2)
    following.kill()
    cluster.until_ready()


def test_plan_and_devices_show_the_four_gpus(cluster, docker_engines):
    planned, devices = cluster.run("plan").stdout, cluster.run_bare("devices").stdout
    assert all(gpu in planned and gpu in devices for gpu in docker_engines.GPUS)
    assert "4 replicas on 4 GPUs" in planned


def test_a_drained_replica_gets_no_calls_until_it_is_undrained(cluster):
    cluster.run("drain", "--wait", "replica-1")
    assert "replica-1" not in {cluster.who_generates() for _ in range(12)}
    assert "1 drained" in cluster.look().stdout
    cluster.run("undrain", "replica-1")
    cluster.until_ready()


def test_the_same_config_again_changes_nothing(cluster):
    before = cluster.status()
    assert "runs this config already" in cluster.run("up", "-d").stdout
    assert cluster.status() == before


def test_down_leaves_nothing(cluster):
    record = cluster.record()
    urls = [replica["url"] for replica in record["replicas"]] + [record["endpoint"]]
    networks = {network.name for network in cluster.client.networks.list()}
    assert "nothing of it runs" in cluster.run("down").stdout
    assert cluster.left() == []
    assert cluster.look().returncode == 3
    for url in urls:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert networks == {"bridge", "host", "none"}
    assert cluster.client.volumes.list() == []
    assert "nothing runs" in cluster.run("down").stdout


def until(holds):
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
