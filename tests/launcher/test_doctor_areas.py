"""Containers, memory, ports and limits, as single checks judge them; engines are made up."""

import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from launcher.checkup import CHECKS, limits, network, shared_memory
from launcher.checkup.base import Finding, Verdict
from launcher.checkup.question import Question
from launcher.checkup.runner import examine
from launcher.checkup.subject import DockerLook, Subject
from launcher.gpu import DriverState, Inventory
from launcher.gpu_view import Look
from router.errors import RuntimeAway

SOON_S = 10.0
NO_DRIVER = Look(Inventory(DriverState.NONE, trouble="no driver"), {})


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Subject]:
    """The subject of a config of one model, on a machine whose driver tells nothing."""

    def make(
        *,
        model: str = "id: a/b, devices: [0]",
        engine: str = "{name: tgi}",
        runtime: str = "name: docker",
        docker: str = "pull: missing",
        router: str = "port: 0",
    ) -> Subject:
        path = tmp_path / "cluster.yaml"
        folders = f"state_dir: {tmp_path}/state"
        folders += f", docker: {{model_cache: {tmp_path}/cache, {docker}}}"
        path.write_text(
            f"models: [{{{model}}}]\nengine: {engine}\n"
            f"runtime: {{{runtime}, {folders}}}\nrouter: {{{router}}}\n"
        )
        subject = Subject.load(path, environ={})
        assert subject.problems == ()
        subject.driver = Question("the driver", lambda: NO_DRIVER, SOON_S, "")
        subject.docker = Question("the engine", _away, SOON_S, "")
        return subject

    return make


def _away() -> DockerLook:
    raise RuntimeAway("no Docker Engine answers; start it")


def telling(subject: Subject, **info: Any) -> Subject:
    """Its Docker Engine answers, and tells this."""
    told = {"Driver": "overlay2", "DockerRootDir": "/", "CgroupDriver": "cgroupfs"} | info
    look = DockerLook({"Version": "28.5.2", "ApiVersion": "1.51"}, told)
    subject.docker = Question("the engine", lambda: look, SOON_S, "")
    return subject


def findings(subject: Subject, name: str) -> list[Finding]:
    checks = [check for check in CHECKS if check.name == name and check.matters(subject)]
    return [result.finding for result in examine(checks, subject)]


def only(subject: Subject, name: str) -> Finding:
    (finding,) = findings(subject, name)
    return finding


# ---- the Docker Engine


def test_what_ends_replicas_when_docker_restarts_is_told(load: Callable[..., Subject]) -> None:
    lasting = telling(load(), LiveRestoreEnabled=True)
    assert only(lasting, "docker restarts").verdict is Verdict.PASS
    fragile = only(telling(load()), "docker restarts")
    assert fragile.verdict is Verdict.WARN
    assert '"live-restore": true' in fragile.advice
    swarm = only(telling(load(), Swarm={"LocalNodeState": "active"}), "docker restarts")
    assert "docker swarm leave" in swarm.advice


@pytest.mark.parametrize(
    ("driver", "way", "verdict"),
    [
        ("systemd", "auto", Verdict.WARN),
        ("systemd", "cdi", Verdict.PASS),
        ("cgroupfs", "auto", Verdict.PASS),
    ],
)
def test_a_daemon_reload_that_takes_gpus_is_warned_of(
    load: Callable[..., Subject], driver: str, way: str, verdict: Verdict
) -> None:
    subject = load(docker=f"gpu_injection: {way}")
    telling(subject, CgroupDriver=driver, CgroupVersion="2")
    finding = only(subject, "cgroups")
    assert finding.verdict is verdict
    assert "cgroup v2" in finding.found


def test_a_slow_storage_driver_is_warned_of(load: Callable[..., Subject]) -> None:
    slow, _ = findings(telling(load(engine="simulator"), Driver="vfs"), "docker storage")
    assert (slow.verdict, "overlay2" in slow.advice) == (Verdict.WARN, True)


def test_a_folder_of_the_engine_that_cannot_be_seen_is_no_failure(
    load: Callable[..., Subject],
) -> None:
    subject = telling(load(), DockerRootDir="/nowhere/docker")
    assert only(subject, "docker storage").verdict is Verdict.SKIP


def test_one_that_is_away_is_one_failure(load: Callable[..., Subject]) -> None:
    subject = load()
    assert only(subject, "docker") == Finding(Verdict.FAIL, "no Docker Engine answers", "start it")
    for name in ("docker storage", "docker restarts", "cgroups", "containers", "image"):
        assert only(subject, name).verdict is Verdict.SKIP


