"""Health states: every pair of state and event, thresholds, ejection times, and the two guards."""

import itertools

import pytest

from router.config import HealthConfig
from router.health import Event, Health, State

pytestmark = pytest.mark.virtual_time
CONFIG = HealthConfig(fall=3, rise=2, eject_after=5, eject_base_s=10, eject_max_s=60, warm_up=False)
QUICK = HealthConfig(fall=1, rise=1, eject_after=1, eject_base_s=10, eject_max_s=60)
U, W, H, S, D, E = State

# One event with every threshold at 1, so that it has its full effect.
EFFECTS = {
    Event.PROBE_OK: {U: W, W: W, H: H, S: H, D: W, E: E},
    Event.PROBE_FAIL: {U: D, W: D, H: D, S: D, D: D, E: E},
    Event.PROBE_LATE: {U: D, W: D, H: D, S: D, D: D, E: E},
    Event.WARMED: {U: U, W: H, H: H, S: S, D: D, E: E},
    Event.WARM_UP_FAIL: {U: U, W: E, H: H, S: S, D: D, E: E},
    Event.REFUSED: {U: D, W: D, H: D, S: D, D: D, E: D},
    Event.LOST: {U: U, W: W, H: H, S: S, D: D, E: E},
    Event.CALL_OK: {U: U, W: W, H: H, S: H, D: D, E: E},
    Event.CALL_FAIL: {U: U, W: W, H: E, S: S, D: D, E: E},
    Event.SUSPECTED: {U: U, W: W, H: S, S: S, D: D, E: E},
    Event.HEARD: {U: U, W: W, H: H, S: H, D: D, E: E},
    Event.TIME_UP: {U: U, W: W, H: H, S: S, D: D, E: U},
    Event.NEW_GENERATION: {U: U, W: U, H: U, S: U, D: U, E: U},
}


def in_state(state, config=CONFIG):
    """A record brought there by events alone."""
    health = Health(config)
    up = [Event.PROBE_OK, Event.WARMED]
    path = {
        U: [],
        W: [Event.PROBE_OK],
        H: up,
        S: [*up, Event.SUSPECTED],
        D: up + [Event.PROBE_FAIL] * config.fall,
        E: up + [Event.CALL_FAIL] * config.eject_after,
    }[state]
    for event in path:
        health.on(event, 0.0)
    assert health.state is state
    return health


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_in_every_state(state, event):
    health = in_state(state, QUICK)
    assert health.on(event, 100.0) is EFFECTS[event][state]


def test_a_new_replica_is_unknown_and_one_passed_probe_is_enough():
    health = Health(CONFIG)
    assert health.state is U
    assert health.on(Event.PROBE_OK, 0.0) is H


def test_a_healthy_one_falls_only_after_failed_probes_in_a_row():
    health = in_state(H)
    for event in [Event.PROBE_FAIL, Event.PROBE_FAIL, Event.PROBE_OK] * 4:
        assert health.on(event, 0.0) is H
    assert [health.on(Event.PROBE_FAIL, 0.0) for _ in range(3)] == [H, H, D]


def test_a_served_call_is_as_good_as_a_passed_probe():
    health = in_state(H)
    for event in [Event.PROBE_FAIL, Event.PROBE_FAIL, Event.CALL_OK] * 4:
        assert health.on(event, 0.0) is H


def test_an_unhealthy_one_rises_only_after_passed_probes_in_a_row():
    health = in_state(D)
    for event in [Event.PROBE_OK, Event.PROBE_FAIL] * 4:
        assert health.on(event, 0.0) is D
    assert [health.on(Event.PROBE_OK, 0.0) for _ in range(2)] == [D, H]


def test_a_refused_connection_counts_at_once_and_one_passed_probe_mends_it():
    health = in_state(H)
    assert health.on(Event.REFUSED, 0.0) is D
    assert health.on(Event.REFUSED, 0.0) is D
    assert health.on(Event.PROBE_OK, 0.0) is H
    for _ in range(3):
        health.on(Event.PROBE_FAIL, 0.0)
    assert health.on(Event.PROBE_OK, 0.0) is D, "the refusal is over: both thresholds apply again"


def test_a_lost_connection_is_a_doubt_until_a_probe_that_began_later_has_passed():
    health = in_state(H)
    assert health.on(Event.LOST, 10.0) is H
    assert not health.is_sure
    health.on(Event.PROBE_OK, 10.5, 9.5)
    health.on(Event.CALL_OK, 10.5)
    health.on(Event.PROBE_LATE, 11.0, 10.5)
    assert not health.is_sure, "it may have been said before its death, or means load"
    health.on(Event.PROBE_OK, 11.5, 11.0)
    assert health.is_sure


def test_a_doubt_hides_no_failing_calls():
    """Connections lost one after the other, and a /health that is fine."""
    health = in_state(H)
    for _ in range(5):
        assert health.state is H
        health.on(Event.CALL_FAIL, 1.0)
        health.on(Event.LOST, 1.0)
        health.on(Event.PROBE_OK, 1.0)
    assert health.state is E


