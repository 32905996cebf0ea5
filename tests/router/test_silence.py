"""A busy replica that says nothing is asked, and is suspect when it does not answer that either."""

import asyncio

import pytest

from router.health import Event, State
from router.silence import SilenceWatch

QUICK_S = 0.5
"""What is allowed to a replica that normally answers at once."""


@pytest.fixture
async def watched(world):
    """Two replicas, `a` under watch; `one.asks` are the times at which it was asked."""
    one = world()
    one.add("a", "b")
    one.changes.clear()
    one.asks, one.suspected = [], []
    one.pool.suspected = lambda replica: one.suspected.append((replica.id, one.clock()))
    one.watch = SilenceWatch(one.pool, one["a"], lambda: one.asks.append(one.clock()))
    one.pool.busy = lambda replica: one.watch.busy() if replica.id == "a" else None
    yield one
    one.watch.close()


def used_to_be_quick(one):
    pace, now_s = one["a"].pace, one.clock()
    pace.heard_s = now_s
    for _ in range(200):
        pace.event(now_s, 0.02)


async def given_a_call(one):
    """A call on `a`."""
    one.pool.set_admin(one["b"], type(one["b"].admin).DRAINING)
    lease = await one.acquire()
    one.pool.set_admin(one["b"], type(one["b"].admin).ACTIVE)
    assert lease.replica.id == "a"
    return lease


@pytest.mark.virtual_time
async def test_a_silent_busy_replica_is_asked_and_then_suspect(watched):
    used_to_be_quick(watched)
    await asyncio.sleep(100.0)
    await given_a_call(watched)
    began_s = watched.clock()
    await asyncio.sleep(QUICK_S + 0.01)
    assert watched.asks == [began_s + QUICK_S]
    assert watched["a"].is_usable
    await asyncio.sleep(QUICK_S)
    assert watched.suspected == [("a", began_s + 2 * QUICK_S)]
    assert watched["a"].health.is_suspect
    assert not watched["a"].is_usable
    assert watched.changes == [("a", "healthy", "suspect")]


@pytest.mark.virtual_time
async def test_suspicion_is_told_once_and_the_question_put_once(watched):
    used_to_be_quick(watched)
    await given_a_call(watched)
    await asyncio.sleep(60.0)
    assert len(watched.asks) == 1
    assert len(watched.suspected) == 1


@pytest.mark.virtual_time
async def test_its_first_word_ends_the_suspicion_at_once(watched, settle):
    used_to_be_quick(watched)
    await given_a_call(watched)
    await asyncio.sleep(5.0)
    pumped = []
    watched.pool.changed = lambda: pumped.append(watched["a"].is_usable)
    watched["a"].pace.event(watched.clock(), 5.0)
    assert watched["a"].is_usable
    assert pumped == [True]
    assert watched.changes[1:] == [("a", "suspect", "healthy")]


@pytest.mark.virtual_time
async def test_it_is_suspected_again_when_it_falls_silent_again(watched):
    used_to_be_quick(watched)
    await given_a_call(watched)
    for number in range(1, 4):
        await asyncio.sleep(30.0)
        assert len(watched.suspected) == number
        watched["a"].pace.heard(watched.clock())


@pytest.mark.virtual_time
async def test_one_that_freezes_for_long_again_and_again_is_left_in_peace(watched):
    """Unary calls on an engine that answers nothing while it prefills: that is its pace."""
    used_to_be_quick(watched)
    await given_a_call(watched)
    for _ in range(20):
        await asyncio.sleep(2.5)
        watched["a"].pace.heard(watched.clock())
    assert 1 <= len(watched.suspected) <= 3


@pytest.mark.virtual_time
async def test_an_answered_question_is_no_suspicion_however_long_its_calls_take(watched):
    """Unary calls alone: nothing comes for minutes but the answers to probes."""
    used_to_be_quick(watched)
    await given_a_call(watched)
    loop = asyncio.get_running_loop()
    watched.watch._ask = lambda: (
        watched.asks.append(watched.clock()),
        loop.call_later(0.2, lambda: watched["a"].pace.heard(loop.time())),
    )
    await asyncio.sleep(120.0)
    assert watched.suspected == []
    assert 100 < len(watched.asks) < 260


@pytest.mark.virtual_time
async def test_streams_that_go_on_are_never_asked_after(watched):
    used_to_be_quick(watched)
    await given_a_call(watched)
    for _ in range(1000):
        await asyncio.sleep(0.3)
        watched["a"].pace.event(watched.clock(), 0.3)
    assert watched.asks == []


@pytest.mark.virtual_time
async def test_a_probe_that_is_under_way_is_the_question(watched):
    used_to_be_quick(watched)
    await given_a_call(watched)
    await asyncio.sleep(0.1)
    watched.watch.asked()
    await asyncio.sleep(60.0)
    assert watched.asks == []
    assert len(watched.suspected) == 1


@pytest.mark.virtual_time
async def test_a_question_that_could_not_be_sent_is_put_again(watched):
    used_to_be_quick(watched)
    await given_a_call(watched)
    watched.watch._ask = lambda: (watched.asks.append(1), watched.watch.not_asked())
    await asyncio.sleep(60.0)
    assert watched.suspected == []
    assert len(watched.asks) > 10


