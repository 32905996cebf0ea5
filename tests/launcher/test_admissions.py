"""A replica is ready when the router has taken it in, not when its engine says so."""

import asyncio

import pytest

from launcher.admissions import Admissions
from launcher.instance import Phase
from launcher.status import ReplicaStatus

FIRST_CALL = "it is up; the router makes its first call"
UP = ReplicaStatus("a", "m", Phase.READY, "http://x:1", generation=3, reason="answers /health")


def told(**seen):
    """What the router says of it."""
    replica = {"id": "a", "generation": 3, "phase": "ready", "admitted": False, "health": "warming"}
    return {"pools": [{"replicas": [replica | seen]}]}


def after(*states):
    admissions = Admissions()
    for state in states:
        admissions.learn(state)
    return admissions


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.READY])
def test_others_are_shown_as_they_are(phase):
    replica = ReplicaStatus("a", "m", phase, generation=3, reason="so")
    assert after(told()).shown(replica) is replica
    assert not after(told()).awaits(replica)


@pytest.mark.parametrize(
    "states",
    [
        (),
        ({},),
        (told(),),
        (told(health="unknown"),),
        # Of the engine before this one, or from before it was up.
        (told(generation=2, admitted=True, health="healthy"),),
        (told(generation=2, health="ejected"),),
        (told(health="unhealthy", phase="loading", reason="connection refused"),),
    ],
)
def test_a_ready_one_is_loading_until_the_router_has_taken_it_in(states):
    admissions = after(*states)
    shown = admissions.shown(UP)
    assert (shown.phase, shown.progress, shown.reason) == (Phase.LOADING, FIRST_CALL, "")
    assert admissions.awaits(UP)


def test_why_the_router_does_not_take_it_in_is_told():
    state = told(health="unhealthy", reason="connection refused")
    admissions = after(told(health="unhealthy", phase="loading"), state)
    assert admissions.shown(UP).progress == FIRST_CALL  # it may not have looked since
    admissions.learn(state)
    said = "it is up, and the router does not reach it: connection refused"
    assert admissions.shown(UP).progress == said


@pytest.mark.parametrize(
    "states",
    [
        (told(admitted=True),),
        # Once is enough: how it is later is its health, and a new router has yet to ask.
        (told(admitted=True), told(health="unhealthy")),
        (told(admitted=True), told(health="unknown")),
        # Its first call failed: that it is no use is shown, as its health.
        (told(health="ejected"),),
    ],
)
def test_then_it_is_ready(states):
    admissions = after(*states)
    assert admissions.shown(UP) is UP
    assert not admissions.awaits(UP)


def test_the_next_engine_of_the_same_replica_is_loading_again():
    admissions = after(told(admitted=True), told(generation=4))
    assert admissions.awaits(ReplicaStatus("a", "m", Phase.READY, generation=4))


def test_replicas_that_left_are_forgotten():
    admissions = after(told(admitted=True), {"pools": []}, told())
    assert admissions.awaits(UP)


def test_an_older_router_that_does_not_tell_takes_all_in():
    state = told()
    del state["pools"][0]["replicas"][0]["admitted"]
    assert after(state).shown(UP) is UP


async def test_it_is_waited_for():
    admissions = after(told())
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(admissions.until_in("a", 3))
        for state in (told(health="ejected"), told(generation=2, admitted=True)):
            admissions.learn(state)
            await asyncio.sleep(0.01)
            assert not waiting.done()
        admissions.learn(told(admitted=True))
    await admissions.until_in("a", 3)
