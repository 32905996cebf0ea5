"""The docker runtime on a real Docker Engine: what goes wrong, and what others do meanwhile."""

import asyncio
import gc
import json
import logging
import os
import socket
import textwrap
from contextlib import closing, suppress

import pytest
import requests

from launcher import log_files
from launcher.commands import down, status, up
from launcher.config import ClusterConfig
from launcher.engines.base import ContainerCommand, Mount
from launcher.placement import ReplicaSpec
from launcher.processes import identify
from launcher.runtimes import DockerRuntime
from launcher.state import StateFolder
from router.errors import RuntimeAway, StartError, StopError

# The SDK leaves a socket to the garbage collector when the daemon dies as it connects.
LEAK = "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
pytestmark = pytest.mark.filterwarnings(LEAK)

DEADLINE_S = 20
SLEEP = "print('up', flush=True); import time; time.sleep(600)"
POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + SLEEP
GREEDY = "print('up', flush=True)\nblocks = []\nwhile True: blocks.append(bytearray(1 << 20))"
SERVE = """
    import http.server
    server = http.server.HTTPServer(("0.0.0.0", 80), http.server.SimpleHTTPRequestHandler)
    print("up", flush=True)
    server.serve_forever()
"""
# Two lines at a time, on both outputs, as fast as the engine keeps up with.
TALK = """
    import sys, time
    for number in range(3000):
        print(f"out {number}", flush=True)
        print(f"err {number}", file=sys.stderr, flush=True)
        time.sleep(0.001)
    print("done", flush=True)
    time.sleep(600)
"""


def spec_of(code=SLEEP, replica_id="replica-0", devices=(), image=None, volumes=()):
    return ReplicaSpec(
        id=replica_id,
        model="m",
        model_id=textwrap.dedent(code),
        revision=None,
        dtype=None,
        quantize=None,
        max_input_tokens=None,
        max_total_tokens=None,
        devices=devices,
        memory_fraction=None,
        engine_name="simulator",
        engine_version=None,
        image=image,
        args={},
        env={},
        volumes=volumes,
        shm_bytes=None,
        start_timeout_s=10.0,
        fingerprint="f1",
    )


def quiet(progress):
    """Nobody is told."""


class Fleet:
    """Runtimes of one cluster, as launchers that come one after the other have them."""

    def __init__(self, engine, images, image, state_dir):
        self._engine, self._images, self._image = engine, images, image
        self.state_dir = state_dir
        self._runtimes = []

    def runtime(self, state_dir=None, **docker):
        folder = StateFolder(state_dir or self.state_dir)
        folder.create()
        first_port = 24_000
        settings = {"url": self._engine.url, **docker}
        runtime = {"name": "docker", "docker": settings, "first_port": first_port}
        config = ClusterConfig.model_validate({"cluster": "t", "models": ["m"], "runtime": runtime})
        made = DockerRuntime(folder, config, self._command)
        self._runtimes.append(made)
        return made

    def _command(self, spec, cache_dir):
        return ContainerCommand(
            image=spec.image or self._image,
            argv=("-u", "-c", spec.model_id),
            env={},
            port=80,
            mounts=spec.volumes,
            shm_bytes=None,
            ready_path="/health",
            ready_timeout_s=10.0,
            entrypoint=(self._images.PYTHON,),
        )

    async def close(self):
        for runtime in self._runtimes:
            await runtime.aclose()


@pytest.fixture
async def fleet(engine, images, simulator_image, tmp_path):
    made = Fleet(engine, images, simulator_image, tmp_path / "state")
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def leaks_end_here():
    """Not in the next file's tests, which do not expect them."""
    yield
    gc.collect()


@pytest.fixture
def runtime(fleet):
    return fleet.runtime()


def containers(docker_client):
    return docker_client.containers.list(all=True)


