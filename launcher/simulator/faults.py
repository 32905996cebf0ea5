"""Faults on demand, for tests of whatever stands in front of an engine.

``POST /simulator/faults`` with ``{"mode", "after_events"?, "count"?}`` arms one (only with
``--faults``); the next ``count`` generation calls take it.

=============== =================================================================================
error_next      the call fails with 424, on a stream in the first event
overload        the call is refused with 429, on a stream in the first event
die_mid_stream  a generation error after ``after_events`` tokens: 424, or an event in the stream
incomplete      the same as an end without a last token: 500, or an event in the stream
cut_mid_event   the connection closes in the middle of an event's, or the body's, bytes
wrong_length    a length is announced that is longer than what comes
garbage         bytes that are no HTTP, or after ``after_events`` an event that is no JSON
hang            nothing comes any more, not even a comment, until the client leaves
unhealthy       ``/health`` answers 503; generation calls are spared
=============== =================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from launcher.simulator.errors import (
    ApiError,
    generation_failed,
    incomplete,
    overloaded,
    wrong_shape,
)

Mode = Literal[
    "none",
    "error_next",
    "die_mid_stream",
    "incomplete",
    "cut_mid_event",
    "hang",
    "garbage",
    "wrong_length",
    "overload",
    "unhealthy",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call, and after how many of its events or tokens."""

    mode: Mode
    after_events: int = 0


class Faults:
    """The armed fault and how many calls it is still for."""

    def __init__(self) -> None:
        self._fault = Fault("none")
        self._left = 0

    def arm(self, body: dict[str, Any]) -> dict[str, Any]:
        """Arm from JSON ``{"mode", "after_events"?, "count"?}``; a ``count`` of -1 is for ever."""
        mode = body.get("mode")
        after_events, count = body.get("after_events", 0), body.get("count", 1)
        if mode not in get_args(Mode):
            raise wrong_shape(f"mode: found {mode!r}, expected one of {', '.join(get_args(Mode))}")
        if not (isinstance(after_events, int) and isinstance(count, int)):
            raise wrong_shape("after_events and count: expected integers")
        self._fault = Fault(cast(Mode, mode), after_events)
        self._left = 0 if mode == "none" else count
        return {"mode": mode, "after_events": after_events, "count": self._left}

    def take(self, *, is_health: bool = False) -> Fault | None:
        """The fault for a call that arrives now, if any; ``unhealthy`` is for health checks."""
        if not self._left or is_health != (self._fault.mode == "unhealthy"):
            return None
        self._left -= 1
        return self._fault


def refusal(fault: Fault | None) -> ApiError | None:
    """The error with which a call is refused at once, if its fault is of that kind."""
    if fault is None or fault.mode not in ("error_next", "overload"):
        return None
    return overloaded() if fault.mode == "overload" else generation_failed("injected fault")


def breaks_stream(fault: Fault) -> bool:
    """Whether the fault shows in the middle of a stream, after some of its events."""
    return fault.mode not in ("none", "error_next", "overload", "unhealthy")


def failure(fault: Fault | None, *, is_stream: bool) -> ApiError | None:
    """The error with which a call under way ends, if its fault is of that kind."""
    if fault is None or fault.mode not in ("die_mid_stream", "incomplete"):
        return None
    if fault.mode == "incomplete":
        return incomplete(is_stream=is_stream)
    return generation_failed("injected fault")
