"""Calls are counted once each, and the router's own log has to agree."""

import itertools
import json

import pytest

from launcher.simulator.tokens_text import TextModel
from tests.campaign.asks import mixed
from tests.campaign.oracle import Kind, Verdict
from tests.campaign.tally import Tally

ASK = next(itertools.islice(mixed("tally", TextModel()), 1))


def line(**fields):
    call = {"event": "call", "id": ASK.id, "status": 200, "attempts": 1, "error": None} | fields
    return json.dumps(call, separators=(",", ":")).encode()


def tally_of(kind, *lines):
    tally = Tally()
    tally.ended(ASK, Verdict(kind, "why"), 0.5)
    tally.compare(lines)
    return tally


def test_a_right_call_with_its_line_is_good():
    tally = tally_of(Kind.RIGHT, line(), b'{"event":"health","id":"x"}')
    assert tally.is_good
    assert (tally.count(Kind.RIGHT), tally.again) == (1, 0)


@pytest.mark.parametrize(
    "lines",
    [[], [line(), line()], [line(status=499)], [line(error="lost")]],
    ids=["none", "two", "another status", "an error"],
)
def test_a_right_call_whose_log_says_otherwise_is_lost(lines):
    tally = tally_of(Kind.RIGHT, *lines)
    assert not tally.is_good
    assert tally.count(Kind.LOST) == 1


def test_a_client_that_left_may_have_no_line_but_not_two():
    assert tally_of(Kind.LEFT).is_good
    assert tally_of(Kind.LEFT, line(status=499)).is_good
    assert not tally_of(Kind.LEFT, line(), line()).is_good


@pytest.mark.parametrize("kind", [Kind.LOST, Kind.REFUSED, Kind.NOT_RESUMED])
def test_these_ends_spoil_a_campaign(kind):
    assert not tally_of(kind, line(status=502, error="x")).is_good


@pytest.mark.parametrize("kind", [Kind.RIGHT, Kind.LEFT, Kind.EXCUSED])
def test_these_do_not(kind):
    assert tally_of(kind, line()).is_good


def test_calls_that_were_tried_again_are_counted():
    assert tally_of(Kind.RIGHT, line(attempts=2)).again == 1
    assert tally_of(Kind.LEFT).again == 0
