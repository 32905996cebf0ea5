"""What resists is asked again, ever later, and never given up."""

import pytest

from launcher.restarts import RestartPolicy
from launcher.stopping import until_stopped
from router.errors import StopError

POLICY = RestartPolicy(first_s=0.0, base_s=1.0, max_s=3.0, max_failures=1)


class Resisting:
    """Ends when there is no trouble left."""

    def __init__(self, *troubles: Exception) -> None:
        self._troubles = list(troubles)
        self.asked: list[float] = []

    async def stop(self, handle, grace_s: float) -> None:
        self.asked.append(grace_s)
        if self._troubles:
            raise self._troubles.pop(0)


async def stopped(runtime: Resisting, handle) -> tuple[list, list]:
    told, pauses = [], []

    async def pause(delay_s: float | None) -> None:
        pauses.append(delay_s)

    def resists(why: str, is_lasting: bool) -> None:
        told.append((why, is_lasting))

    await until_stopped(runtime, handle, 7.0, POLICY, resists, pause)
    return told, pauses


async def test_what_ends_is_asked_once_and_nobody_is_told(make_handle) -> None:
    runtime = Resisting()
    assert await stopped(runtime, make_handle()) == ([], [])
    assert runtime.asked == [7.0]


async def test_what_resists_is_asked_ever_later_whatever_the_limit_of_failures(make_handle) -> None:
    away = StopError("replica-0: Docker is away")
    told, pauses = await stopped(Resisting(*[away] * 5), make_handle())
    assert told == [("Docker is away", False)] + [("Docker is away", True)] * 4
    assert pauses == [0.0, 1.0, 2.0, 3.0, 3.0]


async def test_a_bug_is_no_reason_to_forget_it(
    make_handle, caplog: pytest.LogCaptureFixture
) -> None:
    told, _ = await stopped(Resisting(KeyError("State")), make_handle())
    assert told == [("a bug in the launcher: KeyError('State') (see its log)", False)]
    assert "Traceback" in caplog.text
