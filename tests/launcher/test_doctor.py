"""`launcher doctor` as operators and scripts run it: a process, real sockets, disks and limits."""

import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml import GIB, FakeNvml

ARGV = [sys.executable, "-m", "launcher", "doctor"]
WAIT_S = 60.0
ROUTER = "router: {port: 0}"
SIMULATOR = f"models: [a/b]\n{ROUTER}\n"
FEW_FILES = 256


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes one; state and models stay in the test's folder."""

    def write(text: str = SIMULATOR) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return write


class Doctor:
    """One run: its exit code, and what it found by check."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stdout, done.stderr
        self.code, self.text = done.returncode, done.stdout + done.stderr
        self.told = json.loads(done.stdout)

    def __getitem__(self, check: str) -> list[tuple[str, str]]:
        return [
            (one["verdict"], one["found"]) for one in self.told["checks"] if one["check"] == check
        ]

    def advice(self, check: str) -> str:
        return " ".join(one["advice"] for one in self.told["checks"] if one["check"] == check)


def execute(
    *args: str | Path, cwd: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "DOCKER_HOST")
    }
    environ |= options.pop("env", {})
    argv = [*ARGV, *map(str, args)]
    return subprocess.run(
        argv,
        env=environ,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        **options,
    )


def doctor(path: Path, **options: Any) -> Doctor:
    return Doctor(execute("-c", path, "--json", **options))


def tgi(*more: str, devices: str = "[0]", model: str = "a/b") -> str:
    """A config of TGI as processes."""
    first = f"models: [{{id: {model}, devices: {devices}}}]"
    return "\n".join([first, "engine: tgi", *more, ROUTER, ""])


@contextmanager
def tmpfs(options: str) -> Iterator[Path]:
    """A disk of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a disk needs root")
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


# ---- the command


