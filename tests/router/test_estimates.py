"""What a pool learns about sizes: it starts from prose, follows what replies tell, stays sane."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.estimates import FIRST_OPEN_TOKENS, MAX_CHARS_PER_TOKEN, MIN_CHARS_PER_TOKEN, Estimates


def test_it_starts_from_english_prose_and_full_answers():
    made = Estimates()
    assert made.input_tokens(400) == 100
    assert made.output_share == 1.0


@pytest.mark.parametrize("chars", [0, 1, 2, 3])
def test_no_prompt_is_less_than_a_token(chars):
    assert Estimates().input_tokens(chars) == 1


def test_a_few_replies_are_enough_to_learn_another_script():
    made = Estimates()
    for _ in range(20):
        made.prompt_seen(1000, 1000)
    assert made.input_tokens(1000) == pytest.approx(1000, rel=0.2)


def test_later_one_odd_reply_changes_little():
    made = Estimates()
    for _ in range(1000):
        made.prompt_seen(4000, 1000)
    made.prompt_seen(50, 100)
    assert made.chars_per_token == pytest.approx(4.0, rel=0.05)


def test_but_a_lasting_change_is_followed():
    made = Estimates()
    for _ in range(1000):
        made.prompt_seen(4000, 1000)
    for _ in range(300):
        made.prompt_seen(2000, 1000)
    assert made.chars_per_token == pytest.approx(2.0, rel=0.05)


def test_the_output_share_is_of_what_was_allowed():
    made = Estimates()
    for _ in range(300):
        made.output_seen(1000, 250)
    assert made.output_share == pytest.approx(0.25, rel=0.05)


def test_answers_to_calls_that_say_no_length_are_counted_as_they_are():
    made = Estimates()
    for _ in range(300):
        made.open_output_seen(100)
    assert made.open_tokens == pytest.approx(100, rel=0.05)
    assert made.output_share == 1.0


@pytest.mark.parametrize(("chars", "tokens"), [(0, 10), (10, 0), (-1, 5), (5, -1)])
def test_nonsense_teaches_nothing(chars, tokens):
    made = Estimates()
    made.prompt_seen(chars, tokens)
    made.output_seen(chars, tokens)
    made.open_output_seen(min(chars, tokens))
    assert (made.chars_per_token, made.output_share) == (4.0, 1.0)
    assert made.open_tokens == FIRST_OPEN_TOKENS


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=50))
def test_whatever_replies_tell_the_estimates_stay_in_their_bounds(seen):
    made = Estimates()
    for first, second in seen:
        made.prompt_seen(first, second)
        made.output_seen(first, second)
    assert MIN_CHARS_PER_TOKEN <= made.chars_per_token <= MAX_CHARS_PER_TOKEN
    assert 0.0 < made.output_share <= 1.0
    assert made.input_tokens(10**9) >= 1
