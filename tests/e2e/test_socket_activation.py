"""A service manager owns the public port: launchers and routers come and go on it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

# What systemd does: the socket becomes descriptor 3, two variables tell of it, then it executes.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="public")
os.execv(sys.argv[2], sys.argv[2:])
"""
ACTIVATOR = "systemd-socket-activate"


@pytest.fixture
def public() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener


@pytest.fixture
def activate(fleet, public):
    """`activate()` is `launcher up` on the public socket, until it was asked to stop or killed."""
    port = public.getsockname()[1]
    fleet.config["router"] |= {"host": "127.0.0.1", "port": port}
    fleet.write()

    def start() -> subprocess.Popen[str]:
        fd = public.fileno()
        argv = [sys.executable, "-c", ACTIVATE, str(fd), *fleet.command("up")]
        with (fleet.folder / "out").open("a") as out:
            process = subprocess.Popen(argv, stdout=out, stderr=out, text=True, pass_fds=[fd])
        fleet.started.append(process)
        return process

    return start


def endpoint_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def environ_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def test_the_cluster_serves_on_a_socket_that_is_not_its_own(fleet, activate, public) -> None:
    launcher = activate()
    status = fleet.until_ready()
    assert status["endpoint"] == endpoint_of(public)
    assert fleet.generate(endpoint_of(public))
    pids = [status["router"]["pid"], *(replica["pid"] for replica in status["replicas"])]
    assert [pid for pid in pids if "LISTEN_" in environ_of(pid)] == []
    fleet.run("down")
    assert launcher.wait(timeout=30) == 0
    with socket.create_connection(public.getsockname(), timeout=5):
        pass  # whoever calls now waits for the next one


def test_calls_wait_in_the_socket_from_one_launcher_to_the_next(fleet, activate, public) -> None:
    """Also the very first one, which may be what starts the service: it is not refused."""
    with ThreadPoolExecutor() as callers:
        first = callers.submit(fleet.generate, endpoint_of(public))
        activate()
        assert first.result()
        fleet.run("down")
        second = callers.submit(fleet.generate, endpoint_of(public))
        activate()
        assert second.result()


def test_the_next_launcher_adopts_what_a_killed_one_left_on_that_socket(
    fleet, activate, public
) -> None:
    launcher = activate()
    before = fleet.until_ready()
    launcher.kill()
    launcher.wait()
    assert fleet.generate(endpoint_of(public))
    second = activate()
    after = fleet.until(lambda s: s["launcher"]["pid"] == second.pid)
    after = fleet.until_ready()
    for status in (before, after):
        status.pop("launcher")
    assert after["router"]["pid"] == before["router"]["pid"]
    assert [r["pid"] for r in after["replicas"]] == [r["pid"] for r in before["replicas"]]
    assert fleet.generate(endpoint_of(public))


def test_another_address_than_the_configs_is_refused_before_anything_starts(
    fleet, activate, public
) -> None:
    fleet.config["router"]["host"] = "0.0.0.0"
    fleet.write()
    launcher = activate()
    assert launcher.wait(timeout=30) == 1
    said = (fleet.folder / "out").read_text()
    assert said.startswith("error: router.host/port: found 0.0.0.0:")
    assert f"the inherited socket listens on 127.0.0.1:{public.getsockname()[1]}" in said
    assert fleet.running() == []


def ask_for_metrics(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("role", ["launcher", "router"])
def test_systemds_own_activator_starts_it_with_the_first_call(fleet, role: str) -> None:
    if shutil.which(ACTIVATOR) is None:
        problem = f"{ACTIVATOR} is not installed (Debian: systemd)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem, pytrace=False)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    fleet.config["router"] |= {"host": "127.0.0.1", "port": port}
    fleet.write()
    router = [sys.executable, "-m", "router", "--replica=http://127.0.0.1:9"]
    command = fleet.command("up") if role == "launcher" else router
    activator = subprocess.Popen(
        [ACTIVATOR, f"--listen=127.0.0.1:{port}", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    fleet.started.append(activator)
    with activator.stderr:
        assert "Listening on" in activator.stderr.readline()
        assert ask_for_metrics(port) == 200
        if role == "launcher":
            assert json.loads(fleet.look("--json").stdout)["launcher"]["pid"] == activator.pid
            fleet.until_ready()
            assert fleet.generate(f"http://127.0.0.1:{port}")
        activator.send_signal(signal.SIGTERM)
        activator.stderr.read()
    assert activator.wait(timeout=60) == 0
