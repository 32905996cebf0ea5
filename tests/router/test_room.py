"""How much a replica may hold: what it was told stands, the rest is learned by AIMD."""

from itertools import pairwise

import pytest

from router.call import Cost
from router.config import HealthConfig
from router.dialects import DIALECTS
from router.health import Health
from router.replica import Replica
from router.room import DEFAULT_PERMITS, FIRST_LIMIT, MAX_PAUSE_S, Capacity, Load, Room


def cost(requests=1, tokens=10):
    return Cost(requests=requests, input_tokens=1, reserve_tokens=tokens, expected_tokens=1)


def takes(room, load, wanted):
    """Whether a replica that may be used would take the call."""
    health = Health(HealthConfig())
    replica = Replica("a", 1, "h", 1, "m", DIALECTS["tgi"], health, room, load, is_usable=True)
    return replica.takes(wanted)


def full(room):
    return Load(requests=room.requests, tokens=0)


def grow(room, rounds, now_s=0.0):
    """Rounds of calls that fill the room and come back without a wait, the gauge at zero."""
    for _ in range(rounds):
        for _ in range(room.requests):
            room.answered(0.0, full(room), 1.0, now_s)
        room.looked(0, full(room), now_s)
        now_s += 1.0
    return now_s


# ---- what fits ----


@pytest.mark.parametrize(
    ("load", "wanted", "fits"),
    [
        (Load(0, 0), cost(), True),
        (Load(0, 0), cost(requests=1000, tokens=10**9), True),  # idle: the engine judges
        (Load(1, 90), cost(tokens=10), True),
        (Load(1, 91), cost(tokens=10), False),
        (Load(3, 0), cost(), True),
        (Load(4, 0), cost(), False),
        (Load(2, 0), cost(requests=2), True),
        (Load(2, 0), cost(requests=3), False),
    ],
)
def test_a_call_must_fit_in_requests_and_tokens(load, wanted, fits):
    assert takes(Room(Capacity(requests=4, tokens=100)), load, wanted) is fits


def test_a_paused_replica_takes_nothing_not_even_when_idle():
    room = Room(Capacity(requests=4, tokens=100))
    room.shed(Load(1, 10), 0.0)
    assert room.is_paused
    assert not takes(room, Load(0, 0), cost())


# ---- told or fixed ----


def test_tokens_alone_do_not_open_the_permits_of_one_that_hides_its_batch():
    """vLLM tells what its cache holds, but runs `--max-num-seqs` calls, however small."""
    room = Room()
    room.told(Capacity(requests=1024, tokens=1000, hides_batch=True))
    assert room.requests == FIRST_LIMIT
    assert not takes(room, Load(1, 900), cost(tokens=101))
    grow(room, 5)
    assert room.requests > FIRST_LIMIT
    room.fix(64, None)
    assert room.capacity.is_told
    assert room.requests == 64


def test_a_told_token_budget_opens_all_permits():
    room = Room()
    assert room.requests == FIRST_LIMIT
    room.told(Capacity(requests=64, tokens=16_000))
    assert room.requests == 64
    assert not takes(room, Load(1, 15_995), cost())


def test_a_told_batch_size_bounds_the_permits():
    room = Room()
    room.told(Capacity(requests=128, batch=16))
    assert room.requests == 16


def test_permits_alone_are_a_ceiling_and_not_the_target():
    room = Room()
    room.told(Capacity(requests=128))
    assert room.requests == FIRST_LIMIT
    room.told(Capacity(requests=4))
    assert room.requests == 4


def test_what_was_fixed_stands_above_what_the_engine_tells():
    room = Room()
    room.fix(10, 5000)
    room.told(Capacity(requests=128, tokens=16_000, batch=32))
    assert (room.requests, room.capacity.tokens) == (10, 5000)


def test_what_was_fixed_is_never_above_the_engines_permits():
    room = Room()
    room.fix(100, None)
    room.told(Capacity(requests=20))
    assert room.requests == 20


