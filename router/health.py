"""Whether a replica may be used: states, events and the transition table. Pure.

    UNKNOWN    not heard of yet in this generation
    WARMING    answers its health check; a first call, of one token, is under way
    HEALTHY    takes calls
    SUSPECT    has calls and says nothing: neither to them nor to a probe, for longer than is normal
    UNHEALTHY  down: probes failed, or a connection was refused
    EJECTED    up, but calls failed on it, or the one token: left alone for a while

So nothing takes calls again for being up: the first call after a start, an outage or an ejection
is the router's own. It loads and compiles what engines leave to the first one, and it finds out
those whose health check is fine while all their calls fail.

A suspect is not used while others are; its first word, of whatever kind, ends the suspicion. The
calls that fail on it meanwhile say nothing new, and do not eject it.

Beside its state it may be in doubt: a connection was lost. That may be one connection's end or the
replica's (behind a proxy, Docker's say, connections to a dead one are accepted and closed), so it
takes no calls until a probe that began later has passed.

What an operator wants (drain) is a separate field of the replica. The pool is the only caller; it
also guards what one replica's record cannot see: ejection never takes the last one, and one that
is warming, or even ejected, is better than none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf

from router.config import HealthConfig


class State(Enum):
    UNKNOWN = "unknown"
    WARMING = "warming"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"
    EJECTED = "ejected"


class Event(Enum):
    PROBE_OK = "probe ok"
    PROBE_FAIL = "probe failed"
    PROBE_LATE = "probe not answered in time"
    WARMED = "one token came"
    WARM_UP_FAIL = "no token came"
    REFUSED = "connection refused"
    LOST = "connection lost"
    CALL_OK = "call ok"
    CALL_FAIL = "call failed"
    SUSPECTED = "silent for too long"
    HEARD = "heard of again"
    TIME_UP = "ejection over"
    NEW_GENERATION = "new generation"


@dataclass(slots=True)
class Health:
    """One replica's record; `on` is the only way it changes."""

    config: HealthConfig
    state: State = State.UNKNOWN
    passes: int = 0
    fails: int = 0
    call_fails: int = 0
    ejections: int = 0
    ejected_until_s: float = 0.0
    was_refused: bool = False
    is_silent: bool = False
    """The last thing known of it is that it did not answer: that may be load as well as death."""
    is_doubted: bool = False
    lost_s: float = -inf
    confirmed_s: float = -inf
    """When the last passed probe began."""

    @property
    def is_sure(self) -> bool:
        return self.state is State.HEALTHY and not self.is_doubted

    @property
    def is_spotless(self) -> bool:
        """A served call changes nothing."""
        faults = self.fails or self.call_fails or self.ejections
        return self.state is State.HEALTHY and not faults

    @property
    def is_suspect(self) -> bool:
        return self.state is State.SUSPECT

    @property
    def would_eject(self) -> bool:
        """One more failed call would eject it."""
        return self.state is State.HEALTHY and self.call_fails + 1 >= self.config.eject_after

    def on(self, event: Event, now_s: float, began_s: float | None = None) -> State:
        """Takes the event in and gives the new state; an event without a rule changes nothing.

        `began_s`: when the probe that the event tells of began; now, if not told.
        """
        rule = TABLE.get((self.state, event)) or TABLE.get((None, event))
        if event in PASSED:
            self._confirm(now_s if began_s is None else began_s)
        if event in PROBED:
            self.is_silent = event is Event.PROBE_LATE
        if rule is not None:
            self.state = rule(self, now_s)
        return self.state

    def _confirm(self, began_s: float) -> None:
        self.confirmed_s = max(self.confirmed_s, began_s)
        self.is_doubted = self.is_doubted and self.confirmed_s < self.lost_s


def _passed(health: Health, now_s: float) -> State:
    health.passes += 1
    sure = health.state is State.UNKNOWN or health.was_refused
    if health.passes < (1 if sure else health.config.rise):
        return health.state
    return State.WARMING if health.config.warm_up else _warmed(health, now_s)


