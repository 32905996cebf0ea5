"""What people see: the table, the transitions, the first request."""

import json
import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from launcher import view
from launcher.instance import Phase
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus

READY = ReplicaStatus("replica-0", "m", Phase.READY, "http://127.0.0.1:31000", pid=7, ref="7/1/b")
LOADING = ReplicaStatus("replica-1", "m", Phase.LOADING, pid=8, progress="downloading [1/2]")
ROUTER = RouterStatus(Phase.READY, 9)


def status(*replicas: ReplicaStatus) -> ClusterStatus:
    return ClusterStatus("c", "http://127.0.0.1:8080", replicas, ROUTER, launcher_pid=5)


def rendered(shown: ClusterStatus, **how) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(view.render(shown, **how))
    return console.export_text()


def test_the_table_shows_each_replica_and_its_progress() -> None:
    text = rendered(status(READY, LOADING))
    assert "http://127.0.0.1:31000" in text
    assert "downloading [1/2]" in text  # not taken for markup
    assert "launcher: pid 5   router: ready, pid 9" in text


def test_a_missing_launcher_is_said_and_what_to_do() -> None:
    text = rendered(replace(status(READY), launcher_pid=None))
    assert "launcher: not running" in text
    assert "`launcher up` adopts" in text


def test_the_first_request_is_shown_once_all_is_ready() -> None:
    assert "curl" not in rendered(status(READY, LOADING), with_example=True)
    assert "curl" in rendered(status(READY), with_example=True)


def test_the_first_request_can_be_pasted() -> None:
    lines = view.example("http://127.0.0.1:8080")[1:]
    assert max(map(len, lines)) <= 80  # a wrapped line would not paste
    argv = shlex.split("\n".join(lines).replace("\\\n", ""))
    assert argv[:2] == ["curl", "http://127.0.0.1:8080/generate"]
    assert json.loads(argv[-1])["inputs"]


def test_transitions_are_told_once() -> None:
    before = status(READY, LOADING)
    after = status(READY, replace(LOADING, phase=Phase.READY, url="http://127.0.0.1:31001"))
    lines = list(view.transitions(before, after))
    assert lines[0] == "replica-1: ready at http://127.0.0.1:31001"
    assert lines[1] == "ready: http://127.0.0.1:8080"
    assert list(view.transitions(after, after)) == []


def test_progress_is_a_line_of_its_own() -> None:
    after = status(READY, replace(LOADING, progress="warming up"))
    assert list(view.transitions(status(READY, LOADING), after)) == [
        "replica-1: loading: warming up"
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (61, "1m 01s"), (3_661, "1h 01m"), (90_061, "1d 1h")]
)
def test_durations_are_short(seconds: float, shown: str, monkeypatch) -> None:
    monkeypatch.setattr(view, "uptime_s", lambda _: seconds)
    assert shown in rendered(status(READY))
