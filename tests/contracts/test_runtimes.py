"""One suite over every runtime: start, wait, poll, stop, find again. Real children throughout."""

import asyncio
import importlib.util
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import log_files
from launcher.config import ClusterConfig
from launcher.engines.base import Command, ContainerCommand
from launcher.placement import ReplicaSpec
from launcher.runtimes import RUNTIMES, DockerRuntime, Handle, ProcessRuntime, Runtime
from launcher.state import StateFolder
from router.errors import OperatorError, StartError

FAKES = Path(__file__).parents[1] / "fakes"
FIRST_PORT = 23_000
SLEEP = "print('up', flush=True); import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + SLEEP
SERVE = """
    import socket, sys, time
    server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
    print("up", flush=True)
    time.sleep(600)
"""
Make = Callable[[Path], Runtime]


def spec_of(code: str, replica_id: str = "replica-0", fingerprint: str = "f1") -> ReplicaSpec:
    return ReplicaSpec(
        id=replica_id,
        model="m",
        model_id=textwrap.dedent(code),
        revision=None,
        dtype=None,
        quantize=None,
        max_input_tokens=None,
        max_total_tokens=None,
        devices=(),
        memory_fraction=None,
        engine_name="simulator",
        engine_version=None,
        image=None,
        args={},
        env={},
        volumes=(),
        shm_bytes=None,
        start_timeout_s=10.0,
        fingerprint=fingerprint,
    )


def quiet(progress: str) -> None:
    """Nobody is told."""


def load_fake(name: str):
    full_name = f"gpu_fleet_fakes_{name}"
    if full_name not in sys.modules:
        found = importlib.util.spec_from_file_location(full_name, FAKES / f"{name}.py")
        sys.modules[full_name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[full_name])
    return sys.modules[full_name]


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[tuple[str, str]]:
    """The URL of a Docker Engine, and an image with Python. In CI, it must be possible."""
    engines = load_fake("docker_engine")
    if problem := engines.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem, pytrace=False)
    with engines.PrivateEngine() as engine:
        yield engine.url, load_fake("images").simulator_image(engine)


def process_runtime(folder: StateFolder) -> Runtime:
    def command(spec: ReplicaSpec, port: int, host: str) -> Command:
        return Command((sys.executable, "-c", spec.model_id, str(port)), {}, "/health", 10.0)

    return ProcessRuntime(folder, command, "127.0.0.1", FIRST_PORT)


def docker_runtime(folder: StateFolder, url: str, image: str) -> Runtime:
    python = load_fake("images").PYTHON

    def command(spec: ReplicaSpec, cache_dir: str) -> ContainerCommand:
        argv = ("-c", spec.model_id, "80")
        return ContainerCommand(image, argv, {}, 80, (), None, "/health", 10.0, (python,))

    runtime = {"name": "docker", "first_port": FIRST_PORT, "docker": {"url": url}}
    config = {"cluster": folder.path.name, "models": ["m"], "runtime": runtime}
    return DockerRuntime(folder, ClusterConfig.model_validate(config), command)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """A runtime for a state folder, as one launcher after the other makes it."""
    made: dict[Path, list[Runtime]] = {}
    engine = request.getfixturevalue("docker_engine") if request.param == "docker" else None

    def make(state_dir: Path) -> Runtime:
        folder = StateFolder(state_dir)
        folder.create()
        runtime = docker_runtime(folder, *engine) if engine else process_runtime(folder)
        made.setdefault(state_dir, []).append(runtime)
        return runtime

    yield make
    for state_dir in list(made):
        last = make(state_dir)
        for handle in await last.owned():
            await last.stop(handle, grace_s=0.0)
        await last.clear_away()
        assert await last.owned() == []
    for runtimes in made.values():
        for runtime in runtimes:
            await runtime.aclose()


@pytest.fixture
async def runtime(make: Make, tmp_path: Path) -> Runtime:
    return make(tmp_path / "state")


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runtime], None]:
    """From now on starts want a program, or an image, that is not here."""

    def process(spec: ReplicaSpec, port: int, host: str) -> Command:
        return Command(("no-such-thing",), {}, "/health", 10.0)

    def docker(spec: ReplicaSpec, cache_dir: str) -> ContainerCommand:
        image = "127.0.0.1:9/no-such-thing:1"  # nothing is asked outside this machine
        return ContainerCommand(image, (), {}, 80, (), None, "/health", 10.0)

    def apply(runtime: Runtime) -> None:
        command_of = docker if runtime.name == "docker" else process
        monkeypatch.setattr(runtime, "_command_of", command_of)

    return apply


