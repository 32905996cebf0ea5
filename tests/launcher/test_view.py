"""What people see: the table, the transitions, the first request."""

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from launcher import view
from launcher.cluster import command_line
from launcher.instance import Phase
from launcher.reporter import _curl_options
from launcher.status import ClusterStatus, ReplicaStatus, RouterStatus, overlay
from router.config import RouterConfig

READY = ReplicaStatus("replica-0", "m", Phase.READY, "http://127.0.0.1:31000", pid=7, ref="7/1/b")
LOADING = ReplicaStatus("replica-1", "m", Phase.LOADING, pid=8, progress="downloading [1/2]")
ROUTER = RouterStatus(Phase.READY, 9)


def status(*replicas: ReplicaStatus) -> ClusterStatus:
    return ClusterStatus("c", "http://127.0.0.1:8080", replicas, ROUTER, launcher_pid=5)


def rendered(shown: ClusterStatus, width: int = 120, **how) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(view.render(shown, **how))
    return console.export_text()


def test_the_table_shows_each_replica_and_its_progress() -> None:
    text = rendered(status(READY, LOADING))
    assert "http://127.0.0.1:31000" in text
    assert "downloading [1/2]" in text  # not taken for markup
    assert "launcher: pid 5   router: serving, pid 9" in text
    assert "1 of 2 replicas ready" in text


def test_a_missing_launcher_is_said_and_what_to_do() -> None:
    text = rendered(replace(status(READY), launcher_pid=None))
    assert "launcher: not running" in text
    assert "`launcher up` adopts" in text


def test_the_first_request_is_shown_once_all_is_ready() -> None:
    assert "curl" not in rendered(status(READY, LOADING), with_example=True)
    assert "curl" in rendered(status(READY), with_example=True)


@pytest.mark.parametrize(
    ("dialect", "path", "prompt"),
    [("tgi", "/generate", "inputs"), ("openai", "/v1/completions", "prompt")],
)
def test_the_first_request_can_be_pasted(dialect, path, prompt) -> None:
    lines = view.example(status(replace(READY, dialect=dialect)))[1:]
    assert max(map(len, lines)) <= 80  # a wrapped line would not paste
    argv = shlex.split("\n".join(lines).replace("\\\n", ""))
    assert argv[:2] == ["curl", f"http://127.0.0.1:8080{path}"]
    assert json.loads(argv[-1])[prompt]


def test_the_first_request_names_the_first_of_several_models() -> None:
    other = replace(READY, id="replica-1", model="small")
    lines = view.example(status(replace(READY, model="large"), other))[1:]
    assert max(map(len, lines)) <= 80
    body = json.loads(shlex.split("\n".join(lines).replace("\\\n", ""))[-1])
    assert body == {
        "model": "large",
        "inputs": "What is Deep Learning?",
        "parameters": {"max_new_tokens": 20},
    }
    assert "model" not in "".join(view.example(status(READY)))


def test_the_first_request_says_what_the_endpoint_asks_for_and_shows_no_key() -> None:
    config = {"tls": {"certificate": "/a b/c.pem", "key": "/k.pem"}}
    config["keys"] = [{"name": "a", "hash": f"sha256:{'0' * 64}"}]
    options = _curl_options(RouterConfig.model_validate(config))
    lines = view.example(replace(status(READY), curl_options=options))[1:]
    assert shlex.split("\n".join(lines).replace("\\\n", ""))[2:6] == [
        *("-H", "Authorization: Bearer $FLEET_API_KEY"),
        *("--cacert", "/a b/c.pem"),
    ]
    assert _curl_options(RouterConfig()) == ()


def test_containers_are_shown_by_their_id() -> None:
    container = replace(READY, pid=None, ref="3f2a9c1b7d10aaaa", shown="container 3f2a9c1b7d10")
    lines = list(view.plain(status(container)))
    assert lines[3].split()[2] == "CONTAINER"
    assert lines[4].split()[2] == "3f2a9c1b7d10"


