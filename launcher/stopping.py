"""Stopping what may resist: a Docker Engine that is away, a process that is stuck in a driver.

Used by keepers and by the crew for what has to be gone before anybody else gets its GPU. It asks
again, ever later, for as long as that takes: what runs is never forgotten. It decides no delay
itself (`restarts`), and starts nothing.
"""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from launcher.restarts import History, RestartPolicy, next_start
from launcher.runtimes.base import Handle, Runtime
from router.errors import OperatorError

log = logging.getLogger("launcher")

Pause = Callable[[float | None], Coroutine[Any, Any, None]]
"""Waits so many seconds, or less if somebody has seen to it; None: until then."""

Resists = Callable[[str, bool], None]
"""Told why it does not end, and whether that lasts: it was asked more than once."""


async def until_stopped(
    runtime: Runtime,
    handle: Handle,
    grace_s: float,
    policy: RestartPolicy,
    resists: Resists,
    pause: Pause,
) -> None:
    """Return once it has ended. `policy` spaces the attempts out, and never gives up."""
    history, endless = History(), replace(policy, max_failures=None)
    while why := await _resistance(runtime, handle, grace_s):
        decision = next_start(endless, history, None, why)
        resists(why, decision.history.deaths > 1)
        history = decision.history
        await pause(decision.delay_s)


async def _resistance(runtime: Runtime, handle: Handle, grace_s: float) -> str:
    """Why it still runs; empty once it does not."""
    try:
        await runtime.stop(handle, grace_s)
    except OperatorError as exc:
        return str(exc).removeprefix(f"{handle.replica_id}: ")  # it is told beside the id
    except Exception as exc:  # one replica's trouble must not stop the others' keepers
        log.exception("%s: unexpected", handle.replica_id)
        return f"a bug in the launcher: {exc!r} (see its log)"
    return ""
