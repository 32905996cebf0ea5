"""The lifecycle table: what may follow what, and what a step changes."""

import pytest

from launcher.instance import TRANSITIONS, IllegalStep, Instance, Phase


def at(phase: Phase) -> Instance:
    return Instance("replica-0", "m", "tgi", phase=phase, progress="warming up", since_s=0.0)


@pytest.mark.parametrize("before", list(Phase))
@pytest.mark.parametrize("after", list(Phase))
def test_every_pair_is_allowed_or_raises(before: Phase, after: Phase) -> None:
    instance = at(before)
    if after is before:
        assert not instance.move(after, "again", 5.0)
        assert (instance.since_s, instance.reason) == (0.0, "again")
    elif after in TRANSITIONS[before]:
        assert instance.move(after, "because", 5.0)
        assert (instance.phase, instance.reason, instance.since_s) == (after, "because", 5.0)
    else:
        with pytest.raises(IllegalStep, match=f"{before} -> {after}"):
            instance.move(after, "because", 5.0)
        assert instance.phase is before


def test_every_phase_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert set().union(*TRANSITIONS.values()) == set(Phase)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize("dead_end", [Phase.STOPPED, Phase.FAILED])
def test_what_has_ended_starts_over_from_pending(dead_end: Phase) -> None:
    assert Phase.READY not in TRANSITIONS[dead_end]
    assert Phase.PENDING in TRANSITIONS[dead_end]


def test_progress_ends_with_loading() -> None:
    instance = at(Phase.LOADING)
    instance.move(Phase.READY, "answers /health", 1.0)
    assert instance.progress == ""


def test_the_words_operators_read_are_fixed() -> None:
    words = "pending starting loading ready draining stopped failed"
    assert [str(phase) for phase in Phase] == words.split()
