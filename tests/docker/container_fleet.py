"""A whole fleet in containers, as an operator has it: the launcher's commands, a real Docker
Engine, GPUs of the fake NVML library with the very ids that the engine knows.

Loaded by `conftest`. Nothing of the product is imported but what tells processes apart.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from launcher import processes

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
LAUNCHER = (sys.executable, "-m", "launcher")
COMMAND_S = 90.0
DEADLINE_S = 60.0
LOADED_S = 100.0
LABEL = "io.gpu-fleet.home"


class ContainerFleet:
    """One cluster with a config, a state folder and GPUs of its own, on an engine of the tests."""

    def __init__(self, folder: Path, engine: Any, client: Any, nvml: Any) -> None:
        self.folder, self.engine, self.client, self.nvml = folder, engine, client, nvml
        self.path = folder / "fleet.yaml"
        self.state_home = folder / "state"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            **engine.env,
            **nvml.env,
            "XDG_STATE_HOME": str(self.state_home),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "GPU_FLEET_PORT": "0",
        }
        self.config: dict[str, Any] = {}
        self.started: list[subprocess.Popen[str]] = []

    # ---- its config

    def use(self, path: Path) -> None:
        """An example config as it is."""
        self.path, self.config = path, yaml.safe_load(path.read_text())

    def use_tgi(self, devices: Any, simulator: str = "--load-s 0.2") -> None:
        """TGI's example, quick: its engine takes these flags of the simulator."""
        config = yaml.safe_load((CONFIGS / "tgi.yaml").read_text())
        config["models"][0] |= {"name": "tgi", "devices": devices}
        config["engine"]["env"]["SIMULATOR_ARGS"] = simulator
        config["runtime"]["stop_grace_s"] = 15
        config["router"] = {"port": 0}
        self.write(config)

    def write(self, config: Mapping[str, Any] | None = None) -> None:
        """`config`, or what a test made of the last one."""
        self.config = dict(config) if config is not None else self.config
        self.path = self.folder / "fleet.yaml"
        self.path.write_text(yaml.safe_dump(self.config))

    @property
    def state_dir(self) -> Path:
        return self.state_home / "gpu-fleet" / str(self.config["cluster"])

    # ---- commands

    def command(self, verb: str, *args: str) -> list[str]:
        return [*LAUNCHER, verb, "-c", str(self.path), *args]

    def run(self, *args: str, rc: int = 0) -> subprocess.CompletedProcess[str]:
        done = self._done(self.command(*args))
        assert done.returncode == rc, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def run_bare(self, *args: str) -> subprocess.CompletedProcess[str]:
        """A command that takes no config."""
        return self._done([*LAUNCHER, *args])

    def _done(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=COMMAND_S, check=False, env=self.env
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A command that goes on running; see `output_of`."""
        with (self.folder / f"out-{len(self.started)}").open("w") as out:
            process = subprocess.Popen(
                self.command(*args), stdout=out, stderr=out, text=True, env=self.env
            )
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
        done = self._done(self.command("status", *args))
        assert done.returncode in (0, 1, 3), done.stderr
        return done

    # ---- waiting

    def record(self) -> dict[str, Any]:
        """What the launcher last wrote down; reading it costs next to nothing."""
        try:
            found: dict[str, Any] = json.loads((self.state_dir / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def until(self, what: Callable[[dict[str, Any]], bool], why: str = "") -> dict[str, Any]:
        """The record once `what` holds of it."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not ((record := self.record()) and what(record)):
            assert time.monotonic() < deadline_s, (
                f"never came: {why}\n{json.dumps(record, indent=1)}\n{self.log('launcher')}"
            )
            time.sleep(0.05)
        return record

    def until_ready(self) -> dict[str, Any]:
        return self.until(
            lambda r: (
                r["router"]["phase"] == "ready"
                and all(replica["phase"] == "ready" for replica in r["replicas"])
            ),
            "all ready",
        )

    def log(self, name: str) -> str:
        try:
            return (self.state_dir / "logs" / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""

    # ---- what runs

    @property
    def containers(self) -> list[Any]:
        """Of this cluster, in any state, by name."""
        labels = {"label": [f"{LABEL}={self.state_dir}"]}
        found = self.client.containers.list(all=True, filters=labels, ignore_removed=True)
        return sorted(found, key=lambda one: one.name)

    def container(self, replica_id: str) -> Any:
        return self.client.containers.get(f"gpu-fleet.{self.config['cluster']}.{replica_id}")

    def processes(self) -> list[processes.Found]:
        return list(processes.marked(self.state_dir))

    def left(self) -> list[str]:
        """What still runs or stands, for people; empty after `down`."""
        mine = [f"container {one.name} {one.status}" for one in self.containers]
        mine += [f"process {found.process} {found.marks.role}" for found in self.processes()]
        return mine

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until the process is gone."""
        found = processes.identify(pid)
        assert found is not None
        os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + DEADLINE_S
        while processes.is_running(found):
            assert time.monotonic() < deadline_s

    # ---- calls

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of any reply."""
        request = urllib.request.Request(
            f"{self.endpoint}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers, exc.read()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.endpoint}{path}", timeout=30) as reply:
            text: str = reply.read().decode()
        return text

    def who_generates(self) -> str:
        """Which replica answers the next call."""
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 5}}
        status, headers, reply = self.post("/generate", body)
        assert status == 200, reply
        assert json.loads(reply)["generated_text"]
        return headers["x-fleet-replica"]

    @property
    def endpoint(self) -> str:
        found: str = self.record()["endpoint"]
        return found

    @asynccontextmanager
    async def loaded(self, load: Any, served: int = 40) -> AsyncIterator[None]:
        """The load goes on before, during and after; each call must have been answered rightly."""
        async with asyncio.timeout(LOADED_S), asyncio.TaskGroup() as group:
            group.create_task(load.run())
            try:
                await load.served(served)
                yield
                await load.served(served)
            finally:
                load.stop()
        wrong = Counter(a.error or "another text" for a in load.answers if not a.is_right)
        assert wrong == Counter(), f"{wrong.total()} of {len(load.answers)}: {wrong}"

    # ---- ending

    def clean_up(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        # Launchers first, so that none starts again what is killed after it.
        for _ in range(40):
            left = sorted(self.processes(), key=lambda found: found.marks.role != "launcher")
            for found in left:
                processes.send_signal(found.process, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.05)


@contextmanager
def container_fleet(engine: Any, client: Any, nvml_of: Callable[[Path], Any]) -> Iterator[Any]:
    """Its folder is short, as it must hold a unix socket; whatever runs is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cf-")).resolve()
    fleet = ContainerFleet(folder, engine, client, nvml_of(folder))
    try:
        yield fleet
        if fleet.config and fleet.left():
            fleet.run("down")
        assert fleet.left() == []
    finally:
        fleet.clean_up()
        shutil.rmtree(folder, ignore_errors=True)
