"""What only processes do: children, sessions, marks, recycled pids. The rest: tests/contracts."""

import asyncio
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from launcher import log_files, processes
from launcher.engines.base import Command
from launcher.placement import ReplicaSpec
from launcher.processes import ProcessId
from launcher.runtimes import Handle, ProcessRuntime
from launcher.state import StateFolder
from router.errors import StartError

SLEEP = "print('up', flush=True); import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
POLITE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + SLEEP
PARENT = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    print("up", flush=True)
    time.sleep(600)
"""
# A wrapper that empties its environment after it has started its shards.
UNMARKED_PARENT = """
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    program = "print('up', flush=True); import time; time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-c", program], {})
"""
# What a setproctitle-using engine does to its environment as /proc shows it.
SCRUBBED = """
    import os, sys, time
    if "SCRUBBED" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {"SCRUBBED": "1"})
    print("up", flush=True)
    time.sleep(600)
"""


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


def python_command(spec: ReplicaSpec, port: int, host: str) -> Command:
    return Command((sys.executable, "-c", spec.model_id, str(port)), {}, "/health", 10.0)


def make_runtime(state_dir: Path) -> ProcessRuntime:
    folder = StateFolder(state_dir)
    folder.create()
    return ProcessRuntime(folder, python_command, "127.0.0.1", 23_000)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    runtime = make_runtime(tmp_path / "state")
    yield runtime
    for handle in await runtime.owned():
        await runtime.stop(handle, grace_s=0.0)
    assert list(processes.marked(tmp_path / "state")) == []


async def up(runtime: ProcessRuntime, handle: Handle) -> list[str]:
    """The log up to and including `up`."""
    async with asyncio.timeout(10):
        while "up" not in (lines := log_files.tail(runtime.log_path(handle.replica_id), 50)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return lines


async def test_each_replica_leads_a_session_of_its_own(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    assert handle.pid is not None
    assert processes.session_of(handle.pid) == handle.pid


async def test_stop_ends_a_stopped_process_politely(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(spec_of(POLITE), 1, quiet)
    await up(runtime, handle)
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGSTOP)
    await runtime.stop(handle, grace_s=10.0)
    found = await runtime.poll(handle)
    assert found is not None
    assert found.code == 7


async def test_stop_takes_the_children_along(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(spec_of(PARENT), 1, quiet)
    child = child_of(await up(runtime, handle))
    await runtime.stop(handle, grace_s=5.0)
    assert not processes.is_running(child)


async def test_children_of_a_dead_replica_do_not_keep_the_gpu(runtime: ProcessRuntime) -> None:
    handle = await runtime.start(spec_of(PARENT), 1, quiet)
    child = child_of(await up(runtime, handle))
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    await asyncio.wait_for(runtime.wait(handle), 10)
    await runtime.stop(handle, grace_s=0.0)
    assert not processes.is_running(child)


async def test_a_start_whose_leader_dropped_its_marks_is_found_once(
    runtime: ProcessRuntime,
) -> None:
    """Taken for two starts, the children would be stopped as strays of the adopted leader."""
    handle = await runtime.start(spec_of(UNMARKED_PARENT), 1, quiet)
    child = child_of(await up(runtime, handle))
    assert await runtime.owned() == [handle]
    await runtime.stop(handle, grace_s=0.0)
    assert not processes.is_running(child)


async def test_a_replica_that_scrubbed_its_environment_is_found_by_its_record(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    handle = await runtime.start(spec_of(SCRUBBED), 1, quiet)
    await up(runtime, handle)
    assert await make_runtime(tmp_path / "state").owned() == [handle]


async def test_orphans_of_a_start_are_owned_but_wanted_by_nobody(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    handle = await runtime.start(spec_of(PARENT), 1, quiet)
    child = child_of(await up(runtime, handle))
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGKILL)
    os.waitpid(handle.pid, 0)  # noqa: ASYNC222  # as init would, had the launcher died
    other = make_runtime(tmp_path / "state")
    [orphan] = await other.owned()
    assert (orphan.pid, orphan.fingerprint) == (child.pid, "")
    await other.stop(orphan, grace_s=0.0)
    assert not processes.is_running(child)


async def test_a_recycled_pid_is_neither_found_nor_signalled(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    victim = ProcessId.parse(handle.ref)
    earlier = ProcessId(victim.pid, victim.start_ticks - 100, victim.boot)
    assert not processes.send_signal(earlier, signal.SIGKILL)
    assert processes.session_members(earlier) == []
    assert processes.is_running(victim)


async def test_what_another_program_answers_is_not_taken_for_the_replica(
    runtime: ProcessRuntime,
) -> None:
    handle = await runtime.start(spec_of(SLEEP), 1, quiet)
    port = int(handle.base_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        assert not await runtime.is_serving_itself(handle)


async def test_a_missing_program_is_not_tried_again(
    tmp_path: Path, runtime: ProcessRuntime
) -> None:
    folder = StateFolder(tmp_path / "state")
    missing = ProcessRuntime(
        folder,
        lambda spec, port, host: Command(("no-such-engine",), {}, "/health", 1.0),
        "127.0.0.1",
        23_000,
    )
    with pytest.raises(StartError, match="no-such-engine") as caught:
        await missing.start(spec_of(SLEEP), 1, quiet)
    assert not caught.value.recoverable
    assert await missing.owned() == []


async def test_nothing_is_left_when_the_start_cannot_be_recorded(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = os.replace
    calls = []

    def full_disk(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:  # the record of the running process
            raise OSError(28, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StartError, match="No space left on device"):
        await runtime.start(spec_of(SLEEP), 1, quiet)
    assert await runtime.owned() == []


async def test_only_the_named_descriptors_reach_a_replica(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)  # as a descriptor from our own parent would be
    try:
        code = "import os; print(sorted(os.listdir('/proc/self/fd')), flush=True); " + SLEEP
        handle = await runtime.start(spec_of(code), 1, quiet)
        assert (await up(runtime, handle))[0] == "['0', '1', '2', '3']"  # 3 is the listing's own
    finally:
        os.close(leaked)


def child_of(lines: list[str]) -> ProcessId:
    pid = next(int(line.split()[1]) for line in lines if line.startswith("child"))
    child = processes.identify(pid)
    assert child is not None
    return child
