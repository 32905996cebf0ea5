"""What one call has come to. Its log line and its metrics are made of this, once per call."""

import re
from typing import Any

from router.errors import RouterError, UpstreamRefusal
from router.event_log import EventLog
from router.lease import NOTHING_TOLD, Report
from router.metrics import Metrics
from router.story import FAILED, HEDGE_FAILED, QUEUED, SENT, Step, tries

MAX_STEPS = 64
"""More than that is the same over and over; what stands in the middle is left out."""
MAX_MESSAGE_CHARS = 300

MAX_REFUSAL_CHARS = 300
DATA = re.compile(r"[\[{]|input_value=")
"""Where an engine's message goes over to values of the request: vLLM and llama-server append them
as Python's or JSON's, pydantic as its own."""
QUOTED = re.compile(r"""(?<![\w`])(["'])(?:.*\1|.*)""", re.DOTALL)
"""Values inside a sentence, as serde has them, to the last such quote; an apostrophe is none."""


class Record:
    """Written by whoever serves the call, from its arrival to its end. Times are in seconds.

    What it begins with stands on the class: one is made for every call.
    """

    account: str = ""
    """The name of the key it came with."""
    tenant: str = ""
    """On whose account it is, as that key says."""
    model: str = ""
    is_stream: bool = False
    status: int = 200
    replica: str = ""
    attempts: int = 0
    queue_s: float = 0.0
    first_event_s: float | None = None
    events: int = 0
    is_committed: bool = False
    """The client has received part of an answer."""
    is_told: bool = False
    """A stream's last word is out: who leaves now has got everything."""
    report: Report = NOTHING_TOLD
    error: RouterError | None = None
    told: RouterError | None = None
    """What a replica refused, in its own words; passed on as it was sent."""
    priority: str = "normal"
    phase: str = "body"
    """Where a client that leaves was: body, queue, prefill or relay."""
    left_out: int = 0

    def __init__(self, call_id: str, route: str, arrived_s: float) -> None:
        self.id = call_id
        self.route = route
        self.arrived_s = arrived_s
        self.steps: list[Step] = []
        """What happened, for `story`: bare values, as every call pays for them."""

    def step(self, at_s: float, word: str, *values: Any) -> None:
        """One of the words of `story.FIELDS`, with its values."""
        if len(self.steps) >= MAX_STEPS:
            del self.steps[MAX_STEPS // 2]
            self.left_out += 1
        self.steps.append((at_s, word, values))

    def queued(self, at_s: float, position: int, why: str) -> None:
        self.step(at_s, QUEUED, position, why)

    def sent(self, at_s: float, is_new: bool) -> None:
        self.step(at_s, SENT, is_new)

    def failed(self, at_s: float, error: RouterError) -> None:
        """An attempt did, at the replica that is on the record."""
        self._failed(at_s, FAILED, self.replica, error)

    def hedge_failed(self, at_s: float, replica: str, error: RouterError) -> None:
        """The attempt beside another did, which goes on."""
        self._failed(at_s, HEDGE_FAILED, replica, error)

    def _failed(self, at_s: float, word: str, replica: str, error: RouterError) -> None:
        self.step(at_s, word, replica, type(error).__name__, error.message[:MAX_MESSAGE_CHARS])

    def finish(self, now_s: float, metrics: Metrics, log: EventLog) -> None:
        """Counts the call and writes its line."""
        seconds, report = now_s - self.arrived_s, self.report
        error = self.error or self.told
        metrics.call_done(self.route, self.status, seconds)
        if self.is_stream and self.first_event_s is not None:
            metrics.first_token(self.model, self.first_event_s)
        if report.between_tokens_s is not None:
            metrics.between_tokens(self.model, report.between_tokens_s)
        fields: dict[str, Any] = {
            "id": self.id,
            "route": self.route,
            "key": self.account or None,
            "model": self.model or None,
            "stream": self.is_stream,
            "status": self.status,
            "replica": self.replica or None,
            "attempts": self.attempts,
            "queue_ms": round(self.queue_s * 1000, 1),
            "first_event_ms": _ms(self.first_event_s),
            "total_ms": round(seconds * 1000, 1),
            "prompt_tokens": report.prompt_tokens,
            "generated_tokens": report.generated_tokens or self.events or None,
            "error": _said(error) if error else None,
            "error_type": error.error_type if error else None,
        }
        if self.tenant:
            fields["tenant"] = self.tenant
        if self.priority != "normal":
            fields["priority"] = self.priority
        if found := tries(self.steps, self.attempts):
            fields["tries"] = found
        log.call(fields)


def _said(error: RouterError | None) -> str | None:
    """An engine's refusal in its own words, without what it quotes: that may be the prompt."""
    if not isinstance(error, UpstreamRefusal):
        return error.message if error else None
    words = DATA.split(error.message, maxsplit=1)[0][:MAX_REFUSAL_CHARS]
    return QUOTED.sub("(not shown)", words).strip(" :;,")


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1000, 1) if seconds is not None else None
