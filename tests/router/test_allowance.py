"""So much a minute: what is let in, when, and what an overdrawn allowance costs."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.allowance import Allowance


def test_a_minutes_worth_may_be_spent_at_once_and_comes_back_evenly():
    allowance = Allowance(60, 100.0)
    for _ in range(60):
        assert allowance.wait_s(1, 100.0) == 0.0
        allowance.take(1, 100.0)
    assert allowance.wait_s(1, 100.0) == pytest.approx(1.0)
    assert allowance.wait_s(1, 100.5) == pytest.approx(0.5)
    assert allowance.wait_s(1, 101.0) == 0.0
    assert allowance.wait_s(30, 101.0) == pytest.approx(29.0)


def test_no_more_than_a_minutes_worth_is_saved_up():
    allowance = Allowance(10, 0.0)
    assert allowance.left(1e6) == 10
    allowance.take(-5, 1e6)
    assert allowance.left(1e6) == 10


def test_what_is_larger_than_the_whole_waits_for_it_to_be_full_and_is_paid_back_after():
    allowance = Allowance(100, 0.0)
    assert allowance.wait_s(1000, 0.0) == 0.0
    allowance.take(1000, 0.0)
    assert allowance.left(0.0) == -900
    assert allowance.wait_s(1, 0.0) == pytest.approx(901 * 0.6)
    assert allowance.wait_s(5000, 0.0) == pytest.approx(1000 * 0.6)


@pytest.mark.parametrize(("after", "left"), [(200, 120), (50, -30), (100, 20)])
def test_a_new_limit_keeps_what_was_used(after, left):
    allowance = Allowance(100, 0.0)
    allowance.take(80, 0.0)
    allowance.change(after, 0.0)
    assert allowance.left(0.0) == left


@given(
    per_minute=st.integers(1, 10**7),
    used=st.lists(st.floats(0, 10**6), max_size=8),
    amount=st.floats(0, 10**6),
)
def test_who_comes_back_when_told_is_let_in_and_not_a_second_earlier(per_minute, used, amount):
    allowance = Allowance(per_minute, 5.0)
    for one in used:
        allowance.take(one, 5.0)
    wait_s = allowance.wait_s(amount, 5.0)
    if wait_s > 1.0:
        assert allowance.wait_s(amount, 5.0 + wait_s - 1.0) > 0
    assert allowance.wait_s(amount, 5.0 + ceil(wait_s)) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_over_any_time_no_more_is_let_in_than_the_limit_and_one_burst(steps):
    allowance, now_s, taken = Allowance(100, 0.0), 0.0, 0
    for pause_s, amount in steps:
        now_s += pause_s
        if not allowance.wait_s(amount, now_s):
            allowance.take(amount, now_s)
            taken += amount
        assert taken <= 100 + now_s * 100 / 60 + 1e-3