async def up(runtime: Runtime, handle: Handle) -> list[str]:
    """The log up to and including `up`."""
    async with asyncio.timeout(10):
        while "up" not in (lines := log_files.tail(runtime.log_path(handle.replica_id), 50)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return lines


def test_the_suite_is_over_every_runtime() -> None:
    assert set(RUNTIMES) == {"docker", "process"}


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_runtime_is_made_from_a_config_and_connects_to_nothing(name: str, tmp_path: Path) -> None:
    config = ClusterConfig.model_validate({"models": ["m"], "runtime": name})
    runtime = RUNTIMES[name].of(config, StateFolder(tmp_path))
    runtime.use(config)
    assert runtime.name == name
    assert runtime.last_generation("replica-0") == 0


@pytest.mark.parametrize("name", sorted(RUNTIMES))
async def test_a_config_that_is_only_asked_about_is_not_followed(name, tmp_path):
    """Whatever `prepare` finds: the change may be refused for another reason afterwards."""
    state = StateFolder(tmp_path)
    before, after = (
        ClusterConfig.model_validate({"models": ["m"], "runtime": {"name": name, **fields}})
        for fields in ({}, {"first_port": 45678, "docker": {"pull": "never"}})
    )
    runtime = RUNTIMES[name].of(before, state)
    told = vars(runtime).copy()
    with suppress(OperatorError):  # without a Docker Engine
        await runtime.prepare([], quiet, after)
    await runtime.aclose()
    assert vars(runtime) == told
    runtime.use(after)
    assert vars(runtime) != told


async def test_preparing_starts_nothing_and_may_be_repeated(runtime: Runtime) -> None:
    for _ in range(2):
        await runtime.prepare([spec_of(SLEEP)], quiet)
    assert await runtime.owned() == []


async def test_clearing_away_touches_nothing_that_runs_and_may_be_repeated(
    runtime: Runtime,
) -> None:
    await runtime.clear_away()
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    for _ in range(2):
        await runtime.clear_away()
    assert await runtime.owned() == [handle]
    assert await runtime.poll(handle) is None


async def test_fetching_starts_nothing_touches_nothing_and_may_be_repeated(
    runtime: Runtime,
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    for _ in range(2):
        await runtime.fetch(spec_of(SLEEP, fingerprint="f2"), quiet)
        await runtime.fetch(spec_of(SLEEP, "replica-1"), quiet)
    assert await runtime.owned() == [handle]
    assert await runtime.poll(handle) is None
    assert runtime.last_generation("replica-0") == 1


async def test_what_a_start_would_lack_is_told_while_another_runs(
    runtime: Runtime, lacking: Callable[[Runtime], None]
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    lacking(runtime)
    with pytest.raises(StartError, match="no-such-thing"):
        await runtime.fetch(spec_of(SLEEP, fingerprint="f2"), quiet)
    assert await runtime.owned() == [handle]


async def test_start_returns_a_handle_of_a_running_replica(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    await up(runtime, handle)
    assert await runtime.poll(handle) is None
    assert (handle.replica_id, handle.generation, handle.fingerprint) == ("replica-0", 1, "f1")
    assert handle.runtime == runtime.name
    assert await runtime.owned() == [handle]


async def test_wait_returns_the_exit_code(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of("import sys; sys.exit(3)"), 1, quiet)
    found = await asyncio.wait_for(runtime.wait(handle), 10)
    assert (found.code, found.signal, found.oom) == (3, None, False)
    assert await runtime.poll(handle) == found  # asked again, it says the same


async def test_wait_returns_the_signal_that_killed_it(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    found = await asyncio.wait_for(runtime.wait(handle), 10)
    assert (found.code, found.signal) == (None, signal.SIGKILL)
    assert "SIGKILL" in found.detail


async def test_cancelling_a_wait_leaves_the_replica_alone(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runtime.wait(handle), 0.05)
    assert await runtime.poll(handle) is None


async def test_stop_lets_it_end_by_itself(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of(POLITE), 1, quiet)
    await up(runtime, handle)
    await runtime.stop(handle, grace_s=10.0)
    found = await runtime.poll(handle)
    assert found is not None
    assert found.code == 7


async def test_stop_kills_what_ignores_it_and_may_be_repeated(runtime: Runtime) -> None:
    handle = await runtime.start(spec_of(DEAF), 1, quiet)
    await up(runtime, handle)
    await runtime.stop(handle, grace_s=0.1)
    await runtime.stop(handle, grace_s=0.1)
    found = await runtime.poll(handle)
    assert found is not None
    assert found.signal == signal.SIGKILL


async def test_another_runtime_finds_and_stops_what_the_first_started(
    runtime: Runtime, make: Make, tmp_path: Path
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 4, quiet)
    await up(runtime, handle)
    other = make(tmp_path / "state")
    assert await other.owned() == [handle]
    assert other.last_generation("replica-0") == 4
    waiting = asyncio.gather(other.wait(handle), runtime.wait(handle))
    await other.stop(handle, grace_s=5.0)
    assert all(found.detail for found in await asyncio.wait_for(waiting, 10))


async def test_a_start_whose_record_was_lost_is_found_by_its_marks(
    runtime: Runtime, make: Make, tmp_path: Path
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 2, quiet)
    await up(runtime, handle)
    (tmp_path / "state/replicas/replica-0.json").write_text('{"half a rec')
    other = make(tmp_path / "state")
    assert await other.owned() == [handle]
    assert other.last_generation("replica-0") > 2


async def test_each_replica_gets_a_port_of_its_own(runtime: Runtime) -> None:
    first = await runtime.start(spec_of(SERVE, "replica-0"), 1, quiet)
    second = await runtime.start(spec_of(SERVE, "replica-1"), 1, quiet)
    await up(runtime, first)
    await up(runtime, second)
    assert first.base_url != second.base_url
    assert await runtime.is_serving_itself(first)
    assert await runtime.is_serving_itself(second)


async def test_a_port_in_use_is_not_given_out(runtime: Runtime) -> None:
    probe = await runtime.start(spec_of(SLEEP), 1, quiet)
    await runtime.stop(probe, grace_s=5.0)
    port = int(probe.base_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        again = await runtime.start(spec_of(SLEEP), 2, quiet)
        assert again.base_url != probe.base_url


async def test_a_port_of_another_cluster_that_still_loads_is_not_given_out(
    runtime: Runtime, make: Make, tmp_path: Path
) -> None:
    loading = await runtime.start(spec_of(SLEEP), 1, quiet)  # nobody listens inside
    other = make(tmp_path / "other")
    theirs = await other.start(spec_of(SLEEP), 1, quiet)
    try:
        assert theirs.base_url != loading.base_url
    finally:
        await other.stop(theirs, grace_s=0.0)


async def test_the_log_of_the_start_before_is_kept(runtime: Runtime) -> None:
    for generation in (1, 2):
        handle = await runtime.start(
            spec_of(f"print('start {generation}')\n{SLEEP}"), generation, quiet
        )
        await up(runtime, handle)
        await runtime.stop(handle, grace_s=5.0)
    path = runtime.log_path("replica-0")
    assert log_files.tail(path, 9)[0] == "start 2"
    assert log_files.tail(log_files.previous(path), 9)[0] == "start 1"


async def test_a_start_that_cannot_be_recorded_is_none(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StartError, match="No space left on device"):
        await runtime.start(spec_of(SLEEP), 1, quiet)
    assert await runtime.owned() == []


async def test_the_devices_of_a_start_are_known_to_the_next_launcher(
    runtime: Runtime, make: Make, tmp_path: Path
) -> None:
    devices = load_fake("docker_engine").GPUS[:2]
    handle = await runtime.start(replace(spec_of(SLEEP), devices=devices), 1, quiet)
    assert [h.devices for h in await make(tmp_path / "state").owned()] == [devices]
    assert handle.devices == devices


async def test_a_log_is_whole_without_a_launcher_once_it_is_caught_up(
    runtime: Runtime, make: Make, tmp_path: Path
) -> None:
    await runtime.start(spec_of(SLEEP), 1, quiet)
    await runtime.aclose()
    other = make(tmp_path / "state")
    async with asyncio.timeout(10):
        while log_files.tail(other.log_path("replica-0"), 9) != ["up"]:
            await other.catch_up_log("replica-0")
