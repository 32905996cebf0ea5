"""How fast a pool works off its calls, and how long one will take."""

import random

import pytest

from router.work_rate import FIRST_CALLS, WorkRate


def seen(*calls, in_flight=0.0):
    """Calls as (tokens, seconds), of which the answer is all tokens."""
    work = WorkRate()
    for tokens, service_s in calls:
        work.began(tokens)
        work.ended(tokens)
        work.worked(tokens, tokens, service_s, is_whole=True)
        work.served(tokens, service_s)
    work.began(in_flight)
    return work


@pytest.mark.parametrize("slots", [1, 4, 64])
@pytest.mark.parametrize("service_s", [0.02, 1.0, 90.0])
def test_the_rate_is_what_is_in_flight_over_the_time_it_stays(slots, service_s):
    work = seen(*[(100, service_s)] * 20, in_flight=slots * 100.0)
    assert work.tokens_per_s == pytest.approx(slots * 100 / service_s, rel=0.01)


def test_calls_of_very_different_sizes_make_the_right_rate():
    """Two slots, one second for 10 tokens: 20 tokens a second, whoever happens to be running."""
    rng = random.Random(3)
    calls = [(tokens, tokens / 10) for tokens in rng.choices([10, 10, 10, 500], k=3000)]
    tokens = sum(tokens * tokens for tokens, _ in calls) / sum(tokens for tokens, _ in calls)
    assert seen(*calls, in_flight=2 * tokens).tokens_per_s == pytest.approx(20, rel=0.25)


def test_a_replica_that_comes_or_goes_changes_the_rate_at_once():
    work = seen(*[(100, 1.0)] * 20, in_flight=400.0)
    work.ended(200.0)
    assert work.tokens_per_s == pytest.approx(200, rel=0.01)
    work.began(600.0)
    assert work.tokens_per_s == pytest.approx(800, rel=0.01)


def test_nothing_is_known_before_anything_ended():
    work = seen(in_flight=100.0)
    assert work.tokens_per_s == 0.0
    assert work.service_s(10) == 0.0
    assert work.least_service_s(10) == 0.0


def test_a_few_calls_are_not_enough_to_hold_against_a_client():
    assert not seen(*[(10, 1.0)] * (FIRST_CALLS - 1)).is_known
    assert seen(*[(10, 1.0)] * FIRST_CALLS).is_known


def test_a_call_takes_as_long_as_its_length_says():
    work = seen(*[(100, 2.0)] * 100)
    assert work.service_s(100) == pytest.approx(2.0, rel=0.05)
    assert work.service_s(25) == pytest.approx(0.5, rel=0.05)


def test_the_least_is_that_of_the_quickest_seen_lately():
    work = seen(*[(100, 2.0)] * 50, (100, 0.5))
    assert work.least_service_s(100) == pytest.approx(0.5)
    for _ in range(200):
        work.served(100, 2.0)
    assert work.least_service_s(100) == pytest.approx(2.0)


def test_a_long_call_is_not_expected_to_take_many_times_a_short_one_s_time_at_least():
    """What was seen may be a fixed cost: tiny calls of 0.1 s, and then one of 1,000 tokens."""
    assert seen(*[(1, 0.1)] * 50).least_service_s(1000) < 0.2


def test_calls_that_end_at_their_deadline_do_not_make_service_look_quick():
    work = seen(*[(100, 2.0)] * 50)
    for _ in range(100):
        work.worked(100, 100, 0.3, is_whole=False)
    assert work.service_s(100) == pytest.approx(2.0)
    for _ in range(100):
        work.worked(100, 100, 5.0, is_whole=False)
    assert work.service_s(100) > 4.0
    work.began(100.0)
    assert work.tokens_per_s > 20, "but their places are free as soon as they end"
