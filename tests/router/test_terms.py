"""Whose call it is, how urgent and for how long: header fields, right and wrong."""

import contextlib
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import terms
from router.call import Priority
from router.errors import InvalidRequest


@pytest.mark.parametrize("name", ["a", "team-7", "ops@example.org", "org/unit:x_1.2", "x" * 64])
def test_a_tenant_is_a_short_plain_name(name):
    assert terms.tenant({"x-fleet-tenant": name}, "x-fleet-tenant") == name


@pytest.mark.parametrize("name", ["x" * 65, "a b", "*", "ü", "a\tb", 'a"', "a,b", "a\u0661"])
def test_anything_else_is_refused_and_the_field_named(name):
    with pytest.raises(InvalidRequest) as caught:
        terms.tenant({"x-team": name}, "x-team")
    assert "x-team" in caught.value.message
    assert caught.value.status == 422


@pytest.mark.parametrize("headers", [{}, {"x-fleet-tenant": ""}])
def test_who_says_nothing_is_the_anonymous_tenant(headers):
    assert terms.tenant(headers, "x-fleet-tenant") == ""


@pytest.mark.parametrize(
    ("word", "priority"),
    [("high", Priority.HIGH), ("Normal", Priority.NORMAL), ("LOW", Priority.LOW)],
)
def test_a_priority_is_one_of_three_words(word, priority):
    assert terms.priority({"x-fleet-priority": word}) is priority


def test_no_word_is_normal():
    assert terms.priority({}) is Priority.NORMAL


@pytest.mark.parametrize("word", ["", "urgent", "1", " high", "high,low", "x" * 10_000])
def test_a_wrong_word_is_answered_with_the_right_ones(word):
    with pytest.raises(InvalidRequest) as caught:
        terms.priority({"x-fleet-priority": word})
    assert "high, normal or low" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5.0), ("0.25", 0.25), ("1e", None), ("007", 7.0), ("12.50", 12.5)]
)
def test_a_time_limit_is_a_decimal_number_of_seconds(text, seconds):
    headers = {"x-request-timeout": text}
    if seconds is None:
        with pytest.raises(InvalidRequest, match="x-request-timeout"):
            terms.time_limit_s(headers)
    else:
        assert terms.time_limit_s(headers) == seconds


def test_without_one_there_is_none():
    assert terms.time_limit_s({}) == inf


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "+1", "inf", "nan", "1e3", "1_0", " 1", "1s", ".5", "5.", "٣"]
)
def test_what_could_be_meant_otherwise_is_refused(text):
    with pytest.raises(InvalidRequest, match="seconds as a decimal number"):
        terms.time_limit_s({"x-request-timeout": text})


@given(st.text(max_size=30))
def test_any_text_is_either_understood_or_refused(text):
    headers = {"x-request-timeout": text, "x-fleet-priority": text, "x-fleet-tenant": text}
    for read in (terms.time_limit_s, terms.priority, lambda h: terms.tenant(h, "x-fleet-tenant")):
        with contextlib.suppress(InvalidRequest):
            read(headers)
