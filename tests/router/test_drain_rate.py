"""How fast calls finish, and when a refused client should come back."""

import pytest

from router.drain_rate import MAX_RETRY_AFTER_S, DrainRate


def steady(per_s, seconds):
    rate = DrainRate(0.0)
    for step in range(int(per_s * seconds)):
        rate.finished((step + 1) / per_s)
    return rate


@pytest.mark.parametrize("per_s", [0.5, 1, 10, 200])
@pytest.mark.parametrize("seconds", [10, 60])
def test_a_steady_rate_is_measured_soon(per_s, seconds):
    assert steady(per_s, seconds).per_s(seconds) == pytest.approx(per_s, rel=0.2)


def test_nothing_finished_is_a_rate_of_zero():
    rate = DrainRate(0.0)
    assert rate.per_s(0.0) == 0.0
    assert rate.per_s(100.0) == 0.0


def test_an_old_rate_is_forgotten():
    rate = steady(10, 60)
    assert rate.per_s(70) < 5
    assert rate.per_s(600) < 0.01


@pytest.mark.parametrize(("ahead", "expected"), [(1, 1), (10, 1), (100, 10), (5000, 500)])
def test_the_client_comes_back_when_those_ahead_are_done(ahead, expected):
    found = steady(10, 60).retry_after_s(ahead, 60.0, unknown_s=15.0)
    assert expected * 0.8 <= found <= expected * 1.2 + 1


def test_it_is_a_whole_number_between_one_and_the_bound():
    rate = steady(10, 60)
    for ahead in (0, 1, 10**9):
        found = rate.retry_after_s(ahead, 60.0, unknown_s=15.0)
        assert isinstance(found, int)
        assert 1 <= found <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(("unknown_s", "expected"), [(15.0, 15), (0.2, 1), (90.1, 91), (1e9, 600)])
def test_while_nothing_finishes_the_start_time_counts(unknown_s, expected):
    assert DrainRate(0.0).retry_after_s(5, 0.0, unknown_s=unknown_s) == expected


def test_several_calls_at_once_count_each():
    rate = DrainRate(0.0)
    for second in range(1, 61):
        rate.finished(float(second), calls=5)
    assert rate.per_s(60.0) == pytest.approx(5, rel=0.2)
