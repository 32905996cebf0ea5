"""Whether a failed attempt is followed by another: each error, the budget, the poison rule."""

import pytest

from router.config import RetryConfig
from router.errors import (
    BodyTooLarge,
    CallTimeout,
    ClientGone,
    ConnectFailed,
    InvalidRequest,
    NoReplica,
    QueueFull,
    QueueTimeout,
    ReplicaLost,
    UpstreamBroken,
    UpstreamFault,
    UpstreamRefusal,
    UpstreamShed,
    UpstreamTimeout,
)
from router.retry import (
    FORGIVING_EVENTS,
    MAX_EXCUSES,
    PROGRESS_EVENTS,
    QUIET_S,
    Attempts,
    RetryBudget,
    Scene,
    Step,
    next_step,
    trial_step,
)

CONFIG = RetryConfig(max_attempts=3, max_deaths=2)
REPLICA_SIDE = [
    UpstreamShed("x"),
    ConnectFailed("x"),
    ReplicaLost("x"),
    UpstreamBroken("x"),
    UpstreamTimeout("x"),
    UpstreamFault("x"),
]
FINAL = [
    InvalidRequest("x"),
    BodyTooLarge("x"),
    ClientGone("x"),
    QueueFull("x"),
    QueueTimeout("x"),
    NoReplica("x"),
    CallTimeout("x"),
    UpstreamRefusal("x", status=422, error_type="validation"),
]


def name(error):
    return type(error).__name__


def scene(replica="a", lost="", *, now_s=100.0, is_stuck=False):
    """Replicas have one letter: `scene("a", "ab")`."""
    return Scene(replica, now_s, frozenset(lost), is_stuck)


def step(error, attempts=None, budget=None, *, config=CONFIG, at=None, is_stuck=False):
    return next_step(
        error,
        attempts or Attempts(count=1),
        budget or RetryBudget(0.2),
        config,
        at or scene(is_stuck=is_stuck),
    )


@pytest.mark.parametrize("error", [*REPLICA_SIDE, *FINAL], ids=name)
def test_nothing_is_tried_again_once_the_client_has_seen_an_event(error):
    attempts, budget = Attempts(count=1), RetryBudget(0.2)
    assert step(error, attempts, budget, is_stuck=True) is Step.GIVE_UP
    assert budget.tokens == budget.burst
    assert attempts.deaths == 0


@pytest.mark.parametrize("error", FINAL, ids=name)
def test_what_is_not_the_replicas_fault_is_final(error):
    assert step(error) is Step.GIVE_UP
    assert not error.hurts_health


def test_a_full_replica_costs_nothing_however_often():
    attempts, budget = Attempts(count=1), RetryBudget(0.2)
    for _ in range(100):
        assert step(UpstreamShed("x"), attempts, budget) is Step.AGAIN_FIRST
        assert attempts.was_shed
    assert budget.tokens == budget.burst


@pytest.mark.parametrize("error", [ConnectFailed("x"), ReplicaLost("x")], ids=name)
def test_a_dead_replica_sends_the_call_to_the_head_and_costs_no_budget(error):
    attempts, budget = Attempts(count=1), RetryBudget(0.2)
    assert step(error, attempts, budget) is Step.AGAIN_FIRST
    assert budget.tokens == budget.burst
    assert not attempts.alone


def test_a_call_that_two_replicas_died_with_is_tried_alone_and_then_refused():
    attempts = Attempts(count=1)
    steps = [step(ReplicaLost("x"), attempts) for _ in range(3)]
    assert steps == [Step.AGAIN_FIRST, Step.ALONE, Step.REFUSE]


@pytest.mark.parametrize("deaths", [1, 2, 5])
def test_the_number_of_deaths_is_configured(deaths):
    attempts, config = Attempts(count=1), RetryConfig(max_deaths=deaths)
    steps = [step(ReplicaLost("x"), attempts, config=config) for _ in range(deaths + 1)]
    assert steps == [Step.AGAIN_FIRST] * (deaths - 1) + [Step.ALONE, Step.REFUSE]


def test_a_refused_connection_never_makes_a_call_suspect():
    """The replica has seen nothing of the call: it cannot have died of it."""
    attempts = Attempts(count=1)
    steps = {step(ConnectFailed("x"), attempts) for _ in range(20)}
    assert steps == {Step.AGAIN_FIRST}


def test_a_suspect_whose_lone_replica_refuses_the_connection_is_tried_alone_again():
    attempts = Attempts(count=3, deaths=2, alone=True)
    assert step(ConnectFailed("x"), attempts) in (Step.ALONE, Step.AGAIN_FIRST)
    assert attempts.alone


# ---- deaths in company ----


def deaths(attempts, *scenes):
    return [step(ReplicaLost("x"), attempts, at=scene(*one)) for one in scenes]


def test_a_trial_is_held_a_while_after_the_last_death():
    attempts = Attempts(count=1)
    step(ReplicaLost("x"), attempts, at=scene("a", now_s=100.0))
    step(ReplicaLost("x"), attempts, at=scene("b", now_s=103.0))
    assert attempts.alone
    assert attempts.quiet_until_s == 103.0 + QUIET_S
    assert trial_step(attempts, frozenset("ab")) is Step.ALONE


def test_deaths_of_those_alone_that_had_the_call_excuse_nothing():
    attempts = Attempts(count=1)
    found = deaths(attempts, ("a", "a"), ("b", "ab"), ("c", "abc"))
    assert found == [Step.AGAIN_FIRST, Step.ALONE, Step.REFUSE]
    assert attempts.died_with == set("abc")


