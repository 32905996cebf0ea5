"""Whether a container has ended, and how, from what the engine says of it. Pure.

Asked by the docker runtime with what `inspect` returned. The engine's out-of-memory mark is about
host memory only; a GPU's memory is the engine's own log's matter.
"""

import signal
from collections.abc import Mapping
from typing import Any

from launcher.exits import Exit

REMOVED = Exit(detail="its container was removed by somebody else")
RESTARTED = Exit(detail="its container was restarted by somebody else")
_SIGNAL_BASE = 128  # as shells do, and the init inside


def ending_of(state: Mapping[str, Any]) -> Exit | None:
    """From `State`; None while it runs. A paused one runs, and so does one that restarts."""
    if state.get("Running") or state.get("Restarting") or state.get("Paused"):
        return None
    if state.get("Status") == "created":
        return Exit(detail=f"its container never started{_because(state)}")
    code = int(state.get("ExitCode", 0))
    if state.get("OOMKilled"):
        detail = f"exited with code {code}: out of memory (its limit, or the host's)"
        return Exit(None if _signal_in(code) else code, _signal_in(code), True, detail)
    if signum := _signal_in(code):
        name = signal.Signals(signum).name
        return Exit(signal=signum, detail=f"killed by {name}{_because(state)}")
    return Exit(code, detail=f"exited with code {code}{_because(state)}")


def _signal_in(code: int) -> int | None:
    number = code - _SIGNAL_BASE
    return number if number in {s.value for s in signal.Signals} else None


def _because(state: Mapping[str, Any]) -> str:
    return f": {state['Error']}" if state.get("Error") else ""
