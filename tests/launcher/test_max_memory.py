"""Transformers' `max_memory`: budgets by GPU, and refusals that say what engines cannot do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.max_memory import memory_fraction, parse_max_memory
from launcher.sizes import GIB
from router.config.mismatch import Mismatches


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({0: "600MB", 1: "1GB"}, {0: 600_000_000, 1: 1_000_000_000}),
        ({0: "20GiB"}, {0: 20 * GIB}),
        ({3: 1000}, {3: 1000}),
        ({0: "1GB", "cpu": 0, "disk": "0GB"}, {0: 1_000_000_000}),
    ],
)
def test_budgets_by_gpu(written, expected):
    assert parse_max_memory(written) == expected


def test_budgets_come_in_the_order_of_gpus():
    assert list(parse_max_memory({2: "1GB", 0: "1GB", 1: "1GB"})) == [0, 1, 2]


@pytest.mark.parametrize(
    ("written", "path", "expected"),
    [
        ({"0": "1GB"}, ("0",), "write 0 without quotes"),
        ({"cuda:1": "1GB"}, ("cuda:1",), "write 1 without quotes"),
        ({"gpu0": "1GB"}, ("gpu0",), "write 0 without quotes"),
        ({"all": "1GB"}, ("all",), "a GPU's number"),
        ({True: "1GB"}, (True,), "a GPU's number"),
        ({-1: "1GB"}, (-1,), "counted from 0"),
        ({None: "1GB"}, ("None",), "a GPU's number"),
        ({1.5: "1GB"}, ("1.5",), "a GPU's number"),
        ({0: "1GB", "cpu": "30GiB"}, ("cpu",), "cannot offload layers to it; leave cpu out"),
        ({0: "1GB", "disk": "1TB"}, ("disk",), "cannot offload layers to it; leave disk out"),
        ({0: "1GB", "mps": "1GB"}, ("mps",), "CUDA devices only"),
        ({0: "1gb"}, (0,), "write 1GB"),
        ({0: "10"}, (0,), "a unit is missing"),
        ({0: None}, (0,), "a size like"),
        ({0: 0}, (0,), "leave a GPU that is not to be used out"),
        ({}, (), "a GPU's number"),
        ("20GiB", (), "a mapping from"),
        (None, (), "a mapping from"),
    ],
)
def test_what_engines_cannot_do_is_refused(written, path, expected):
    with pytest.raises(Mismatches) as caught:
        parse_max_memory(written)
    (mismatch,) = caught.value.mismatches
    assert mismatch.path == path
    assert expected in mismatch.expected


def test_all_mistakes_are_named_at_once():
    with pytest.raises(Mismatches) as caught:
        parse_max_memory({"0": "1GB", 1: "1gb", "cpu": "1GB"})
    assert [mismatch.path for mismatch in caught.value.mismatches] == [("0",), (1,), ("cpu",)]


KEYS = st.one_of(st.integers(-2, 99), st.text(max_size=5), st.booleans(), st.none(), st.floats())
VALUES = st.one_of(st.integers(), st.text(max_size=8), st.none(), st.lists(st.none()))


@given(st.one_of(st.dictionaries(KEYS, VALUES, max_size=4), VALUES))
def test_any_value_is_budgets_or_refused(written):
    try:
        budgets = parse_max_memory(written)
    except Mismatches:
        return
    assert all(budget > 0 for budget in budgets.values())


@pytest.mark.parametrize(
    ("budget_bytes", "total_bytes", "expected"),
    [
        (20 * GIB, 24 * GIB, 0.833),
        (24 * GIB, 24 * GIB, 1.0),
        (30 * GIB, 24 * GIB, 1.0),
        (GIB, 80 * GIB, 0.012),
    ],
)
def test_a_budget_as_a_share_of_the_card(budget_bytes, total_bytes, expected):
    assert memory_fraction(budget_bytes, total_bytes) == expected


@given(st.integers(1, 200 * GIB), st.integers(GIB, 200 * GIB))
def test_the_share_never_exceeds_the_budget(budget_bytes, total_bytes):
    try:
        share = memory_fraction(budget_bytes, total_bytes)
    except ValueError:
        assert budget_bytes * 1000 < total_bytes
        return
    assert 0 < share <= 1
    # In thousandths, which is what the flag says; the float nearest to them may lie a hair above.
    assert round(share * 1000) * total_bytes <= budget_bytes * 1000 or budget_bytes > total_bytes


@pytest.mark.parametrize(("budget_bytes", "total_bytes"), [(1000, 24 * GIB), (0, GIB), (GIB, 0)])
def test_a_budget_too_small_for_any_share_is_refused(budget_bytes, total_bytes):
    with pytest.raises(ValueError, match=r"card"):
        memory_fraction(budget_bytes, total_bytes)
