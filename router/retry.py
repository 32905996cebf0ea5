"""Whether a failed attempt is followed by another, and how. Pure.

Generation has no side effects, so as long as the client has received no event, another replica may
be asked without anybody noticing. What that costs depends on whose fault it was (`errors.Retry`):

 1. the client has received an event, or the error allows no retry: give up;
 2. the replica is full: ask elsewhere, as often as the deadline allows;
 3. the replica died: back to the head of the queue; but a call that was in flight at
    `max_deaths` deaths is a suspect and is tried alone, and if that replica dies too, refused.
    A replica that could not be reached has not seen the call, so that is no death of its making;
 4. a fault or a time-out, for which the call may be to blame: costs retry budget.
"""

from dataclasses import dataclass
from enum import Enum

from router.config import RetryConfig
from router.errors import ConnectFailed, Retry, RouterError


class Step(Enum):
    GIVE_UP = "give up"
    AGAIN = "again"  # behind the calls that wait
    AGAIN_FIRST = "again, first in the queue"
    ALONE = "again, with a replica to itself"
    REFUSE = "refuse as poison"


@dataclass(slots=True)
class Attempts:
    """What one call has tried so far."""

    count: int = 0
    budgeted: int = 1
    deaths: int = 0
    alone: bool = False
    excluded: frozenset[str] = frozenset()
    was_shed: bool = False
    """The last replica asked was full: it is paused, not excluded, and the call waits its turn."""
    has_blamed: bool = False
    """One call blames at most one replica."""


class RetryBudget:
    """A share of the calls served may be spent on retries; a burst covers one replica's worth."""

    def __init__(self, share: float, burst: float = 16.0) -> None:
        self.share = share
        self.burst = burst
        self.tokens = burst

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
    *,
    is_committed: bool,
) -> Step:
    """Decides; counts what it decided on `attempts` and `budget`."""
    if is_committed or error.retry is Retry.NEVER:
        return Step.GIVE_UP
    attempts.was_shed = error.retry is Retry.ELSEWHERE
    if attempts.was_shed:
        return Step.AGAIN_FIRST
    if error.retry is Retry.SAFE:
        was_in_flight = not isinstance(error, ConnectFailed) or error.was_sent
        return _after_death(attempts, config, was_in_flight=was_in_flight)
    if attempts.budgeted >= config.max_attempts or not budget.spend():
        return Step.GIVE_UP
    attempts.budgeted += 1
    return Step.AGAIN


def _after_death(attempts: Attempts, config: RetryConfig, *, was_in_flight: bool) -> Step:
    attempts.deaths += was_in_flight
    if attempts.alone:
        return Step.REFUSE if was_in_flight else Step.ALONE
    if attempts.deaths >= config.max_deaths:
        attempts.alone = True
        return Step.ALONE
    return Step.AGAIN_FIRST
