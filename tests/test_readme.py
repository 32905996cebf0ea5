"""Every command the README gives is run as it stands there, in order, by a shell.

Only two things are replaced: `.venv/bin/` by the environment the tests run in, and port 8080 by a
free one.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
START_S = 60

pytestmark = pytest.mark.e2e


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
INSTALLS = [command for command in COMMANDS if "pip install" in command]


def containing(*words: str) -> list[str]:
    return [
        command
        for command in COMMANDS
        if command not in INSTALLS and any(word in command for word in words)
    ]


CURLS = containing("curl ")
SHOWN = re.findall(r"^```sh\n(curl .*?)^```\n```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ASKS = containing("launcher ask")
CHECKS = containing(
    "launcher validate", "launcher schema", "launcher devices", "--gpu", "--dry-run"
)
ON_GPUS = [command for command in containing("configs/tgi.yaml") if command not in CHECKS]
"""Run against a real Docker Engine, in tests/docker."""
VERBS = [
    command for command in containing("launcher ") if command not in (*ASKS, *CHECKS, *ON_GPUS)
]
ROUTERS = containing(".venv/bin/router")
BENCHES = containing("tests.bench", "tests.campaign", "tests.fuzz")


class Shell:
    """Runs commands against one free port and one state folder."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.env = os.environ | {
            "GPU_FLEET_PORT": str(self.port),
            "XDG_STATE_HOME": str(home),
        }

    def text(self, command: str) -> str:
        return command.replace(".venv/bin/", f"{BIN}/").replace("8080", str(self.port))

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", self.text(command)],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-ec", f"exec {self.text(command)}"],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, path: str, process: subprocess.Popen[str]) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            try:
                urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).close()
            except (HTTPError, URLError, OSError) as exc:
                if isinstance(exc, HTTPError):
                    exc.close()
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"{path} did not answer within {START_S} s")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The README's main job, its installing part left out."""
    shell = Shell(tmp_path_factory.mktemp("state"))
    process = shell.start(INSTALLS[0].rpartition("&& ")[2])
    try:
        shell.wait_for("/info", process)
        yield shell
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=START_S)


def test_no_command_is_left_out() -> None:
    known = [*INSTALLS, *CURLS, *ASKS, *CHECKS, *ON_GPUS, *VERBS, *ROUTERS, *BENCHES]
    assert [command for command in COMMANDS if command.strip() and command not in known] == []
    assert len(INSTALLS) == 2
    assert len(SHOWN) == len(CURLS) == 2


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert INSTALLS[1] in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_curl_gets_the_text_shown(cluster: Shell, command: str, shown: str) -> None:
    text = re.findall(r'"generated_text":"[^"]+"', shown)
    assert len(text) == 1
    assert text[0] in cluster.run(command.replace("curl ", "curl -s "))


@pytest.mark.parametrize("command", ASKS)
def test_ask_streams_an_answer(cluster: Shell, command: str) -> None:
    assert len(cluster.run(command).split()) > 10


@pytest.mark.parametrize("program", blocks("python"))
def test_client_libraries_work_as_shown(cluster: Shell, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", cluster.text(program)],
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("command", CHECKS)
def test_configs_can_be_checked(shell: Shell, command: str) -> None:
    assert shell.run(command)


def test_verbs_run_in_the_order_shown(shell: Shell) -> None:
    try:
        for command in VERBS:
            shell.run(command)
    finally:
        shell.run(VERBS[-1])
    assert VERBS[-1].startswith(".venv/bin/launcher down")


@pytest.mark.parametrize("command", ROUTERS)
def test_router_alone_serves_and_stops(shell: Shell, command: str) -> None:
    """Its replicas are not there: it must serve all the same."""
    process = shell.start(re.sub(r"10\.0\.0\.\d+:8080", _closed_port, command))
    try:
        shell.wait_for("/metrics", process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)
    assert process.returncode == 0


@pytest.mark.parametrize("command", BENCHES)
def test_what_takes_long_takes_the_options_shown(shell: Shell, command: str) -> None:
    """That it runs to its end is tested where it lives."""
    help_text = shell.run(command.split(" --")[0] + " --help")
    options = [word for word in command.split() if word.startswith("--")]
    assert options
    assert [option for option in options if option not in help_text] == []


def _closed_port(_: re.Match[str]) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