def test_what_is_still_to_be_replaced_is_counted_and_named() -> None:
    text = rendered(status(READY, replace(READY, id="replica-1", is_outdated=True)))
    assert "2 of 2 replicas ready, 1 to be replaced" in text
    assert "runs with an older config, to be replaced" in text


@pytest.mark.parametrize("phase", [Phase.READY, Phase.DRAINING])
def test_why_one_is_still_there_that_should_not_be_is_told(phase: Phase) -> None:
    held = replace(
        READY, phase=phase, is_outdated=True, is_stuck=True, in_flight=0, reason="no such image"
    )
    lines = list(view.plain(status(READY, replace(held, id="replica-1"))))
    assert any(line.startswith("replica-1") and "no such image" in line for line in lines)
    assert "replica-1: no such image" in rendered(status(READY, replace(held, id="replica-1")))


def test_transitions_are_told_once() -> None:
    before = status(READY, LOADING)
    after = status(READY, replace(LOADING, phase=Phase.READY, url="http://127.0.0.1:31001"))
    lines = list(view.transitions(before, after))
    assert lines[0] == "replica-1: ready at http://127.0.0.1:31001"
    assert lines[1] == "2 of 2 replicas ready"
    assert lines[2] == "ready: http://127.0.0.1:8080"
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


DRAINED = replace(READY, id="replica-2", phase=Phase.DRAINING, drained=True, in_flight=0)
WHY = "restart 2 in 1 s: killed by SIGKILL (its log says: " + "very " * 40 + "bad)"
RESTARTING = ReplicaStatus("replica-1", "m", Phase.PENDING, restarts=1, reason=WHY)


def test_a_long_reason_stands_below_a_table_of_one_line_per_replica() -> None:
    lines = rendered(status(READY, RESTARTING, DRAINED), width=80).splitlines()
    rows = [line for line in lines if "http://127.0.0.1:31000" in line or "pending" in line]
    assert [row.split()[0] for row in rows] == ["replica-0", "replica-1", "replica-2"]
    assert "restart 2" in rows[1]
    assert rows[1].rstrip().endswith("\u2026")
    below = " ".join(" ".join(lines[lines.index(rows[-1]) + 1 :]).split())
    assert f"replica-1: {WHY}" in below


def test_a_drained_replica_says_by_whom_and_how_to_get_it_back() -> None:
    command = partial(command_line, Path("my fleet.yaml"))
    text = "\n".join(view.plain(status(READY, DRAINED), command=command))
    assert "drained by you: `launcher undrain -c 'my fleet.yaml' replica-2`" in text
    assert "1 of 2 replicas ready, 1 drained" in text
    busy = rendered(status(replace(DRAINED, in_flight=1)))
    assert "replica-2: drained by you, 1 call left: `launcher undrain replica-2`" in busy


