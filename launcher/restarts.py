"""When a replica that ended is started again: at once, then ever later. Pure.

The first restart is at once, as most deaths are single ones; then the delay doubles from `base_s`
to `max_s`. A replica that was ready for `reset_after_s` has earned a clean slate. Asked by the
keepers of replicas and router; it never waits itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Seconds, except `max_failures`: starts in a row that never became ready; None: no limit."""

    first_s: float = 0.0
    base_s: float = 1.0
    max_s: float = 300.0
    reset_after_s: float = 600.0
    max_failures: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Ends in a row without a clean slate, and starts in a row that never became ready.

    `is_stuck`: its last start failed, and not for the first time, for what somebody has to see to.
    """

    deaths: int = 0
    failed_starts: int = 0
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows an end; `delay_s` is None when it is given up. `reason` is for the operator,
    who reads its beginning first: what comes next, then why."""

    history: History
    delay_s: float | None
    reason: str


def next_start(
    policy: RestartPolicy,
    history: History,
    ready_for_s: float | None,
    cause: str,
    *,
    recoverable: bool = True,
    is_slow: bool = False,
) -> Decision:
    """Decide after an end. `ready_for_s`: how long it had been ready; None when it never was.

    `is_slow`: somebody has to see to it first, so trying is rare from the second time on.
    """
    clean = ready_for_s is not None and ready_for_s >= policy.reset_after_s
    deaths = 1 if clean else history.deaths + 1
    failed_starts = 0 if ready_for_s is not None else history.failed_starts + 1
    is_stuck = is_slow and deaths > 1 and failed_starts > 0
    after = History(deaths, failed_starts, is_stuck)
    # 1. Nothing will change by trying again.
    if not recoverable:
        return Decision(after, None, f"not tried again, as it would fail the same way: {cause}")
    # 2. It has been tried often enough.
    if policy.max_failures is not None and after.failed_starts >= policy.max_failures:
        return Decision(after, None, f"given up after {_times(after.failed_starts)}: {cause}")
    # 3. Again, now or later.
    delay_s = policy.max_s if is_slow and after.deaths > 1 else _delay_s(policy, after.deaths)
    when = f"in {delay_s:g} s" if delay_s > 0 else "at once"
    return Decision(after, delay_s, f"restart {after.deaths} {when}: {cause}")


def _delay_s(policy: RestartPolicy, deaths: int) -> float:
    if deaths <= 1:
        return policy.first_s
    exponent = min(deaths - 2, 64)  # past any cap; keeps the power finite
    return float(min(policy.base_s * 2**exponent, policy.max_s))


def _times(count: int) -> str:
    return "1 failed start" if count == 1 else f"{count} failed starts in a row"
