"""Whether a container has ended, and how, from what the engine says of it. Pure.

Asked by the docker runtime with what `inspect` returned. "Out of memory" is about host memory; a
GPU's memory is a matter of the replica's own log. Engines do not always notice such a kill, above
all an early one; then the kernel's own count tells.
"""

import signal
from collections.abc import Mapping
from typing import Any

from launcher.exits import Exit

REMOVED = Exit(detail="its container was removed by somebody else")
RESTARTED = Exit(detail="its container was restarted by somebody else")
_SIGNAL_BASE = 128  # as shells do, and the init inside
_MEANINGS = {126: ": a program could not be run", 127: ": a program was not found"}


def ending_of(state: Mapping[str, Any], *, memory_ran_out: bool = False) -> Exit | None:
    """From `State`; None while it runs. A paused one runs, and so does one that restarts.

    `memory_ran_out`: the kernel has killed something for want of memory since it was started.
    """
    if state.get("Running") or state.get("Restarting") or state.get("Paused"):
        return None
    if state.get("Status") == "created":
        return Exit(detail=f"its container never started{_because(state)}")
    code = int(state.get("ExitCode", 0))
    signum = _signal_in(code)
    if state.get("OOMKilled") or (signum == signal.SIGKILL and memory_ran_out):
        detail = f"exited with code {code}: out of memory (its limit, or the host's)"
        return Exit(None if signum else code, signum, True, detail)
    if signum:
        name = signal.Signals(signum).name
        return Exit(signal=signum, detail=f"killed by {name}{_because(state)}")
    return Exit(code, detail=f"exited with code {code}{_because(state) or _MEANINGS.get(code, '')}")


def _signal_in(code: int) -> int | None:
    number = code - _SIGNAL_BASE
    return number if number in {s.value for s in signal.Signals} else None


def _because(state: Mapping[str, Any]) -> str:
    return f": {state['Error']}" if state.get("Error") else ""
