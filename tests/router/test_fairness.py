"""Virtual token counters: the paper's bound over any schedule, idleness, weights, forgetting."""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.call import Cost
from router.fairness import FORGET_LOOKS, OTHERS, Account, TokenCounters, charge, charge_of

MAX_INPUT, MAX_OUTPUT, SLOTS = 20, 30, 4
IN_FLIGHT = SLOTS * charge(MAX_INPUT, MAX_OUTPUT)
"""The most that can be in flight at a time: what the paper's bound is made of."""


@dataclass
class Engine:
    """Runs up to SLOTS calls; each is (input, expected output, what the output comes to)."""

    counters: TokenCounters
    lanes: dict[str, deque] = field(default_factory=dict)
    running: list[tuple[Account, str, float, float]] = field(default_factory=list)
    served: Counter = field(default_factory=Counter)

    def arrive(self, tenant, call):
        account = self.counters.account(tenant)
        lane = self.lanes.setdefault(tenant, deque())
        if not lane:
            self.counters.join(account)
        lane.append(call)
        account.users += 1
        self.fill()

    def fill(self):
        while len(self.running) < SLOTS and (account := self.counters.least()):
            lane = self.lanes[account.tenant]
            prompt, expected, output = lane.popleft()
            if not lane:
                self.counters.leave(account)
            charged, came_to = charge(prompt, expected), charge(prompt, output)
            self.counters.charge(account, charged)
            self.running.append((account, account.tenant, charged, came_to))

    def end(self, position):
        if self.running:
            account, tenant, charged, came_to = self.running.pop(position % len(self.running))
            self.counters.settle(account, came_to - charged)
            account.users -= 1
            self.served[tenant] += came_to
            self.fill()


CALLS = st.tuples(st.integers(1, MAX_INPUT), st.integers(0, MAX_OUTPUT), st.integers(0, MAX_OUTPUT))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("end"), st.integers(0, SLOTS)),
        st.tuples(st.sampled_from("cd"), CALLS),
    ),
    max_size=120,
)


@given(STEPS, st.lists(CALLS, min_size=60, max_size=60), st.lists(CALLS, min_size=60, max_size=60))
def test_two_tenants_that_always_wait_are_served_alike_whatever_else_comes(steps, first, second):
    """The bound that the paper proves: over any time, by no more than twice what fits at once."""
    engine = Engine(TokenCounters({}))
    for call in first:
        engine.arrive("a", call)
    for call in second:
        engine.arrive("b", call)
    marks = [Counter(engine.served)]
    for kind, what in steps:
        engine.end(what) if kind == "end" else engine.arrive(kind, what)
        if not (engine.lanes["a"] and engine.lanes["b"]):
            break
        marks.append(Counter(engine.served))
    leads = [mark["a"] - mark["b"] for mark in marks]
    assert max(leads) - min(leads) <= 2 * IN_FLIGHT


@given(STEPS, st.sampled_from([1.0, 2.0, 5.0]))
def test_weights_divide_what_is_served(steps, weight):
    engine = Engine(TokenCounters({"a": weight}))
    for _ in range(200):
        engine.arrive("a", (5, 5, 5))
        engine.arrive("b", (5, 5, 5))
    for kind, what in steps:
        engine.end(what) if kind == "end" else engine.arrive(kind, what)
        if not (engine.lanes["a"] and engine.lanes["b"]):
            break
        lead = engine.served["a"] / weight - engine.served["b"]
        assert abs(lead) <= 2 * IN_FLIGHT


@given(st.lists(st.integers(0, SLOTS), min_size=50, max_size=200), CALLS)
def test_a_tenant_that_was_idle_has_saved_nothing_up(ends, call):
    """It is served like the others from when it comes, whatever they had before."""
    engine = Engine(TokenCounters({}))
    for _ in range(400):
        engine.arrive("busy", (10, 10, 10))
    for _ in range(200):
        engine.end(0)
    before = engine.served["busy"]
    for _ in range(400):
        engine.arrive("late", call)
    for position in ends:
        engine.end(position)
    assert engine.served["late"] - (engine.served["busy"] - before) <= 2 * IN_FLIGHT


def test_who_comes_while_nobody_waits_starts_where_the_last_one_left():
    counters = TokenCounters({})
    first, second = counters.account("a"), counters.account("b")
    counters.arrive(first)
    counters.charge(first, 1000.0)
    counters.arrive(second)
    assert second.counter == 1000.0
    counters.charge(second, 10.0)
    counters.arrive(first)
    assert first.counter == 1010.0


