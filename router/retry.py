"""Whether a failed attempt is followed by another, and how. Pure.

Generation has no side effects, so another replica may be asked without anybody noticing: from the
start as long as the client has received no event, and after that for the rest of the answer, where
a stream can be continued (`resume`). What that costs depends on whose fault it was:

 1. the stream cannot be continued, or the error allows no retry: give up;
 2. the replica is full: ask elsewhere, as often as the deadline allows;
 3. the replica died: back to the head of the queue; but a call that was in flight at
    `max_deaths` deaths is a suspect and is tried alone, and if that replica dies too, refused.
    A replica that could not be reached has not seen the call, so that is no death of its making;
    and a death proves little while replicas die that did not have the call: the machine's, the
    Docker Engine's or somebody's doing. Such deaths are excused, but not for ever;
 4. a fault or a time-out, for which the call may be to blame: costs retry budget.

A call that got further in an attempt is not to blame for what came before, so a long stream
survives any number of replicas, and a suspect is alone only until it has shown to do no harm. But
three deaths within few tokens make it a suspect to its end.
"""

from dataclasses import dataclass
from enum import Enum

from router.config import RetryConfig
from router.errors import ConnectFailed, Retry, RouterError

WAVE_S = 5.0
"""Deaths within so long of each other may have one cause."""
QUIET_S = 1.0
"""Between a suspect's last death and its trial: replicas that are killed one by one are all dead
then, and no trial is held on the next one in turn."""
FORGIVING_EVENTS = 256
"""For so many events a replica's death is forgotten."""
MAX_ALL_DEATHS = 3
"""What kills replica after replica a few tokens later each time is a suspect all the same."""
MIN_BURST = 16.0
PROGRESS_EVENTS = 8
"""An attempt that brought so many events got further."""
MAX_EXCUSES = 2
"""So many more replicas may a call kill that comes in bad company."""


class Step(Enum):
    GIVE_UP = "give up"
    AGAIN = "again"  # behind the calls that wait
    AGAIN_FIRST = "again, first in the queue"
    ALONE = "again, with a replica to itself"
    REFUSE = "refuse as poison"
    COMPLETE = "say what its end lacks"


@dataclass(slots=True)
class Attempts:
    """What one call has tried so far."""

    count: int = 0
    budgeted: int = 1
    deaths: int = 0
    all_deaths: int = 0
    """Those before it got further as well."""
    is_dangerous: bool = False
    """Too many of these: it is alone whatever it gets."""
    alone: bool = False
    quiet_until_s: float = 0.0
    """No trial before."""
    died_with: frozenset[str] = frozenset()
    """Replicas that died while they had this call."""
    excuses: int = 0
    excluded: frozenset[str] = frozenset()
    has_failed: bool = False
    """An attempt did, and not for load: from there on it has till its deadline, and no less."""
    was_shed: bool = False
    """The last replica asked was full: it is paused, not excluded, and the call waits its turn."""
    has_blamed: bool = False
    """One call blames at most one replica."""

    def got_further(self, events: int) -> None:
        """It was given so many events by a replica: it is to blame for none before."""
        self.budgeted, self.deaths, self.excuses, self.has_blamed = 1, 0, 0, False
        self.all_deaths = max(0, self.all_deaths - events // FORGIVING_EVENTS)
        self.is_dangerous = self.is_dangerous and self.all_deaths > 0
        self.alone = self.is_dangerous


@dataclass(frozen=True, slots=True)
class Scene:
    """Where and when an attempt failed."""

    replica: str
    now_s: float
    lost: frozenset[str]
    """The replicas of the pool that were lost within WAVE_S."""
    is_stuck: bool
    """The client has received a part, and the rest cannot be asked elsewhere."""


class RetryBudget:
    """A share of the calls served may be spent on retries; a burst covers one replica's worth."""

    def __init__(self, share: float, burst: float = MIN_BURST) -> None:
        self.share = share
        self.burst = burst
        self.tokens = burst
        self._most = burst

    def cover(self, calls: int) -> None:
        """So many calls may fail at once with the replica that has them all. What it never covered
        before comes on top; a limit that shrinks and grows again brings nothing."""
        self.burst = max(MIN_BURST, calls)
        more = max(0.0, self.burst - self._most)
        self._most += more
        self.tokens = min(self.burst, self.tokens + more)

    def earn(self) -> None:
        """A call was served."""
        self.tokens = min(self.burst, self.tokens + self.share)

    def spend(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def next_step(
    error: RouterError,
    attempts: Attempts,
    budget: RetryBudget,
    config: RetryConfig,
    scene: Scene,
) -> Step:
    """Decides; counts what it decided on `attempts` and `budget`."""
    if scene.is_stuck or error.retry is Retry.NEVER:
        return Step.GIVE_UP
    attempts.was_shed = error.retry is Retry.ELSEWHERE
    if attempts.was_shed:
        return Step.AGAIN_FIRST
    attempts.has_failed = True
    if error.retry is Retry.SAFE:
        was_in_flight = not isinstance(error, ConnectFailed) or error.was_sent
        return _after_death(attempts, config, scene, was_in_flight=was_in_flight)
    if attempts.budgeted >= config.max_attempts or not budget.spend():
        return Step.GIVE_UP
    attempts.budgeted += 1
    return Step.AGAIN


def trial_step(attempts: Attempts, lost: frozenset[str]) -> Step:
    """Whether a suspect still is one after its quiet time, as replicas may have died since."""
    if not _is_excused(attempts, lost):
        return Step.ALONE
    attempts.deaths -= 1
    attempts.all_deaths -= 1
    attempts.alone = attempts.is_dangerous = False
    return Step.AGAIN_FIRST


def _after_death(
    attempts: Attempts, config: RetryConfig, scene: Scene, *, was_in_flight: bool
) -> Step:
    if was_in_flight:
        attempts.died_with |= {scene.replica}
        attempts.quiet_until_s = scene.now_s + QUIET_S
    counts = was_in_flight and not _is_excused(attempts, scene.lost)
    attempts.deaths += counts
    attempts.all_deaths += counts
    if attempts.alone:
        return Step.REFUSE if counts else Step.ALONE
    attempts.is_dangerous = attempts.all_deaths >= max(MAX_ALL_DEATHS, config.max_deaths)
    if attempts.deaths >= config.max_deaths or attempts.is_dangerous:
        attempts.alone = True
        return Step.ALONE
    return Step.AGAIN_FIRST


def _is_excused(attempts: Attempts, lost: frozenset[str]) -> bool:
    """A replica was lost that did not have the call; counts the excuse."""
    is_excused = bool(lost - attempts.died_with) and attempts.excuses < MAX_EXCUSES
    attempts.excuses += is_excused
    return is_excused
