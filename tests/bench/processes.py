"""Starts the stand-ins, what is measured in front of them, and the load; pinned; ends them all.

Every measurement has processes of its own: none profits from what an earlier one left behind.
"""

import contextlib
import ctypes
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import machine, wire

ROOT = Path(__file__).resolve().parents[2]
REPLICAS = 4
READY_TIMEOUT_S = 30.0
PR_SET_PDEATHSIG = 1

DIRECT, RELAY, ROUTER = "direct", "relay", "router"
TARGETS = (DIRECT, RELAY, ROUTER)


class BenchError(Exception):
    """A process did not start or did not answer; the message says which, with its last words."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the load needs to know."""

    ports: list[int]
    stand_in_pid: int
    middle_pid: int | None
    """The relay's or the router's; None when going direct."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The stand-ins."""

    replicas: int = REPLICAS
    interval_ms: int = 20
    batch: int | None = None
    """Calls that each one says it runs at a time; None: it does not say."""

    @property
    def argv(self) -> list[str]:
        named = [f"--replicas={self.replicas}", f"--interval-ms={self.interval_ms}"]
        return [*named, *([] if self.batch is None else [f"--batch={self.batch}"])]


@contextlib.contextmanager
def running(target: str, engines: Engines, options: Sequence[str] = ()) -> Iterator[Setup]:
    """Stand-ins and, unless the target is `direct`, the relay or a router in front of them.

    `options`: more of the router's.
    """
    where = machine.cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-bench-")))
        argv = ["tests.bench.stand_in", *engines.argv]
        stand_in = Child(where.load, argv, folder / "stand-in")
        stack.callback(stand_in.stop)
        ports = stand_in.ports()
        if target == DIRECT:
            yield Setup(ports, stand_in.pid, None)
            return
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        make = _relay_argv if target == RELAY else _router_argv
        argv = [*make(listener.fileno(), ports), *options]
        middle = Child(where.router, argv, folder / target, listener.fileno())
        stack.callback(middle.stop)
        port = listener.getsockname()[1]
        told = engines.replicas if target == ROUTER else 0
        middle.wait_until(lambda: _serves(port, told))
        yield Setup([port], stand_in.pid, middle.pid)


def load(setup: Setup, arguments: list[str], timeout_s: float) -> dict[str, Any]:
    """Runs the load to its end; gives what it printed."""
    where = machine.cores()
    watched = [pid for pid in (setup.middle_pid, setup.stand_in_pid) if pid is not None]
    named = [
        *(f"--port={port}" for port in setup.ports),
        *(f"--watch={pid}" for pid in watched),
        *(f"--router-core={core}" for core in where.router),
        *(f"--load-core={core}" for core in where.load),
    ]
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        process = Child(where.load, ["tests.bench.load", *named, *arguments], Path(folder) / "l")
        try:
            return process.result(timeout_s)
        finally:
            process.stop()


def wait_until_quiet(limit_s: float) -> None:
    """Waits for the machine's other users to pause, but not for ever."""
    where = machine.cores()
    both = where.router | where.load
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        before_s = machine.busy_s(both)
        time.sleep(0.3)
        if machine.busy_s(both) - before_s <= 0.03 * len(both):
            return


class Child:
    """A Python module as a child on given cores; it ends with us, whatever ends us."""

    def __init__(
        self, cores: frozenset[int], argv: list[str], files: Path, inherited_fd: int | None = None
    ) -> None:
        self.name = argv[0]
        self._out = files.with_suffix(".out")
        self._err = files.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *argv],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[] if inherited_fd is None else [inherited_fd],
                preexec_fn=lambda: _bind(cores),
            )
        self.pid = self._process.pid

    def stop(self) -> None:
        """At once: nobody needs what it could still finish."""
        self._process.kill()
        self._process.wait()

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        until_s = time.monotonic() + READY_TIMEOUT_S
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise self._error("did not get ready")
            time.sleep(0.02)

    def told(self, pattern: str) -> str:
        """The first group of what it prints, once it has."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self._out.read_text() + self._err.read_text())

        self.wait_until(lambda: found() is not None)
        match = found()
        assert match is not None
        return match[1]

    def ports(self) -> list[int]:
        """The line of port numbers it prints first."""
        self.wait_until(lambda: self._out.read_bytes().endswith(b"\n"))
        return [int(port) for port in self._out.read_text().split()]

    def result(self, timeout_s: float) -> dict[str, Any]:
        """The JSON object it prints before it ends."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._error(f"was not done within {timeout_s:g} s") from None
        if code != 0:
            raise self._error(f"ended with exit code {code}")
        printed: dict[str, Any] = json.loads(self._out.read_text())
        return printed

    def _error(self, what: str) -> BenchError:
        words = self._err.read_text(errors="replace").strip()[-2000:]
        return BenchError(f"{self.name} {what}; it said:\n{words or '(nothing)'}")


def _bind(cores: frozenset[int]) -> None:
    """In the child, before it runs: its cores, and that the kernel ends it with its parent."""
    os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _relay_argv(fd: int, ports: list[int]) -> list[str]:
    return ["tests.bench.relay", f"--fd={fd}", *(f"--to={port}" for port in ports)]


def _router_argv(fd: int, ports: list[int]) -> list[str]:
    urls = [f"--replica=http://127.0.0.1:{port}" for port in ports]
    return ["router", f"--fd={fd}", *urls]


def _serves(port: int, told: int) -> bool:
    """A call is answered, and so many replicas have told the router their limits."""
    try:
        if told:
            info = json.loads(_fetched(port, "GET", "/info"))
            if info["max_batch_total_tokens"] < told * wire.TOLD_TOKENS:
                return False
        body = json.dumps(
            {"inputs": "warm-up call", "parameters": {"max_new_tokens": 1, "details": False}},
            separators=(",", ":"),
        )
        for _ in range(2 * REPLICAS):
            _fetched(port, "POST", "/generate", body)
    except (OSError, http.client.HTTPException, KeyError):
        return False
    return True


def _fetched(port: int, method: str, path: str, body: str | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise http.client.HTTPException(f"{path} answered {reply.status}")
        return reply.read()
    finally:
        connection.close()