def test_a_turn_that_ends_later_moves_nobody_else():
    counters = TokenCounters({})
    early, late = counters.account("a"), counters.account("b")
    counters.charge(early, 50.0)
    counters.arrive(late)
    counters.charge(late, 50.0)
    counters.settle(early, 900.0)
    third = counters.account("c")
    counters.arrive(third)
    assert third.counter == late.counter


def test_of_equal_counters_who_has_waited_longer_comes_first():
    counters = TokenCounters({})
    accounts = [counters.account(name) for name in "zay"]
    for account in accounts:
        counters.join(account)
    found = []
    while account := counters.least():
        found.append(account)
        counters.leave(account)
    assert found == accounts


def test_newcomers_never_come_before_one_that_waits_for_its_first_turn():
    counters = TokenCounters({})
    waiting = counters.account("large call")
    counters.join(waiting)
    for number in range(100):
        newcomer = counters.account(f"new {number}")
        counters.join(newcomer)
        assert counters.least() is waiting
        counters.charge(newcomer, 5.0)


def test_a_newcomer_does_not_wait_for_the_turn_of_one_that_has_had_some():
    """But once only: when it comes again, the other is next."""
    counters = TokenCounters({})
    flood, quiet = counters.account("flood"), counters.account("quiet")
    counters.join(flood)
    counters.charge(flood, 100.0)
    for following in (quiet, flood):
        counters.join(quiet)
        assert counters.least() is following
        counters.leave(quiet)
        counters.charge(quiet, 5.0)


def test_a_correction_while_it_waits_changes_the_order():
    counters = TokenCounters({})
    first, second = counters.account("a"), counters.account("b")
    for account in (first, second):
        counters.join(account)
    for account in (first, second):
        counters.charge(account, 100.0)
    assert counters.least() is first
    counters.settle(second, -60.0)
    assert counters.least() is second
    counters.settle(first, -80.0)
    assert counters.least() is first


def test_the_order_stays_small_however_often_counters_change():
    counters = TokenCounters({})
    accounts = [counters.account(str(number)) for number in range(10)]
    for account in accounts:
        counters.join(account)
    for number in range(10_000):
        counters.settle(accounts[number % 10], 5.0 if number % 3 else -9.0)
    assert len(counters._order) < 200
    assert counters.least() is min(accounts, key=lambda one: one.rank)


# ---- how many are known ----


def test_one_that_has_nothing_here_is_forgotten_for_one_that_comes():
    counters = TokenCounters({}, max_tenants=2)
    kept, idle = counters.account("kept"), counters.account("idle")
    kept.users = 1
    assert counters.account("new") is not counters.account("kept")
    assert counters.account("kept") is kept
    assert len(counters) == 2
    kept.users = 0
    assert counters.account("idle") is not idle


def test_while_all_are_busy_the_rest_share_one_account():
    counters = TokenCounters({}, max_tenants=3)
    for name in "abc":
        counters.account(name).users = 1
    shared = counters.account("d")
    assert shared is counters.account("e")
    assert shared.tenant == OTHERS
    assert len(counters) == 3


def test_who_was_used_last_is_forgotten_last():
    counters = TokenCounters({}, max_tenants=3)
    first = counters.account("a")
    counters.account("b")
    counters.account("c")
    assert counters.account("a") is first
    counters.account("d")
    assert counters.account("a") is first


def test_looking_for_one_to_forget_is_bounded():
    counters = TokenCounters({}, max_tenants=FORGET_LOOKS + 1)
    for number in range(FORGET_LOOKS):
        counters.account(str(number)).users = 1
    counters.account("idle, but used too lately")
    assert counters.account("new").tenant == OTHERS


def test_any_number_of_names_takes_a_bounded_number_of_places():
    counters = TokenCounters({})
    for number in range(5000):
        account = counters.account(str(number))
        counters.arrive(account)
        counters.charge(account, 10.0)
    assert len(counters) == 1024


@pytest.mark.parametrize(("cost", "tokens"), [(Cost(1, 10, 99, 20), 50.0), (Cost(4, 1, 1, 0), 1.0)])
def test_a_turn_is_charged_its_prompt_and_twice_the_answer_expected(cost, tokens):
    assert charge_of(cost) == tokens


def test_the_bound_holds_for_as_long_as_one_likes_however_wrong_the_expectations():
    engine = Engine(TokenCounters({}))
    for _ in range(3000):
        engine.arrive("a", (1, MAX_OUTPUT, 0))
        engine.arrive("b", (1, 0, MAX_OUTPUT))
    while engine.lanes["a"] and engine.lanes["b"]:
        engine.end(0)
        assert abs(engine.served["a"] - engine.served["b"]) <= 2 * IN_FLIGHT
    assert engine.served["a"] > 2000