async def until(holds, what="it"):
    """Waits for the log files, which another thread writes."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def says(runtime, word="up", replica_id="replica-0"):
    path = runtime.log_path(replica_id)
    return lambda: word in log_files.tail(path, 50)


async def ended(runtime, handle):
    return await asyncio.wait_for(runtime.wait(handle), DEADLINE_S)


# ---- starts that fail leave nothing


async def test_an_unknown_gpu_is_named_and_leaves_no_container(runtime, docker_client):
    with pytest.raises(StartError, match="GPU-none: unknown device") as caught:
        await runtime.start(spec_of(devices=("GPU-none",)), 1, quiet)
    assert "nvidia-smi -L" in str(caught.value)
    assert (caught.value.recoverable, caught.value.is_slow) == (True, True)
    assert containers(docker_client) == []


async def test_a_gpu_asked_for_is_the_one_inside(runtime, docker_engines):
    devices = docker_engines.GPUS[1:3]
    code = "import os; print('GPUS', os.environ['NVIDIA_VISIBLE_DEVICES'])\n" + SLEEP
    handle = await runtime.start(spec_of(code, devices=devices), 1, quiet)
    await until(says(runtime))
    assert f"GPUS {','.join(devices)}" in log_files.tail(runtime.log_path("replica-0"), 9)
    assert handle.devices == devices
    assert await runtime.owned() == [handle]


async def test_gpus_of_another_clusters_containers_are_known(fleet, tmp_path, docker_engines):
    mine, other = fleet.runtime(), fleet.runtime(tmp_path / "other")
    first, second = docker_engines.GPUS[:2]
    await mine.start(spec_of(devices=(first,)), 1, quiet)
    handle = await other.start(spec_of(replica_id="replica-1", devices=(second,)), 1, quiet)
    assert await mine.others_devices() == {second: "cluster t"}
    assert await other.others_devices() == {first: "cluster t"}
    await other.stop(handle, 0.0)
    assert await mine.others_devices() == {}


async def test_of_an_engine_that_does_not_answer_no_cluster_is_known(engine, runtime):
    engine.kill()
    assert await runtime.others_devices() == {}


async def test_a_replica_without_a_gpu_sees_none(runtime):
    code = "import os; print('GPUS', os.environ['NVIDIA_VISIBLE_DEVICES'])\n" + SLEEP
    await runtime.start(spec_of(code), 1, quiet)
    await until(says(runtime, "GPUS void"))


async def test_an_engine_without_the_hook_says_what_to_install(make_engine, images, tmp_path):
    engine = make_engine(hook=False)
    image = images.crash_image(engine, "crash:test", 0, "runs")
    fleet = Fleet(engine, images, image, tmp_path / "state")
    with pytest.raises(StartError, match="NVIDIA Container Toolkit"):
        await fleet.runtime().start(spec_of(devices=("GPU-1",)), 1, quiet)
    with pytest.raises(StartError, match="nvidia-ctk runtime configure"):
        await fleet.runtime(gpu_injection="runtime").prepare([spec_of(devices=("GPU-1",))], quiet)
    with closing(engine.client()) as client:
        assert containers(client) == []
    await fleet.close()


async def test_a_missing_image_that_cannot_be_pulled(runtime, docker_client):
    with pytest.raises(StartError, match="registry cannot be reached") as caught:
        await runtime.start(spec_of(image="ghcr.io/nobody/nothing:1"), 1, quiet)
    assert "ghcr.io/nobody/nothing:1" in str(caught.value)
    assert containers(docker_client) == []


async def test_a_missing_image_that_must_not_be_pulled(fleet):
    with pytest.raises(StartError, match=r"docker pull localhost:1/none:1") as caught:
        await fleet.runtime(pull="never").start(spec_of(image="localhost:1/none:1"), 1, quiet)
    assert caught.value.is_slow


async def test_always_pulling_makes_do_with_the_image_that_is_here(fleet, caplog):
    runtime = fleet.runtime(pull="always")
    handle = await runtime.start(spec_of(), 1, quiet)
    assert "the one that is here is used" in caplog.text
    caplog.clear()
    await runtime.stop(handle, 0.0)
    await runtime.start(spec_of(), 2, quiet)
    assert caplog.text == ""  # a restart asks nobody


async def test_a_program_that_is_not_there_is_told(engine, images, runtime):
    image = images.crash_image(engine, "crash:test", 0, "runs")  # has no Python
    found = await ended(runtime, await runtime.start(spec_of(image=image), 1, quiet))
    assert found.detail == "exited with code 127: a program was not found"
    assert images.PYTHON in log_files.last_words(runtime.log_path("replica-0"))


async def test_a_missing_network_is_named_and_leaves_nothing(fleet, docker_client):
    with pytest.raises(StartError, match="docker network create"):
        await fleet.runtime(network="nowhere").start(spec_of(), 1, quiet)
    assert containers(docker_client) == []


async def test_a_missing_folder_is_not_made_by_docker(runtime, tmp_path, docker_client):
    missing = Mount(str(tmp_path / "models"), "/models")
    with pytest.raises(StartError, match=r"found no \S+models"):
        await runtime.start(spec_of(volumes=(missing,)), 1, quiet)
    assert not (tmp_path / "models").exists()
    assert containers(docker_client) == []


@pytest.mark.parametrize("where", ["socket", "folder", "link"])
async def test_no_container_gets_the_engines_socket(runtime, engine, tmp_path, where):
    (tmp_path / "link").symlink_to(engine.root)
    source = {"socket": engine.socket, "folder": engine.root, "link": tmp_path / "link"}[where]
    with pytest.raises(StartError, match="whole machine"):
        await runtime.start(spec_of(volumes=(Mount(str(source), "/x"),)), 1, quiet)


@pytest.mark.parametrize("may_raise", [True, False])
async def test_limits_are_raised_where_the_engine_may(
    runtime, docker_client, monkeypatch, may_raise
):
    import docker

    original, refused = docker.APIClient.start, []

    def start(self, container_id):
        if not may_raise and self.inspect_container(container_id)["HostConfig"]["Ulimits"]:
            refused.append(container_id)
            reply = requests.Response()
            reply.status_code, text = 500, "error setting rlimit type 7: operation not permitted"
            raise docker.errors.APIError("refused", reply, text)
        # Where those who run this test may not raise them either, what is made is not started.
        return None if may_raise else original(self, container_id)

    monkeypatch.setattr(docker.APIClient, "start", start)
    for number in range(2):
        await runtime.start(spec_of(replica_id=f"replica-{number}"), 1, quiet)
    limit = {"Name": "nofile", "Soft": 65_536, "Hard": 65_536}
    for container in containers(docker_client):
        assert container.attrs["HostConfig"]["Ulimits"] == ([limit] if may_raise else None)
    assert len(containers(docker_client)) == 2
    assert len(refused) == (0 if may_raise else 1)


async def test_a_port_that_docker_finds_taken_is_replaced(runtime, docker_client, monkeypatch):
    """It was free when it was looked at; somebody was quicker."""
    monkeypatch.setattr("launcher.ports.is_free", lambda host, port: True)
    with socket.create_server(("127.0.0.1", 24_000)):
        handle = await runtime.start(spec_of(), 1, quiet)
    assert handle.base_url == "http://127.0.0.1:24001"
    (container,) = containers(docker_client)
    assert container.status == "running"


async def test_a_port_another_container_has_is_replaced(
    fleet, docker_client, tmp_path, monkeypatch
):
    monkeypatch.setattr("launcher.ports.is_free", lambda host, port: True)
    first = await fleet.runtime().start(spec_of(), 1, quiet)
    second = await fleet.runtime(tmp_path / "b").start(spec_of(replica_id="replica-1"), 1, quiet)
    assert first.base_url != second.base_url
    assert {c.status for c in containers(docker_client)} == {"running"}


async def test_a_foreign_container_with_that_name_is_left_alone(
    runtime, docker_client, simulator_image
):
    docker_client.containers.create(simulator_image, name="gpu-fleet.t.replica-0")
    with pytest.raises(StartError, match="did not make"):
        await runtime.start(spec_of(), 1, quiet)
    assert [c.name for c in containers(docker_client)] == ["gpu-fleet.t.replica-0"]


async def test_what_an_earlier_start_left_half_made_is_cleared_away(
    fleet, docker_client, monkeypatch
):
    monkeypatch.setattr("docker.APIClient.start", lambda *_: os.kill(os.getpid(), 0))
    await fleet.runtime().start(spec_of(), 1, quiet)
    monkeypatch.undo()
    (half_made,) = containers(docker_client)
    assert half_made.status == "created"
    handle = await fleet.runtime().start(spec_of(), 2, quiet)
    (container,) = containers(docker_client)
    assert container.id == handle.ref


async def test_what_does_not_run_is_cleared_away_but_not_by_looks_nor_under_a_launchers_hands(
    fleet, docker_client
):
    first = fleet.runtime()
    await ended(first, await first.start(spec_of("print('up')"), 1, quiet))
    await first.aclose()
    StateFolder(fleet.state_dir).write_record("launcher.json", {"process": str(identify(1))})
    await fleet.runtime().clear_away()
    StateFolder(fleet.state_dir).remove("launcher.json")
    assert await fleet.runtime().owned() == []
    assert [container.status for container in containers(docker_client)] == ["exited"]
    await fleet.runtime().clear_away()
    assert containers(docker_client) == []


async def test_status_and_a_dry_run_leave_what_ended_to_the_next_up_or_down(
    fleet, engine, tmp_path, docker_client
):
    first = fleet.runtime()
    await ended(first, await first.start(spec_of("print('up')"), 1, quiet))
    await first.aclose()
    path, runtime = tmp_path / "fleet.yaml", {"name": "docker", "docker": {"url": engine.url}}
    runtime["state_dir"] = str(fleet.state_dir)
    model = {"id": "org/m", "devices": "cpu"}
    config = {"cluster": "t", "models": [model], "engine": "simulator", "runtime": runtime}
    path.write_text(json.dumps(config))
    assert await asyncio.to_thread(status.run, path) == status.NOTHING_RUNS
    assert await asyncio.to_thread(up.run, path, dry_run=True) == 0
    assert [container.status for container in containers(docker_client)] == ["exited"]
    assert await asyncio.to_thread(down.run, path) == 0
    assert containers(docker_client) == []


async def test_what_cannot_be_cleared_away_is_in_the_way_of_a_start_only(
    fleet, docker_client, monkeypatch, caplog
):
    import docker

    first = fleet.runtime()
    await ended(first, await first.start(spec_of("print('up')"), 1, quiet))
    await first.aclose()

    def busy(*_, **how):
        reply = requests.Response()
        reply.status_code, reply._content = 500, b'{"message": "device or resource busy"}'
        raise docker.errors.APIError("busy", reply, "device or resource busy")

    monkeypatch.setattr(docker.APIClient, "remove_container", busy)
    runtime = fleet.runtime()
    await runtime.clear_away()
    assert "stays: device or resource busy" in caplog.text
    with pytest.raises(StartError, match="device or resource busy"):
        await runtime.start(spec_of(), 2, quiet)


@pytest.mark.parametrize("call", ["create_container_from_config", "start"])
async def test_a_start_cancelled_half_way_leaves_nothing(runtime, docker_client, monkeypatch, call):
    import docker

    loop, reached = asyncio.get_running_loop(), asyncio.Event()
    original = getattr(docker.APIClient, call)

    def slow(self, *args, **kwargs):
        loop.call_soon_threadsafe(reached.set)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(docker.APIClient, call, slow)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        starting = group.create_task(runtime.start(spec_of(), 1, quiet))
        await reached.wait()
        starting.cancel()
    assert starting.cancelled()
    assert containers(docker_client) == []
    assert await runtime.owned() == []


async def test_a_memory_limit_that_docker_refuses_is_told(fleet, docker_client):
    with pytest.raises(StartError, match="refuses what the config asks for"):
        await fleet.runtime(memory="1MB").start(spec_of(), 1, quiet)
    assert containers(docker_client) == []


# ---- how containers end


async def test_a_kill_from_outside_is_seen(runtime, docker_client):
    handle = await runtime.start(spec_of(), 1, quiet)
    waiting = asyncio.gather(ended(runtime, handle))
    docker_client.containers.get(handle.ref).kill()
    (found,) = await waiting
    assert (found.signal, found.detail) == (9, "killed by SIGKILL")


async def test_running_out_of_its_memory_is_told_as_such(fleet):
    runtime = fleet.runtime(memory="64MiB")
    found = await ended(runtime, await runtime.start(spec_of(GREEDY), 1, quiet))
    assert found.oom
    assert "out of memory" in found.detail


async def test_a_removal_from_outside_is_seen(runtime, docker_client):
    handle = await runtime.start(spec_of(), 1, quiet)
    waiting = asyncio.gather(ended(runtime, handle))
    docker_client.containers.get(handle.ref).remove(force=True)
    (found,) = await waiting
    assert found.signal == 9 or "removed by somebody else" in found.detail
    await runtime.stop(handle, 1.0)
    assert await runtime.poll(handle) == found


async def test_a_restart_from_outside_ends_that_start(runtime, docker_client):
    handle = await runtime.start(spec_of(), 1, quiet)
    waiting = asyncio.gather(ended(runtime, handle))
    docker_client.containers.get(handle.ref).restart(timeout=0)
    (found,) = await waiting
    assert found.signal == 9 or "restarted" in found.detail
    await runtime.stop(handle, 0.0)
    assert containers(docker_client) == []


async def test_a_pause_from_outside_is_undone(runtime, docker_client, caplog):
    handle = await runtime.start(spec_of(), 1, quiet)
    with caplog.at_level(logging.WARNING), suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            waiting = group.create_task(runtime.wait(handle))
            docker_client.containers.get(handle.ref).pause()
            await until(lambda: "was paused" in caplog.text)
            await until(lambda: docker_client.containers.get(handle.ref).status == "running")
            waiting.cancel()
    assert await runtime.poll(handle) is None


async def test_a_paused_container_is_stopped_politely(fleet, docker_client):
    runtime = fleet.runtime()
    handle = await runtime.start(spec_of(POLITE), 1, quiet)
    await until(says(runtime))
    docker_client.containers.get(handle.ref).pause()
    await runtime.stop(handle, 10.0)
    found = await runtime.poll(handle)
    assert found.code == 7
    assert containers(docker_client) == []


async def test_two_that_stop_the_same_container_are_both_content(fleet, docker_client):
    runtime = fleet.runtime()
    handle = await runtime.start(spec_of(POLITE), 1, quiet)
    await until(says(runtime))
    others = [fleet.runtime() for _ in range(3)]
    await asyncio.gather(*(one.stop(handle, 5.0) for one in (runtime, *others)))
    assert containers(docker_client) == []


async def test_only_its_own_published_port_counts_as_serving(runtime):
    handle = await runtime.start(spec_of(SERVE), 1, quiet)
    await until(says(runtime))
    assert await runtime.is_serving_itself(handle)
    await runtime.stop(handle, 0.0)
    assert not await runtime.is_serving_itself(handle)


# ---- an engine that is away


async def test_a_dead_daemon_is_waited_for_and_what_it_ended_is_noticed(runtime, engine, caplog):
    handle = await runtime.start(spec_of(), 1, quiet)
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            waiting = group.create_task(runtime.wait(handle))
            engine.kill()
            await until(lambda: "what runs is left alone" in caplog.text)
            assert await runtime.poll(handle) is None
            assert await runtime.is_serving_itself(handle)
            with pytest.raises(RuntimeAway, match="no Docker Engine answers"):
                await runtime.owned()
            with pytest.raises(StopError, match="is not stopped: no Docker Engine answers"):
                await runtime.stop(handle, 0.0)
            with pytest.raises(RuntimeAway):
                await runtime.start(spec_of(replica_id="replica-1"), 1, quiet)
            assert not waiting.done()
            await asyncio.to_thread(engine.start)  # it ends what it finds running
    assert "killed" in waiting.result().detail or "exited" in waiting.result().detail
    assert "answers again" in caplog.text
    await runtime.stop(handle, 0.0)
    assert await runtime.owned() == []


async def test_containers_that_live_on_without_a_daemon_are_not_taken_for_ended(
    make_engine, images, tmp_path, caplog
):
    engine = make_engine(flags=["--live-restore"])
    image = images.simulator_image(engine)
    fleet = Fleet(engine, images, image, tmp_path / "state")
    runtime = fleet.runtime()
    handle = await runtime.start(spec_of(POLITE), 1, quiet)
    await until(says(runtime))
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            waiting = group.create_task(runtime.wait(handle))
            engine.kill()
            await until(lambda: "what runs is left alone" in caplog.text)
            await asyncio.to_thread(engine.start)
            await until(lambda: "answers again" in caplog.text)
            assert await runtime.poll(handle) is None
            assert not waiting.done()
            await runtime.stop(handle, 10.0)
    assert waiting.result().code == 7
    await fleet.close()


async def test_a_frozen_daemon_is_not_waited_for_by_who_cancels(runtime, engine):
    handle = await runtime.start(spec_of(), 1, quiet)
    engine.pause()
    try:
        async with asyncio.timeout(2), asyncio.TaskGroup() as group:
            waiting = group.create_task(runtime.wait(handle))
            asking = group.create_task(runtime.owned())
            await asyncio.wait([waiting, asking], timeout=0.2)
            assert (waiting.cancel(), asking.cancel()) == (True, True)
    finally:
        engine.resume()
    assert await runtime.poll(handle) is None


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("unix:///nowhere/docker.sock", RuntimeAway, "no Docker Engine answers at unix:///nowhere"),
        ("tcp://127.0.0.1:1", RuntimeAway, "no Docker Engine answers at tcp://127.0.0.1:1"),
        ("tcp://10.9.8.7:2375", StartError, "run the launcher there"),
    ],
)
async def test_an_engine_that_is_not_there_is_told_in_words(fleet, url, kind, said):
    with pytest.raises(kind, match=said):
        await fleet.runtime(url=url).prepare([spec_of()], quiet)


# ---- one launcher after the other


async def test_a_second_launcher_goes_on_with_what_the_first_started(fleet, docker_engines):
    first = fleet.runtime()
    spec = spec_of(POLITE, devices=docker_engines.GPUS[:1])
    handle = await first.start(spec, 4, quiet)
    await until(says(first))
    await first.aclose()
    second = fleet.runtime()
    await second.prepare([spec], quiet)
    assert await second.owned() == [handle]
    assert second.last_generation("replica-0") == 4
    await second.stop(handle, 10.0)
    assert (await second.poll(handle)).code == 7


async def test_a_cluster_of_another_state_folder_is_refused(fleet, tmp_path):
    await fleet.runtime().start(spec_of(), 1, quiet)
    other = fleet.runtime(tmp_path / "other")
    with pytest.raises(StartError, match=r"give this one another name") as caught:
        await other.prepare([spec_of()], quiet)
    assert str(fleet.state_dir) in str(caught.value)
    assert not caught.value.recoverable
    assert await other.owned() == []


async def test_no_line_of_the_log_is_lost_or_doubled_when_launchers_change(fleet):
    runtime = fleet.runtime()
    handle = await runtime.start(spec_of(TALK), 1, quiet)
    path, size = runtime.log_path("replica-0"), 0
    for _ in range(4):
        await until(lambda size=size: path.exists() and path.stat().st_size > size + 2000)
        await runtime.aclose()
        size = path.stat().st_size
        runtime = fleet.runtime()
        assert await runtime.poll(handle) is None
    await until(says(runtime, "done"))
    lines = path.read_text().splitlines()
    for kind in ("out", "err"):
        found = [line for line in lines if line.startswith(kind)]
        assert found == [f"{kind} {number}" for number in range(3000)]


async def test_two_launchers_pumps_do_not_write_at_the_same_time(fleet):
    """`launcher logs` of one that runs: it brings the file up to date only if nobody does."""
    runtime, other = fleet.runtime(), fleet.runtime()
    handle = await runtime.start(spec_of(TALK), 1, quiet)
    path = runtime.log_path("replica-0")
    await until(lambda: path.exists() and path.stat().st_size > 0)
    assert await other.poll(handle) is None
    for _ in range(20):
        await other.catch_up_log("replica-0")
    await until(says(runtime, "done"))
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(
        [f"{kind} {n}" for n in range(3000) for kind in ("out", "err")] + ["done"]
    )


async def test_a_log_is_brought_up_to_date_when_no_launcher_runs(fleet):
    runtime = fleet.runtime()
    await runtime.start(spec_of(SLEEP), 1, quiet)
    await until(says(runtime))
    await runtime.aclose()
    other = fleet.runtime()
    for gone in (other.log_path("replica-0"), fleet.state_dir / "replicas/replica-0.log-position"):
        gone.unlink()
    await other.catch_up_log("replica-0")
    await other.catch_up_log("replica-0")
    assert log_files.tail(other.log_path("replica-0"), 9) == ["up"]
    await other.catch_up_log("no-such-replica")


async def test_long_lines_and_odd_bytes_come_through_as_written(fleet):
    code = """
        import sys
        sys.stdout.buffer.write(b"a" * 50_000 + b"\\n" + b"\\xff\\xfe\\n")
        sys.stdout.flush()
    """
    runtime = fleet.runtime()
    await ended(runtime, await runtime.start(spec_of(code), 1, quiet))
    written = runtime.log_path("replica-0").read_bytes()
    assert written.startswith(b"a" * 50_000 + b"\n")
    assert written.count(b"\n") == 2


async def test_the_last_words_are_there_once_the_end_is_told(fleet):
    runtime = fleet.runtime()
    for generation in range(1, 6):
        code = f"print('last words of {generation}')\nraise SystemExit(3)"
        handle = await runtime.start(spec_of(code), generation, quiet)
        await ended(runtime, handle)
        assert log_files.tail(runtime.log_path("replica-0"), 9) == [f"last words of {generation}"]
        await runtime.stop(handle, 0.0)


async def test_the_container_has_no_more_rights_than_needed(runtime, docker_client):
    handle = await runtime.start(spec_of(), 1, quiet)
    made = docker_client.containers.get(handle.ref).attrs
    host = made["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "24000"}]}
    assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
