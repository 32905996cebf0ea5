"""Probing: how often, how quickly while down, what is learned first, and what a slow answer means.

The replicas are scripted and the clock is virtual, so minutes of probing take milliseconds.
"""

import asyncio
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from router.config import HealthConfig
from router.errors import ConnectFailed, ConnectTimeout, NoSockets, ReplicaLoading, ReplicaLost
from router.health import Event, State
from router.prober import Prober
from router.replica import Admin
from router.tasks import Tasks

pytestmark = pytest.mark.virtual_time
JSON = {"content-type": "application/json"}
INFO = {"version": "1.4.4", "max_total_tokens": 2048, "max_batch_total_tokens": 9000}
NEW_INFO = {"version": "3.3.5", "max_total_tokens": 2048, "max_concurrent_requests": 64}


class Replicas:
    """Stands in for `Upstream`: answers as scripted, on the loop's clock, and keeps count."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.health = 200
        self.info = (200, json.dumps(INFO).encode())
        self.metrics = (200, b"tgi_queue_size 0\n")
        self.one_token = (200, b"{}")
        self.delay_s = 0.0
        self.one_token_s = 0.0
        self.log = []
        self.open = 0

    def times(self, path="/health"):
        return [at_s for at_s, asked in self.log if asked == path]

    async def send(self, replica, method, path, headers=(), body=b"", *, limit):
        self.log.append((self.loop.time(), path))
        until_s, error = limit
        delay_s = self.delay_s or (self.one_token_s if method == "POST" else 0.0)
        if delay_s:
            await asyncio.sleep(min(delay_s, until_s - self.loop.time()))
            if self.loop.time() >= until_s:
                raise error()
        answer = {"/health": self.health, "/info": self.info, "/metrics": self.metrics}.get(
            path, self.one_token
        )
        if isinstance(answer, Exception):
            raise answer
        status, body = answer if isinstance(answer, tuple) else (answer, b"")
        self.open += 1
        return SimpleNamespace(
            head=SimpleNamespace(status=status, text=JSON), body=lambda: body, close=self.closed
        )

    def closed(self):
        self.open -= 1


@pytest.fixture
def is_warming():
    """Whether a replica that comes up has to give a token first."""
    return False


@pytest.fixture
async def probing(world, is_warming):
    """A pool of one replica `a` under probing."""
    health = HealthConfig(interval_s=5, timeout_s=3, fall=3, rise=2, warm_up=is_warming)
    one, tasks = world(health=health), Tasks()
    one.replicas = Replicas()
    one.prober = Prober(one.replicas, one.pool._config, tasks, one.clock)
    one.pool.look = one.prober.hurry

    def watch(**fields):
        [replica] = one.sync(one.member("a", **{"requests": None, **fields}))
        one.prober.watch(one.pool, replica)
        return replica

    one.watch = watch
    yield one
    await tasks.close()
    assert len(tasks) == 0
    assert one.replicas.open == 0, "every exchange was closed"


def gaps(times):
    return [round(b - a, 3) for a, b in pairwise(times)]


async def test_a_new_replica_is_probed_at_once_and_its_limits_are_learned_first(probing):
    seen = []
    probing.pool.changed = lambda: seen.append(
        [(r.health.state, r.room.capacity.tokens) for r in probing.pool]
    )
    replica = probing.watch()
    await asyncio.sleep(0.01)
    assert replica.is_usable
    assert (State.HEALTHY, None) not in [pair for pairs in seen for pair in pairs]
    assert replica.room.capacity.tokens == 9000


async def test_a_healthy_one_is_probed_at_the_interval(probing):
    probing.watch()
    await asyncio.sleep(60.0)
    found = gaps(probing.replicas.times())
    assert len(found) >= 11
    assert set(found) == {5.0}
    assert len(probing.replicas.times("/info")) == 1


async def test_one_that_is_down_is_probed_quickly_from_a_tenth_to_a_second(probing):
    probing.replicas.health = ConnectFailed("refused")
    replica = probing.watch()
    await asyncio.sleep(30.0)
    assert replica.health.state is State.UNHEALTHY
    found = gaps(probing.replicas.times())
    assert found[0] <= 0.2
    assert all(a <= b or b <= 0.2 for a, b in pairwise(found[1:]))
    assert found[-5:] == [1.0] * 5


async def test_a_replica_that_comes_up_is_used_within_a_second(probing):
    probing.replicas.health = ConnectFailed("refused")
    replica = probing.watch()
    await asyncio.sleep(45.3)
    probing.replicas.health = 200
    await asyncio.sleep(1.1)
    assert replica.is_usable


async def test_a_call_that_was_refused_makes_it_look_again_soon(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.pool.on_event(replica, Event.REFUSED, "call")
    probing.prober.hurry(replica)
    before = len(probing.replicas.times())
    await asyncio.sleep(0.5)
    assert len(probing.replicas.times()) > before
    assert replica.is_usable


async def test_three_failed_probes_take_it_out_and_two_passed_ones_back(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.health = 503
    await asyncio.sleep(30.0)
    assert replica.health.state is State.UNHEALTHY
    probing.replicas.health = 200
    count = len(probing.replicas.times())
    probes = []
    probing.pool.changed = lambda: probes.append(len(probing.replicas.times()) - count)
    await asyncio.sleep(3.0)
    assert replica.is_usable
    assert probes[0] == 2, "usable at the second one, not before"


async def test_a_connection_lost_under_a_probe_is_as_good_as_refused(probing):
    """A proxy before a dead replica, Docker's say, accepts and closes."""
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.health = ReplicaLost("cut")
    await asyncio.sleep(5.0)
    assert replica.health.state is State.UNHEALTHY
    probing.replicas.health = 200
    await asyncio.sleep(1.01)
    assert replica.is_usable