def test_a_machine_that_can_run_it_is_told_how_to_go_on(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config(SIMULATOR + f"runtime: {{state_dir: {tmp_path}/state}}\n")
    done = execute("-c", path)
    assert (done.returncode, done.stderr) == (0, "")
    *findings, empty, summary, hint = done.stdout.splitlines()
    assert findings[0].split()[:2] == ["pass", "config"]
    assert empty == ""
    assert summary.endswith("0 warnings, 0 failed")
    assert hint == f"next: `launcher up -c {path}`"
    assert not (tmp_path / "state").exists(), "a check makes nothing"


def test_without_a_config_the_machine_in_general_is_looked_at(
    nvml: FakeNvml, tmp_path: Path
) -> None:
    nvml.add_gpu()
    done = execute("--json", cwd=tmp_path, env=nvml.env | {"DOCKER_HOST": "unix:///nowhere"})
    told = Doctor(done)
    assert told.code == 0
    assert told.told["config"] is None
    assert [verdict for verdict, _ in told["gpu"]] == ["pass"]
    assert [verdict for verdict, _ in told["docker"]] == ["skip"]
    assert told["router port"] == told["placement"] == []


def test_fleet_yaml_is_taken_where_nobody_names_a_config(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(SIMULATOR)
    told = Doctor(execute("--json", cwd=tmp_path))
    assert (told.told["config"], told.told["cluster"]) == ("fleet.yaml", "default")


def test_every_problem_of_a_config_is_told_and_the_code_says_so(
    config: Callable[..., Path],
) -> None:
    told = doctor(config("models: [{id: a/b, replicas: none}]\nengin: tgi\n"))
    assert told.code == 2
    assert [verdict for verdict, _ in told["config"]] == ["fail", "fail"]
    assert told["software"], "the rest is looked at all the same"


def test_a_config_for_the_router_alone_is_one(config: Callable[..., Path]) -> None:
    told = doctor(config("replicas: [http://127.0.0.1:8080]\n" + ROUTER + "\n"))
    assert told.code == 0
    assert "router alone" in told["config"][0][1]
    assert told["driver"] == told["replica ports"] == []


def test_counts_and_verdict_sum_the_findings_up(config: Callable[..., Path]) -> None:
    told = doctor(config("models: [a/b]\nrouter: {port: 0, host: 0.0.0.0}\n")).told
    assert told["verdict"] == "warn"
    assert told["counts"]["warn"] == 1
    assert sum(told["counts"].values()) == len(told["checks"])


# ---- driver and GPUs


def test_a_driver_that_was_updated_under_way_ends_all_hope(
    nvml: FakeNvml, config: Callable[..., Path]
) -> None:
    nvml.add_gpu()
    nvml.fail_init(18)
    told = doctor(config(tgi()), env=nvml.env)
    assert told.code == 1
    ((verdict, found),) = told["driver"]
    assert verdict == "fail"
    assert "reboot" in found
    assert [told[name][0][0] for name in ("gpu", "placement")] == ["skip", "skip"]


def test_without_a_driver_processes_have_no_gpu(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    told = doctor(config(tgi()), env={"LD_LIBRARY_PATH": str(tmp_path)})
    if told["driver"][0][0] == "pass":
        pytest.skip("this machine has a driver")
    assert [verdict for verdict, _ in told["driver"]] == ["fail"]
    assert "engine: simulator" in told.advice("driver")


def test_a_gpu_that_fell_off_the_bus_is_a_failure(
    nvml: FakeNvml, config: Callable[..., Path]
) -> None:
    nvml.lose(nvml.add_gpu())
    nvml.add_gpu()
    told = doctor(config(tgi(devices="[1]")), env=nvml.env)
    assert [verdict for verdict, _ in told["driver"]] == ["pass", "fail"]
    assert [verdict for verdict, _ in told["gpu"]] == ["pass"]
    told = doctor(config(tgi(devices="[0]")), env=nvml.env)
    assert told["placement"][0][0] == "fail"


def test_only_wanted_gpus_are_judged_and_strangers_on_them_are_named(
    nvml: FakeNvml, config: Callable[..., Path]
) -> None:
    wanted, other = nvml.add_gpu(), nvml.add_gpu()
    nvml.add_process(wanted, os.getpid(), 3 * GIB)
    nvml.add_process(other, os.getpid(), GIB)
    told = doctor(config(tgi(devices="[0]")), env=nvml.env)
    ((verdict, found),) = told["gpu"]
    assert verdict == "warn"
    assert f"pid {os.getpid()} " in found
    assert "3.0 GiB" in found


def test_gpus_that_fall_asleep_are_told(nvml: FakeNvml, config: Callable[..., Path]) -> None:
    nvml.add_gpu()
    nvml.add_gpu(persistence=0)
    told = doctor(config(tgi()), env=nvml.env)
    ((verdict, found),) = told["persistence"]
    assert verdict == "warn"
    assert found.startswith("off for cuda:1:")


def test_what_does_not_fit_points_to_the_plan(nvml: FakeNvml, config: Callable[..., Path]) -> None:
    nvml.add_gpu(total=24 * GIB, name="NVIDIA L4", cc=(8, 9))
    path = config(tgi(model="mistralai/Mistral-7B-Instruct-v0.3"))
    ((verdict, _),) = doctor(path, env=nvml.env)["fit"]
    assert verdict == "pass"
    nvml.change(nvml.gpus[0], used=20 * GIB)
    told = doctor(path, env=nvml.env)
    assert told["fit"][0][0] in ("warn", "fail")
    assert f"`launcher plan -c {path}`" in told.advice("fit")


# ---- programs and limits


def test_an_engine_that_is_not_installed_is_told_and_one_that_is_passes(
    nvml: FakeNvml, config: Callable[..., Path], tmp_path: Path
) -> None:
    nvml.add_gpu()
    told = doctor(config(tgi()), env=nvml.env)
    assert told["programs"][0][0] == "fail"
    assert "text-generation-launcher is not on PATH" in told["programs"][0][1]
    program = tmp_path / "text-generation-launcher"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    told = doctor(config(tgi()), env=nvml.env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert told["programs"] == [("pass", f"text-generation-launcher is {program}")]


def test_too_few_files_for_a_router_are_a_failure(config: Callable[..., Path]) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))

    told = doctor(config(), preexec_fn=few)
    assert told["open files"][0][0] == "fail"
    assert "at most 256" in told["open files"][0][1]


# ---- ports


def test_a_router_port_that_somebody_has_is_a_failure_that_names_him(
    config: Callable[..., Path],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = doctor(config(f"models: [a/b]\nrouter: {{port: {port}}}\n"))
    ((verdict, found),) = told["router port"]
    assert (told.code, verdict) == (1, "fail")
    assert f"pid {os.getpid()}" in found
    told = doctor(config(f"models: [a/b]\nrouter: {{port: {port}}}\n"))
    assert told["router port"] == [("pass", f"127.0.0.1:{port} is free")]


def test_taken_replica_ports_are_passed_over(config: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = doctor(config(f"{SIMULATOR}runtime: {{first_port: {min(port, 65_000)}}}\n"))
    if port > 65_000:
        pytest.skip("the system gave a port that no config may begin at")
    ((verdict, found),) = told["replica ports"]
    assert verdict == "pass"
    assert f"({port}: pid {os.getpid()} " in found


def test_an_address_of_another_machine_is_a_failure(config: Callable[..., Path]) -> None:
    told = doctor(config(f"{SIMULATOR}runtime: {{host: 192.0.2.1}}\n"))
    assert told["replica ports"][0][0] == "fail"


def test_what_a_running_cluster_holds_is_its_own(
    config: Callable[..., Path], short_folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    path = config(
        "models: [a/b]\nengine: {name: simulator, args: {load-s: 0}}\n"
        f"router: {{port: {port}}}\nruntime: {{state_dir: {short_folder}}}\n"
    )
    launcher = [sys.executable, "-m", "launcher"]
    subprocess.run([*launcher, "up", "-d", "-c", path], check=True, capture_output=True)
    try:
        told = doctor(path)
    finally:
        subprocess.run([*launcher, "down", "-c", path], check=True, capture_output=True)
    assert told.code == 0
    assert "is held by this cluster" in told["router port"][0][1]
    assert told["replica ports"] == [("pass", "1 replica of this cluster already running")]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Short enough for a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# ---- disks and models


def test_a_full_disk_under_the_state_folder_is_a_failure(config: Callable[..., Path]) -> None:
    with tmpfs("size=1m") as disk:
        told = doctor(config(f"{SIMULATOR}runtime: {{state_dir: {disk}/state}}\n"))
    assert told["state folder"][0][0] == "fail"
    assert "free disk" in told["state folder"][0][1]


def test_a_disk_that_cannot_be_written_to_is_a_failure(config: Callable[..., Path]) -> None:
    with tmpfs("size=1m,ro") as disk:
        told = doctor(config(f"{SIMULATOR}runtime: {{state_dir: {disk}/state}}\n"))
    assert told["state folder"] == [("fail", f"{disk}/state: this user may not write there")]


def test_a_model_cache_too_small_for_the_model_is_a_failure(
    nvml: FakeNvml, config: Callable[..., Path]
) -> None:
    nvml.add_gpu()
    path = config(tgi(model="mistralai/Mistral-7B-Instruct-v0.3"))
    with tmpfs("size=1m") as disk:
        told = doctor(path, env=nvml.env | {"HF_HOME": str(disk)})
    ((verdict, found),) = told["model cache"]
    assert verdict == "fail"
    assert f"{disk}/hub (will be made)" in found
    assert "expected 13.5 GiB" in found


def test_a_small_disk_for_a_model_of_unknown_size_is_a_warning(
    nvml: FakeNvml, config: Callable[..., Path]
) -> None:
    nvml.add_gpu()
    with tmpfs("size=1m") as disk:
        told = doctor(config(tgi(model="a/b")), env=nvml.env | {"HF_HUB_CACHE": str(disk)})
    ((verdict, found),) = told["model cache"]
    assert verdict == "warn"
    assert "not known how much a/b takes" in found


def test_a_local_model_is_looked_into(
    nvml: FakeNvml, config: Callable[..., Path], tmp_path: Path
) -> None:
    nvml.add_gpu()
    model = tmp_path / "model"
    path = config(tgi(model=str(model)))
    assert doctor(path, env=nvml.env)["model"] == [("fail", "no such file or folder")]
    model.mkdir()
    ((verdict, found),) = doctor(path, env=nvml.env)["model"]
    assert verdict == "fail"
    assert "config.json" in found


# ---- the hub's token

SECRET = "Zq8XwVtY5uBn"


def test_a_token_is_never_shown(nvml: FakeNvml, config: Callable[..., Path]) -> None:
    nvml.add_gpu()
    for token in (f"hf_{SECRET}", f"hf_{SECRET} {SECRET}", SECRET):
        told = doctor(config(tgi()), env=nvml.env | {"HF_TOKEN": token})
        assert len(told["hub token"]) == 1
        assert SECRET[:6] not in told.text


def test_a_token_in_the_config_counts_first(nvml: FakeNvml, config: Callable[..., Path]) -> None:
    nvml.add_gpu()
    text = tgi().replace("engine: tgi", f"engine: {{name: tgi, env: {{HF_TOKEN: hf_{SECRET}}}}}")
    told = doctor(config(text), env=nvml.env | {"HF_TOKEN": "bad one"})
    assert told["hub token"][0][0] == "pass"
    assert SECRET not in told.text
