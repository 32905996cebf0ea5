"""The real processes of a campaign: simulators, the wires before them, the router; and their ends.

Each writes to files and ends with us, whatever ends us. Only processes started here are signalled.
"""

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 30.0
PR_SET_PDEATHSIG = 1
MODEL = "campaign"
PERMITS = 32
EOS_RATE = 0.004
FIRST_PORT = 10_000
PORTS = 10_000
"""Below every system's ephemeral ports: a port that is left for a moment is still ours then."""
ROUTER = {
    "port": 0,
    "timeouts": {"between_events_s": 3, "connect_s": 1, "total_s": 90, "drain_s": 5},
    "health": {"interval_s": 0.5, "timeout_s": 0.5, "eject_base_s": 1, "eject_max_s": 3},
}


class CampaignError(Exception):
    """A process did not do its part; the message says which, with its last words."""


class Process:
    """A Python module as a child."""

    def __init__(self, argv: list[str], files: Path, *, takes_orders: bool = False) -> None:
        self.argv = argv
        self.out = files.with_suffix(".out")
        self.err = files.with_suffix(".err")
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *argv],
                cwd=ROOT,
                stdin=subprocess.PIPE if takes_orders else subprocess.DEVNULL,
                stdout=subprocess.PIPE if takes_orders else out,
                stderr=err,
                preexec_fn=_end_with_parent,
            )
        self.pid = self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """At once; gone when this returns."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def terminate(self, timeout_s: float) -> int:
        """Its exit code after SIGTERM."""
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.error(f"did not end within {timeout_s:g} s of SIGTERM") from None

    def order(self, order: dict[str, Any]) -> str:
        """Sends a line, gives the line that answers it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self.line()

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise self.error("ended")
        return line

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        until_s = time.monotonic() + READY_TIMEOUT_S
        while not is_ready():
            if self.has_ended or time.monotonic() > until_s:
                raise self.error("did not get ready")
            time.sleep(0.02)

    def error(self, what: str) -> CampaignError:
        words = self.err.read_text(errors="replace").strip()[-2000:]
        return CampaignError(f"{self.argv[0]} {what}; it said:\n{words or '(nothing)'}")


def _end_with_parent() -> None:
    """In the child: with its parent's, and not by Ctrl-C, which the campaign handles."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Simulator:
    """One replica: started, killed and started again on the same port."""

    def __init__(self, port: int, files: Path, flags: list[str]) -> None:
        self.port = port
        self._files = files
        self._flags = flags
        self.process: Process | None = None

    def start(self) -> None:
        argv = ["launcher.simulator", f"--port={self.port}", *self._flags]
        self.process = Process(argv, self._files)

    def wait_ready(self) -> None:
        assert self.process is not None
        self.process.wait_until(lambda: answers(self.port, "/health"))

    def fetch(self, method: str, path: str, body: Any = None) -> bytes:
        return fetched(self.port, method, path, body)


class Fleet:
    """Simulators behind wires, and a router before them."""

    def __init__(
        self,
        folder: Path,
        replicas: int,
        token_model: str,
        time_scale: float,
        router: dict[str, Any],
        engine_flags: Sequence[str],
    ) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        ports = free_ports()
        flags = [
            *("--faults", "--gpu=a100", f"--time-scale={time_scale}", "--load-s=0.2"),
            *(f"--token-model={token_model}", f"--eos-rate={EOS_RATE}"),
            f"--max-concurrent-requests={PERMITS}",
            *engine_flags,
        ]
        self.simulators = [
            Simulator(next(ports), folder / f"replica-{i}", flags) for i in range(replicas)
        ]
        self.wire_ports = [next(ports) for _ in range(replicas)]
        self._config = folder / "router.yaml"
        self._config.write_text(yaml.safe_dump({"router": router}))
        self.router_port = 0
        self.wire: Process
        self.router: Process

    @property
    def admin_socket(self) -> Path:
        return self.state_dir / "router.sock"

    def start(self) -> None:
        """All of it; the router still has to be told of the replicas."""
        for simulator in self.simulators:
            simulator.start()
        pairs = [
            f"{port}:{simulator.port}"
            for port, simulator in zip(self.wire_ports, self.simulators, strict=True)
        ]
        self.wire = Process(
            ["tests.campaign.wire", *pairs], self.folder / "wire", takes_orders=True
        )
        self.wire.line()
        argv = ["router", f"--config={self._config}", f"--state-dir={self.state_dir}"]
        self.router = Process(argv, self.folder / "router")
        self.router.wait_until(lambda: b"serving on " in self.router.err.read_bytes())
        told = self.router.err.read_text().split("serving on ")[1].split()[0]
        self.router_port = int(told.rpartition(":")[2])
        for simulator in self.simulators:
            simulator.wait_ready()

    def listed(self, generations: list[int], phases: dict[int, str]) -> list[dict[str, Any]]:
        """The replicas as a launcher tells of them."""
        return [
            {
                "id": f"replica-{i}",
                "generation": generation,
                "url": f"http://127.0.0.1:{self.wire_ports[i]}",
                "model": MODEL,
                "phase": phases.get(i, "ready"),
            }
            for i, generation in enumerate(generations)
        ]

    def close(self) -> None:
        for name in ("router", "wire"):
            if (process := getattr(self, name, None)) is not None:
                process.kill()
        for simulator in self.simulators:
            if simulator.process is not None:
                simulator.process.kill()


@contextlib.contextmanager
def running(
    folder: Path,
    replicas: int,
    token_model: str = "text",
    time_scale: float = 2.0,
    router: dict[str, Any] = ROUTER,
    engine_flags: Sequence[str] = (),
) -> Iterator[Fleet]:
    fleet = Fleet(folder, replicas, token_model, time_scale, router, engine_flags)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


def free_ports() -> Iterator[int]:
    """Endless ports that nobody listens on; different ones for campaigns side by side."""
    start = os.getpid() * 37 % PORTS
    for i in itertools.count():
        port = FIRST_PORT + (start + i) % PORTS
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            yield port


def answers(port: int, path: str) -> bool:
    try:
        fetched(port, "GET", path)
    except (OSError, http.client.HTTPException):
        return False
    return True


def fetched(port: int, method: str, path: str, body: Any = None) -> bytes:
    """A page of a process that is well. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        reply = connection.getresponse()
        read = reply.read()
        if reply.status != 200:
            raise http.client.HTTPException(f"{path} answered {reply.status}: {read[:200]!r}")
        return read
    finally:
        connection.close()