async def test_a_connection_that_a_call_lost_makes_it_look_at_once(probing, settle):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.lose("a")
    assert not replica.is_usable
    await asyncio.sleep(0.001)
    assert replica.is_usable


async def test_a_doubt_that_a_probe_met_under_way_is_looked_into_by_another(probing, settle):
    replica = probing.watch()
    await asyncio.sleep(4.9)
    probing.replicas.delay_s = 1.0
    await asyncio.sleep(0.5)
    probing.lose("a")
    await asyncio.sleep(0.61)
    assert len(probing.replicas.times()) == 3
    assert not replica.is_usable, "what it said may be from before"
    await asyncio.sleep(1.0)
    assert replica.is_usable


async def test_who_is_in_doubt_is_asked_again_soon(probing):
    """Not after a healthy one's interval."""
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.health = 503
    probing.lose("a")
    await asyncio.sleep(0.2)
    probing.replicas.health = 200
    await asyncio.sleep(0.3)
    assert replica.is_usable


async def test_a_word_wanted_of_all_is_asked_for_at_once_and_until_it_comes(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    begun_s = probing.clock()
    probing.pool.ask_all()
    await asyncio.sleep(0.001)
    assert replica.health.confirmed_s >= begun_s
    await asyncio.sleep(1.0)
    begun_s = probing.clock()
    probing.replicas.delay_s = 1000.0
    probing.pool.ask_all()
    await asyncio.sleep(3.0)
    probing.replicas.delay_s = 0.0
    await asyncio.sleep(0.3)
    assert replica.health.confirmed_s >= begun_s
    assert replica.is_usable


async def test_a_deaf_replica_is_found_out_by_time(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.delay_s = 1000.0
    await asyncio.sleep(60.0)
    assert replica.health.state is State.UNHEALTHY


async def test_a_late_answer_counts_as_passed_while_tokens_flow(probing):
    """A busy engine answers /health between two steps: seconds late, and must not be given up."""
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.delay_s = 1000.0
    for _ in range(600):
        await asyncio.sleep(0.1)
        replica.pace.heard(probing.clock())
    assert replica.is_usable


async def test_progress_does_not_excuse_a_refused_connection(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.health = ConnectFailed("refused")
    for _ in range(100):
        await asyncio.sleep(0.1)
        replica.pace.heard(probing.clock())
    assert replica.health.state is State.UNHEALTHY


@pytest.mark.parametrize("info", [(404, b""), (200, b"<html>"), (200, b"{}")])
async def test_an_engine_that_tells_no_limits_is_taken_with_the_defaults(probing, info):
    probing.replicas.info = info
    replica = probing.watch()
    await asyncio.sleep(1.0)
    assert replica.is_usable
    assert replica.room.requests >= 1


async def test_an_engine_that_cannot_tell_its_limits_now_is_asked_again(probing):
    """One odd answer must not stand for the whole generation."""
    probing.replicas.info = (500, b"{}")
    replica = probing.watch()
    await asyncio.sleep(1.0)
    assert not replica.is_usable
    assert replica.info is None
    probing.replicas.info = (200, b'{"max_total_tokens": 64, "max_concurrent_requests": 3}')
    await asyncio.sleep(5.0)
    assert replica.is_usable
    assert replica.room.capacity.requests == 3


async def test_an_ejected_replica_that_died_does_not_sit_out_its_time(probing):
    """Lost streams eject it; the refusal says that it is another matter, and a new one is used."""
    fails = probing.pool._config.eject_after
    replica = probing.watch()
    probing.sync(probing.member("a", requests=None), probing.member("b"))
    probing.up("b")
    await asyncio.sleep(1.0)
    for _ in range(fails):
        probing.pool.on_event(replica, Event.CALL_FAIL, "test")
    probing.replicas.health = ConnectFailed("refused")
    probing.prober.hurry(replica)
    await asyncio.sleep(0.5)
    assert replica.health.state is State.UNHEALTHY
    probing.replicas.health = 200
    await asyncio.sleep(2.0)
    assert replica.is_usable


async def test_an_ejected_replica_is_left_alone_until_its_time_is_up(probing):
    fails = probing.pool._config.eject_after
    replica = probing.watch()
    probing.sync(probing.member("a", requests=None), probing.member("b"))
    probing.up("b")
    await asyncio.sleep(1.0)
    for _ in range(fails):
        probing.pool.on_event(replica, Event.CALL_FAIL, "test")
    assert replica.health.state is State.EJECTED
    probing.prober.hurry(replica)
    count, until_s = len(probing.replicas.times()), replica.health.ejected_until_s
    await asyncio.sleep(until_s - probing.clock() - 0.05)
    assert len(probing.replicas.times()) == count + 1  # whether it died: it did not
    assert replica.health.state is State.EJECTED
    await asyncio.sleep(1.0)
    assert replica.is_usable


async def test_nothing_is_asked_of_a_replica_without_a_port_yet(probing):
    probing.watch(port=0, phase="loading")
    await asyncio.sleep(60.0)
    assert probing.replicas.log == []


async def test_the_engines_queue_is_looked_at_only_where_room_is_learned_and_calls_run(probing):
    probing.replicas.info = (200, json.dumps(NEW_INFO).encode())
    replica = probing.watch()
    await asyncio.sleep(10.0)
    assert probing.replicas.times("/metrics") == [], "nothing runs, nothing can wait"
    leases = [await probing.acquire() for _ in range(8)]
    probing.replicas.metrics = (200, b"tgi_queue_size 6\n")
    await asyncio.sleep(3.0)
    assert replica.room.requests <= 4
    for lease in leases:
        probing.end(lease)


async def test_a_told_budget_is_not_second_guessed(probing):
    probing.watch()
    await asyncio.sleep(1.0)
    lease = await probing.acquire()
    await asyncio.sleep(10.0)
    assert probing.replicas.times("/metrics") == []
    probing.end(lease)


async def test_a_forgotten_replica_is_not_asked_again(probing, settle):
    replica = probing.watch()
    await asyncio.sleep(12.0)
    probing.prober.forget(replica)
    probing.prober.forget(replica)
    await settle()
    count = len(probing.replicas.log)
    await asyncio.sleep(60.0)
    assert len(probing.replicas.log) == count


async def test_a_bug_in_one_probe_does_not_end_probing(probing, caplog):
    probing.replicas.health = RuntimeError("a bug")
    replica = probing.watch()
    await asyncio.sleep(2.0)
    assert "a bug" in caplog.text
    probing.replicas.health = 200
    await asyncio.sleep(2.0)
    assert replica.is_usable


async def test_a_drained_replica_is_still_probed(probing):
    """So that undrain finds a known state."""
    replica = probing.watch()
    probing.pool.set_admin(replica, Admin.DRAINING)
    await asyncio.sleep(20.0)
    assert len(probing.replicas.times()) >= 4
    assert replica.health.state is State.HEALTHY


async def test_news_during_a_look_at_the_gauge_is_not_slept_through(probing):
    """A call finds the replica refusing while the prober waits for /metrics."""
    probing.replicas.info = (200, json.dumps(NEW_INFO).encode())
    replica = probing.watch()
    await asyncio.sleep(1.0)
    lease = await probing.acquire()
    probing.replicas.delay_s = 1.0
    looks = len(probing.replicas.times("/metrics"))
    while len(probing.replicas.times("/metrics")) == looks:  # noqa: ASYNC110  # virtual time
        await asyncio.sleep(0.01)
    probing.pool.on_event(replica, Event.REFUSED, "call")
    probing.prober.hurry(replica)
    probing.replicas.delay_s = 0.0
    probes = len(probing.replicas.times())
    await asyncio.sleep(1.3)
    assert len(probing.replicas.times()) > probes
    assert replica.is_usable
    probing.end(lease)


async def test_news_during_a_probe_is_not_slept_through(probing):
    replica = probing.watch()
    await asyncio.sleep(4.9)
    probing.replicas.delay_s = 1.0
    probes = len(probing.replicas.times())
    while len(probing.replicas.times()) == probes:  # noqa: ASYNC110  # virtual time
        await asyncio.sleep(0.01)
    probing.replicas.delay_s = 0.0
    probing.prober.hurry(replica)
    await asyncio.sleep(1.3)
    assert len(probing.replicas.times()) == probes + 2


async def test_a_router_without_sockets_learns_nothing_of_its_replicas(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.health = NoSockets("no socket to give")
    await asyncio.sleep(60.0)
    assert len(probing.replicas.times()) > 10
    assert replica.is_usable


# ---- calls of one token ----

warming = pytest.mark.parametrize("is_warming", [True])
FAULT = (424, b'{"error":"out of memory","error_type":"generation"}')


def tries(probing):
    probing.tried = []
    probing.prober.tried = lambda replica, kind, is_passed: probing.tried.append((kind, is_passed))
    return probing.tried


@warming
async def test_a_new_replica_gives_a_token_before_it_is_healthy(probing):
    tried = tries(probing)
    probing.replicas.one_token_s = 40.0
    replica = probing.watch()
    await asyncio.sleep(39.9)
    assert replica.health.state is State.WARMING
    assert replica.is_usable, "nobody else is there"
    await asyncio.sleep(0.2)
    assert replica.health.state is State.HEALTHY
    assert tried == [("warm-up", True)]
    asked = [path for _, path in probing.replicas.log]
    assert asked[:3] == ["/health", "/info", "/generate"]


@warming
async def test_one_that_comes_back_gives_one_token_and_takes_no_call_before(probing):
    replica = probing.watch()
    probing.sync(probing.member("a", requests=None), probing.member("b"))
    probing.up("b")
    await asyncio.sleep(1.0)
    probing.replicas.health = ConnectFailed("refused")
    await asyncio.sleep(10.0)
    assert replica.health.state is State.UNHEALTHY
    probing.replicas.health, probing.replicas.one_token_s = 200, 5.0
    await asyncio.sleep(4.0)
    assert replica.health.state is State.WARMING
    assert not replica.is_usable
    await asyncio.sleep(3.0)
    assert replica.is_usable


@warming
@pytest.mark.parametrize(
    ("answer", "state", "is_passed"),
    [
        ((200, b"{}"), State.HEALTHY, True),
        ((404, b"{}"), State.HEALTHY, True),
        ((422, b"{}"), State.HEALTHY, True),
        ((429, b"{}"), State.HEALTHY, True),
        ((503, b"{}"), State.HEALTHY, True),
        (FAULT, State.EJECTED, False),
        ((500, b"oops"), State.EJECTED, False),
        ((200, b"<html>"), State.EJECTED, False),
        (ReplicaLost("cut"), State.EJECTED, False),
        (ConnectFailed("refused"), State.UNHEALTHY, False),
        (ReplicaLoading("loads"), State.UNHEALTHY, False),
        (ConnectTimeout("deaf"), State.UNHEALTHY, False),
    ],
)
async def test_what_the_first_call_may_come_to(probing, answer, state, is_passed):
    tried = tries(probing)
    probing.replicas.one_token = answer
    replica = probing.watch()
    await asyncio.sleep(0.05)
    assert replica.health.state is state
    assert tried == [("warm-up", is_passed)]


@warming
async def test_a_replica_whose_calls_all_fail_stays_out_ever_longer_and_says_why(probing):
    probing.replicas.one_token = FAULT
    replica = probing.watch()
    probing.sync(probing.member("a", requests=None), probing.member("b"))
    probing.up("b")
    await asyncio.sleep(200.0)
    assert not replica.is_usable
    assert "out of memory" in replica.reason
    assert gaps(probing.replicas.times("/generate")) == [10.0, 20.0, 40.0, 60.0, 60.0]
    probing.replicas.one_token = (200, b"{}")
    await asyncio.sleep(61.0)
    assert replica.is_usable


@warming
async def test_a_first_call_that_never_ends_is_bounded(probing):
    probing.prober._config = HealthConfig(warm_up_timeout_s=7.0)
    probing.replicas.one_token_s = 1000.0
    replica = probing.watch()
    await asyncio.sleep(7.1)
    assert replica.health.state is State.EJECTED
    assert replica.reason == ("its first call failed: no answer to a call of one token within 7 s")


async def test_without_warming_a_passed_probe_is_enough(probing):
    replica = probing.watch()
    probing.replicas.one_token = FAULT
    await asyncio.sleep(1.0)
    assert replica.health.state is State.HEALTHY
    assert probing.replicas.times("/generate") == []


@warming
async def test_probes_go_on_while_the_first_call_takes_its_time(probing):
    probing.replicas.one_token_s = 1000.0
    replica = probing.watch()
    await asyncio.sleep(30.0)
    assert len(probing.replicas.times()) > 25
    assert len(probing.replicas.times("/generate")) == 1
    begun_s = probing.clock()
    await asyncio.sleep(1.1)
    assert replica.health.confirmed_s >= begun_s
    probing.replicas.health = ConnectFailed("refused")
    await asyncio.sleep(1.1)
    assert replica.health.state is State.UNHEALTHY


@warming
async def test_a_router_without_sockets_warms_nobody_and_blames_nobody(probing):
    tried = tries(probing)
    probing.replicas.one_token = NoSockets("no socket to give")
    replica = probing.watch()
    await asyncio.sleep(5.0)
    assert replica.health.state is State.WARMING
    assert tried == []
    probing.replicas.one_token = (200, b"{}")
    await asyncio.sleep(1.1)
    assert replica.health.state is State.HEALTHY


async def test_an_idle_replica_gets_a_canary_now_and_then(probing):
    tried = tries(probing)
    probing.watch()
    await asyncio.sleep(300.5)
    found = gaps(probing.replicas.times("/generate"))
    assert len(found) == 9
    assert set(found) == {30.0}
    assert set(tried) == {("canary", True)}


async def test_a_busy_replica_gets_no_canary_nor_one_that_was_just_busy(probing):
    probing.watch()
    await asyncio.sleep(1.0)
    lease = await probing.acquire()
    await asyncio.sleep(300.0)
    probing.end(lease)
    await asyncio.sleep(29.0)
    assert probing.replicas.times("/generate") == []
    await asyncio.sleep(7.0)
    assert len(probing.replicas.times("/generate")) == 1


async def test_canaries_can_be_switched_off(probing):
    probing.prober._config = HealthConfig(canary_idle_s=0)
    probing.watch()
    await asyncio.sleep(300.0)
    assert probing.replicas.times("/generate") == []


async def test_a_drained_replica_gets_no_canary(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.pool.set_admin(replica, Admin.DRAINING)
    await asyncio.sleep(300.0)
    assert probing.replicas.times("/generate") == []


@pytest.mark.parametrize("fault", [FAULT, ReplicaLost("cut")])
async def test_canaries_that_fail_eject_like_calls(probing, fault):
    """At the pace of probes then: nobody waits minutes for what an idle one is worth."""
    tried = tries(probing)
    replica = probing.watch()
    probing.sync(probing.member("a", requests=None), probing.member("b"))
    probing.up("b")
    await asyncio.sleep(1.0)
    probing.replicas.one_token = fault
    await asyncio.sleep(55.0)
    assert replica.health.state is State.EJECTED
    assert tried.count(("canary", False)) == 5
    assert "canary" in replica.reason


async def test_a_canary_that_hangs_holds_up_no_probe(probing):
    probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.one_token_s = 1000.0
    await asyncio.sleep(60.0)
    assert set(gaps(probing.replicas.times())[1:]) == {5.0}
    replica = next(iter(probing.pool))
    assert replica.health.call_fails >= 1


async def test_a_canary_is_refused_where_the_replica_died(probing):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.one_token = ConnectFailed("refused")
    await asyncio.sleep(29.01)
    assert replica.health.state is State.UNHEALTHY


async def test_a_forgotten_replica_s_canary_is_given_up(probing, settle):
    replica = probing.watch()
    await asyncio.sleep(1.0)
    probing.replicas.one_token_s = 1000.0
    await asyncio.sleep(30.0)
    assert probing.prober._watched[replica].call is not None
    probing.prober.forget(replica)
    await settle()
    assert replica.health.call_fails == 0
