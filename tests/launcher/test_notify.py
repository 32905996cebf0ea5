"""The service manager is told what it needs, once, over a real socket as systemd has one."""

import os
import socket
from pathlib import Path

import pytest

from launcher import notify
from launcher.instance import Phase
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus

SERVING = RouterStatus(Phase.READY, 1)
URL = "http://127.0.0.1:8080"


def replica(phase: Phase, failed_starts: int = 0, *, drained: bool = False) -> ReplicaStatus:
    return ReplicaStatus("r", "m", phase, failed_starts=failed_starts, drained=drained)


def cluster(*replicas: ReplicaStatus, router=SERVING, is_stopping: bool = False) -> ClusterStatus:
    return ClusterStatus("c", URL, replicas, router, 1, is_stopping=is_stopping)


READY, LOADING = replica(Phase.READY), replica(Phase.LOADING)
READY_LINE = f"STATUS=1 of 1 replicas ready, {URL}"


@pytest.fixture
def manager(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield bound


def told(manager: socket.socket) -> list[str]:
    """All that came, in lines."""
    lines: list[str] = []
    while True:
        try:
            lines += manager.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (cluster(READY, READY), True),
        (cluster(READY, LOADING), False),
        (cluster(READY, router=RouterStatus(Phase.STARTING, 1)), False),
        (cluster(READY, replica(Phase.DRAINING, drained=True)), True),
        (cluster(READY, replica(Phase.STARTING, failed_starts=2)), False),
        (cluster(READY, replica(Phase.STARTING, failed_starts=3)), True),
        (cluster(READY, replica(Phase.FAILED)), True),
        (cluster(replica(Phase.FAILED)), False),
    ],
)
def test_a_unit_has_started_when_waiting_longer_is_no_use(status, expected) -> None:
    assert notify.has_started(status) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (cluster(READY, LOADING), f"1 of 2 replicas ready, {URL}"),
        (cluster(READY, router=RouterStatus()), f"1 of 1 replicas ready, no router, {URL}"),
        (cluster(READY, is_stopping=True), "stopping, 1 of 1 replicas ready"),
    ],
)
def test_the_line_says_how_far_it_is(status, expected) -> None:
    assert notify.status_line(status) == expected


def test_each_thing_is_told_once(manager) -> None:
    shown: list[ClusterStatus] = []
    tell = notify.telling(shown.append)
    for status in (cluster(LOADING), cluster(LOADING), cluster(READY)):
        tell(status)
    assert told(manager) == [f"STATUS=0 of 1 replicas ready, {URL}", "READY=1", READY_LINE]
    tell(cluster(READY, is_stopping=True))
    tell(cluster(replica(Phase.STOPPED), router=RouterStatus(), is_stopping=True))
    stopping = [line for line in told(manager) if not line.startswith("STATUS=")]
    assert stopping == ["STOPPING=1"]
    assert len(shown) == 5


def test_a_stopping_cluster_is_never_called_ready(manager) -> None:
    notify.telling(lambda _: None)(cluster(READY, is_stopping=True))
    assert told(manager) == ["STOPPING=1", "STATUS=stopping, 1 of 1 replicas ready"]


def test_an_abstract_socket_is_reached() -> None:
    name = f"gpu-fleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0{name}")
        bound.setblocking(False)
        notify.ServiceManager(f"@{name}").tell(cluster(READY))
        assert told(bound) == ["READY=1", READY_LINE]


@pytest.mark.usefixtures("manager")
def test_children_do_not_inherit_the_way_to_the_manager() -> None:
    notify.telling(lambda _: None)
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_a_manager_nothing_is_changed(monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    shown: list[ClusterStatus] = []
    show = shown.append
    assert notify.telling(show) is show


def test_a_manager_that_is_gone_troubles_nobody(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    shown: list[ClusterStatus] = []
    notify.telling(shown.append)(cluster(READY))
    assert len(shown) == 1
