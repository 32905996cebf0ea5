"""A steady stream of calls: so many a second, whatever becomes of them; each answer is checked.

For tests that take the endpoint away: a load that waits for its answers (load.py) asks least while
nothing answers, which is when there is most to see. Unary calls and streams, on kept connections
and on new ones. Light enough for two cores that the fleet shares: bytes are compared with an answer
that was read, and found right, before the load began.
"""

import asyncio
import itertools
import json
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from router.tasks import Tasks

TICK_S = 0.004
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Question:
    """A request as it is sent, and the whole body that is its right answer."""

    request: bytes
    answer: bytes
    is_stream: bool


@dataclass(slots=True)
class Call:
    """What became of one call."""

    question: Question
    is_new: bool
    """On a connection of its own."""
    sent_s: float
    done_s: float = 0.0
    """0 while it runs."""
    error: str | None = None
    """None for the right answer; "refused" (no connection), "lost" (no byte came), "cut" (some
    did), "event" (a stream that ends well, with an error), "<status> ..." or "wrong ..."."""

    @property
    def took_s(self) -> float:
        return self.done_s - self.sent_s


class Connection(asyncio.Protocol):
    """One call after the other; `ended` is told of each."""

    def __init__(self, ended: "Callable[[Connection, Call], None]") -> None:
        self._ended = ended
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None
        self.body = bytearray()

    @classmethod
    async def to(cls, endpoint: str, ended: "Callable[[Connection, Call], None]") -> "Connection":
        url, loop = urlsplit(endpoint), asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: cls(ended), url.hostname, url.port)
        return made

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, call: Call) -> None:
        """To be asked only while it is usable and has no call."""
        self._call = call
        self.body.clear()
        assert self._transport is not None
        self._transport.write(call.question.request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end(self, error: str | None) -> None:
        call, self._call = self._call, None
        assert call is not None
        call.done_s, call.error = time.monotonic(), error
        self._ended(self, call)

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._call is not None:
            self._end("cut" if self.body else "lost")

    # ---- httptools ----

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        assert self._call is not None
        if self._call.is_new or not self._parser.should_keep_alive():
            self.close()
        self._end(self._verdict(self._call.question))

    def _verdict(self, question: Question) -> str | None:
        status = self._parser.get_status_code()
        if status != 200:
            return f"{status} {bytes(self.body[:200])!r}"
        if self.body == question.answer:
            return None
        return "event" if b'"error"' in self.body else f"wrong {bytes(self.body[-200:])!r}"


@dataclass(slots=True)
class Steady:
    """`run` until `stop`; every call that was sent has an end then."""

    endpoint: str
    questions: list[Question]
    per_s: float
    new_share: float = 0.25
    """Calls on a connection of their own."""
    calls: list[Call] = field(default_factory=list)
    """All that were sent, in order."""
    running: int = 0
    most_running: int = 0
    _idle: deque[Connection] = field(default_factory=deque)
    _opening: Tasks = field(default_factory=Tasks)
    _has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    _is_stopping: bool = False

    async def run(self) -> None:
        questions, share = itertools.cycle(self.questions), random.Random(1)
        begun_s, sent = time.monotonic(), 0
        while not self._is_stopping:
            due = int((time.monotonic() - begun_s) * self.per_s)
            for _ in range(due - sent):
                self._send(next(questions), is_new=share.random() < self.new_share)
            sent = due
            await asyncio.sleep(TICK_S)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while self.running:
                await self._next_end()
        for connection in self._idle:
            connection.close()

    def stop(self) -> None:
        """No new calls; those in flight are finished."""
        self._is_stopping = True

    async def served(self, count: int) -> None:
        """Waits until so many of the calls sent from here on have had their right answer."""
        sent = len(self.calls)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while sum(bool(c.done_s and not c.error) for c in self.calls[sent:]) < count:
                await self._next_end()

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.error]

    def _send(self, question: Question, *, is_new: bool) -> None:
        call = Call(question, is_new, time.monotonic())
        self.calls.append(call)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        while self._idle and not is_new:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.ask(call)
                return
        self._opening.spawn(self._send_anew(call), "steady call")

    async def _send_anew(self, call: Call) -> None:
        try:
            connection = await Connection.to(self.endpoint, self._ended)
        except OSError as exc:
            call.done_s, call.error = time.monotonic(), f"refused {exc!r}"
            self._count_end()
            return
        connection.ask(call)

    def _ended(self, connection: Connection, call: Call) -> None:
        if connection.is_usable:
            self._idle.append(connection)
        self._count_end()

    def _count_end(self) -> None:
        self.running -= 1
        self._has_ended.set()

    async def _next_end(self) -> None:
        self._has_ended.clear()
        await self._has_ended.wait()


async def questions(endpoint: str, asks: list[Any]) -> list[Question]:
    """Asks of load.py, asked once each before the load; the texts must be the expected ones."""
    found = []
    for ask in asks:
        body = json.dumps(ask.body).encode()
        head = f"POST {ask.path} HTTP/1.1\r\nHost: steady\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        answer = await _answer(endpoint, request)
        last = answer.rpartition(b"\ndata:")[2] if ask.is_stream else answer
        assert json.loads(last)["generated_text"] == ask.expected, answer
        found.append(Question(request, answer, ask.is_stream))
    return found


async def _answer(endpoint: str, request: bytes) -> bytes:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection = await Connection.to(endpoint, lambda connection, call: done.set_result(None))
    connection.ask(Call(Question(request, b"", is_stream=False), True, time.monotonic()))
    await asyncio.wait_for(done, CALL_TIMEOUT_S)
    return bytes(connection.body)
