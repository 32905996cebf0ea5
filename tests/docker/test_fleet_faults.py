"""Containers, their engine and the launcher die under load, in every way: no unary call is lost.

One cluster for all of this file. The router's queue waits longer than anything takes to come back,
so a call may be late, never refused; each answer is checked. Run with -s for the figures.
"""

import asyncio
import shutil
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from launcher.router_client import RouterClient, replica_states
from launcher.state import StateFolder

UNARY = ("generate", "root", "chat")
CLIENTS = 12
SIMULATOR = "--load-s 0.3 --time-scale 2"


@pytest.fixture(scope="module")
def cluster(fleets):
    with fleets() as fleet:
        fleet.use_tgi(4, SIMULATOR)
        fleet.config["cluster"] = "faults"
        # One fault after the other is no reason to wait longer each time.
        fleet.config["runtime"]["restart"] = {"base_s": 0.5, "reset_after_s": 1}
        fleet.config["router"]["queue"] = {"timeout_s": 55}
        fleet.write()
        fleet.up()
        yield fleet


@pytest.fixture
def under_load(loads, request):
    """``async with under_load("docker kill"):`` ends once all replicas serve again."""

    @asynccontextmanager
    async def running(what, fleet=None):
        fleet = fleet or request.getfixturevalue("cluster")
        load = loads.Load(fleet.endpoint, loads.small(5, (10, 40), UNARY), clients=CLIENTS)
        async with fleet.loaded(load):
            begun_s = time.monotonic()
            yield
            await asyncio.to_thread(fleet.until_ready)
            back_s = time.monotonic() - begun_s
        longest_s = max(a.done_s - a.sent_s for a in load.answers)
        retried = sum(a.attempts > 1 for a in load.answers)
        print(
            f"\n{what}: all ready after {back_s:.1f} s; {len(load.answers)} calls, 0 lost, "
            f"{retried} asked again, the longest took {longest_s:.1f} s"
        )

    return running


async def gone(cluster, replica_id, before):
    """Until that start of the replica is noticed to have ended."""

    def ended(record):
        replica = next(one for one in record["replicas"] if one["id"] == replica_id)
        return replica["ref"] != before.id

    await asyncio.to_thread(cluster.until, ended, f"{replica_id} is found to have ended")


async def test_docker_kill(cluster, under_load):
    async with under_load("docker kill"):
        before = cluster.container("replica-1")
        before.kill()
        await gone(cluster, "replica-1", before)


async def test_docker_rm(cluster, under_load):
    async with under_load("docker rm -f"):
        before = cluster.container("replica-2")
        before.remove(force=True)
        await gone(cluster, "replica-2", before)


async def test_docker_stop_and_start_by_somebody_else(cluster, under_load):
    async with under_load("docker restart"):
        before = cluster.container("replica-2")
        before.restart(timeout=5)
        await gone(cluster, "replica-2", before)


async def test_docker_pause(cluster, under_load):
    async with under_load("docker pause"):
        before = cluster.container("replica-0")
        before.pause()
        await asyncio.to_thread(cluster.until, lambda _: status_of(before) != "paused", "unpaused")
    assert status_of(before) == "running"


async def test_all_containers_at_once(cluster, under_load):
    async with under_load("docker kill of all four"):
        before = cluster.containers
        for one in before:
            one.kill()
        for one in before:
            await gone(cluster, one.name.rpartition(".")[2], one)


async def test_running_out_of_memory(cluster, under_load, docker_engines):
    async with under_load("out of memory"):
        before = cluster.container("replica-3")
        before.update(mem_limit="80m", memswap_limit="80m")
        die_first(before)
        before.exec_run(["/bin/sh", "-c", "x=xxxx; while :; do x=$x$x; done"], detach=True)
        await gone(cluster, "replica-3", before)
    if docker_engines.tells_oom():
        assert "out of memory" in cluster.log("launcher")


async def test_the_engine_is_restarted(cluster, under_load):
    """It stops all containers first."""
    async with under_load("restart of the Docker Engine"):
        before = cluster.containers
        await asyncio.to_thread(cluster.engine.restart)
        for one in before:
            await gone(cluster, one.name.rpartition(".")[2], one)


