"""Continuing a stream on another replica once its own has failed in mid-answer. Pure.

What is asked of the next replica is the prompt with the text so far appended, and fewer tokens;
its events are then mended, so that the client sees one stream that never broke. How either is done
depends on the events' format: each has a `Transcript` (what the client has received, read from its
bytes) and a `Seam` (mends what follows); dialects make them. They know of each other's format only
what stands here.

A client's bytes are kept raw while they are few and parsed only when a replica has failed (or when
they get many): see `Ledger`. A second failure is no other case: the transcript then holds the
mended events, and the continuation starts from the call as it was first asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from router.call import Call

MAX_RAW_BYTES = 64 * 1024
"""More than this is read into a transcript, which keeps the text alone."""


class NotResumable(Exception):
    """This stream cannot be continued elsewhere; the message says why, after "because"."""


@dataclass(frozen=True, slots=True)
class Question:
    """Asked of a replica before it continues a stream: how many tokens a text has."""

    path: str
    body: bytes


class Seam(Protocol):
    """Turns the events of a continuation into those that follow what the client has."""

    is_over: bool
    """The answer is whole: the router itself has ended it, whatever the replica still sends."""

    def mend(self, events: bytes) -> bytes:
        """Whole events in, whole events out; maybe none.

        Raises NotResumable when what comes is no continuation.
        """
        ...


@dataclass(frozen=True, slots=True)
class Continuation:
    """A call that asks for the rest of an answer, and how to join it to what the client has."""

    call: Call
    seam: Seam


class Transcript(Protocol):
    """What one stream's client has received, in the terms of its format."""

    @property
    def is_finished(self) -> bool:
        """The finish reason is out: nothing is left that an engine would have to be asked for."""
        ...

    @property
    def has_ended(self) -> bool:
        """The finish reason is out, whatever else is missing."""
        ...

    def read(self, events: bytes) -> None:
        """More whole events that were relayed. Raises NotResumable."""
        ...

    def question(self) -> Question | None:
        """What has to be counted to continue with right numbers; None: nothing."""
        ...

    def continued(self, counted: int | None) -> Continuation:
        """The rest of the answer as a call of its own. Raises NotResumable.

        `counted`: the answer to the question; None while, or where, there is none.
        """
        ...

    def last_words(self, counted: int | None) -> bytes:
        """What a finished stream still lacks of its end: usage, [DONE]. Often nothing."""
        ...


class Ledger:
    """The events that one stream's client has received, for as long as they may be needed.

    An event costs an append. `open_transcript` is called at most once; what it or the transcript
    refuses is remembered, and nothing more is kept.
    """

    refusal: NotResumable | None = None
    _transcript: Transcript | None = None
    _bytes = 0

    def __init__(self, open_transcript: Callable[[], Transcript]) -> None:
        self._open = open_transcript
        self._events: list[bytes] = []

    def add(self, events: bytes) -> None:
        self._events.append(events)
        self._bytes += len(events)
        if self._bytes > MAX_RAW_BYTES:
            self._compact()

    def transcript(self) -> Transcript:
        """All of it, read. Raises NotResumable."""
        self._compact()
        if self._transcript is None:
            raise self.refusal or NotResumable("nothing of it was kept")
        return self._transcript

    @property
    def is_resumable(self) -> bool:
        """As far as what has come so far goes; reads it, so it is asked only in need."""
        self._compact()
        return self.refusal is None

    def give_up(self, why: str) -> None:
        self.refusal = NotResumable(why)
        self._transcript = None

    def _compact(self) -> None:
        events, self._events, self._bytes = b"".join(self._events), [], 0
        if self.refusal is not None:
            return
        try:
            self._transcript = self._transcript or self._open()
            self._transcript.read(events)
        except NotResumable as refusal:
            self.refusal, self._transcript = refusal, None


class SoFar:
    """The text that a client has, token by token, and what of it is generated once more.

    A continued prompt ends with the text so far. What it cannot hold, the next replica generates
    again: tokens without text (a character that is not whole yet, a special token) and, where a
    chat template trims the end of a message, its white space.
    """

    __slots__ = ("_loose", "_pieces", "_text", "last", "tokens", "trims")

    def __init__(self, *, trims: bool) -> None:
        self.trims = trims
        self.tokens = 0
        """All tokens the client has received."""
        self.last = ""
        """The newest one's text."""
        self._pieces: list[str] = []
        self._text = ""
        self._loose: list[str] = []
        """The texts of the last tokens, back to the last one that holds more than white space."""

    def add(self, text: str) -> None:
        self.tokens += 1
        self.last = text
        self._pieces.append(text)
        if text.strip():
            self._loose = []
        else:
            self._loose.append(text)

    @property
    def text(self) -> str:
        self._text += "".join(self._pieces)
        self._pieces.clear()
        return self._text

    @property
    def prompt(self) -> str:
        """What of the text is appended to the prompt."""
        return self.text.rstrip() if self.trims else self.text

    @property
    def again(self) -> int:
        """Tokens at the end that are generated once more."""
        if self.trims:
            return len(self._loose)
        return next((i for i, text in enumerate(reversed(self._loose)) if text), len(self._loose))

    def replay(self) -> "Replay":
        return Replay(self.text[len(self.prompt) :], self.again)


class Replay:
    """Recognises what a continuation generates once more: the client has it already."""

    __slots__ = ("_text", "_tokens")

    def __init__(self, text: str, tokens: int) -> None:
        self._text = text
        self._tokens = tokens

    def take(self, text: str) -> str | None:
        """What of a token's text is news; None: the client has had this very token."""
        if self._text.startswith(text):
            self._text = self._text[len(text) :]
            if not self._tokens:
                return ""
            self._tokens -= 1
            return None
        had, self._text, self._tokens = self._text, "", 0
        return text.removeprefix(had)


class StopWatch:
    """Finds a stop sequence that began before the seam: engines look at what they generate only."""

    __slots__ = ("_before", "_longest", "_stops", "_text")

    def __init__(self, stops: tuple[str, ...], text_before: str) -> None:
        self._stops = tuple(filter(None, stops))
        self._longest = max(map(len, self._stops), default=0)
        self._text = text_before[-(self._longest - 1) :] if self._longest > 1 else ""
        self._before = len(self._text)

    def meets(self, text: str) -> bool:
        """Whether a stop sequence that began before the seam ends with this new text."""
        if len(self._text) >= self._before + self._longest:
            return False  # what could have begun before the seam is over
        self._text += text
        return any(self._spans(stop) for stop in self._stops)

    def _spans(self, stop: str) -> bool:
        start = self._text.find(stop, max(0, self._before - len(stop) + 1))
        return 0 <= start < self._before
