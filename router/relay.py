"""A reply on its way to the client: its header fields, its events, and what keeps it open.

Nothing here parses an event; the proxy asks the dialect what the last ones meant.
"""

import asyncio

from router import sse
from router.edge import Client
from router.errors import RouterError, Unauthorized
from router.exchange import Head
from router.record import Record

COMMENT_EVERY_S = 15.0
HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "server", "vary", "x-request-id", "set-cookie", "set-cookie2"),
        *("alt-svc", "clear-site-data", "strict-transport-security"),
        *("x-accel-redirect", "x-sendfile"),
    )
)
"""Not passed on from replicas: they belong to one connection (RFC 9110, 7.6.1), to our edge, or
speak for its whole site, to browsers and to proxies in front."""
NOT_PASSED_ON = ("access-control-", "x-fleet-")


class Relay:
    """Where a stream's events go: to the client, counted."""

    __slots__ = ("_before", "_last", "client", "events")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events = 0
        self._before = b""
        self._last = b""

    def forward(self, events: bytes) -> bool:
        count = events.count(b"data:")
        if count or b"error:" in events:  # comments alone end nothing
            self.events += count
            self._before, self._last = self._last, events
        return self.client.write(events)

    @property
    def last(self) -> bytes:
        """The last events; those of two reads, as an error and its [DONE] may come apart."""
        return self._before + self._last


class StreamOpener:
    """Sends the head and comments on a stream that waits long, so that nobody between gives up."""

    def __init__(self, record: Record, client: Client, after_s: float) -> None:
        self._client = client
        self._record = record
        self._timer: asyncio.TimerHandle | None = None
        if record.is_stream:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(after_s, self._tick)

    def _tick(self) -> None:
        if not self._client.has_started:
            headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
            headers += [("x-accel-buffering", "no"), ("x-request-id", self._record.id)]
            self._client.start(200, headers)
        self._client.write(sse.COMMENT)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(COMMENT_EVERY_S, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def reply_headers(head: Head, record: Record) -> list[tuple[str, str]]:
    """The replica's own, and who answered, after how long a wait, at which attempt."""
    return [
        *_passed_back(head),
        ("x-request-id", record.id),
        ("x-fleet-replica", record.replica),
        ("x-fleet-queue-ms", str(round(record.queue_s * 1000))),
        ("x-fleet-attempts", str(record.attempts)),
    ]


def error_headers(record: Record, error: RouterError) -> list[tuple[str, str]]:
    headers = [("content-type", "application/json"), ("x-request-id", record.id)]
    if record.attempts:
        headers.append(("x-fleet-attempts", str(record.attempts)))
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", "Bearer"))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(error.retry_after_s)))
    return headers


def _passed_back(head: Head) -> list[tuple[str, str]]:
    dropped = HOP_BY_HOP
    if named := head.get("connection"):
        dropped |= {name.strip().lower() for name in named.split(",")}
    return [
        (name, value)
        for name, value in head.fields
        if name not in dropped and not name.startswith(NOT_PASSED_ON)
    ]