def test_what_was_not_fixed_is_taken_from_the_engine():
    room = Room()
    room.fix(None, 5000)
    room.told(Capacity(requests=30, tokens=16_000))
    assert (room.requests, room.capacity.tokens) == (30, 5000)


def test_a_told_limit_is_not_learned_away():
    room = Room()
    room.told(Capacity(requests=64, tokens=16_000))
    for second in range(100):
        room.answered(30.0, full(room), 1.0, float(second))
        room.shed(full(room), float(second))
        room.is_paused = False
    assert room.requests == 64


# ---- learning ----


def test_without_waits_it_grows_to_the_permits_in_a_few_rounds():
    room = Room()
    grow(room, 5)
    assert room.requests == DEFAULT_PERMITS
    grow(room, 20)
    assert room.requests == DEFAULT_PERMITS


def test_it_does_not_grow_while_it_is_not_full():
    room = Room()
    for second in range(100):
        room.answered(0.0, Load(2, 0), 1.0, float(second))
        room.looked(0, Load(2, 0), float(second))
    assert room.requests == FIRST_LIMIT


def test_between_two_looks_at_the_gauge_it_doubles_at_most():
    room = Room()
    for _ in range(1000):
        room.answered(None, full(room), 1.0, 0.0)
    assert room.requests <= 2 * FIRST_LIMIT


def test_calls_waiting_in_the_engine_lower_it_to_what_runs():
    room = Room()
    now_s = grow(room, 3)
    held = room.requests
    room.looked(20, full(room), now_s)
    assert room.requests >= held  # a burst waits for one prefill: that alone is no sign
    room.looked(20, full(room), now_s)
    assert held - 21 <= room.requests <= held - 19


@pytest.mark.parametrize("queued", [0, 1])
def test_a_call_on_its_way_into_the_next_step_is_no_sign_of_a_full_engine(queued):
    room = Room()
    room.looked(queued, Load(3, 0), 0.0)
    assert room.requests == FIRST_LIMIT


def test_a_wait_that_rises_lowers_it_by_a_factor_once_per_service_time():
    room = Room()
    now_s = grow(room, 3)
    held = room.requests
    for _ in range(50):  # all were sent under the old limit
        room.answered(5.0, full(room), 2.0, now_s)
    assert held * 0.8 <= room.requests < held * 0.9
    room.answered(5.0, full(room), 2.0, now_s + 2.1)
    assert room.requests < held * 0.8


def test_after_the_first_sign_it_grows_by_one_a_round():
    room = Room()
    now_s = grow(room, 3)
    for _ in range(2):
        room.looked(20, full(room), now_s)
    limits = [room.requests]
    for _ in range(4):
        now_s = grow(room, 1, now_s + 1.0)
        limits.append(room.requests)
    steps = [b - a for a, b in pairwise(limits)]
    assert all(0 <= step <= 3 for step in steps), limits
    assert limits[-1] > limits[0]


def test_after_a_while_without_any_sign_it_doubles_again():
    """One burst long ago must not keep a large engine small for minutes."""
    room = Room()
    now_s = grow(room, 3)
    for _ in range(2):
        room.looked(room.requests - 4, full(room), now_s)
    low = room.requests
    for second in range(10):
        room.looked(0, full(room), now_s + second)
    assert room.requests >= 4 * low


def test_it_never_falls_under_one():
    room = Room()
    for second in range(200):
        room.shed(Load(1, 0), float(second))
        room.is_paused = False
        room.looked(500, Load(1, 0), float(second))
        room.answered(float(second), Load(1, 0), 0.1, float(second))
    assert room.requests == 1


# ---- refusals ----


def test_a_refusal_lowers_the_limit_at_once():
    room = Room()
    now_s = grow(room, 3)
    held = room.requests
    room.shed(full(room), now_s)
    assert room.requests <= held * 0.8
    assert not room.is_doubling


