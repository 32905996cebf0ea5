"""What happened to one call, step by step, and where its time went. Pure.

A call leaves bare steps behind while it is served (`record`); what they mean is worked out here,
and only when somebody asks (`stories`). Times inside a story are milliseconds since its arrival.
Neither prompts nor answers are in it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Step = tuple[float, str, tuple[Any, ...]]
"""When (monotonic), what, and the values that FIELDS names."""

READ = "read"
QUEUED = "queued"
GRANTED = "granted"
SENT = "sent"
ANSWERING = "answering"
FAILED = "failed"
NEXT = "next"
QUIET = "quiet"
CONTINUED = "continued"
HEDGED = "hedged"
HEDGE_FAILED = "hedge_failed"
END = "end"
"""Not left behind by a call: its end is on the record."""

FIELDS: dict[str, tuple[str, ...]] = {
    READ: ("body_bytes",),
    QUEUED: ("position", "why"),
    GRANTED: ("replica", "alone"),
    SENT: ("new_connection",),
    ANSWERING: ("replica",),
    FAILED: ("replica", "error_class", "message"),
    NEXT: ("decision",),
    QUIET: (),
    CONTINUED: ("events",),
    HEDGED: ("replica",),
    HEDGE_FAILED: ("replica", "error_class", "message"),
}
PARTS = {
    READ: "routing",
    QUEUED: "queue",
    GRANTED: "connect",
    SENT: "first_event",
    ANSWERING: "answer",
    FAILED: "retry",
    QUIET: "quiet",
    END: "nothing",
}
"""What the time after a step is spent on; other steps change nothing about that."""
ARRIVAL = "body"
NOT_OUR_FAILURES = frozenset({400, 401, 404, 405, 408, 413, 415, 422, 499})
"""The client's doing, unless more than one replica was asked."""


def is_failure(status: int, error: object, attempts: int) -> bool:
    """Whether it is a failed call to whoever runs the fleet: a client's mistake is none."""
    return error is not None and (attempts > 1 or status not in NOT_OUR_FAILURES)


def tries(steps: list[Step], attempts: int) -> list[dict[str, Any]] | None:
    """For the log: the attempts that failed, and those beside another. None if there was one."""
    if attempts < 2:
        return None
    found: list[dict[str, Any]] = []
    granted_s = 0.0
    for at_s, word, values in steps:
        if word == GRANTED:
            granted_s = at_s
        elif word == FAILED:
            replica, error_class, _ = values
            ms = _ms(at_s - granted_s)
            found.append({"replica": replica, "error": error_class, "ms": ms})
        elif word == HEDGED:
            found.append({"hedged": values[0], "after_ms": _ms(at_s - granted_s)})
        elif word == NEXT and found:
            found[-1]["next"] = values[0]
    return found


@dataclass(frozen=True, slots=True)
class Story:
    """One call. `arrived_s` is monotonic, `arrived_at` the same moment by the clock on the wall."""

    id: str
    route: str
    model: str
    is_stream: bool
    status: int
    replica: str
    tenant: str
    priority: str
    key: str
    attempts: int
    queue_s: float
    first_event_s: float | None
    prompt_tokens: int | None
    generated_tokens: int | None
    error_class: str | None
    error: str | None
    arrived_s: float
    arrived_at: float
    total_s: float
    is_running: bool
    left_out: int
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        """The shape that `launcher explain --json` promises to scripts."""
        arrived = datetime.fromtimestamp(self.arrived_at, UTC).isoformat(timespec="milliseconds")
        return {
            "id": self.id,
            "route": self.route,
            "model": self.model or None,
            "stream": self.is_stream,
            "running": self.is_running,
            "status": None if self.is_running else self.status,
            "replica": self.replica or None,
            "tenant": self.tenant or None,
            "priority": self.priority,
            "key": self.key or None,
            "attempts": self.attempts,
            "arrived": arrived.replace("+00:00", "Z"),
            "total_ms": _ms(self.total_s),
            "queue_ms": _ms(self.queue_s),
            "first_event_ms": None if self.first_event_s is None else _ms(self.first_event_s),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "error_class": self.error_class,
            "error": self.error,
            "parts": self._parts(),
            "steps": [self._step(step) for step in self.steps],
            "steps_left_out": self.left_out,
        }

    def _step(self, step: Step) -> dict[str, Any]:
        at_s, word, values = step
        named = dict(zip(FIELDS[word], values, strict=True))
        return {"at_ms": _ms(at_s - self.arrived_s), "step": word, **named}

    def _parts(self) -> list[dict[str, Any]]:
        """Where the time went, the widest part first."""
        parts: list[dict[str, Any]] = []
        part, since_s, replica = {"part": ARRIVAL}, self.arrived_s, None
        for at_s, word, values in (*self.steps, (self.arrived_s + self.total_s, END, ())):
            if word == HEDGED:
                replica = f"{replica} and {values[0]}"
            if word not in PARTS:
                continue
            if word == FAILED:
                part["failed"] = values[1]
            parts.append(part | self._width(at_s - since_s))
            replica = values[0] if word in (GRANTED, ANSWERING) else replica
            part, since_s = _begun(word, values, replica), at_s
        return sorted(parts, key=lambda part: -part["ms"])

    def _width(self, seconds: float) -> dict[str, float]:
        share = seconds / self.total_s if self.total_s else 0.0
        return {"ms": _ms(seconds), "share": round(share, 3)}


def _begun(word: str, values: tuple[Any, ...], replica: str | None) -> dict[str, Any]:
    """The part that begins with this step."""
    part = {"part": PARTS[word]}
    if word == QUEUED:
        part["why"] = values[1]
    elif word in (GRANTED, SENT, ANSWERING) and replica:
        part["replica"] = replica
    return part


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
