"""`launcher explain` where no router tells: what its log has, and where to look."""

import json

import pytest

from launcher import story_view
from launcher.commands import explain
from router.errors import OperatorError

CALL = {
    "time": "2026-01-02T03:04:11.000Z",
    "event": "call",
    "id": "a/b",
    "route": "/generate",
    "model": "m",
    "stream": False,
    "status": 200,
    "replica": "replica-1",
    "attempts": 1,
    "queue_ms": 1000.0,
    "first_event_ms": 6000.0,
    "total_ms": 6000.0,
    "prompt_tokens": 5,
    "generated_tokens": 7,
    "error": None,
    "error_type": None,
}


@pytest.fixture
def config(folder, tmp_path):
    """A cluster without a router, whose router wrote these lines."""

    def write(*calls, name="router.log"):
        lines = [json.dumps(call, separators=(",", ":")) for call in calls]
        (folder.path / "logs" / name).write_text("\n".join(["router: serving", *lines, ""]))
        path = tmp_path / "fleet.yaml"
        path.write_text(f"models: [{{id: m}}]\nruntime: {{state_dir: {folder.path}}}\n")
        return path

    return write


def test_a_call_that_the_log_has(config, capsys):
    path = config({**CALL, "id": "other"}, CALL, {**CALL, "event": "health"})
    assert explain.run(path, "a/b") == 0
    said = capsys.readouterr().out
    assert said.startswith("call a/b: 200 by replica-1\n")
    assert "     5,000    83%  replica-1: from asking to its last word\n" in said
    assert "This is from the router's log, as no router answers at " in said


def test_the_log_of_the_router_before_counts_too(config, capsys):
    path = config(CALL, name="router.log.1")
    assert explain.run(path, "a/b", as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert [call["id"] for call in told["calls"]] == ["a/b"]
    assert told["remembered"] is None


def test_an_id_is_not_found_inside_another(config):
    with pytest.raises(OperatorError, match="no call 'b' is remembered"):
        explain.run(config(CALL), "b")


def test_a_call_nobody_knows_says_where_to_look(config, folder, capsys):
    path = config()
    with pytest.raises(OperatorError) as caught:
        explain.run(path, "none")
    assert str(folder.path / "logs" / "router.log") in str(caught.value)
    assert explain.run(path, "none", as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["calls"] == []


def test_without_a_router_there_is_no_last_failed_call(config):
    with pytest.raises(OperatorError, match="no failed call is remembered: no router answers"):
        explain.run(config(CALL), None, last_failed=True)


def test_the_last_failed_call_is_looked_up_in_the_log_where_none_is_remembered(config, capsys):
    failed = [{**CALL, "id": f"failed-{status}", "status": status} for status in (400, 503)]
    config({**CALL, "id": "oldest", "status": 500}, name="router.log.1")
    path = config(*failed, {**CALL, "id": "gone", "status": 499}, CALL, {**CALL, "event": "x"})
    assert explain.run(path, None, last_failed=True) == 0
    said = capsys.readouterr().out
    assert said.startswith("call failed-503: 503 by replica-1\n")
    assert "This is from the router's log, as no router answers at " in said
    others = said.partition("others:\n")[2].splitlines()
    assert [line.split()[-1] for line in others] == ["failed-400", "oldest"]


class RouterStandIn:
    """Remembers these calls."""

    def __init__(self, *calls):
        memory = {"calls": len(calls), "since": "2026-01-02T03:04:05.000Z"}
        kinds = dict.fromkeys(("recent", "failed", "slow"), memory)
        self.told = {"calls": list(calls), "remembered": kinds | {"calls": len(calls)}}
        self.told["remembered"]["router_began"] = "2026-01-02T03:00:00.000Z"

    async def tell(self, cluster, call_id, kind):
        return self.told


def test_a_call_that_was_refused_before_it_was_read_is_remembered_all_the_same(
    config, capsys, monkeypatch
):
    """It has left no steps behind, as one of the log has none."""
    refused = {**CALL, "id": "b", "status": 429, "error": "too many", "error_class": "RateLimited"}
    refused = story_view.from_log(refused)
    monkeypatch.setattr(explain, "_ask", RouterStandIn(refused, refused).tell)
    assert explain.run(config(CALL), None, last_failed=True) == 0
    said = capsys.readouterr().out
    assert said.startswith("call b: 429")
    assert "from the router's log" not in said
    assert "others:\n" in said


def test_why_a_failed_call_of_the_log_is_not_remembered(config, capsys, monkeypatch):
    monkeypatch.setattr(explain, "_ask", RouterStandIn().tell)
    assert explain.run(config({**CALL, "status": 404}), None, last_failed=True) == 0
    assert "as no failed call is remembered: this router began at " in capsys.readouterr().out
    assert explain.run(config(CALL), "a/b") == 0
    assert "as it was forgotten: this router began at " in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked",
    [{"call_id": None}, {"call_id": "a", "slowest": True}, {"call_id": "", "slowest": True}],
)
def test_one_thing_has_to_be_asked_for(config, asked):
    with pytest.raises(OperatorError, match="expected one of: a call's id"):
        explain.run(config(), **asked)


def test_a_broken_line_is_no_trouble(config, folder):
    path = config(CALL)
    log = folder.path / "logs" / "router.log"
    log.write_text(log.read_text() + '{"id":"a/b","event":"call"')
    assert explain.run(path, "a/b") == 0