def _warmed(health: Health, now_s: float) -> State:
    health.passes = health.fails = health.call_fails = 0
    health.was_refused = False
    return State.HEALTHY


def _still_healthy(health: Health, now_s: float) -> State:
    health.fails = 0
    return State.HEALTHY


def _served(health: Health, now_s: float) -> State:
    health.fails = health.call_fails = health.ejections = 0
    return State.HEALTHY


def _missed(health: Health, now_s: float) -> State:
    health.fails += 1
    health.passes = 0
    return State.UNHEALTHY if health.fails >= health.config.fall else health.state


def _missed_again(health: Health, now_s: float) -> State:
    health.passes = 0
    return State.UNHEALTHY


def _call_failed(health: Health, now_s: float) -> State:
    if not health.would_eject:
        health.call_fails += 1
        return State.HEALTHY
    return _ejected(health, now_s)


def _ejected(health: Health, now_s: float) -> State:
    ejection_s = health.config.eject_base_s * 2**health.ejections
    health.ejected_until_s = now_s + min(ejection_s, health.config.eject_max_s)
    health.ejections = min(health.ejections + 1, 32)
    health.call_fails = 0
    return State.EJECTED


def _suspected(health: Health, now_s: float) -> State:
    return State.SUSPECT


def _heard(health: Health, now_s: float) -> State:
    return State.HEALTHY


def _time_up(health: Health, now_s: float) -> State:
    health.passes = health.fails = 0
    return State.UNKNOWN if now_s >= health.ejected_until_s else State.EJECTED


def _refused(health: Health, now_s: float) -> State:
    health.passes = 0
    health.was_refused = True
    return State.UNHEALTHY


def _lost(health: Health, now_s: float) -> State:
    health.is_doubted = True
    health.lost_s = now_s
    return health.state


def _reborn(health: Health, now_s: float) -> State:
    health.passes = health.fails = health.call_fails = health.ejections = 0
    health.was_refused = health.is_doubted = False
    return State.UNKNOWN


TABLE: dict[tuple[State | None, Event], Callable[[Health, float], State]] = {
    (State.UNKNOWN, Event.PROBE_OK): _passed,
    (State.UNKNOWN, Event.PROBE_FAIL): _missed,
    (State.UNKNOWN, Event.PROBE_LATE): _missed,
    (State.WARMING, Event.PROBE_FAIL): _missed_again,
    (State.WARMING, Event.PROBE_LATE): _missed_again,
    (State.WARMING, Event.WARMED): _warmed,
    (State.WARMING, Event.WARM_UP_FAIL): _ejected,
    (State.UNHEALTHY, Event.PROBE_OK): _passed,
    (State.UNHEALTHY, Event.PROBE_FAIL): _missed_again,
    (State.UNHEALTHY, Event.PROBE_LATE): _missed_again,
    (State.HEALTHY, Event.PROBE_OK): _still_healthy,
    (State.HEALTHY, Event.PROBE_FAIL): _missed,
    (State.HEALTHY, Event.PROBE_LATE): _missed,
    (State.HEALTHY, Event.CALL_OK): _served,
    (State.HEALTHY, Event.CALL_FAIL): _call_failed,
    (State.HEALTHY, Event.SUSPECTED): _suspected,
    (State.SUSPECT, Event.HEARD): _heard,
    (State.SUSPECT, Event.PROBE_OK): _still_healthy,
    (State.SUSPECT, Event.PROBE_FAIL): _missed,
    (State.SUSPECT, Event.PROBE_LATE): _missed,
    (State.SUSPECT, Event.CALL_OK): _served,
    (State.EJECTED, Event.TIME_UP): _time_up,
    (None, Event.REFUSED): _refused,
    (None, Event.LOST): _lost,
    (None, Event.NEW_GENERATION): _reborn,
}
PASSED = frozenset({Event.PROBE_OK, Event.WARMED})
PROBED = frozenset({Event.PROBE_OK, Event.PROBE_FAIL, Event.PROBE_LATE, Event.REFUSED, Event.LOST})
"""Events that say whether it answers at all."""
