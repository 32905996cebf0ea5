"""How long a replica is normally silent, and so when its silence means something. Pure.

Three durations are learned, all as peaks that fade, because what has to be sat out is the longest
normal silence, not the usual one: a prefill of TGI below 3 freezes every stream for seconds, once
in a while.

    step     no event of any stream, while one runs; and how long a probe waits for its answer
    gap      no event of one stream, whatever the others do: preempted, or between two slices
    prompt   from a call's grant to its first token, against the length of its prompt

What is due soon counts as well: prompts that were granted and have no first token yet may be in the
step that is running now. A silence that was longer than allowed teaches little more than what was
allowed, so that a replica that hung once is not excused for the next time.

The exchange writes here with every read, the dispatcher with every lease; the prober and the proxy
ask. Everything before there is evidence errs on the side of patience.
"""

from collections.abc import Callable
from math import exp2

NOTED_S = 0.1
"""Shorter silences are not looked at: the least allowance is several times that."""
HALF_LIFE_S = 60.0
NEWS = 1.1
"""Times the longest so far: an even pace teaches nothing with every event."""
PATIENCE = 2.0
"""Steps of silence, and then of waiting for a probe's answer."""
MIN_ALLOWED_S = 0.5
FIRST_STEP_S = 1.0
"""Taken for the longest step until so much was seen:"""
KNOWN_EVENTS = 64
PROBE_WORTH = 8
"""A probe's answer under load tells as much as so many events."""

GAPS = 4.0
MIN_STREAM_S = 2.0
MIN_BESIDE_OTHERS_S = 10.0
"""While other streams of the replica go on, one that does not was put off by its engine."""

FIRST_TOKENS = 5.0
MIN_FIRST_TOKEN_S = 10.0
FIRST_PROMPT_RATE_S = 1 / 2000
"""Seconds per token of a prompt, until prompts were seen."""
SLOWEST_PROMPT_RATE_S = 1 / 50
"""Of an engine without a GPU; a call is not moved on for it before the replica's own is known."""
MIN_PROMPT_RATE_S = 1 / 10_000
LONG_PROMPT_TOKENS = 512
"""From here on the prompt's length explains the time to first token; below it waits in queues."""
STEP_TOKENS = 4096
"""Prompts that are prefilled together, by TGI's default: short ones add up to so many."""
RATE_FADES = 0.95


class Peak:
    """The longest of the durations seen, older ones fading."""

    __slots__ = ("_at_s", "_value_s")

    def __init__(self) -> None:
        self._value_s = 0.0
        self._at_s = 0.0

    def value_s(self, now_s: float) -> float:
        return self._value_s * exp2((self._at_s - now_s) / HALF_LIFE_S)

    def add(self, duration_s: float, now_s: float) -> None:
        if duration_s > self.value_s(now_s):
            self._value_s, self._at_s = duration_s, now_s