async def test_the_engine_crashes(cluster, under_load):
    """Its containers run on, behind ports that lead nowhere; its next start ends them all."""
    async with under_load("crash of the Docker Engine"):
        before = cluster.containers
        cluster.engine.kill()
        await asyncio.to_thread(cluster.engine.start)
        for one in before:
            await gone(cluster, one.name.rpartition(".")[2], one)


async def test_the_engine_crashes_and_lets_its_containers_live(
    make_engine, fleet_on, images, under_load
):
    """With live-restore; yet the ports it publishes are away while it is."""
    engine = make_engine(flags=["--live-restore"])
    images.tgi_image(engine)
    with closing(engine.client()) as client, fleet_on(engine, client) as fleet:
        fleet.use_tgi(2, SIMULATOR)
        fleet.up()
        before = [one.id for one in fleet.containers]
        async with under_load("crash of the Docker Engine with live-restore", fleet):
            engine.kill()
            await said(fleet, "what runs is left alone")
            await asyncio.to_thread(engine.start)
            await said(fleet, "the Docker Engine answers again")
        assert [one.id for one in fleet.containers] == before


async def test_the_launcher_is_killed_and_the_next_adopts_all(cluster, under_load):
    before, record = [one.id for one in cluster.containers], cluster.record()
    async with under_load("kill -9 of the launcher"):
        cluster.kill(record["launcher_pid"])
        await asyncio.to_thread(cluster.run, "up", "-d")
    assert [one.id for one in cluster.containers] == before
    assert cluster.record()["router"]["pid"] == record["router"]["pid"]
    assert cluster.record()["launcher_pid"] != record["launcher_pid"]


async def test_the_launcher_and_the_engine_die_together(cluster, under_load):
    async with under_load("kill -9 of launcher and Docker Engine"):
        cluster.kill(cluster.record()["launcher_pid"])
        cluster.engine.kill()
        await asyncio.to_thread(cluster.engine.start)
        await asyncio.to_thread(cluster.run, "up", "-d")


async def test_what_runs_is_found_though_the_state_folder_is_lost(cluster):
    before, record = [one.id for one in cluster.containers], cluster.record()
    cluster.kill(record["launcher_pid"])
    cluster.kill(record["router"]["pid"])
    shutil.rmtree(cluster.state_dir)
    shown = cluster.look()
    assert shown.returncode == 1
    assert "4 of 4 replicas ready" in shown.stdout
    cluster.up()
    assert [one.id for one in cluster.containers] == before
    assert cluster.who_generates()


async def said(fleet, words):
    """Until the launcher's log has it."""
    async with asyncio.timeout(20):
        while words not in fleet.log("launcher"):  # noqa: ASYNC110  # another process's file
            await asyncio.sleep(0.05)


async def test_a_call_that_kills_its_replica_is_refused_before_it_has_killed_all(cluster):
    """Here whoever has it is killed: to the router it looks the same."""
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2000}}
    killed = set()
    async with (
        RouterClient(StateFolder(cluster.state_dir).admin_socket) as client,
        asyncio.TaskGroup() as group,
    ):
        poison = group.create_task(asyncio.to_thread(cluster.post, "/generate", body))
        while not poison.done():
            for name, replica in replica_states(await client.state()).items():
                start = name, replica["generation"]
                if replica["requests"] and start not in killed:
                    killed.add(start)
                    await asyncio.to_thread(cluster.container(name).kill)
            await asyncio.sleep(0.02)
    status, _, reply = await poison
    assert status == 422
    assert b"3 replicas died while they served this call" in reply
    assert len(killed) == 3
    await asyncio.to_thread(cluster.until_ready)


def die_first(container):
    """The server itself shall be killed, whoever takes the memory."""
    init = container.attrs["State"]["Pid"]
    for pid in Path(f"/proc/{init}/task/{init}/children").read_text().split():
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def status_of(container):
    container.reload()
    return container.status
