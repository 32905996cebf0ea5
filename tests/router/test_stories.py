"""What the router remembers of recent calls: bounded, failures and slow ones for longer."""

import gc
import weakref

import pytest

from router.errors import ClientGone, ReplicaLost
from router.record import Record
from router.stories import FAILED, RECENT, SLOW, SLOW_FOR_S, Stories


def recorded(*args, **fields):
    """A record that has come to these."""
    record = Record(*args)
    vars(record).update(fields)
    return record


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stories(clock):
    return Stories(clock)


@pytest.fixture
def end(stories, clock):
    """A call that came, took so long and ended."""

    def end(call_id, total_s=0.1, **fields):
        record = recorded(call_id, "/generate", clock.now_s - total_s, **fields)
        stories.began(record)
        stories.ended(record, total_s)
        return record

    return end


def test_the_last_few_thousand_are_remembered(stories, end):
    for number in range(RECENT + 200):
        end(f"c{number}")
    assert stories.find(f"c{RECENT + 199}")
    assert stories.find("c200")
    assert not stories.find("c199")
    remembered = stories.remembered()
    assert (remembered["calls"], remembered["recent"]["calls"]) == (RECENT + 200, RECENT)


def test_a_failed_call_is_remembered_for_longer(stories, end):
    for number in range(SLOW):
        end(f"slow{number}", total_s=9.0)
    end("failed", status=502, error=ReplicaLost("x"), attempts=1)
    end("left", status=499, error=ClientGone("x"), attempts=1)
    for number in range(RECENT):
        end(f"c{number}")
    assert [story.id for story in stories.failed()] == ["failed"]
    assert stories.find("failed")
    assert not stories.find("left")
    for number in range(FAILED):
        end(f"f{number}", status=502, error=ReplicaLost("x"))
    assert stories.failed()[0].id == f"f{FAILED - 1}"
    assert not any(story.id == "failed" for story in stories.failed())


def test_the_slowest_are_remembered_for_an_hour(stories, end, clock):
    for number in range(2 * SLOW):
        end(f"c{number}", total_s=1.0 + number)
    assert [story.id for story in stories.slowest()][:2] == ["c127", "c126"]
    assert len(stories.slowest()) == SLOW
    clock.now_s += SLOW_FOR_S + 1000
    for _ in range(RECENT):
        end("later", total_s=0.5)
    assert {story.id for story in stories.slowest()} == {"later"}
    end("slow", total_s=0.7)
    assert stories.slowest()[0].id == "slow"


def test_a_call_that_runs_is_there_with_what_it_took_so_far(stories, clock):
    record = recorded("running", "/generate", clock.now_s)
    stories.began(record)
    clock.now_s += 50
    [story] = stories.find("running")
    assert (story.is_running, story.total_s) == (True, 50.0)
    assert story.as_json()["status"] is None
    assert [story.id for story in stories.slowest()] == ["running"]
    assert stories.remembered()["running"] == 1
    stories.ended(record, 50.0)
    assert stories.remembered()["running"] == 0
    assert [story.is_running for story in stories.find("running")] == [False]


def test_of_calls_with_one_id_the_latest_comes_first(stories, end, clock):
    end("same", status=502, error=ReplicaLost("x"))
    clock.now_s += 1
    end("same")
    assert [story.status for story in stories.find("same")] == [200, 502]


def test_nothing_of_a_call_is_held_on_to_by_its_error(stories, end):
    """An error has the frames that it passed, and those have the body."""

    class Body:
        pass

    def fail():
        body = Body()
        seen.append(weakref.ref(body))
        raise ReplicaLost("x")

    seen = []
    try:
        fail()
    except ReplicaLost as error:
        end("c", status=502, error=error)
    gc.collect()
    assert seen[0]() is None
    assert stories.find("c")[0].error == "x"


def test_what_is_kept_costs_the_collector_nothing(stories, end):
    end("warm-up")
    gc.collect()
    before = len(gc.get_objects())
    for number in range(1000):
        end(f"c{number}", steps=[(1.0, "read", (number,))])
    for _ in range(5):  # one for each tuple that is inside another
        gc.collect()  # it learns which tuples hold nothing that it looks after
    assert len(gc.get_objects()) - before < 500


def test_nobody_came_yet(stories):
    assert stories.find("x") == stories.failed() == stories.slowest() == []
    remembered = stories.remembered()
    assert (remembered["calls"], remembered["recent"]) == (0, {"calls": 0, "since": None})