def test_volumes_are_looked_for_and_must_not_hand_the_machine_over(
    load: Callable[..., Subject], tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    volumes = f"[{tmp_path}/gone:/gone, {tmp_path}/here:/here, /run:/run]"
    found = findings(load(engine=f"{{name: tgi, volumes: {volumes}}}"), "mounts")
    by_folder = {finding.about: finding.verdict for finding in found}
    assert by_folder[f"{tmp_path}/gone"] is Verdict.FAIL
    assert by_folder[f"{tmp_path}/here"] is Verdict.PASS
    assert any("whole machine" in one.found for one in found if one.verdict is Verdict.FAIL)


# ---- shared memory


@pytest.mark.parametrize(
    ("engine", "devices", "verdict"),
    [
        ("tgi", "[0]", Verdict.PASS),
        ("tgi", "[[0, 1]]", Verdict.PASS),  # 1 GiB for each shard unless told otherwise
        ("tgi, shm_size: 64MiB", "[0]", Verdict.PASS),
        ("tgi, shm_size: 64MiB", "[[0, 1]]", Verdict.WARN),
        ("vllm", "[[0, 1, 2, 3]]", Verdict.PASS),  # the same for any number
        ("vllm, shm_size: 64MiB", "[[0, 1, 2, 3]]", Verdict.WARN),
    ],
)
def test_shared_memory_of_containers(
    load: Callable[..., Subject], engine: str, devices: str, verdict: Verdict
) -> None:
    subject = load(model=f"id: a/b, devices: {devices}", engine=f"{{name: {engine}}}")
    finding = only(subject, "shared memory")
    assert finding.verdict is verdict
    if verdict is Verdict.WARN:
        assert 'engine.shm_size to "2GiB"' in finding.advice


def test_shared_memory_of_processes(
    load: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    subject = load(model="id: a/b, devices: [[0, 1]]", runtime="name: process")
    monkeypatch.setattr(shared_memory, "_DEV_SHM", small_disk)
    finding = only(subject, "shared memory")
    assert finding.verdict is Verdict.WARN
    assert "expected 2.0 GiB for all shards" in finding.found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


# ---- models that are here


def test_a_model_that_was_downloaded_needs_neither_token_nor_disk(
    load: Callable[..., Subject], tmp_path: Path
) -> None:
    snapshot = tmp_path / "cache" / "models--meta-llama--X" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    subject = load(model="id: meta-llama/X, devices: [0]")
    assert only(subject, "model") == Finding(Verdict.PASS, "downloaded", about="meta-llama/X")
    assert only(subject, "hub token").found == "not needed: all models are here"
    assert only(subject, "model cache").verdict is Verdict.PASS


# ---- ports and limits


def test_the_port_that_tgi_opens_by_itself_must_be_free(
    load: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        monkeypatch.setattr(network, "_TGI_FIXED_PORT", server.getsockname()[1])
        for version, verdict in (("2.3.0", Verdict.FAIL), ("3.3.0", Verdict.PASS)):
            engine = f"{{name: tgi, version: '{version}'}}"
            found = findings(load(engine=engine, runtime="name: process"), "engine ports")
            assert found[-1].verdict is verdict


@pytest.mark.parametrize(
    ("hard", "router", "verdict"),
    [
        (resource.RLIM_INFINITY, "port: 0", Verdict.PASS),
        (1_048_576, "port: 0", Verdict.PASS),
        (20_000, "port: 0, queue: {max_calls: 50000}", Verdict.WARN),
        (1024, "port: 0", Verdict.WARN),
        (256, "port: 0", Verdict.FAIL),
    ],
)
def test_open_files(
    load: Callable[..., Subject],
    monkeypatch: pytest.MonkeyPatch,
    hard: int,
    router: str,
    verdict: Verdict,
) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (256, hard))
    assert only(load(router=router), "open files").verdict is verdict


@pytest.mark.parametrize(
    ("engine", "setting", "verdict"),
    [
        ("{name: tgi}", "2", Verdict.WARN),
        ("{name: tgi}", "0", Verdict.PASS),
        ("simulator", "2", Verdict.PASS),  # nothing of it is CUDA
    ],
)
def test_a_kernel_that_never_overcommits_is_warned_of_where_cuda_runs(
    load: Callable[..., Subject],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    engine: str,
    setting: str,
    verdict: Verdict,
) -> None:
    overcommit = tmp_path / "overcommit_memory"
    overcommit.write_text(f"{setting}\n")
    monkeypatch.setattr(limits, "_OVERCOMMIT", overcommit)
    assert only(load(engine=engine), "kernel limits").verdict is verdict


def test_few_threads_are_warned_of(
    load: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (1024, 1024))
    finding = only(load(engine="simulator"), "kernel limits")
    assert (finding.verdict, "1,024 processes" in finding.found) == (Verdict.WARN, True)


@pytest.mark.parametrize(("host", "verdict"), [("0.0.0.0", "warn"), ("127.0.0.1", "pass")])
def test_who_reaches_the_endpoint(load: Callable[..., Subject], host: str, verdict: str) -> None:
    assert only(load(router=f"port: 0, host: {host}"), "endpoint").verdict == verdict


def test_an_endpoint_with_keys_and_tls_may_be_reached(load, tmp_path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    pem = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    keys = f"keys: [{{name: a, hash: 'sha256:{'0' * 64}'}}]"
    router = f"port: 0, host: 0.0.0.0, {keys}, tls: {{certificate: {pem}, key: {pem}}}"
    finding = only(load(router=router), "endpoint")
    assert (finding.verdict, finding.found) == (
        "pass",
        "0.0.0.0 asks for a key, over TLS; 1 name may call",
    )
    pem.write_text("no certificate")
    finding = only(load(router=router), "endpoint")
    assert finding.verdict == "fail"
    assert finding.found.startswith(f"router.tls.certificate: {pem}: found no such thing")