def test_a_doubtful_one_that_refuses_is_down_and_one_passed_probe_mends_both():
    health = in_state(H)
    health.on(Event.LOST, 1.0)
    assert health.on(Event.REFUSED, 1.0) is D
    assert health.on(Event.PROBE_OK, 2.0) is H
    assert health.is_sure


def test_probes_that_stay_unanswered_take_a_suspect_out():
    health = in_state(S)
    assert [health.on(Event.PROBE_LATE, 0.0) for _ in range(3)] == [S, S, D]
    assert health.on(Event.HEARD, 0.0) is D, "from there passed probes lead back"


def test_calls_that_fail_on_a_suspect_do_not_count():
    """They are one silence, not many faults."""
    health = in_state(S)
    for _ in range(50):
        assert health.on(Event.CALL_FAIL, 0.0) is S
    assert health.on(Event.HEARD, 0.0) is H
    assert health.call_fails == 0


def test_a_new_generation_is_not_in_doubt():
    health = in_state(H)
    health.on(Event.LOST, 1.0)
    health.on(Event.NEW_GENERATION, 1.0)
    health.on(Event.PROBE_OK, 0.5)
    assert health.is_sure


def test_failed_calls_in_a_row_eject_and_a_served_one_starts_the_count_again():
    health = in_state(H)
    for _ in range(3):
        for _ in range(4):
            assert health.on(Event.CALL_FAIL, 0.0) is H
        assert health.on(Event.CALL_OK, 0.0) is H
    for _ in range(4):
        assert health.on(Event.CALL_FAIL, 0.0) is H
    assert health.on(Event.CALL_FAIL, 0.0) is E


def test_probes_do_not_hide_failing_calls():
    """An engine whose /health is fine while its generations fail must be ejected."""
    health = in_state(H)
    for _ in range(4):
        health.on(Event.CALL_FAIL, 0.0)
        health.on(Event.PROBE_OK, 0.0)
    assert health.on(Event.CALL_FAIL, 0.0) is E


def test_each_ejection_lasts_twice_as_long_up_to_the_bound():
    health = Health(CONFIG)
    lengths, now_s = [], 0.0
    for _ in range(40):
        health.on(Event.PROBE_OK, now_s)
        for _ in range(5):
            health.on(Event.CALL_FAIL, now_s)
        assert health.state is E
        lengths.append(health.ejected_until_s - now_s)
        now_s = health.ejected_until_s
        health.on(Event.TIME_UP, now_s)
    assert lengths[:4] == [10.0, 20.0, 40.0, 60.0]
    assert set(lengths[4:]) == {60.0}


def test_a_served_call_makes_the_next_ejection_short_again():
    health = in_state(E)
    health.on(Event.TIME_UP, 10.0)
    health.on(Event.PROBE_OK, 10.0)
    health.on(Event.CALL_OK, 10.0)
    for _ in range(5):
        health.on(Event.CALL_FAIL, 11.0)
    assert health.ejected_until_s == 21.0


def test_an_ejection_is_not_over_before_its_time():
    health = in_state(E)
    assert health.on(Event.TIME_UP, 9.99) is E
    assert health.on(Event.PROBE_OK, 9.99) is E
    assert health.on(Event.TIME_UP, 10.0) is U


def test_a_new_generation_starts_with_a_clean_record():
    health = in_state(H)
    for _ in range(4):
        health.on(Event.CALL_FAIL, 0.0)
    health.on(Event.NEW_GENERATION, 0.0)
    health.on(Event.PROBE_OK, 0.0)
    assert health.on(Event.CALL_FAIL, 0.0) is H


# ---- the first call ----

WARM = HealthConfig(fall=3, rise=2, eject_base_s=10, eject_max_s=60)


def test_one_that_is_up_is_warmed_before_it_counts_as_healthy():
    health = Health(WARM)
    assert health.on(Event.PROBE_OK, 0.0) is W
    assert not health.is_sure
    assert health.on(Event.WARMED, 1.0) is H
    assert health.is_sure


def test_one_that_comes_back_is_warmed_again():
    health = in_state(D, WARM)
    assert [health.on(Event.PROBE_OK, 0.0) for _ in range(2)] == [D, W]
    assert health.on(Event.WARMED, 0.0) is H
    health.on(Event.REFUSED, 0.0)
    assert health.on(Event.PROBE_OK, 0.0) is W


