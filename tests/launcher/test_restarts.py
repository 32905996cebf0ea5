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


def test_what_somebody_has_to_see_to_is_stuck_from_the_second_time_on() -> None:
    first = next_start(POLICY, History(), None, "no such image", is_slow=True)
    assert (first.delay_s, first.history.is_stuck) == (0, False)
    second = next_start(POLICY, first.history, None, "no such image", is_slow=True)
    assert (second.delay_s, second.history.is_stuck) == (POLICY.max_s, True)
    assert not next_start(POLICY, second.history, None, "exited with code 1").history.is_stuck
    assert not next_start(POLICY, second.history, 5.0, "its GPU", is_slow=True).history.is_stuck


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


@pytest.mark.parametrize(
    ("deaths_before", "ready_for_s", "delay_s"),
    [
        (0, None, 0),  # it may have been nothing
        (1, None, 300),  # somebody has to see to it
        (9, None, 300),
        (1, 599.0, 300),
        (1, 600.0, 0),  # it has served well since
    ],
)
def test_what_somebody_must_see_to_is_tried_rarely_from_the_second_time_on(
    deaths_before: int, ready_for_s: float | None, delay_s: float
) -> None:
    history = History(deaths=deaths_before)
    decision = next_start(POLICY, history, ready_for_s, "GPU lost", is_slow=True)
    assert decision.delay_s == delay_s
    when = "at once" if not delay_s else "in 300 s"
    assert decision.reason == f"restart {decision.history.deaths} {when}: GPU lost"


def test_what_is_slow_is_given_up_like_all_else() -> None:
    policy = RestartPolicy(max_failures=2)
    decision = next_start(policy, History(1, 1), None, "GPU lost", is_slow=True)
    assert decision.delay_s is None
    decision = next_start(POLICY, History(), None, "x", recoverable=False, is_slow=True)
    assert decision.delay_s is None


def test_a_policy_of_ones_own_bounds_what_is_slow() -> None:
    policy = RestartPolicy(base_s=0.5, max_s=2.0)
    assert next_start(policy, History(1), None, "GPU lost", is_slow=True).delay_s == 2.0
