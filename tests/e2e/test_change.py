"""An edited config and `launcher up` again: what changed is replaced in turn, unnoticed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest

from launcher.commands.up import CHANGE_SIGNAL
from launcher.state import StateFolder

pytestmark = pytest.mark.e2e


def pids(status):
    return {replica["id"]: replica["pid"] for replica in status["replicas"]}


@asynccontextmanager
async def running(load):
    """The load in the background; afterwards every call in flight has been answered."""
    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            yield load
        finally:
            load.stop()


async def up_again(fleet) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(fleet.run, "up")


async def test_one_flag_changes_on_four_replicas_under_load_and_no_call_fails(fleet, loads):
    fleet.config["engine"]["args"] |= {"time-scale": 3, "max-batch-size": 8}
    fleet.write()
    before = fleet.up()
    load = loads.Load(before["endpoint"], loads.small(1, (20, 80)), clients=64)
    async with running(load):
        await load.served(200)
        fleet.config["engine"]["args"]["max-batch-size"] = 16
        fleet.write()
        begun_s, sent = time.monotonic(), len(load.answers)
        done = await up_again(fleet)
        took_s, during = time.monotonic() - begun_s, len(load.answers) - sent
        await load.served(200)
    wrong = Counter(a.error or "another text" for a in load.answers if not a.is_right)
    assert wrong == Counter()
    after = fleet.status()
    assert not set(pids(before).values()) & set(pids(after).values())
    assert before["launcher"] == after["launcher"]
    assert before["router"]["pid"] == after["router"]["pid"]
    assert "~ replica-2: args.max-batch-size: 8 -> 16" in done.stdout
    # At no time was more than one of the four away.
    ready = {line for line in done.stdout.splitlines() if "replicas ready" in line}
    assert not any(line.startswith(("0 of", "1 of", "2 of")) for line in ready)
    print(f"\nreplaced 4 replicas in {took_s:.1f} s; of {during} calls meanwhile 0 failed")


async def test_only_what_changed_is_replaced_added_or_stopped(fleet, loads):
    before = fleet.up()
    fleet.config["engine"]["per_replica"] = [{}, {"max-batch-size": 4}]
    fleet.config["models"][0]["replicas"] = 3
    fleet.write()
    load = loads.Load(before["endpoint"], loads.small(2, (5, 20)), clients=16)
    async with running(load):
        await load.served(50)
        done = await up_again(fleet)
        await load.served(50)
    assert [a.error for a in load.answers if not a.is_right] == []
    assert done.stdout.splitlines()[:3] == [
        "~ replica-1: args.max-batch-size: none -> 4",
        "- replica-3: drained, then stopped",
        "= replica-0, replica-2: unchanged",
    ]
    after = pids(fleet.status())
    old = pids(before)
    assert (after["replica-0"], after["replica-2"]) == (old["replica-0"], old["replica-2"])
    assert after["replica-1"] != old["replica-1"]
    assert set(after) == {"replica-0", "replica-1", "replica-2"}
    fleet.config["models"][0]["replicas"] = 5
    fleet.write()
    assert "+ replica-4: simulator serving" in fleet.run("up").stdout
    assert pids(fleet.status())["replica-0"] == old["replica-0"]


async def test_a_changed_router_section_is_taken_over_without_a_failed_call(fleet, loads):
    before = fleet.up()
    port = int(before["endpoint"].rpartition(":")[2])
    load = loads.Load(before["endpoint"], loads.small(3, (5, 40)), clients=32)
    async with running(load):
        await load.served(50)
        fleet.config["router"]["queue"] = {"timeout_s": 33}
        fleet.write()
        done = await up_again(fleet)
        await load.served(100)
    assert [a.error for a in load.answers if not a.is_right] == []
    assert "~ router: queue.timeout_s: " in done.stdout
    after = fleet.status()
    assert after["router"]["pid"] != before["router"]["pid"]
    assert pids(after) == pids(before)
    assert after["endpoint"].endswith(f":{port}")


def test_a_change_that_does_not_work_takes_out_one_replica_and_can_be_taken_back(fleet):
    before = fleet.up()
    fleet.config["engine"]["env"] = {"PYTHONHOME": "/nowhere"}  # no Python starts with it
    fleet.write()
    failed = fleet.run("up", rc=1)
    assert "replica-0: " in failed.stderr
    assert "replica-1, replica-2, replica-3 serve on with the older config" in failed.stderr
    during = fleet.status()
    assert [replica["phase"] for replica in during["replicas"]][1:] == ["ready"] * 3
    assert [replica["outdated"] for replica in during["replicas"]][1:] == [True] * 3
    assert fleet.generate(before["endpoint"])
    del fleet.config["engine"]["env"]
    fleet.write()
    fleet.run("up")
    after = fleet.until_ready()
    assert {k: v for k, v in pids(after).items() if k != "replica-0"} == {
        k: v for k, v in pids(before).items() if k != "replica-0"
    }


def named(fleet, launcher) -> bool:
    """Whether others take this process for the one to ask."""
    holder = StateFolder(fleet.state_dir).holder()
    return holder is not None and holder.pid == launcher.pid


def test_what_is_asked_of_a_launcher_that_is_starting_is_followed(fleet):
    launcher = fleet.start("up")
    while not named(fleet, launcher):
        assert launcher.poll() is None
        time.sleep(0.001)
    launcher.send_signal(CHANGE_SIGNAL)  # long before it listens
    fleet.config["models"][0]["replicas"] = 5
    fleet.write()
    fleet.run("up")
    assert launcher.poll() is None
    assert len(pids(fleet.status())) == 5
    # Nor does it end it in its last moments, when it listens no more.
    launcher.send_signal(signal.SIGTERM)
    while launcher.poll() is None:
        with suppress(ProcessLookupError):
            launcher.send_signal(CHANGE_SIGNAL)
        time.sleep(0.001)
    assert launcher.returncode == 0
    assert "stopped, nothing of it runs" in fleet.output_of(launcher)


def test_of_two_changes_at_once_the_earlier_is_told_of_the_later(fleet):
    fleet.up()
    fleet.config["engine"]["args"]["load-s"] = 100  # simulated: the later one finds it under way
    fleet.write()
    earlier = fleet.start("up")
    fleet.until(lambda status: any(replica["outdated"] for replica in status["replicas"]))
    fleet.config["models"][0]["replicas"] = 2
    fleet.config["engine"]["args"]["load-s"] = 0.1
    fleet.write()
    fleet.run("up")
    assert earlier.wait(30) == 1
    assert "superseded by a later change" in fleet.output_of(earlier)
    assert len(pids(fleet.status())) == 2


def test_a_config_that_cannot_be_followed_changes_nothing(fleet):
    before = fleet.up()
    fleet.path.write_text(fleet.path.read_text() + "modles: []\n")
    assert "modles" in fleet.run("up", rc=2).stderr
    fleet.config["runtime"]["name"] = "docker"
    fleet.write()
    refused = fleet.run("up", rc=1)
    assert "runtime.name: found docker, but process runs" in refused.stderr
    fleet.config["runtime"]["name"] = "process"
    fleet.write()
    again = fleet.run("up")
    assert "runs this config already" in again.stdout
    after = fleet.status()
    assert pids(after) == pids(before)
    assert after["router"]["pid"] == before["router"]["pid"]


# ---- SIGHUP ----


def launcher_log(fleet) -> str:
    return StateFolder(fleet.state_dir).log("launcher").read_text()


def test_sighup_has_a_detached_launcher_follow_its_edited_config(fleet):
    before = fleet.up()
    launcher = before["launcher"]["pid"]
    fleet.path.write_text(fleet.path.read_text() + "modles: []\n")
    os.kill(launcher, signal.SIGHUP)
    deadline_s = time.monotonic() + 20
    while "config: not followed: " not in launcher_log(fleet):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    fleet.config["models"][0]["replicas"] = 5
    fleet.write()
    os.kill(launcher, signal.SIGHUP)
    after = fleet.until(lambda status: len(status["replicas"]) == 5)
    assert after["launcher"]["pid"] == launcher
    assert pids(before).items() <= pids(after).items()
    fleet.until_ready()
    assert "config: + replica-4: simulator serving gpu-fleet/simulated-7b" in launcher_log(fleet)


ON_A_TERMINAL = """
import os, pty, signal, sys, threading
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started by
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
print(pid, flush=True)
closing = threading.Thread(target=sys.stdin.read)
closing.start()
while closing.is_alive():
    os.read(terminal, 65536)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_closed_terminal_stops_everything_and_a_signal_from_there_does_not(fleet):
    argv = [sys.executable, "-c", ON_A_TERMINAL, *fleet.command("up")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    terminal = subprocess.Popen(argv, **pipes, text=True)
    fleet.started.append(terminal)
    launcher = int(terminal.stdout.readline())
    fleet.until_ready()
    fleet.config["models"][0]["replicas"] = 3
    fleet.write()
    os.kill(launcher, signal.SIGHUP)
    fleet.until(lambda status: len(status["replicas"]) == 3)
    terminal.stdin.close()
    assert terminal.wait(timeout=30) == 0
    terminal.stdout.close()
    assert fleet.running() == []
