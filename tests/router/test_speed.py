"""How soon a replica would be done: what is learned of it, and what is chosen by that."""

from collections import Counter

import pytest

from router.call import Ask, Call
from router.config import HealthConfig
from router.dialects import DIALECTS
from router.health import Health
from router.policies.expected_finish import ExpectedFinish
from router.replica import Replica
from router.speed import LOOK_EVERY_S, Speeds

CALL = Call("c", "/generate", Ask(), b"", (), 0.0, 60.0, 1800.0)
TOKENS = 100


class World:
    """Replicas of which each takes its own time for a token."""

    def __init__(self, *s_per_token):
        health = HealthConfig()
        self.replicas = [
            Replica(f"r{i}", 1, "h", 1, "m", DIALECTS["tgi"], Health(health))
            for i in range(len(s_per_token))
        ]
        self.s_per_token = dict(zip(self.replicas, s_per_token, strict=True))
        self.speeds = Speeds(self.replicas)
        self.policy = ExpectedFinish()
        self.now_s = 0.0

    def begin(self):
        chosen = self.policy.choose(CALL, self.replicas, self.now_s)
        chosen.load.requests += 1
        self.speeds.weigh(chosen)
        return chosen

    def end(self, replica):
        crowd = replica.load.requests
        seconds = self.s_per_token[replica] * TOKENS * (1 + crowd / 20)
        replica.load.requests -= 1
        self.now_s += 0.01
        self.speeds.seen(replica, seconds, TOKENS, self.now_s)
        self.speeds.weigh(replica)

    def serve(self, calls, at_a_time):
        """Who served how many."""
        running = [self.begin() for _ in range(at_a_time)]
        served = Counter()
        for _ in range(calls):
            done = running.pop(0)
            self.end(done)
            served[done.id] += 1
            running.append(self.begin())
        for replica in running:
            self.end(replica)
        return served


def test_equals_share_the_calls_whatever_noise_there_is():
    world = World(0.02, 0.021, 0.019, 0.02)
    served = world.serve(400, at_a_time=16)
    assert max(served.values()) < 1.3 * min(served.values())


@pytest.mark.parametrize("at_a_time", [1, 4, 16])
def test_one_at_half_speed_gets_nothing_while_the_others_have_time(at_a_time):
    world = World(0.02, 0.02, 0.02, 0.04)
    world.serve(200, at_a_time)
    assert world.serve(200, at_a_time)["r3"] <= 20


def test_it_gets_calls_when_the_others_are_crowded():
    world = World(0.02, 0.04)
    world.serve(400, at_a_time=80)
    served = world.serve(400, at_a_time=80)
    assert served["r0"] > served["r1"] > 40


def test_one_that_has_recovered_is_found_again():
    world = World(0.02, 0.2)
    world.serve(200, at_a_time=4)
    assert world.serve(100, at_a_time=4)["r1"] < 5
    world.s_per_token[world.replicas[1]] = 0.02
    for _ in range(200):
        world.now_s += LOOK_EVERY_S
        world.serve(2, at_a_time=4)
    assert world.serve(100, at_a_time=4)["r1"] > 20


def test_a_new_one_is_taken_for_as_fast_as_the_others():
    world = World(0.02, 0.02)
    world.serve(100, at_a_time=4)
    new = Replica("new", 1, "h", 1, "m", DIALECTS["tgi"], Health(HealthConfig()))
    world.replicas.append(new)
    world.s_per_token[new] = 0.02
    assert 20 < world.serve(100, at_a_time=6)["new"] < 60


def test_no_candidate_is_no_choice():
    assert ExpectedFinish().choose(CALL, [], 0.0) is None
