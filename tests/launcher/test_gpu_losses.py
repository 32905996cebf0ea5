"""Looks at all GPUs, one after the other: which of them are lost, and when nothing can be told."""

import pytest

from launcher.gpu_losses import LOOKS, Losses

LOST, RESET_REQUIRED, NOT_FOUND, TIMEOUT, UNKNOWN = 15, 16, 6, 10, 999
GPUS = ("a", "b", "c")


def looks(losses: Losses, *refusals: dict[str, int], gpus: tuple[str, ...] = GPUS):
    return [losses.newly_lost(gpus, refused) for refused in refusals]


@pytest.mark.parametrize("code", [LOST, RESET_REQUIRED, NOT_FOUND])
def test_a_gpu_that_the_driver_calls_lost_is(code: int) -> None:
    assert looks(Losses(), {}, {"b": code}) == [[], ["b"]]


def test_all_gpus_may_be_lost_if_the_driver_says_so() -> None:
    assert looks(Losses(), dict.fromkeys(GPUS, LOST)) == [[*GPUS]]


@pytest.mark.parametrize("code", [TIMEOUT, UNKNOWN])
def test_an_odd_answer_counts_once_it_came_in_a_row(code: int) -> None:
    odd = {"b": code}
    assert looks(Losses(), *[odd] * (LOOKS + 1)) == [*[[]] * (LOOKS - 1), ["b"], []]


def test_a_good_answer_in_between_makes_the_odd_ones_forgotten() -> None:
    losses = Losses()
    for _ in range(3):
        assert looks(losses, *[{"b": UNKNOWN}] * (LOOKS - 1), {}) == [[]] * LOOKS


def test_a_lost_gpu_is_told_again_only_after_it_answered() -> None:
    said = looks(Losses(), {"a": LOST}, {"a": LOST}, {"a": UNKNOWN}, {}, {"a": LOST})
    assert said == [["a"], [], [], [], ["a"]]


def test_all_gpus_with_odd_answers_are_not_lost_but_out_of_sight() -> None:
    losses = Losses()
    together = dict.fromkeys(GPUS, UNKNOWN)
    for _ in range(LOOKS):
        assert not losses.is_blind
        assert looks(losses, together) == [[]]
    assert losses.is_blind
    assert looks(losses, together, {}) == [[], []]
    assert not losses.is_blind


def test_access_that_goes_in_the_middle_of_a_look_takes_nobody_with_it() -> None:
    together = dict.fromkeys(GPUS, UNKNOWN)
    assert looks(Losses(), {"c": UNKNOWN}, {"c": UNKNOWN}, *[together] * 4) == [[]] * 6


def test_one_that_is_still_odd_once_the_others_answer_has_as_many_looks_as_any() -> None:
    losses = Losses()
    looks(losses, *[dict.fromkeys(GPUS, UNKNOWN)] * LOOKS)
    assert looks(losses, *[{"a": UNKNOWN}] * LOOKS) == [*[[]] * (LOOKS - 1), ["a"]]


def test_the_only_gpu_is_judged_by_itself() -> None:
    losses = Losses()
    said = looks(losses, *[{"a": UNKNOWN}] * LOOKS, gpus=("a",))
    assert said == [*[[]] * (LOOKS - 1), ["a"]]
    assert not losses.is_blind


def test_beside_a_lost_gpu_the_last_one_is_judged_by_itself() -> None:
    losses = Losses()
    said = looks(losses, *[{"a": LOST, "b": UNKNOWN}] * LOOKS, gpus=("a", "b"))
    assert said == [["a"], *[[]] * (LOOKS - 2), ["b"]]


def test_where_some_are_lost_and_no_other_answers_those_are_out_of_sight() -> None:
    losses = Losses()
    said = looks(losses, *[{"a": LOST, "b": UNKNOWN, "c": UNKNOWN}] * LOOKS)
    assert said == [["a"], *[[]] * (LOOKS - 1)]
    assert losses.is_blind
