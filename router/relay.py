"""A reply on its way to the client: its header fields, its events, and what keeps it open.

No event is parsed here while nothing fails; the proxy asks the dialect what the last ones meant.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache

from router import sse
from router.dialects import Dialect
from router.edge import Client, Fields, fields
from router.errors import RouterError, Unauthorized, UpstreamRefusal
from router.exchange import Head
from router.record import Record
from router.resume import Ledger, NotResumable, Seam

COMMENT_EVERY_S = 15.0
STREAM_HEAD = (
    *(("content-type", "text/event-stream"), ("cache-control", "no-cache")),
    ("x-accel-buffering", "no"),
)
HOP_BY_HOP = frozenset(
    name.encode()
    for name in (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "server", "vary", "x-request-id", "set-cookie", "set-cookie2"),
        *("alt-svc", "clear-site-data", "strict-transport-security"),
        *("x-accel-redirect", "x-sendfile"),
    )
)
"""Not passed on from replicas: they belong to one connection (RFC 9110, 7.6.1), to our edge, or
speak for its whole site, to browsers and to proxies in front."""
NOT_PASSED_ON = (b"access-control-", b"x-fleet-")


class Relay:
    """Where a stream's events go: to the client, counted, and kept in case it breaks off.

    One for all attempts of a call. Once a replica has failed, what the next one sends passes
    through a seam, which makes it follow what the client has.
    """

    events = 0
    failure: RouterError | None = None
    """What an event of the engine's own said."""
    unsent = b""
    """That event and what followed, for a client that cannot be helped otherwise."""
    is_over = False
    """The router has ended the answer: no more is wanted of the replica."""
    _dialect: Dialect | None = None
    _further_at = 0
    _on_further: Callable[[], None] | None = None
    _seam: Seam | None = None
    _before = b""
    _last = b""

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self.client = client
        self.ledger = ledger

    def begin(self, dialect: Dialect, seam: Seam | None) -> None:
        """Another replica's events from here on."""
        self._dialect, self._seam, self._on_further = dialect, seam, None
        self.failure, self.unsent = None, b""

    def when_further(self, events: int, then: Callable[[], None]) -> None:
        """Calls `then` once so many more events have passed."""
        self._further_at, self._on_further = self.events + events, then

    def forward(self, events: bytes) -> bool:
        if self.failure is not None or b'"error"' in events or b"error:" in events:
            events = self._up_to_failure(events)
        if self._seam is not None:
            events = self._mended(self._seam, events)
        if not events:
            return True
        count = events.count(b"data:")
        if count or b"error:" in events:  # comments alone end nothing
            self.events += count
            self._before, self._last = self._last, events
            self.ledger.add(events)
            if self._on_further is not None and self.events >= self._further_at:
                self._on_further()
                self._on_further = None
        return self.client.write(events)

    def _up_to_failure(self, events: bytes) -> bytes:
        """What comes before an engine's own error; the rest is held back if that may help."""
        if self.failure is not None:
            if self.unsent:  # the engine has said why; of a refused continuation nothing is wanted
                self.unsent += events
            return b""
        if not self.ledger.is_resumable:
            return events
        assert self._dialect is not None
        good, rest = b"", events
        while rest:
            end = sse.end_of_first(rest)
            event, rest = rest[:end], rest[end:]
            self.failure = self._dialect.failure(event.strip())
            if self.failure is not None:
                self.unsent = event + rest
                break
            good += event
        return good

    def _mended(self, seam: Seam, events: bytes) -> bytes:
        try:
            mended = seam.mend(events)
        except NotResumable as refusal:
            self.failure = UpstreamRefusal(
                f"the answer broke off: {refusal}", status=502, error_type="incomplete_generation"
            )
            return b""
        self.is_over = seam.is_over
        return mended

    @property
    def last(self) -> bytes:
        """The last events; those of two reads, as an error and its [DONE] may come apart."""
        return self._before + self._last


class Plain:
    """A reply of any other kind, too large to be held: its bytes go through as they are."""

    failure: RouterError | None = None
    is_over = False

    def __init__(self, client: Client) -> None:
        self.client = client

    def forward(self, data: bytes) -> bool:
        return self.client.write(data)


class StreamOpener:
    """Sends the head and comments on a stream that waits long, so that nobody between gives up."""

    def __init__(self, record: Record, client: Client, after_s: float) -> None:
        self._client = client
        self._record = record
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """A stream's wait begins, or goes on."""
        if self._record.is_stream and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._tick)

    def _tick(self) -> None:
        if not self._client.has_started:
            self._client.start(200, fields(*STREAM_HEAD, ("x-request-id", self._record.id)))
        self._client.write(sse.COMMENT)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(COMMENT_EVERY_S, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def reply_headers(head: Head, record: Record) -> Fields:
    """The replica's own, and who answered, after how long a wait, at which attempt."""
    return b"%bx-request-id: %b\r\nx-fleet-replica: %b\r\n%b" % (
        _passed_back(head),
        record.id.encode(),
        record.replica.encode(),
        b"x-fleet-queue-ms: %d\r\nx-fleet-attempts: %d\r\n"
        % (round(record.queue_s * 1000), record.attempts),
    )


def error_headers(record: Record, error: RouterError) -> Fields:
    headers = [("content-type", "application/json"), ("x-request-id", record.id)]
    if record.attempts:
        headers.append(("x-fleet-attempts", str(record.attempts)))
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", "Bearer"))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(error.retry_after_s)))
    return fields(*headers)


def _passed_back(head: Head) -> bytes:
    told = head.fields
    if named := head.get(b"connection"):
        hop = {name.strip().lower() for name in named.split(b",")}
        told = [field for field in told if field[0] not in hop]
    return b"".join([b"%b: %b\r\n" % field for field in told if _is_passed(field[0])])


@lru_cache(maxsize=256)
def _is_passed(name: bytes) -> bool:
    """Kept in mind: an engine's names are always the same."""
    return name not in HOP_BY_HOP and not name.startswith(NOT_PASSED_ON)
