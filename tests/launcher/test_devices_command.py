"""`launcher devices` as people and scripts run it: a process, the real pynvml, the fake library."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import asking
from launcher.commands import devices
from router.errors import DeviceError
from tests.fakes.nvml import GIB, FakeNvml

ARGV = [sys.executable, "-m", "launcher", "devices"]
WAIT_S = 30.0


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path)


def run(nvml: FakeNvml, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | nvml.env
    return subprocess.run(
        [*ARGV, *args], env=env, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def test_gpus_are_listed_with_those_who_use_them(nvml: FakeNvml) -> None:
    first = nvml.add_gpu()
    cut = nvml.add_gpu()
    part = nvml.add_slice(cut)
    nvml.add_process(first, os.getpid(), GIB)
    done = run(nvml)
    assert (done.returncode, done.stderr) == (0, "")
    heading, _, *rows = done.stdout.splitlines()
    assert heading == "NVIDIA driver 560.35.03, CUDA up to 12.6: 2 GPUs, 1 MIG slice"
    assert [row.split()[:2] for row in rows] == [
        ["cuda:0", first.uuid],
        ["cuda:1", cut.uuid],
        ["MIG", part.uuid],
    ]
    assert f" {os.getpid()} " in rows[0]


def test_scripts_get_one_object(nvml: FakeNvml) -> None:
    gpu = nvml.add_gpu()
    done = run(nvml, "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["state"], told["driver_version"], told["trouble"]) == ("ok", "560.35.03", "")
    assert [device["uuid"] for device in told["devices"]] == [gpu.uuid]


def test_every_field_of_the_json_is_documented(nvml: FakeNvml) -> None:
    gpu = nvml.add_gpu()
    nvml.add_process(gpu, 1)
    told = json.loads(run(nvml, "--json").stdout)
    (device,) = told["devices"]
    for name in (*told, *device, *device["processes"][0]):
        assert re.search(rf"\b{name}\b", devices.__doc__), name


def test_a_lost_gpu_is_an_exit_code_and_the_rest_is_shown(nvml: FakeNvml) -> None:
    _, lost, last = (nvml.add_gpu() for _ in range(3))
    nvml.lose(lost)
    done = run(nvml)
    assert done.returncode == 1
    assert "cuda:1: GPU is lost: it has fallen off the bus" in done.stdout
    assert f"cuda:2  {last.uuid}" in done.stdout
    assert run(nvml, "--json").returncode == 1


def test_a_broken_driver_is_an_exit_code_and_says_what_to_do(nvml: FakeNvml) -> None:
    nvml.fail_init(18)
    done = run(nvml)
    assert done.returncode == 1
    assert "reboot" in done.stdout
    told = run(nvml, "--json")
    assert (told.returncode, json.loads(told.stdout)["state"]) == (1, "broken")


@pytest.mark.parametrize("args", [(), ("--watch",), ("--watch", "--json")])
def test_no_gpu_is_no_error(nvml: FakeNvml, args: tuple[str, ...]) -> None:
    done = run(nvml, *args)
    assert done.returncode == 0
    if "--json" in args:
        assert json.loads(done.stdout)["devices"] == []
    else:
        assert "no GPUs" in done.stdout
        assert "The simulator needs no GPU" in done.stdout


def test_a_driver_that_hangs_is_told_and_does_not_hang_us(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.2)
    gpu = nvml.add_gpu(hangs="nvmlDeviceGetUtilizationRates")
    with nvml.loaded():
        with pytest.raises(DeviceError, match="has not answered for"):
            devices.run()
        nvml.change(gpu, hangs=None)
        monkeypatch.undo()  # it may take a while until the call that hung lets go
        assert devices.run() == 0


def test_a_bug_behind_the_driver_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("launcher.gpus.GpuMonitor", broken)
    with pytest.raises(ZeroDivisionError):
        devices.run()


class Terminal:
    """`launcher devices` on a terminal of its own."""

    def __init__(self, nvml: FakeNvml, *args: str, columns: int = 80, rows: int = 40) -> None:
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {key: os.environ[key] for key in os.environ if key not in ("COLUMNS", "LINES")}
        env |= nvml.env | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            [*ARGV, *args], env=env, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self.shown = ""

    def wait_for(self, is_there: Callable[[str], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_there(self.shown):
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"never came; shown: {self.shown!r}"
            if select.select([self._main], [], [], left_s)[0]:
                self._read()

    def end(self) -> int:
        code = self.process.wait(WAIT_S)
        while select.select([self._main], [], [], 0)[0] and self._read():
            pass
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)

    def _read(self) -> bool:
        try:
            raw = os.read(self._main, 65_536)
        except OSError:  # the other side is closed
            return False
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode()).replace("\r", "")
        return bool(raw)


@pytest.fixture
def on_terminal(nvml: FakeNvml) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, **size: int) -> Terminal:
        opened.append(Terminal(nvml, *args, **size))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_a_terminal_gets_blocks_of_its_width(nvml: FakeNvml, on_terminal) -> None:
    gpu = nvml.add_gpu("GPU-6d1f0c5e-7f3b-4c1a-9e0d-2b8f6a4c1d3e")
    nvml.add_process(gpu, os.getpid(), 3 * GIB)
    terminal = on_terminal(columns=80)
    assert terminal.end() == 0
    lines = terminal.shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[:2] == ["cuda:0", "H100"]
    assert lines[3].split() == [gpu.uuid, "PCI", "0000:1A:00.0"]
    assert lines[4].strip().startswith(f"{os.getpid()} python")


def test_watching_shows_what_changes_until_ctrl_c(nvml: FakeNvml, on_terminal) -> None:
    gpu = nvml.add_gpu()
    terminal = on_terminal("--watch")
    terminal.wait_for(lambda shown: "31C" in shown)
    nvml.change(gpu, temp=77)
    terminal.wait_for(lambda shown: "77C" in shown)
    nvml.lose(gpu)
    terminal.wait_for(lambda shown: "GPU is lost" in shown)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("args", [("--watch",), ("--watch", "--json")])
def test_watching_on_a_pipe_goes_on_line_by_line(nvml: FakeNvml, args: tuple[str, ...]) -> None:
    gpu = nvml.add_gpu(temp=41)
    watching = subprocess.Popen(
        [*ARGV, *args],
        env=os.environ | nvml.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with watching:
        lines = iter(watching.stdout.readline, "")
        first = next(line for line in lines if "41" in line)
        nvml.change(gpu, temp=77)
        later = next(line for line in lines if "77" in line)
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=WAIT_S)
    assert (watching.returncode, said) == (130, "")
    if "--json" in args:
        assert json.loads(first)["devices"][0]["temperature_c"] == 41
        assert json.loads(later)["devices"][0]["temperature_c"] == 77
    else:
        assert re.match(rf"\d{{4}}-\d\d-\d\dT[\d:]+Z  cuda:0  {gpu.uuid}", later)


def test_a_reader_that_leaves_ends_the_watch(nvml: FakeNvml) -> None:
    nvml.add_gpu()
    watching = subprocess.Popen(
        [*ARGV, "--watch"], env=os.environ | nvml.env, stdout=subprocess.PIPE, text=True
    )
    with watching:
        assert "NVIDIA driver" in watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(WAIT_S) == 0
