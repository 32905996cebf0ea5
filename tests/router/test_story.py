"""What a call's bare steps mean: the parts of its time, and the tries in its log line."""

import pytest

from router import story
from router.errors import ConnectFailed, PoisonCall, ReplicaLost
from router.record import MAX_STEPS, Record
from router.stories import Stories
from router.story import FIELDS, PARTS, is_failure, tries

T = 100.0
"""Arrival."""


def recorded(*args, **fields):
    """A record that has come to these."""
    record = Record(*args)
    vars(record).update(fields)
    return record


def told(record, total_s, clock=lambda: T):
    stories = Stories(clock)
    stories.began(record)
    stories.ended(record, total_s)
    [found] = stories.find(record.id)
    return found.as_json()


def failed_over():
    """Waits, fails at one replica, and is served by another."""
    record = recorded("a", "/generate_stream", T, is_stream=True, model="m", attempts=2)
    record.step(T + 0.001, story.READ, 12)
    record.queued(T + 0.001, 3, "every replica was full")
    record.step(T + 2.0, story.GRANTED, "r0", False)
    record.sent(T + 2.001, True)
    record.replica = "r0"
    record.failed(T + 5.0, ReplicaLost("it was lost"))
    record.step(T + 5.0, story.NEXT, "again")
    record.step(T + 5.001, story.GRANTED, "r1", False)
    record.sent(T + 5.002, False)
    record.step(T + 5.1, story.ANSWERING, "r1")
    record.replica, record.first_event_s = "r1", 5.1
    return record


def test_the_time_is_divided_whole_and_the_widest_part_comes_first():
    parts = told(failed_over(), 6.0)["parts"]
    assert [(part["part"], part.get("replica"), part["ms"]) for part in parts[:4]] == [
        ("first_event", "r0", 2999.0),
        ("queue", None, 1999.0),
        ("answer", "r1", 900.0),
        ("first_event", "r1", 98.0),
    ]
    assert sum(part["ms"] for part in parts) == pytest.approx(6000.0)
    assert sum(part["share"] for part in parts) == pytest.approx(1.0, abs=0.01)
    assert parts[0]["failed"] == "ReplicaLost"
    assert parts[1]["why"] == "every replica was full"


def test_steps_have_their_time_since_arrival_and_their_values_by_name():
    steps = told(failed_over(), 6.0)["steps"]
    assert steps[1] == {
        "at_ms": 1.0,
        "step": "queued",
        "position": 3,
        "why": "every replica was full",
    }
    assert steps[4] == {
        "at_ms": 5000.0,
        "step": "failed",
        "replica": "r0",
        "error_class": "ReplicaLost",
        "message": "it was lost",
    }


def test_a_call_that_ended_where_it_waited_waited_to_its_end():
    record = recorded("a", "/generate", T)
    record.step(T, story.READ, 1)
    record.queued(T, 1, "no replica was ready")
    assert told(record, 60.0)["parts"][0] == {
        "part": "queue",
        "why": "no replica was ready",
        "ms": 60_000.0,
        "share": 1.0,
    }


def test_a_call_without_any_step_has_a_part_all_the_same():
    assert told(recorded("a", "/generate", T), 0.0)["parts"] == [
        {"part": "body", "ms": 0.0, "share": 0.0}
    ]


def test_every_part_begins_with_a_step_there_is():
    assert PARTS.keys() <= {*FIELDS, story.END}


def test_the_log_gets_the_failed_tries_of_a_call_that_had_several():
    record = failed_over()
    assert tries(record.steps, 2) == [
        {"replica": "r0", "error": "ReplicaLost", "ms": 3000.0, "next": "again"}
    ]
    assert tries(record.steps, 1) is None


def test_a_call_that_two_replicas_had_at_a_time():
    record = recorded("a", "/generate_stream", T, is_stream=True, attempts=2, replica="r1")
    record.step(T, story.GRANTED, "r0", False)
    record.sent(T, False)
    record.step(T + 1.0, story.HEDGED, "r1")
    record.sent(T + 1.0, True)
    record.step(T + 3.0, story.ANSWERING, "r1")
    parts = [(part["part"], part.get("replica"), part["ms"]) for part in told(record, 9.0)["parts"]]
    assert parts[:3] == [
        ("answer", "r1", 6000.0),
        ("first_event", "r0 and r1", 2000.0),
        ("first_event", "r0", 1000.0),
    ]
    assert tries(record.steps, 2) == [{"hedged": "r1", "after_ms": 1000.0}]


def test_of_endless_tries_the_first_and_the_last_are_kept():
    record = recorded("a", "/generate", T)
    for number in range(500):
        record.step(T + number, story.GRANTED, f"r{number}", False)
    kept = told(record, 500.0)
    assert len(kept["steps"]) == MAX_STEPS
    assert kept["steps"][0]["replica"] == "r0"
    assert kept["steps"][-1]["replica"] == "r499"
    assert kept["steps_left_out"] == 500 - MAX_STEPS


@pytest.mark.parametrize(
    ("status", "error", "attempts", "expected"),
    [
        (200, None, 1, False),
        (200, ReplicaLost("x"), 1, True),
        (502, ConnectFailed("x"), 1, True),
        (429, ConnectFailed("x"), 0, True),
        (422, ConnectFailed("x"), 0, False),
        (499, ConnectFailed("x"), 1, False),
        (422, PoisonCall("x"), 3, True),
    ],
)
def test_a_clients_own_mistake_is_no_failure_of_the_fleet(status, error, attempts, expected):
    assert is_failure(status, error, attempts) is expected


def test_a_story_has_a_field_for_each_value_that_is_kept():
    record = recorded("id", "/r", T, model="m", status=503, replica="r", attempts=3, queue_s=4.0)
    found = told(record, 5.0)
    shown = {key: found[key] for key in ("id", "route", "model", "status", "replica", "attempts")}
    assert shown == {
        "id": "id",
        "route": "/r",
        "model": "m",
        "status": 503,
        "replica": "r",
        "attempts": 3,
    }
    assert (found["queue_ms"], found["total_ms"], found["running"]) == (4000.0, 5000.0, False)
