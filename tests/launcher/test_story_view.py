"""A call's story as an operator reads it: where the time went, what happened, in 80 columns."""

import pytest

from launcher import story_view

STORY = {
    "id": "4f1c",
    "route": "/generate_stream",
    "model": "m",
    "stream": True,
    "running": False,
    "status": 200,
    "replica": "replica-1",
    "attempts": 2,
    "arrived": "2026-01-02T03:04:05.678Z",
    "total_ms": 6000.0,
    "prompt_tokens": 5,
    "generated_tokens": 1200,
    "error_class": None,
    "error": None,
    "parts": [
        {
            "part": "first_event",
            "replica": "replica-0",
            "failed": "ReplicaLost",
            "ms": 3000.0,
            "share": 0.5,
        },
        {"part": "queue", "why": "every replica was full", "ms": 2000.0, "share": 0.333},
        {"part": "answer", "replica": "replica-1", "ms": 999.6, "share": 0.167},
        {"part": "body", "ms": 0.4, "share": 0.0},
    ],
    "steps": [
        {"at_ms": 0.4, "step": "read", "body_bytes": 1234},
        {"at_ms": 0.4, "step": "queued", "position": 3, "why": "every replica was full"},
        {"at_ms": 2000.4, "step": "granted", "replica": "replica-0", "alone": False},
        {"at_ms": 2000.4, "step": "sent", "new_connection": True},
        {
            "at_ms": 5000.4,
            "step": "failed",
            "replica": "replica-0",
            "error_class": "ReplicaLost",
            "message": "the connection to the replica was lost\nbefore its reply",
        },
        {"at_ms": 5000.4, "step": "next", "decision": "again, first in the queue"},
        {"at_ms": 5000.4, "step": "granted", "replica": "replica-1", "alone": True},
        {"at_ms": 5000.4, "step": "continued", "events": 42},
        {"at_ms": 5000.4, "step": "answering", "replica": "replica-1"},
    ],
    "steps_left_out": 0,
}

SHOWN = """\
call 4f1c: 200 by replica-1, 2 attempts
  /generate_stream (stream), model m
  arrived 2026-01-02T03:04:05.678Z, took 6,000 ms, tokens: 5 in, 1,200 out

        ms  share  where the time went
     3,000    50%  replica-0: until its first event; it failed: ReplicaLost
     2,000    33%  waiting in the queue: every replica was full
     1,000    17%  replica-1: streaming its answer

     at ms  what happened
         0  request read and parsed, 1,234 bytes
         0  joined the queue at place 3: every replica was full
     2,000  replica-0 chosen
     2,000  sent, on a new connection
     5,000  replica-0 failed: ReplicaLost: the connection to the replica was
            lost before its reply
     5,000  decided: again, first in the queue
     5,000  replica-1 chosen, to be tried alone
     5,000  to be continued after 42 events that the client has
     5,000  replica-1: first event passed on to the client
     6,000  ended with 200
"""


def shown(width=80, **fields):
    return list(story_view.lines({**STORY, **fields}, width))


def test_a_story_on_a_terminal():
    assert "\n".join(shown()) + "\n" == SHOWN


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_line_is_wider_than_the_terminal(width):
    assert max(map(len, shown(width, error="x" * 30 + " y" * 99, error_class="E"))) <= width


def test_without_a_terminal_no_line_is_broken():
    assert any(line.endswith("was lost before its reply") for line in shown(None))


def test_a_call_that_runs():
    lines = shown(running=True, status=None)
    assert lines[0] == "call 4f1c: running by replica-1, 2 attempts"
    assert "so far 6,000 ms" in lines[2]
    assert lines[-1] == "     6,000  still running"


def test_a_call_that_failed():
    lines = shown(status=503, error_class="QueueTimeout", error="no replica", replica=None)
    assert lines[0] == "call 4f1c: 503, 2 attempts"
    assert "  QueueTimeout: no replica" in lines
    assert lines[-1] == "     6,000  ended with 503: QueueTimeout"


def test_what_was_left_out_is_said():
    assert "            7 steps in the middle were not kept" in shown(steps_left_out=7)


@pytest.mark.parametrize("step", ["quiet", "hedged", "hedge_failed", "sent", "answering"])
def test_every_step_has_words(step):
    fields = {"replica": "replica-7", "new_connection": False, "error_class": "E", "message": "m"}
    [line] = shown(None, stream=False, steps=[{"at_ms": 1.0, "step": step, **fields}])[-2:-1]
    assert line.startswith("         1  ")
    assert not line.endswith(f"  {step}")


PARTS = [
    "body",
    "routing",
    "queue",
    "connect",
    "first_event",
    "answer",
    "attempt",
    "retry",
    "quiet",
]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_words(part):
    lines = shown(None, parts=[{"part": part, "ms": 5.0, "share": 1.0}])
    [line] = [line for line in lines if line.startswith("         5   100%  ")]
    assert line.removeprefix("         5   100%  ") != part


def test_of_parts_that_all_took_no_time_one_is_shown():
    parts = [
        {"part": "body", "ms": 0.2, "share": 1.0},
        {"part": "routing", "ms": 0.0, "share": 0.0},
    ]
    assert shown(parts=parts)[5:7] == ["         0   100%  reading and parsing the request", ""]


LINE = {
    "time": "2026-01-02T03:04:11.000Z",
    "id": "4f1c",
    "route": "/generate",
    "model": "m",
    "stream": False,
    "status": 200,
    "replica": "replica-1",
    "attempts": 2,
    "queue_ms": 1000.0,
    "total_ms": 6000.0,
    "prompt_tokens": 5,
    "generated_tokens": 7,
    "error": None,
    "error_type": None,
    "tries": [{"replica": "replica-0", "error": "ReplicaLost", "ms": 3500.0, "next": "again"}],
}


def test_a_line_of_the_log_tells_the_parts():
    story = story_view.from_log(LINE)
    assert story["arrived"] == "2026-01-02T03:04:05.000Z"
    lines = list(story_view.lines(story, 80))
    assert lines[4:] == [
        "        ms  share  where the time went",
        "     3,500    58%  replica-0: from asking to its last word; it failed:",
        "                   ReplicaLost",
        "     1,500    25%  replica-1: from asking to its last word",
        "     1,000    17%  waiting for room",
    ]


def test_a_line_of_a_call_that_failed_everywhere_has_no_attempt_that_served_it():
    story = story_view.from_log({**LINE, "status": 502, "error": "x", "error_type": "generation"})
    assert [part["ms"] for part in story["parts"]] == [3500.0, 1000.0]
