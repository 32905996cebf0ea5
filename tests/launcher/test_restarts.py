"""The back-off as a table: at once, then doubling; a long ready time wipes the slate."""

import pytest

from launcher.restarts import History, RestartPolicy, next_start

POLICY = RestartPolicy()


@pytest.mark.parametrize(
    ("deaths_before", "delay_s"),
    [(0, 0), (1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (5_000, 300)],
)
def test_delay_after_so_many_deaths(deaths_before: int, delay_s: float) -> None:
    decision = next_start(POLICY, History(deaths=deaths_before), 1.0, "died")
    assert decision.delay_s == delay_s
    assert decision.history.deaths == deaths_before + 1


@pytest.mark.parametrize(
    ("ready_for_s", "deaths", "delay_s"),
    [(None, 5, 8), (0.0, 5, 8), (599.9, 5, 8), (600.0, 1, 0), (1e6, 1, 0)],
)
def test_only_a_long_ready_time_resets(
    ready_for_s: float | None, deaths: int, delay_s: float
) -> None:
    decision = next_start(POLICY, History(deaths=4), ready_for_s, "died")
    assert (decision.history.deaths, decision.delay_s) == (deaths, delay_s)


def test_given_up_after_max_failures_in_a_row() -> None:
    policy = RestartPolicy(max_failures=3)
    history = History()
    delays = []
    for _ in range(3):
        decision = next_start(policy, history, None, "exited with code 1")
        history = decision.history
        delays.append(decision.delay_s)
    assert delays == [0, 1, None]
    assert decision.reason == "given up after 3 failed starts in a row: exited with code 1"


def test_having_been_ready_once_resets_failed_starts_but_not_deaths() -> None:
    decision = next_start(RestartPolicy(max_failures=2), History(3, 1), 0.5, "died")
    assert (decision.history.failed_starts, decision.delay_s) == (0, 4)


def test_what_cannot_get_better_is_not_tried_again() -> None:
    decision = next_start(POLICY, History(), None, "no such program", recoverable=False)
    assert decision.delay_s is None
    assert decision.reason.startswith("not tried again")
    assert decision.reason.endswith(": no such program")


@pytest.mark.parametrize(
    ("deaths", "said"), [(0, "restart 1 at once: died"), (2, "restart 3 in 2 s: died")]
)
def test_reason_says_what_happens_next(deaths: int, said: str) -> None:
    assert next_start(POLICY, History(deaths=deaths), None, "died").reason == said
