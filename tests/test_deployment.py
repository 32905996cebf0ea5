"""The image, the compose files and the systemd units agree with each other and our commands."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app as launcher
from launcher.config import load_cluster_config
from launcher.simulator.cli import parse
from router.cli import cli as router
from router.config import RouterFile, load_model, read_source

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSED = sorted(CONFIGS.glob("compose*.yaml"))
UNITS = sorted((CONFIGS / "systemd").glob("gpu-fleet*"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]
IN_IMAGE = "/etc/gpu-fleet/fleet.yaml"


def services_of(path: Path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text())["services"]


ALL_SERVICES = [
    pytest.param(service, id=f"{path.stem}:{name}")
    for path in COMPOSED
    for name, service in services_of(path).items()
]


def is_accepted(command: list[str]) -> None:
    """Our own parser takes it; nothing is started, as help comes last."""
    program, *rest = command
    if program == "python":
        assert rest[:2] == ["-m", "launcher.simulator"]
        assert parse(rest[2:], {}).port
        return
    done = CliRunner().invoke({"launcher": launcher, "router": router}[program], [*rest, "--help"])
    assert done.exit_code == 0, done.output
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    assert [option for option in options if option not in done.output] == []


class Unit(configparser.RawConfigParser):
    """A unit file, of which no key stands twice."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=True, interpolation=None, comment_prefixes=("#",))
        self.optionxform = str
        self.read_string(path.read_text())

    def commands(self) -> list[list[str]]:
        service = self["Service"]
        return [shlex.split(service[key]) for key in ("ExecStart", "ExecStop") if key in service]


# ---- the image ----


def test_the_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in DOCKERFILE


def test_all_that_the_image_copies_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert [name for name in sent if not (ROOT / name).exists()] == ["wheels/*.whl"]
    copied = re.findall(r"^COPY (configs/\S+|pyproject\.toml)", DOCKERFILE, re.MULTILINE)
    assert set(copied) == {"configs/container.yaml", "pyproject.toml"}
    assert set(copied) < set(sent)
    assert {"launcher", "router", "README.md", "LICENSE"} < set(sent)  # what `pip install` reads


def test_the_images_command_starts_the_config_it_has() -> None:
    [command] = re.findall(r"^CMD (\[.*\])", DOCKERFILE, re.MULTILINE)
    is_accepted(yaml.safe_load(command))
    assert f" {IN_IMAGE}\n" in DOCKERFILE
    assert yaml.safe_load(command)[-1] == IN_IMAGE
    config = load_cluster_config(CONFIGS / "container.yaml")
    assert (config.router.host, config.router.port) == ("0.0.0.0", 8080)
    assert "EXPOSE 8080\n" in DOCKERFILE


# ---- compose ----


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_each_services_command_is_one_of_ours(service) -> None:
    assert service["image"] == "gpu-fleet"
    is_accepted([str(word) for word in service["command"]])


@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_each_build_context_holds_the_dockerfile(path: Path) -> None:
    builds = [service["build"] for service in services_of(path).values() if "build" in service]
    assert len(builds) == 1
    assert (path.parent / builds[0]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"


def test_the_launchers_folders_have_the_machines_paths() -> None:
    [service] = services_of(CONFIGS / "compose.yaml").values()
    mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
    assert all(source == target for source, target in mounts.items())
    assert service["network_mode"] == "host"
    assert Path(service["command"][-1]).parent == Path("/etc/gpu-fleet")
    assert {"/etc/gpu-fleet", "/var/lib/gpu-fleet", "/var/run/docker.sock"} == set(mounts)
    assert "XDG_STATE_HOME=/var/lib " in DOCKERFILE


def test_the_router_knows_each_replica_by_its_service() -> None:
    services = services_of(CONFIGS / "compose-router.yaml")
    alone = services.pop("router")
    urls = [word.partition("=")[2] for word in alone["command"] if word.startswith("--replica=")]
    assert urls == [f"http://{name}:80" for name in services]
    assert alone["depends_on"] == list(services)
    assert all("ports" not in service for service in services.values())
    assert alone["ports"] == ["127.0.0.1:8080:8080"]


# ---- systemd ----


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_each_unit_runs_our_commands(path: Path) -> None:
    for program, *rest in Unit(path).commands():
        assert program.startswith("/opt/gpu-fleet/bin/")
        is_accepted([Path(program).name, *rest])


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_each_service_has_its_socket_where_the_example_serves(path: Path) -> None:
    assert Unit(path)["Unit"]["Requires"] == f"{path.stem}.socket"
    listen = Unit(path.with_suffix(".socket"))["Socket"]["ListenStream"]
    assert listen == "0.0.0.0:8080"  # not the port alone, which is [::]:8080
    if path.stem == "gpu-fleet":
        config = load_cluster_config(CONFIGS / "tgi.yaml")
        assert listen == f"{config.router.host}:{config.router.port}"
    else:
        assert load_model(read_source(CONFIGS / "router-only.yaml"), RouterFile).replicas


def test_a_dead_launcher_takes_no_replica_with_it() -> None:
    service = Unit(CONFIGS / "systemd" / "gpu-fleet.service")["Service"]
    assert (service["KillMode"], service["OOMPolicy"]) == ("process", "continue")
    assert (service["Restart"], service["Type"]) == ("on-failure", "notify")
    # These close the GPUs' device files, or end what is needed to load kernels for them.
    assert {"PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute"} & set(service) == set()


@pytest.mark.parametrize("path", [*SERVICES, *UNITS], ids=lambda path: path.name)
def test_every_file_a_comment_names_exists(path: Path) -> None:
    named = set(re.findall(r"(configs/[\w./-]+[\w])", path.read_text()))
    assert [name for name in named if not list(ROOT.glob(f"{name}*"))] == []


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        problem = "systemd-analyze is not installed (Debian: systemd)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem, pytrace=False)
    for unit in UNITS:  # programs must exist; that they are where we say is the operator's part
        text = unit.read_text().replace("/opt/gpu-fleet/bin", str(Path(sys.executable).parent))
        (tmp_path / unit.name).write_text(text)
    copies = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([program, "verify", *copies], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "gpu-fleet" in line]
    assert (done.returncode, ours) == (0, [])