@pytest.mark.virtual_time
async def test_an_idle_replica_is_never_asked_nor_suspected(watched):
    used_to_be_quick(watched)
    lease = await given_a_call(watched)
    await asyncio.sleep(0.2)
    watched.end(lease)
    await asyncio.sleep(3600.0)
    assert watched.asks == []
    assert watched.watch._timer is None
    await given_a_call(watched)
    await asyncio.sleep(2 * QUICK_S + 0.01)
    assert len(watched.suspected) == 1


@pytest.mark.virtual_time
async def test_a_long_prompt_is_waited_for(watched):
    used_to_be_quick(watched)
    for _ in range(20):
        watched["a"].pace.granted("seen", 2000)
        watched["a"].pace.first_token("seen", watched.clock(), 0.5)
    watched.pool.set_admin(watched["b"], type(watched["b"].admin).DRAINING)
    await watched.acquire(input_tokens=4000)
    await asyncio.sleep(3.5)
    assert watched.suspected == []
    await asyncio.sleep(3.0)
    assert len(watched.suspected) == 1


@pytest.mark.virtual_time
async def test_the_only_one_is_used_although_it_is_suspect(watched):
    used_to_be_quick(watched)
    watched.down("b")
    await given_a_call(watched)
    watched.down("b")
    await asyncio.sleep(5.0)
    assert watched["a"].health.is_suspect
    assert (await watched.acquire()).replica.id == "a"


@pytest.mark.virtual_time
@pytest.mark.parametrize("event", [Event.REFUSED, Event.PROBE_FAIL])
async def test_one_that_is_down_is_not_suspected(watched, event):
    used_to_be_quick(watched)
    await given_a_call(watched)
    for _ in range(3):
        watched.pool.on_event(watched["a"], event, "test")
    await asyncio.sleep(60.0)
    assert watched.suspected == []
    assert watched["a"].health.state is State.UNHEALTHY


@pytest.mark.virtual_time
async def test_a_router_that_stood_still_itself_suspects_nobody(watched):
    """Its timers are late then, and what the replicas sent meanwhile is not read yet."""
    used_to_be_quick(watched)
    await given_a_call(watched)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(QUICK_S + 0.1)
    loop.now_s += 10.0
    await asyncio.sleep(0)
    loop.call_soon(watched["a"].pace.heard, loop.time())
    await asyncio.sleep(0.05)
    assert watched.suspected == []


# ---- on the wire ----

STREAM = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


def known(rig, *names):
    """As after a while of quick answers."""
    for name in names:
        rig[name].pace._seen = 1000


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_replica_that_accepts_and_says_nothing_is_found_out(app, wire, until, path):
    rig = await app(2, health={"interval_s": 1000})
    known(rig, "r0", "r1")
    for replica in rig.replicas:
        replica.say(wire.STALL)
    client = await rig.client()
    client.post(path, STREAM)
    await until(lambda: any(replica.requests for replica in rig.replicas))
    stalled = next(replica for replica in rig.replicas if replica.requests)
    stalled.health = [wire.STALL]
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await until(lambda: rig[stalled.name].health.is_suspect)
    assert loop.time() - began_s < 2.0
    assert not rig[stalled.name].is_usable
    [line] = [line for line in rig.lines("health") if line["after"] == "suspect"]
    assert line["replica"] == stalled.name
    assert "silent for" in line["reason"]
    assert rig.metric("suspicions_total", replica=stalled.name) == 1
    assert rig.metric("replica_health", model="default", replica=stalled.name, state="suspect") == 1


async def test_a_stream_that_goes_on_ends_the_suspicion(app, wire, until):
    rig = await app(1, health={"interval_s": 1000})
    known(rig, "r0")
    gate = asyncio.Event()
    rig.replicas[0].say(
        wire.stream_head(),
        wire.chunk(wire.token(1)),
        gate,
        wire.chunk(wire.token(2)),
        wire.STALL,
    )
    rig.replicas[0].health = [wire.STALL]
    client = await rig.client()
    client.post("/generate_stream", STREAM)
    await client.head()
    await until(lambda: rig["r0"].health.is_suspect)
    gate.set()
    await until(lambda: rig["r0"].health.state is State.HEALTHY)


def driblets(wire, data, every_s=0.15):
    """The same bytes, one at a time; gives steps and what ends them."""
    loop = asyncio.get_running_loop()
    steps = []
    for number in range(len(data)):
        gate = asyncio.Event()
        loop.call_later((number + 1) * every_s, gate.set)
        steps += [gate, data[number : number + 1]]
    return steps


async def test_bytes_that_dribble_in_are_no_word(app, wire, until):
    """A byte of an event, and of the answer to a probe, every so often."""
    rig = await app(1, health={"interval_s": 1000})
    known(rig, "r0")
    event = wire.chunk(wire.token(2))
    rig.replicas[0].say(
        wire.stream_head(), wire.chunk(wire.token(1)), *driblets(wire, event), wire.STALL
    )
    rig.replicas[0].health = driblets(wire, wire.reply(b""))
    client = await rig.client()
    client.post("/generate_stream", STREAM)
    await client.head()
    await until(lambda: rig["r0"].health.is_suspect)


async def test_a_busy_one_that_answers_probes_is_not_suspected(app, wire):
    rig = await app(1, health={"interval_s": 1000})
    known(rig, "r0")
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post("/generate", STREAM)
    await rig.replicas[0].request()
    before = rig.replicas[0].probes
    async with asyncio.timeout(10):
        async with rig.replicas[0].came:
            await rig.replicas[0].came.wait_for(lambda: rig.replicas[0].probes >= before + 3)
    assert rig["r0"].health.state is State.HEALTHY
