"""One request to a replica and its reply, from the first byte to the last.

    open -> head -> (unary) whole body   -> judged, sent on in one piece
                 -> (stream) first event -> judged, then forwarded event by event

The proxy awaits it, a connection feeds it. What goes wrong becomes a RouterError here, and a reply
that was not read to its end closes its connection: that is also how an engine learns that nobody
waits any more.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any, Protocol

from router import sse
from router.deadlines import Deadlines, Place
from router.errors import CallTimeout, ReplicaSilent, RouterError, UpstreamTimeout
from router.replica import Replica

LAST_WORDS_S = 0.25
"""An engine that has sent an error event ends its stream at once."""
MAX_HELD_BYTES = 8 * 1024**2
"""A whole reply larger than this is passed on while it arrives."""

Limit = tuple[float, Callable[[], RouterError]]
"""A monotonic time, and the error that its passing is."""
NO_LIMIT: Limit = inf, lambda: CallTimeout("a time without end is over")


class Sink(Protocol):
    """Where a stream's whole events go once the client may see them."""

    failure: RouterError | None
    """An event said that the replica failed: its last words are awaited, but not for long."""
    is_over: bool
    """No more of it is wanted."""

    def forward(self, events: bytes) -> bool:
        """Takes them; false asks to pause reading until `Exchange.resume`."""
        ...


class Head:
    """Status and header fields of a reply, as they came; field names in lower case."""

    status = 0
    is_reusable = True
    _text: "HeadText | None" = None

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    @property
    def text(self) -> "HeadText":
        """The fields as text; of those that stand twice the last one."""
        if self._text is None:
            self._text = HeadText(self.fields)
        return self._text

    def get(self, name: bytes) -> bytes:
        for key, value in self.fields:
            if key == name:
                return value
        return b""


class HeadText(Mapping[str, str]):
    """Engines send many fields, and of most replies few are asked for: they are decoded then."""

    __slots__ = ("_values",)

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._values = dict(fields)

    def __getitem__(self, name: str) -> str:
        return self._values[name.encode("latin-1")].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        value = self._values.get(name.encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._values)

    def __len__(self) -> int:
        return len(self._values)


