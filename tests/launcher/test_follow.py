"""The wait of `launcher up` beside a running launcher: what it is told, and when it ends."""

import os
from types import SimpleNamespace

import pytest

from launcher import changes, processes
from launcher.cluster import Cluster
from launcher.commands import follow
from launcher.instance import Phase
from launcher.state import STATUS_RECORD, ClusterLock
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus
from router.errors import StartError

READY = ReplicaStatus("replica-0", "m", Phase.READY, "http://127.0.0.1:9", pid=7)
LOADING = ReplicaStatus("replica-0", "m", Phase.LOADING, pid=8, progress="warming up")


@pytest.fixture
def cluster(folder) -> Cluster:
    path = folder.path / "fleet.yaml"
    path.write_text(f"models: [m]\nruntime: {{state_dir: {folder.path}}}\n")
    return Cluster.load(path)


def write(cluster: Cluster, replica: ReplicaStatus, request=None, error: str = "") -> None:
    shown = ClusterStatus(
        "c",
        "http://e",
        (replica,),
        RouterStatus(Phase.READY, 5),
        launcher_pid=os.getpid(),
        change_id=request.id if request else "",
        change_error=error,
    )
    cluster.folder.write_record(STATUS_RECORD, shown.as_record())


@pytest.fixture
def wait(cluster, monkeypatch):
    """`_watch` of a launcher that is this process, under a clock that the test's steps move."""

    def wait(request, step):
        clock = SimpleNamespace(now_s=0.0)

        def sleep(seconds: float) -> None:
            clock.now_s += seconds
            step(clock.now_s)

        fake = SimpleNamespace(monotonic=lambda: clock.now_s, sleep=sleep)
        monkeypatch.setattr(follow, "time", fake)
        own = processes.identify(os.getpid())
        assert own is not None
        return follow._watch(cluster, own, request)

    return wait


@pytest.fixture
def request_(cluster):
    return changes.ask(cluster.folder, cluster.path)


def test_it_ends_when_all_is_as_written(cluster, wait, request_) -> None:
    write(cluster, READY)
    assert wait(request_, lambda now_s: write(cluster, READY, request_)) == 0


def test_a_refusal_is_told_as_the_launcher_says_it(cluster, wait, request_) -> None:
    write(cluster, READY, request_, "the disk is full\nnothing was changed")
    with pytest.raises(StartError) as caught:
        wait(request_, lambda now_s: pytest.fail("it waits"))
    assert str(caught.value) == "the disk is full\nnothing was changed"


def test_a_launcher_that_takes_no_change_is_not_waited_for_for_ever(
    cluster, wait, request_
) -> None:
    write(cluster, READY)
    with pytest.raises(StartError, match="did not take the change within 120 s"):
        wait(request_, lambda now_s: None)


def test_a_launcher_that_is_starting_is_waited_for(cluster, wait, request_, capsys) -> None:
    """A model may have to be looked at on a slow disk first; only then it hears anything."""

    def step(now_s: float) -> None:
        if now_s > 500:
            write(cluster, READY, request_)

    assert wait(request_, step) == 0
    assert f"waiting for: launcher pid {os.getpid()} to take the change" in capsys.readouterr().out


def test_the_earlier_of_two_who_ask_is_told_at_once(cluster, wait, request_, tmp_path) -> None:
    write(cluster, READY)
    changes.ask(cluster.folder, tmp_path / "later.yaml")
    with pytest.raises(StartError) as caught:
        wait(request_, lambda now_s: pytest.fail("it waits"))
    assert str(caught.value).startswith("superseded by a later change")
    assert f"{tmp_path}/later.yaml" in str(caught.value)


def test_who_was_followed_is_told_of_a_later_change_too(cluster, wait, request_) -> None:
    """It waits until its own is ready, which will never be."""
    write(cluster, LOADING, request_)

    def step(now_s: float) -> None:
        write(cluster, LOADING, changes.ask(cluster.folder, cluster.path))

    with pytest.raises(StartError, match="superseded by a later change"):
        wait(request_, step)


def test_what_an_earlier_launcher_followed_is_not_compared_with(
    cluster, monkeypatch, capsys
) -> None:
    """One that is starting follows nothing yet; the config that is kept may be of another time."""
    asked = []

    def watch(cluster, launcher, request) -> int:
        asked.append(changes.read(cluster.folder))
        return 0

    monkeypatch.setattr(follow, "_watch", watch)
    monkeypatch.setattr(processes, "send_signal", lambda process, signum: True)
    cluster.folder.config_copy.write_text("models: [{id: m, repl")
    with ClusterLock(cluster.folder):
        assert follow.run(cluster) == 0
    assert [request.path for request in asked] == [cluster.path]
    assert f"launcher pid {os.getpid()} is starting" in capsys.readouterr().out