def test_a_death_beside_one_that_had_not_the_call_does_not_count():
    attempts = Attempts(count=1)
    assert deaths(attempts, ("a", "ab"), ("b", "abc")) == [Step.AGAIN_FIRST] * 2
    assert (attempts.deaths, attempts.alone) == (0, False)


def test_a_suspect_is_none_when_others_died_in_its_quiet_time():
    attempts = Attempts(count=1)
    assert deaths(attempts, ("a", "a"), ("b", "ab"))[-1] is Step.ALONE
    assert trial_step(attempts, frozenset("abc")) is Step.AGAIN_FIRST
    assert not attempts.alone
    assert deaths(attempts, ("c", "c"))[-1] is Step.ALONE, "one more, and it is one again"


def test_a_trial_at_which_another_replica_died_is_held_again():
    attempts = Attempts(count=3, deaths=2, alone=True, died_with=frozenset("ab"))
    assert deaths(attempts, ("c", "cd"), ("c", "c")) == [Step.ALONE, Step.REFUSE]


def test_what_happened_to_a_replica_that_refused_the_call_tells_for_it():
    attempts = Attempts(count=1)
    assert deaths(attempts, ("a", "a"))[-1] is Step.AGAIN_FIRST
    step(ConnectFailed("x"), attempts, at=scene("b", "ab"))
    assert deaths(attempts, ("c", "abc"))[-1] is Step.AGAIN_FIRST
    assert not attempts.alone


@pytest.mark.parametrize("max_deaths", [1, 2, 3])
def test_bad_company_is_an_excuse_a_few_times_only(max_deaths):
    """Else a call that kills would go on for as long as another does, or a replica is broken."""
    attempts, config = Attempts(count=1), RetryConfig(max_deaths=max_deaths)
    killed, last = 0, None
    while last is not Step.REFUSE and killed < 100:
        killed += 1
        last = step(ReplicaLost("x"), attempts, config=config, at=scene("a", "az"))
        if last is Step.ALONE:
            last = trial_step(attempts, frozenset("az"))
    assert killed == max_deaths + 1 + MAX_EXCUSES


@pytest.mark.parametrize(
    "error", [UpstreamTimeout("x"), UpstreamFault("x"), UpstreamBroken("x")], ids=name
)
def test_faults_and_timeouts_cost_budget_and_are_bounded_per_call(error):
    attempts, budget = Attempts(count=1), RetryBudget(0.2)
    steps = [step(error, attempts, budget) for _ in range(3)]
    assert steps == [Step.AGAIN, Step.AGAIN, Step.GIVE_UP]
    assert budget.tokens == budget.burst - 2


def test_one_attempt_means_no_budgeted_retry():
    assert step(UpstreamFault("x"), config=RetryConfig(max_attempts=1)) is Step.GIVE_UP


def test_deaths_and_sheds_do_not_use_up_the_attempts_that_cost_budget():
    attempts = Attempts(count=1)
    step(UpstreamShed("x"), attempts)
    step(ReplicaLost("x"), attempts)
    assert step(UpstreamFault("x"), attempts) is Step.AGAIN


def test_an_empty_budget_ends_the_call():
    budget = RetryBudget(0.2, burst=1.0)
    assert step(UpstreamFault("x"), budget=budget) is Step.AGAIN
    assert step(UpstreamFault("x"), budget=budget) is Step.GIVE_UP


def test_five_served_calls_earn_one_retry():
    budget = RetryBudget(0.2, burst=2.0)
    assert budget.spend()
    assert budget.spend()
    for _ in range(4):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()
    assert not budget.spend()


def test_the_budget_never_grows_over_its_burst():
    budget = RetryBudget(0.5, burst=3.0)
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_a_share_of_zero_allows_the_burst_only():
    budget = RetryBudget(0.0, burst=1.0)
    assert budget.spend()
    for _ in range(1000):
        budget.earn()
    assert not budget.spend()


def test_a_budget_that_has_more_to_cover_has_more_to_spend_at_once():
    """Else the first loss of a large replica would find what a small one's may cost."""
    budget = RetryBudget(0.0)
    budget.cover(64)
    assert sum(budget.spend() for _ in range(100)) == 64
    budget.cover(64)
    assert not budget.spend()


def test_a_budget_that_has_less_to_cover_keeps_no_more_than_that():
    budget = RetryBudget(0.0)
    budget.cover(64)
    budget.cover(4)
    assert sum(budget.spend() for _ in range(100)) == 16


def test_a_budget_that_is_used_up_is_not_refilled_by_a_limit_that_shrinks_and_grows():
    budget = RetryBudget(0.2)
    budget.cover(128)
    while budget.spend():
        pass
    budget.cover(16)
    budget.cover(128)
    assert not budget.spend()


def test_what_kills_replica_after_replica_a_few_tokens_on_is_tried_alone_and_refused():
    attempts, steps = Attempts(), []
    for name in "abcd":
        steps.append(step(ReplicaLost("x"), attempts, at=scene(name, lost=name)))
        attempts.got_further(PROGRESS_EVENTS)
    assert steps == [*[Step.AGAIN_FIRST] * 2, Step.ALONE, Step.REFUSE]


def test_deaths_are_forgiven_a_call_that_gets_far_between_them():
    attempts = Attempts()
    for name in "abcdefgh":
        assert step(ReplicaLost("x"), attempts, at=scene(name, lost=name)) is Step.AGAIN_FIRST
        attempts.got_further(FORGIVING_EVENTS)
