"""The lines that say what differs between two configs: complete, short, and without a secret."""

import pytest

from router.config import RouterConfig
from router.config.differences import flat_differences


def lines(before, after):
    return list(flat_differences(before, after))


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({"a": 1}, {"a": 2}, "a: 1 -> 2"),
        ({"a": {"b": 1, "c": 3}}, {"a": {"b": 2, "c": 3}}, "a.b: 1 -> 2"),
        ({"a": 0}, {"a": None}, "a: 0 -> none"),
        ({"a": None}, {"a": False}, "a: none -> false"),
        ({}, {"a": {"b": 1}}, "a.b: none -> 1"),
        ({"a": {"b": 1}}, {"a": None}, "a.b: 1 -> none"),
        ({"a": ["x"]}, {"a": ["x", "y"]}, "a: x -> x, y"),
        ({"a": "x" * 61}, {"a": "1\n2"}, f"a: {'x' * 60}... -> 1 2"),
    ],
)
def test_each_difference_is_one_line(before, after, line):
    assert lines(before, after) == [line]


def test_no_difference_is_no_line():
    assert lines({"a": {"b": [1]}}, {"a": {"b": [1]}}) == []


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ({"engine_api_key": "hidden"}, {"engine_api_key": "unseen"}, "engine_api_key"),
        ({"admin": None}, {"admin": {"token": "hidden"}}, "admin.token"),
        ({"env": {"A": "hidden"}}, {"env": {"A": "unseen"}}, "env.A"),
        ({"keys": []}, {"keys": [{"name": "a", "key": "hidden"}]}, "keys"),
    ],
)
def test_a_value_that_may_be_secret_is_not_shown(before, after, where):
    assert lines(before, after) == [f"{where}: changed (not shown)"]


def test_a_router_config_differs_where_it_was_edited():
    after = RouterConfig.model_validate({"queue": {"max_calls": 0}, "log_calls": False})
    assert lines(RouterConfig().model_dump(), after.model_dump()) == [
        "queue.max_calls: none -> 0",
        "log_calls: true -> false",
    ]
