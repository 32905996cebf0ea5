"""A whole fleet of real processes: launcher, router, simulator replicas, each test its own."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from launcher import processes
from launcher.state import StateFolder

DEADLINE_S = 30.0
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _events(log: bytes, kind: str) -> Iterator[dict[str, Any]]:
    """Of a log whose last line may not be whole yet."""
    for line in log.splitlines(keepends=True):
        if line.startswith(b"{") and line.endswith(b"\n"):
            fields = json.loads(line)
            if fields["event"] == kind:
                yield fields


class Fleet:
    """One cluster with a config, a state folder and the commands an operator has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "fleet.yaml"
        self.state_dir = folder / "state"
        self.config: dict[str, Any] = {
            "cluster": "e2e",
            "models": [{"id": "gpu-fleet/simulated-7b", "replicas": 4}],
            "engine": {"name": "simulator", "args": {"load-s": 0.1, "time-scale": 20}},
            "runtime": {
                "state_dir": str(self.state_dir),
                # Out of the way of other clusters of this machine, and of ephemeral ports.
                "first_port": 20_000 + 400 * WORKER + os.getpid() % 400,
                "stop_grace_s": 10,
            },
            "router": {"port": 0, "timeouts": {"drain_s": 10}},
        }
        self.write()
        self.started: list[subprocess.Popen[str]] = []

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.config))

    def command(self, *args: str) -> list[str]:
        verb, *rest = args
        return [sys.executable, "-m", "launcher", verb, "-c", str(self.path), *rest]

    def run(self, *args: str, rc: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == rc, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A command that goes on running; its output goes to files."""
        out = (self.folder / f"out-{len(self.started)}").open("w")
        process = subprocess.Popen(self.command(*args), stdout=out, stderr=out, text=True)
        out.close()
        self.started.append(process)
        return process

    def output_of(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"out-{self.started.index(process)}").read_text()

    def up(self) -> dict[str, Any]:
        self.run("up", "-d")
        return self.status()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.look("--json").stdout)
        return found

    def look(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`launcher status`, whose exit code says what runs."""
        done = subprocess.run(
            self.command("status", *args), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in (0, 1, 3), done.stderr
        return done

    def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status once `what` holds."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not what(status := self.status()):
            assert time.monotonic() < deadline_s, f"never came: {json.dumps(status, indent=1)}"
        return status

    def logged(
        self, event: str, what: Callable[[list[dict[str, Any]]], object]
    ) -> list[dict[str, Any]]:
        """The router's log lines of this kind, once `what` holds of them.

        The router writes a line a moment after what it tells: batches of them, never each.
        """
        log, deadline_s = StateFolder(self.state_dir).log("router"), time.monotonic() + DEADLINE_S
        while not what(lines := list(_events(log.read_bytes(), event))):
            assert time.monotonic() < deadline_s, f"never logged; {event}: {lines[-10:]}"
            time.sleep(0.05)
        return lines

    def until_ready(self) -> dict[str, Any]:
        return self.until(
            lambda s: (
                s["router"]["phase"] == "ready"
                and all(replica["phase"] == "ready" for replica in s["replicas"])
            )
        )

    def generate(self, endpoint: str, max_new_tokens: int = 5, timeout_s: float = 20.0) -> str:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": max_new_tokens}}
        request = urllib.request.Request(
            f"{endpoint}/generate",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            text: str = json.load(reply)["generated_text"]
        return text

    def running(self) -> list[processes.Found]:
        return list(processes.marked(self.state_dir))

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until the process is gone."""
        found = processes.identify(pid)
        assert found is not None
        os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + DEADLINE_S
        while processes.is_running(found):
            assert time.monotonic() < deadline_s

    def clean_up(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        # Launchers first, so that none starts again what is killed after it.
        for _ in range(20):
            left = sorted(self.running(), key=lambda found: found.marks.role != "launcher")
            for found in left:
                processes.send_signal(found.process, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.05)


@contextmanager
def new_fleet() -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="fleet-")).resolve()  # short: it must hold a unix socket
    fleet = Fleet(folder)
    try:
        yield fleet
    finally:
        fleet.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with new_fleet() as fleet:
        yield fleet


@pytest.fixture(scope="session")
def fleets() -> Callable[[], AbstractContextManager[Fleet]]:
    """`with fleets() as fleet`: for tests that share one for longer than a test."""
    return new_fleet


@pytest.fixture(scope="session")
def loads() -> ModuleType:
    """The module load.py."""
    return _beside("load")


@pytest.fixture(scope="session")
def steady() -> ModuleType:
    """The module steady.py."""
    return _beside("steady")


def _beside(file: str) -> ModuleType:
    """`tests` is no package, so its modules are loaded by their place."""
    name = f"gpu_fleet_e2e_{file}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{file}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
