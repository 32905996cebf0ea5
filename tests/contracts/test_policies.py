"""One suite over every policy: a policy that passes may be used, a new one is done when it does."""

import copy
from collections import Counter

import pytest

from router.call import Ask, Call
from router.config import HealthConfig
from router.dialects import DIALECTS
from router.health import Health
from router.policies import POLICIES
from router.replica import Replica
from router.room import Capacity, Load, Room

pytestmark = pytest.mark.parametrize("name", POLICIES)


def replica(replica_id, requests=0, tokens=0, budget=None):
    return Replica(
        id=replica_id,
        generation=1,
        host="127.0.0.1",
        port=80,
        model="m",
        dialect=DIALECTS["tgi"],
        health=Health(HealthConfig()),
        room=Room(Capacity(requests=128, tokens=budget)),
        load=Load(requests, tokens),
    )


def call(affinity="", number=0):
    return Call(
        id=f"call-{number}",
        route="/generate",
        ask=Ask(input_chars=10, affinity=affinity),
        body=b"{}",
        headers=(),
        arrived_s=0.0,
        queue_deadline_s=60.0,
        deadline_s=1800.0,
    )


def state(one):
    return copy.deepcopy((one.load, one.admin, one.alone, one.served, one.room.__dict__))


def run(policy, replicas, calls, affinity=lambda number: f"prompt {number}"):
    """Who got how many when nothing finishes: load is added as the dispatcher does."""
    got = Counter()
    for number in range(calls):
        chosen = policy.choose(call(affinity(number), number), replicas, 0.0)
        chosen.load.requests += 1
        chosen.load.tokens += 100
        got[chosen.id] += 1
    return got


def test_it_chooses_a_candidate_or_none(name):
    policy = POLICIES[name]()
    replicas = [replica(f"r{i}", requests=i % 3, tokens=50 * (i % 4)) for i in range(7)]
    for number in range(200):
        some = replicas[number % 5 : number % 5 + 1 + number % 3]
        chosen = policy.choose(call(f"p{number}", number), some, float(number))
        assert chosen is None or any(chosen is one for one in some)


def test_the_only_candidate_is_taken(name):
    policy, only = POLICIES[name](), replica("r0", requests=5, tokens=500)
    for number in range(5):
        assert policy.choose(call("x", number), [only], 0.0) is only


def test_no_candidate_is_no_choice(name):
    assert POLICIES[name]().choose(call("x"), [], 0.0) is None


def test_it_writes_to_no_replica_and_keeps_the_list_as_it_is(name):
    policy = POLICIES[name]()
    replicas = [replica(f"r{i}", requests=i) for i in range(5)]
    before, order = [state(one) for one in replicas], list(replicas)
    for number in range(50):
        policy.choose(call(f"p{number}", number), replicas, 0.0)
    assert [state(one) for one in replicas] == before
    assert replicas == order


def test_it_takes_any_sequence(name):
    replicas = (replica("a"), replica("b"))
    assert POLICIES[name]().choose(call("x"), replicas, 0.0) in replicas


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_equals_are_spread_evenly(name, count):
    """Each gets its part of many different calls that stay, within a third of the mean."""
    got = run(POLICIES[name](), [replica(f"r{i}") for i in range(count)], 60 * count)
    assert len(got) == count
    assert max(got.values()) <= 60 * 4 / 3
    assert min(got.values()) >= 60 * 2 / 3


@pytest.mark.parametrize("count", [2, 4])
def test_idle_equals_are_spread_too(name, count):
    """Calls that are over before the next one comes must not all go to the first in the list."""
    policy, replicas = POLICIES[name](), [replica(f"r{i}") for i in range(count)]
    got = Counter(
        policy.choose(call(f"prompt {i}", i), replicas, 0.0).id for i in range(100 * count)
    )
    assert min(got.values()) >= 50


def test_two_of_one_policy_share_nothing(name):
    """Each pool has its own; one's cursor must not move with the other's."""
    first, second = POLICIES[name](), POLICIES[name]()
    replicas = [replica(f"r{i}") for i in range(3)]
    for number in range(10):
        first.choose(call(f"p{number}", number), replicas, 0.0)
    state_of = [vars(one) if hasattr(one, "__dict__") else {} for one in (second, POLICIES[name]())]
    assert state_of[0].keys() == state_of[1].keys()
    assert not any(
        isinstance(value, list | dict | set) and value is vars(first).get(key)
        for key, value in state_of[0].items()
    )


def test_calls_that_share_a_prefix_never_drown_one_replica(name):
    """One popular prompt, nothing finishes: the load stays within a third over the mean."""
    got = run(POLICIES[name](), [replica(f"r{i}") for i in range(4)], 200, lambda _: "the same")
    assert max(got.values()) <= 50 * 4 / 3


@pytest.mark.parametrize("prompt", ["", "\ud800", "\0", "é" * 256])
def test_any_affinity_key_will_do(name, prompt):
    replicas = [replica("a"), replica("b")]
    assert POLICIES[name]().choose(call(prompt), replicas, 0.0) in replicas