def test_one_that_fails_its_first_call_stays_out_ever_longer():
    """Its health check is fine, and nothing else is."""
    health, lengths, now_s = Health(WARM), [], 0.0
    for _ in range(5):
        assert health.on(Event.PROBE_OK, now_s) is W
        assert health.on(Event.WARM_UP_FAIL, now_s) is E
        lengths.append(health.ejected_until_s - now_s)
        now_s = health.ejected_until_s
        assert health.on(Event.TIME_UP, now_s) is U
    assert lengths == [10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_token_of_its_own_does_not_forgive_earlier_ejections():
    health = in_state(E, WARM)
    health.on(Event.TIME_UP, 10.0)
    health.on(Event.PROBE_OK, 10.0)
    health.on(Event.WARMED, 10.0)
    for _ in range(5):
        health.on(Event.CALL_FAIL, 11.0)
    assert health.ejected_until_s == 31.0


def test_a_warm_up_lifts_a_doubt_that_is_older():
    health = in_state(W, WARM)
    health.on(Event.LOST, 5.0)
    health.on(Event.WARMED, 9.0, 4.0)
    assert not health.is_sure
    health = in_state(W, WARM)
    health.on(Event.LOST, 5.0)
    health.on(Event.WARMED, 9.0, 6.0)
    assert health.is_sure


# ---- the pool's guards ----


def fail_warm_up(world, name):
    for event in (Event.PROBE_OK, Event.PROBE_OK, Event.WARM_UP_FAIL):
        world.pool.on_event(world[name], event, "test")
    assert world[name].health.state is State.EJECTED


def usable(world):
    return [replica.id for replica in world.pool if replica.is_usable]


async def test_a_warming_one_is_used_when_nobody_else_is_there(world):
    one = world(health=WARM)
    one.add("a", "b", "c", up=False)
    for name in "ab":
        one.pool.on_event(one[name], Event.PROBE_OK, "test")
    assert usable(one) == ["a", "b"], "at the first start nobody waits"
    one.up("c")
    assert usable(one) == ["c"]
    one.up("a")
    assert usable(one) == ["a", "c"]


async def test_one_that_failed_its_first_call_is_used_only_as_the_last(world):
    one = world(health=WARM)
    one.add("a", "b", "c", up=False)
    fail_warm_up(one, "a")
    assert usable(one) == ["a"]
    one.pool.on_event(one["b"], Event.PROBE_OK, "test")
    assert usable(one) == ["b"]
    fail_warm_up(one, "b")
    one.up("c")
    assert usable(one) == ["c"]
    one.down("c")
    assert usable(one) == ["a", "b"]


async def test_an_ejected_one_is_used_when_the_others_are_gone(world):
    """It was ejected beside them; now it is the last one, and the last one is never taken."""
    one = world(health=HealthConfig(max_ejected_share=0.5))
    one.add("a", "b")
    fail_calls(one, "a")
    assert usable(one) == ["b"]
    one.down("b")
    assert usable(one) == ["a"]
    one.up("b")
    assert usable(one) == ["b"]


async def test_why_it_is_out_stands_on_the_replica(world):
    one = world(health=WARM)
    one.add("a", up=False)
    one.pool.on_event(one["a"], Event.PROBE_OK, "answered 200")
    one.pool.on_event(one["a"], Event.WARM_UP_FAIL, "its first call failed: out of memory")
    one.pool.on_event(one["a"], Event.CALL_FAIL, "another one")
    assert one["a"].reason == "its first call failed: out of memory"


def fail_calls(world, name, times=5):
    for _ in range(times):
        world.pool.on_event(world[name], Event.CALL_FAIL, "test")


async def test_the_last_usable_replica_is_never_ejected(world):
    one = world(health=CONFIG)
    one.add("a")
    fail_calls(one, "a", 50)
    assert one["a"].is_usable


async def test_the_last_usable_one_is_kept_when_the_others_are_down_or_drained(world):
    one = world(health=HealthConfig(max_ejected_share=1.0))
    one.add("a", "b", "c")
    one.down("b")
    one.sync(*(one.member(name) for name in "abc"), draining={"c"})
    one.pool.set_admin(one["c"], type(one["c"].admin).DRAINING)
    fail_calls(one, "a", 50)
    assert one["a"].is_usable


@pytest.mark.parametrize(("share", "ejected"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.74, 2), (1.0, 3)])
async def test_ejection_takes_at_most_its_share_and_leaves_one(world, share, ejected):
    one = world(health=HealthConfig(max_ejected_share=share))
    names = ["a", "b", "c", "d"]
    one.add(*names)
    for name in names:
        fail_calls(one, name, 20)
    states = [one[name].health.state for name in names]
    assert states.count(State.EJECTED) == ejected
    assert any(one[name].is_usable for name in names)


async def test_a_guarded_replica_is_ejected_as_soon_as_another_one_is_there(world):
    one = world(health=HealthConfig(max_ejected_share=0.5))
    one.add("a", "b")
    one.down("b")
    fail_calls(one, "a", 20)
    assert one["a"].is_usable
    one.up("b")
    fail_calls(one, "a", 1)
    assert one["a"].health.state is State.EJECTED


async def test_a_state_change_is_told_once_with_before_and_after(world):
    one = world()
    one.add("a", up=False)
    for event in (Event.PROBE_OK, Event.PROBE_OK, Event.REFUSED, Event.REFUSED):
        one.pool.on_event(one["a"], event, "test")
    assert one.changes == [("a", "unknown", "healthy"), ("a", "healthy", "unhealthy")]