class Pace:
    """One replica's; times are monotonic, durations end in `_s` as well."""

    __slots__ = (
        "_gap",
        "_is_rate_seen",
        "_max_allowed_s",
        "_prompt_rate_s",
        "_prompts",
        "_seen",
        "_step",
        "_wait",
        "busy_since_s",
        "heard_s",
        "stirred",
    )

    def __init__(self, probe_timeout_s: float = 3.0) -> None:
        self.heard_s = 0.0
        """When the last whole event or reply came, probes' included: as good as a passed probe."""
        self.busy_since_s = 0.0
        """When it last got a call after having had none."""
        self.stirred: Callable[[], None] = nobody
        """Called when it speaks after a silence."""
        self._max_allowed_s = PATIENCE * probe_timeout_s
        self._step = Peak()
        self._gap = Peak()
        self._wait = Peak()
        self._prompt_rate_s = FIRST_PROMPT_RATE_S
        self._is_rate_seen = False
        self._prompts: dict[object, int] = {}
        self._seen = 0

    def use(self, probe_timeout_s: float) -> None:
        self._max_allowed_s = PATIENCE * probe_timeout_s

    # ---- what it is told ----

    def event(self, now_s: float, gap_s: float) -> None:
        """A running stream's next events, `gap_s` after its last ones. Called with every read."""
        silence_s = now_s - self.heard_s
        self._seen += 1
        if gap_s > NOTED_S:
            self._learn(now_s, min(silence_s, gap_s), gap_s)
        self.heard_s = now_s
        if silence_s > NOTED_S:
            self.stirred()

    def heard(self, now_s: float) -> None:
        """A stream's first events or a whole reply: they end a silence and tell no step."""
        silence_s = now_s - self.heard_s
        self.heard_s = now_s
        if silence_s > NOTED_S:
            self.stirred()

    def probe_answered(self, now_s: float, took_s: float, *, is_busy: bool) -> None:
        """Many engines answer between two steps."""
        self._lengthen_step(now_s, took_s)
        self._seen += PROBE_WORTH * is_busy

    def excuse(self, now_s: float, silence_s: float) -> None:
        """It was found silent, and speaks again: it may have been busy, whatever it was asked."""
        self._lengthen_step(now_s, silence_s)

    def granted(self, lease: object, prompt_tokens: int) -> None:
        self._prompts[lease] = prompt_tokens

    def first_token(self, lease: object, now_s: float, took_s: float) -> None:
        tokens = self._prompts.pop(lease, 0)
        if tokens < LONG_PROMPT_TOKENS:
            self._wait.add(took_s, now_s)
            return
        faded_s = max(MIN_PROMPT_RATE_S, self._prompt_rate_s * RATE_FADES)
        self._prompt_rate_s = max(faded_s, took_s / tokens)
        self._is_rate_seen = True

    def ended(self, lease: object) -> None:
        self._prompts.pop(lease, None)

    def gave_up(self, lease: object, now_s: float, took_s: float) -> None:
        """No first token came for so long: the next ones may take twice as long, then again."""
        if lease in self._prompts:
            self.first_token(lease, now_s, 2.0 * took_s / FIRST_TOKENS)

    def _learn(self, now_s: float, silence_s: float, gap_s: float) -> None:
        if silence_s > NEWS * self._step.value_s(now_s):
            self._lengthen_step(now_s, silence_s)
        if gap_s > NEWS * self._gap.value_s(now_s):
            self._gap.add(min(gap_s, self.stream_deadline_s(now_s)), now_s)

    def _lengthen_step(self, now_s: float, silence_s: float) -> None:
        self._step.add(min(silence_s, 2.0 * self.silence_allowed_s(now_s)), now_s)

    # ---- what it is asked ----

    def silent_since_s(self) -> float:
        """Since when something could have come and did not."""
        return max(self.heard_s, self.busy_since_s)

    def silence_allowed_s(self, now_s: float) -> float:
        """How long all of a busy replica may be silent before it is asked, and then again before
        it has no excuse."""
        step_s = max(self._step.value_s(now_s), self._assumed_s(), self._prefill_s())
        return min(self._max_allowed_s, max(MIN_ALLOWED_S, PATIENCE * step_s))

    def stream_deadline_s(self, now_s: float) -> float:
        """How long one stream may be silent between two events before it is better off elsewhere.

        The caller bounds it by `timeouts.between_events_s`.
        """
        gap_s = max(self._gap.value_s(now_s), self._assumed_s(), self._prefill_s())
        others_go_on = now_s - self.heard_s < self.silence_allowed_s(now_s)
        return max(MIN_BESIDE_OTHERS_S if others_go_on else MIN_STREAM_S, GAPS * gap_s)

    def first_token_deadline_s(self, prompt_tokens: int, now_s: float) -> float:
        """How long after its grant a stream may be without its first event.

        The caller bounds it by the call's deadline.
        """
        rate_s = self._prompt_rate_s if self._is_rate_seen else SLOWEST_PROMPT_RATE_S
        usual_s = self._wait.value_s(now_s) + rate_s * prompt_tokens
        return max(MIN_FIRST_TOKEN_S, FIRST_TOKENS * (usual_s + self._assumed_s()))

    def _assumed_s(self) -> float:
        """What is not known yet is assumed; it counts less with all that is seen."""
        return FIRST_STEP_S * max(0.0, 1.0 - self._seen / KNOWN_EVENTS)

    def _prefill_s(self) -> float:
        """How long the prompts that may be in the running step take: one is never divided by the
        engines that freeze, short ones go together."""
        if not self._prompts:
            return 0.0
        tokens = self._prompts.values()
        return self._prompt_rate_s * max(max(tokens), min(sum(tokens), STEP_TOKENS))


def nobody() -> None:
    """Waits for its next word."""
