"""The wait of `launcher up -d`: what it tells, and when it ends."""

import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from launcher import processes
from launcher.cluster import Cluster
from launcher.commands import detached
from launcher.instance import Phase
from launcher.state import STATUS_RECORD
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus

READY = ReplicaStatus("replica-0", "m", Phase.READY, "http://127.0.0.1:9", pid=7)
LOADING = ReplicaStatus("replica-1", "m", Phase.LOADING, pid=8, progress="warming up")


@pytest.fixture
def cluster(folder) -> Cluster:
    path = folder.path / "fleet.yaml"
    path.write_text(f"models: [m]\nruntime: {{state_dir: {folder.path}}}\n")
    return Cluster.load(path)


def write(cluster: Cluster, *replicas: ReplicaStatus) -> None:
    router = RouterStatus(Phase.READY, 5)
    shown = ClusterStatus("c", "http://e", replicas, router, launcher_pid=os.getpid())
    cluster.folder.write_record(STATUS_RECORD, shown.as_record())


@pytest.fixture
def wait(cluster, monkeypatch):
    """`_wait` for a launcher that is this process, under a clock that the test's steps move."""

    def wait(step: Callable[[float], None]) -> str | None:
        clock = SimpleNamespace(now_s=0.0)

        def sleep(seconds: float) -> None:
            clock.now_s += seconds
            step(clock.now_s)

        fake = SimpleNamespace(monotonic=lambda: clock.now_s, sleep=sleep)
        monkeypatch.setattr(detached, "time", fake)
        own = processes.identify(os.getpid())
        assert own is not None
        return detached._wait(cluster, own)

    return wait


def test_a_long_wait_says_every_10_s_for_what(cluster, wait, capsys) -> None:
    write(cluster, READY, LOADING)

    def step(now_s: float) -> None:
        if now_s > 25:
            write(cluster, READY, replace(LOADING, phase=Phase.READY))

    assert wait(step) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("waiting for: replica-1 (loading: warming up)") == 2


def test_a_launcher_that_tells_nothing_yet_is_said_to_be_waited_for(cluster, wait, capsys) -> None:
    wait(lambda now_s: write(cluster, READY) if now_s > 11 else None)
    assert f"waiting for: launcher pid {os.getpid()} to begin" in capsys.readouterr().out


def test_a_drained_replica_is_not_waited_for(cluster, wait, capsys) -> None:
    write(cluster, READY, replace(LOADING, phase=Phase.DRAINING, drained=True))
    assert wait(lambda now_s: pytest.fail("it waits")) is None
    assert f"undrain -c {cluster.path} replica-1`" in capsys.readouterr().out


def test_one_that_somebody_has_to_see_to_ends_the_wait(cluster, wait) -> None:
    write(cluster, READY, replace(LOADING, failed_starts=2, is_stuck=True, reason="no such image"))
    assert "replica-1: no such image" in wait(lambda now_s: pytest.fail("it waits"))


def test_one_that_has_failed_before_and_serves_does_not_end_the_wait(cluster, wait) -> None:
    """It was not the first start of its launcher: another replica is waited for."""

    def step(now_s):
        write(cluster, recovered, READY)

    recovered = replace(READY, id="replica-1", failed_starts=3, is_stuck=True)
    write(cluster, recovered, LOADING)
    assert wait(step) is None


def test_one_that_serves_on_as_its_successor_cannot_start_ends_the_wait(cluster, wait) -> None:
    held = replace(READY, id="replica-1", is_outdated=True, failed_starts=3, reason="no such image")
    write(cluster, READY, held)
    assert "replica-1: no such image" in wait(lambda now_s: pytest.fail("it waits"))


def test_one_that_fails_again_and_again_ends_the_wait(cluster, wait) -> None:
    write(cluster, READY, replace(LOADING, failed_starts=3, reason="exited with code 1"))
    trouble = wait(lambda now_s: pytest.fail("it waits"))
    logs = f"see `launcher logs -c {cluster.path} replica-1`"
    assert trouble == f"replica-1: exited with code 1; {logs}"