class Carrier(Protocol):
    """What an exchange asks of the connection it runs on."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def ended(self, exchange: "Exchange") -> None: ...


class Exchange:
    """One request and its reply.

    Its first state stands on the class: one is made for every call.
    """

    head: Head | None = None
    error: RouterError | None = None
    doubt_at_s = inf
    """When its first event is later than it should be."""
    is_on_new_connection = False
    """So that it cannot have been closed before."""
    has_bytes = False
    is_done = False
    is_paused = False
    _wake: asyncio.Future[None] | None = None
    _news: Callable[[], None] | None = None
    _limit = NO_LIMIT
    _place: Place | None = None
    """Where it waits to be looked at."""
    _held_bytes = 0
    _splitter: sse.Splitter | None = None
    _has_event = False
    _has_first_event = False
    """One is held, so a stream can be judged."""
    _sink: Sink | None = None
    _deadline_s = inf
    _is_doubted = False
    _takes_doubts = False
    _is_ending = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        connection: Carrier,
        replica: Replica,
        running: "set[Exchange]",
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._running = running
        running.add(self)
        self._connection = connection
        self._max_held_bytes = max_held_bytes
        self.replica = replica
        self._held: list[bytes] = []
        self._silence_s: Callable[[], float] = _for_ever
        self.last_data_s = loop.time()

    # ---- the proxy's side ----

    @property
    def is_stream(self) -> bool:
        return self._splitter is not None

    async def opened(self, limit: Limit | None, doubt_at_s: float | None = None) -> None:
        """Until the reply can be judged: the whole body, or a stream's first event.

        Raises how it failed, or the limit's error when that time passes first. Returns early when
        it comes into doubt whether a reply will ever come: then it is not `is_ready` yet. That is
        so when the replica turns suspect, and at `doubt_at_s`; never, if that is None.
        """
        self._takes_doubts, self._is_doubted = doubt_at_s is not None, False
        self.doubt_at_s = inf if doubt_at_s is None else doubt_at_s
        self._limit = limit or NO_LIMIT
        self._await_reply()
        try:
            while self.error is None and not self.is_ready and not self._is_doubted:
                await self._woken()
        finally:
            self._forget_deadline()
        if self.error is not None:
            raise self.error

    def tell(self, news: Callable[[], None], limit: Limit) -> None:
        """Calls `news` whenever there are any, instead of having somebody wait in `opened` and in
        `forwarded`."""
        self._news, self._takes_doubts, self._limit = news, True, limit
        self._await_reply()

    def tell_no_more(self) -> None:
        self._news = None
        if self._sink is None:
            self._forget_deadline()

    def _await_reply(self) -> None:
        """A reply, until it is in doubt or too late for one."""
        at_s = min(self._limit[0], self.doubt_at_s)
        if at_s < inf:
            self._place = self._deadlines.add(at_s, self, Exchange._look)

    def _look(self) -> None:
        """It is one or the other."""
        if self._loop.time() < self._limit[0]:
            self.doubt_at_s = inf
            self._await_reply()
            self.doubt()
        else:
            self.on_failure(self._limit[1]())

    def _forget_deadline(self) -> None:
        if self._place is not None:
            self._place.pop(self, None)
            self._place = None

    @property
    def is_doubted(self) -> bool:
        """Nothing comes, though it should."""
        return self._is_doubted

    @property
    def is_ready(self) -> bool:
        """The reply can be judged."""
        return (
            self.is_done
            or self._has_first_event
            or (self._splitter is None and self._held_bytes > self._max_held_bytes)
        )

    def doubt(self) -> None:
        """Nothing comes from the replica: whoever waits for a reply may ask another one as well,
        and a stream that is under way is looked at again."""
        if not self._takes_doubts:
            return
        self._is_doubted = True
        if self._sink is None:
            self._notify()
        elif self._place is not None and not self._is_ending:
            self._forget_deadline()
            self._watch()

    def first_event(self) -> bytes:
        """The first whole event held, or empty when the stream ended without one."""
        return next(iter(sse.events(b"".join(self._held))), b"")

    def body(self) -> bytes:
        return b"".join(self._held)

    def forward(self, sink: Sink, silence_s: Callable[[], float], deadline_s: float) -> None:
        """Hands everything to the sink from here on.

        `silence_s`: how long the replica may send nothing, at the moment.
        """
        self._sink, self._silence_s, self._deadline_s = sink, silence_s, deadline_s
        self._forget_deadline()
        self._watch()
        held, self._held, self._has_first_event = b"".join(self._held), [], False
        if held:
            self._pass_on(held)

    @property
    def is_forwarding(self) -> bool:
        """What comes goes to a sink."""
        return self._sink is not None

    async def forwarded(self) -> None:
        """Until the reply has ended; raises how it failed.

        Returns early with `is_paused` when the sink wants no more for now, and when it is over.
        """
        sink = self._sink
        assert sink is not None
        while self.is_flowing:
            await self._woken()
        if error := sink.failure or self.error:
            raise error

    @property
    def is_flowing(self) -> bool:
        """More is to come, and nothing stands in its way."""
        is_over = self._sink is None or self._sink.is_over
        return not (self.is_done or self.error or self.is_paused or is_over)

    @property
    def is_passed_on(self) -> bool:
        """All of it was, and nothing is wrong with it."""
        sink = self._sink
        is_well = self.is_done and self.error is None and not self.is_paused
        return is_well and sink is not None and sink.failure is None and not sink.is_over

    def resume(self) -> None:
        """The sink takes more again; silence is counted from now."""
        self.is_paused = False
        self.last_data_s = self._loop.time()
        if not self.is_done and not self.error:
            self._connection.resume_reading()

    def close(self) -> None:
        """Ends it whatever its state; an unfinished one closes its connection."""
        self._news = None
        self._forget_deadline()
        self._running.discard(self)
        self._connection.ended(self)

    @property
    def tail(self) -> bytes:
        """Bytes of an event that never became whole."""
        return self._splitter.tail if self._splitter else b""

    @property
    def is_aligned(self) -> bool:
        """Only whole events were passed on; false after one too large to wait for."""
        return self._splitter is None or self._splitter.is_aligned

    # ---- the connection's side ----

    def on_head(self, head: Head) -> None:
        self.head = head
        if head.status == 200 and head.get(b"content-type").startswith(b"text/event-stream"):
            self._splitter = sse.Splitter()

    def on_read(self, body: bytes) -> None:
        """After each read from the replica, with what it brought of the body."""
        self.has_bytes = True
        if body and self._splitter is not None:
            body = self._splitter.push(body)
        self._note_progress(body)
        if body and self._sink is not None:
            self._pass_on(body)
        elif body:
            self._held.append(body)
            self._held_bytes += len(body)
            if self._splitter is not None and not self._has_first_event:
                self._has_first_event = sse.has_event(body)
        if self._sink is None or self.is_done:
            self._notify()

    def _note_progress(self, body: bytes) -> None:
        """Whole events and whole replies: comments flow from a stalled engine too, and bytes may
        come in driblets."""
        now_s, pace = self._loop.time(), self.replica.pace
        if self._splitter is None:
            self.last_data_s = now_s
            if self.is_done:
                pace.heard(now_s)
        elif b"data:" in body:
            if self._has_event:
                pace.event(now_s, now_s - self.last_data_s)
            else:
                pace.heard(now_s)
            self._has_event = True
            self.last_data_s = now_s

    def on_failure(self, error: RouterError) -> None:
        if not self.is_done and self.error is None:
            self.error = error
            self._notify()

    def _pass_on(self, data: bytes) -> None:
        assert self._sink is not None
        if not self._sink.forward(data) and not self.is_paused:
            self.is_paused = True
            self._connection.pause_reading()
            self._notify()
        if self._sink.is_over:
            self._notify()
        elif self._sink.failure is not None and not self._is_ending:
            self._end_soon(self._sink.failure)

    def _end_soon(self, failure: RouterError) -> None:
        self._is_ending = True
        self._forget_deadline()
        self._limit = self._loop.time() + LAST_WORDS_S, lambda: failure
        self._place = self._deadlines.add(self._limit[0], self, Exchange._look)

    async def _woken(self) -> None:
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
        elif self._news is not None:
            self._news()

    def _watch(self) -> None:
        """Its deadline is moved on lazily: it costs nothing per event."""
        if self.is_done or self.error:
            return
        now_s, silence_s, deadline_s = self._loop.time(), self._silence_s(), self._deadline_s
        silent_until_s = self.last_data_s + silence_s
        if now_s >= deadline_s:
            self.on_failure(CallTimeout("the call's deadline passed inside its answer"))
        elif now_s >= silent_until_s and not self.is_paused:
            silence = f"the replica went silent: no event for {silence_s:.3g} s"
            health = self.replica.health
            is_all_silent = health.is_suspect or health.is_silent
            self.on_failure(ReplicaSilent(silence) if is_all_silent else UpstreamTimeout(silence))
        else:
            next_s = deadline_s if self.is_paused else min(silent_until_s, deadline_s)
            next_s = max(next_s, now_s + 0.05)
            if self.is_paused:
                next_s = min(next_s, now_s + silence_s)
            self._place = self._deadlines.add(next_s, self, Exchange._watch)


def _for_ever() -> float:
    return inf
