"""What is particular to each policy; what all must do is in tests/contracts."""

import random
from collections import Counter
from math import ceil

import pytest

from router.call import Ask, Call
from router.config import HealthConfig
from router.dialects import DIALECTS
from router.health import Health
from router.policies.least_requests import LeastRequests
from router.policies.least_tokens import LeastTokens
from router.policies.power_of_two import PowerOfTwo
from router.policies.prefix_affinity import LOAD_BOUND, PrefixAffinity
from router.policies.round_robin import RoundRobin
from router.replica import Replica
from router.room import Capacity, Load, Room


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


def call(affinity=""):
    return Call("c", "/generate", Ask(affinity=affinity), b"", (), 0.0, 60.0, 1800.0)


def homes(policy, replicas, prompts):
    return {prompt: policy.choose(call(prompt), replicas, 0.0).id for prompt in prompts}


def test_least_requests_counts_calls():
    some = [replica("a", 3, 10), replica("b", 1, 9000), replica("c", 2, 5)]
    assert LeastRequests().choose(call(), some, 0.0).id == "b"


def test_least_tokens_counts_tokens_then_calls():
    some = [replica("a", 3, 10), replica("b", 1, 9000), replica("c", 2, 10)]
    assert LeastTokens().choose(call(), some, 0.0).id == "c"


def test_least_tokens_compares_shares_of_unequal_budgets():
    some = [replica("small", 5, 500, budget=1000), replica("large", 5, 2000, budget=16_000)]
    assert LeastTokens().choose(call(), some, 0.0).id == "large"


def test_round_robin_goes_by_id_and_passes_over_those_without_room():
    policy, some = RoundRobin(), [replica(name) for name in "cab"]
    assert [policy.choose(call(), some, 0.0).id for _ in range(4)] == ["a", "b", "c", "a"]
    without_b = [one for one in some if one.id != "b"]
    assert [policy.choose(call(), without_b, 0.0).id for _ in range(2)] == ["c", "a"]


def test_power_of_two_takes_the_emptier_of_two_drawn():
    some = [replica(f"r{i}", i, 100 * i) for i in range(4)]
    policy = PowerOfTwo(random.Random(1))
    got = Counter(policy.choose(call(), some, 0.0).id for _ in range(6000))
    assert got["r3"] == 0, "the fullest loses every pair"
    assert got["r0"] / 6000 == pytest.approx(1 / 2, abs=0.05)
    assert got["r1"] / 6000 == pytest.approx(1 / 3, abs=0.05)


PROMPTS = [f"prompt {i}" for i in range(400)]


def test_a_prefix_keeps_its_replica():
    policy, some = PrefixAffinity(), [replica(f"r{i}") for i in range(4)]
    assert homes(policy, some, PROMPTS) == homes(PrefixAffinity(), some[::-1], PROMPTS)
    shares = Counter(homes(policy, some, PROMPTS).values())
    assert min(shares.values()) > 60


def test_when_a_replica_leaves_only_its_own_prefixes_move():
    policy, some = PrefixAffinity(), [replica(f"r{i}") for i in range(4)]
    before, after = homes(policy, some, PROMPTS), homes(policy, some[:3], PROMPTS)
    moved = [prompt for prompt in PROMPTS if before[prompt] != after[prompt]]
    assert {before[prompt] for prompt in moved} == {"r3"}
    assert len(set(after[prompt] for prompt in moved)) == 3, "and they are spread over the rest"


def test_when_it_comes_back_so_do_they():
    policy, some = PrefixAffinity(), [replica(f"r{i}") for i in range(4)]
    before = homes(policy, some, PROMPTS)
    homes(policy, some[1:], PROMPTS)
    again = [replica("r0"), *some[1:]]
    assert homes(policy, again, PROMPTS) == before


def test_a_popular_prefix_spills_over_at_the_bound_and_comes_home():
    policy, some = PrefixAffinity(), [replica(f"r{i}") for i in range(4)]
    home = policy.choose(call("hot"), some, 0.0)
    for _ in range(200):
        chosen = policy.choose(call("hot"), some, 0.0)
        chosen.load.requests += 1
        held = sum(one.load.requests for one in some)
        assert chosen.load.requests <= ceil(LOAD_BOUND * held / 4)
    home.load.requests = 10
    assert policy.choose(call("hot"), some, 0.0) is home


def test_calls_without_a_prefix_go_where_the_load_is_least():
    some = [replica("a", 1, 100), replica("b", 1, 50)]
    assert PrefixAffinity().choose(call(""), some, 0.0).id == "b"