def test_plain_text_is_whole_and_has_no_trailing_spaces() -> None:
    lines = list(view.plain(status(READY, RESTARTING)))
    assert any(line.endswith(WHY) for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert lines[3].split() == ["REPLICA", "PHASE", "PID", "UPTIME", "RESTARTS", "URL", "DETAIL"]


def test_a_stopped_cluster_does_not_show_its_endpoint_as_if_it_served() -> None:
    stopped = replace(status(ReplicaStatus("replica-0", "m")), router=RouterStatus())
    assert "endpoint http://127.0.0.1:8080 (nothing answers there)" in rendered(stopped)


def test_what_is_waited_for_is_named_with_how_far_it_is() -> None:
    waiting = replace(status(READY, LOADING, DRAINED), router=RouterStatus(Phase.STARTING))
    said = view.waiting_for(waiting)
    assert said == "replica-1 (loading: downloading [1/2]), the router (starting)"
    many = status(*(replace(LOADING, id=f"replica-{i}") for i in range(7)))
    assert view.waiting_for(many).endswith("replica-4 (loading: downloading [1/2]), 2 more")
    assert view.waiting_for(status(READY, DRAINED)) == ""


def test_what_the_launcher_decided_is_told_once() -> None:
    noted = replace(status(READY), notes=("replica-7: no longer wanted: stopped",))
    assert next(view.transitions(None, noted)) == "replica-7: no longer wanted: stopped"
    assert list(view.transitions(noted, noted)) == []
    assert "no longer wanted" in rendered(noted, with_example=True)


@pytest.mark.parametrize("health", ["suspect", "unhealthy", "ejected"])
def test_a_ready_replica_that_gets_no_calls_is_not_shown_as_well(health):
    """It answers its health check now and then, or hangs: the process alone does not tell."""
    seen = {"pools": [{"replicas": [{"id": READY.id, "health": health, "admin": "active"}]}]}
    (replica,) = overlay([READY], seen)
    text = rendered(status(replica))
    assert f"gets no calls: the router finds it {health}" in text
    (well,) = overlay([replica], {"pools": [{"replicas": [{"id": READY.id, "health": "healthy"}]}]})
    assert "gets no calls" not in rendered(status(well))


@pytest.mark.parametrize("health", ["suspect", "unhealthy", "ejected"])
def test_the_headline_and_the_phase_say_that_one_is_not_served_at_80_columns(health):
    seen = {"id": "replica-1", "health": health, "reason": "no answer to a health check for 5 s"}
    replicas = [replace(READY, id=f"replica-{index}", pid=1234567) for index in range(4)]
    shown = status(*overlay(replicas, {"pools": [{"replicas": [seen]}]}))
    lines = rendered(shown, width=80).splitlines()
    assert lines[2].rstrip() == "3 of 4 replicas serve"
    [row] = [line for line in lines if line.startswith("replica-1 ")]
    assert row.split()[1] == health
    assert row.rstrip().endswith("no calls")
    [row] = [line for line in view.plain(shown) if line.startswith("replica-1 ")]
    assert row.split()[1] == health
    assert row.endswith(f"the router finds it {health}: no answer to a health check for 5 s")
    told = list(view.transitions(status(*replicas), shown))
    assert told[0].startswith(f"replica-1: {health} (gets no calls: ")
    assert told[1:] == ["3 of 4 replicas serve"]
    back = list(view.transitions(shown, status(*replicas)))
    assert back == ["replica-1: ready at http://127.0.0.1:31000", "4 of 4 replicas ready"]


def test_a_drained_replica_stays_one_whatever_its_health():
    seen = {"id": READY.id, "health": "unhealthy", "admin": "draining"}
    shown = status(*overlay([READY], {"pools": [{"replicas": [seen]}]}))
    assert shown.summary == "0 of 1 replicas ready, 1 drained"
    assert "draining" in rendered(shown)


def test_why_the_router_sends_nothing_is_told():
    seen = {"id": READY.id, "health": "ejected", "reason": "its first call failed: out of memory"}
    (replica,) = overlay([READY], {"pools": [{"replicas": [seen]}]})
    assert "finds it ejected: its first call failed: out of memory" in rendered(status(replica))


@pytest.mark.parametrize(
    ("seen", "shown"),
    [
        ({"fault": "GPU-1: XID 48"}, "used only where no other serves: GPU-1: XID 48"),
        ({"slowed": "GPU-1 throttled: heat"}, "gets fewer calls: GPU-1 throttled: heat"),
        ({"fault": None, "slowed": None}, ""),
    ],
)
def test_what_is_wrong_with_its_gpu_is_told(seen, shown):
    state = {"pools": [{"replicas": [{"id": READY.id, "health": "healthy", **seen}]}]}
    (replica,) = overlay([READY], state)
    assert replica.gpu_trouble == shown
    assert shown in rendered(status(replica))