def test_pauses_grow_with_each_refusal_in_a_row_up_to_a_bound():
    room = Room()
    pauses = []
    for _ in range(40):
        pauses.append(room.shed(Load(2, 0), 0.0))
        room.is_paused = False
    assert pauses[0] <= 0.1
    assert all(a <= b <= 2 * a for a, b in pairwise(pauses))
    assert pauses[-1] == MAX_PAUSE_S


def test_calls_refused_together_are_one_refusal():
    room = Room()
    first = room.shed(Load(8, 0), 0.0)
    assert [room.shed(Load(8, 0), 0.0) for _ in range(7)] == [None] * 7
    room.is_paused = False
    assert room.shed(Load(2, 0), 1.0) == 2 * first


def test_a_served_call_makes_the_next_pause_short_again():
    room = Room()
    first = room.shed(Load(2, 0), 0.0)
    room.is_paused = False
    room.shed(Load(2, 0), 0.0)
    room.is_paused = False
    room.answered(None, Load(1, 0), 1.0, 1.0)
    assert room.shed(Load(2, 0), 2.0) == first


def test_each_look_at_an_empty_gauge_allows_another_doubling():
    """Calls that come back between two looks raise it, also when it was not full at the look."""
    room = Room()
    limits = []
    for _ in range(4):
        for _ in range(500):
            room.answered(0.0, full(room), 1.0, 0.0)
        limits.append(room.requests)
        room.looked(0, Load(1, 0), 0.0)
    assert limits == [16, 32, 64, 128]


def test_an_operators_word_may_exceed_our_default_but_not_the_engines_permits():
    room = Room()
    room.fix(requests=500, tokens=None)
    assert room.requests == 500
    room.told(Capacity(requests=200))
    assert room.requests == 200


# ---- coming back ----


def answered_rounds(room, rounds):
    """The room after each round in which it is filled and all calls come back."""
    sizes = []
    for _ in range(rounds):
        for _ in range(room.requests):
            room.answered(0.0, full(room), 1.0, 0.0)
        sizes.append(room.requests)
    return sizes


def test_a_slow_start_doubles_with_each_round_up_to_what_was_told():
    room = Room(Capacity(requests=40, tokens=10**6))
    room.start_slowly()
    assert room.requests == 2
    assert answered_rounds(room, 6) == [4, 8, 16, 32, 40, 40]


def test_a_slow_start_leads_to_what_was_learned_before():
    room = Room(Capacity(requests=128))
    grow(room, 3)
    learned = room.requests
    assert learned > 16
    room.start_slowly()
    assert answered_rounds(room, 3) == [4, 8, 16]
    answered_rounds(room, 3)
    assert room.requests == learned


def test_a_slow_start_is_over_when_nobody_else_is_left():
    room = Room(Capacity(requests=40, tokens=10**6))
    room.start_slowly()
    room.start_fully()
    assert room.requests == 40


def test_a_slow_start_never_gives_more_than_there_is_room_for():
    room = Room(Capacity(requests=1, tokens=10**6))
    room.start_slowly()
    assert room.requests == 1


# ---- throttled ----


def test_a_slowed_replica_is_given_half_its_room_for_as_long_as_that_lasts():
    room = Room(Capacity(requests=40, tokens=1000))
    room.fix(None, None, is_slowed=True)
    assert room.requests == 20
    assert takes(room, Load(1, 400), cost(tokens=100))
    assert not takes(room, Load(1, 401), cost(tokens=100))
    room.fix(None, None)
    assert room.requests == 40
    assert takes(room, Load(1, 900), cost(tokens=100))


def test_a_slowed_replica_takes_one_call_whatever_it_is():
    room = Room(Capacity(requests=1, tokens=100))
    room.fix(None, None, is_slowed=True)
    assert room.requests == 1
    assert takes(room, Load(0, 0), cost(tokens=1000))


def test_nothing_is_learned_of_a_limit_that_only_half_is_used_of():
    room = Room(Capacity(requests=128))
    grow(room, 2)
    before = room.requests
    room.fix(None, None, is_slowed=True)
    grow(room, 20)
    room.fix(None, None)
    assert room.requests == before
