"""A replica that sends exactly the bytes a test scripts, on plain TCP; no HTTP library.

Each request takes the next script (`say`), or the one for all others (`otherwise`). A script is a
list of steps, done in order: bytes to send, an `asyncio.Event` to wait for, an `Act`, or a `Flood`.
/health, /info, /metrics and other `pages` are answered aside, so that probes use up no script.
"""

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from router.tasks import Tasks

DEADLINE_S = 10.0


class Act(Enum):
    CUT = "close the connection"
    RST = "reset the connection"
    STALL = "say nothing more until the peer leaves"


CUT, RST, STALL = Act.CUT, Act.RST, Act.STALL


@dataclass(frozen=True)
class Flood:
    """The same bytes over and over, as fast as the peer reads."""

    data: bytes
    count: int


Step = bytes | asyncio.Event | Act | Flood


@dataclass(eq=False)
class Request:
    """One request as it came in."""

    method: str
    path: str
    fields: list[tuple[str, str]]
    raw_head: bytes
    body: bytes
    gone: asyncio.Event
    """The peer closed the connection it came on."""
    flooded_bytes: int = 0
    waits: asyncio.Event = field(default_factory=asyncio.Event)
    """A flood is being held back."""

    def get(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]


class ScriptedReplica:
    """Listens on a free port of the loopback; `close` ends everything it started."""

    def __init__(self, name: str = "replica") -> None:
        self.name = name
        self.requests: list[Request] = []
        self.probes = 0
        """Requests for /health."""
        self.connections = 0
        self.health: list[Step] = [reply(b"")]
        self.info: list[Step] = [reply(json.dumps(INFO).encode())]
        self.metrics: list[Step] = [reply(b"tgi_queue_size 0\n", content_type="text/plain")]
        self.one_token: list[Step] = [reply(generated("a"))]
        """What the router's own calls get."""
        self.one_token_calls: list[Request] = []
        self.pages: dict[str, list[Step]] = {}
        self.otherwise: Sequence[Step] = [reply(generated("ok"))]
        self.on_accept: Act | None = None
        self.port = 0
        self.tasks = Tasks()
        self.open: set[_Peer] = set()
        self.came = asyncio.Condition()
        self._scripts: deque[Sequence[Step]] = deque()
        self._server: asyncio.Server | None = None
        self._deaf: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, *, is_deaf: bool = False) -> None:
        """Listens, on the port it had before if it had one. Deaf: never accepts."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        if is_deaf:
            self._deaf = listener
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), sock=listener)

    async def stop_listening(self) -> None:
        """From here on connections are refused; open ones stay."""
        if self._deaf is not None:
            self._deaf.close()
            self._deaf = None
        if self._server is not None:
            self._server.close()
            self._server = None

    async def die(self) -> None:
        """As `kill -9`: refuses and resets all at once."""
        await self.stop_listening()
        for peer in list(self.open):
            peer.act(RST)

    def die_behind_a_proxy(self) -> None:
        """As `docker kill`: the port goes on accepting, and each connection is closed at once."""
        self.on_accept = CUT
        for peer in list(self.open):
            peer.act(CUT)

    def come_back(self) -> None:
        self.on_accept = None

    async def close(self) -> None:
        await self.die()
        await self.tasks.close()

    def say(self, *steps: Step) -> None:
        """The script of the next request that has none yet."""
        self._scripts.append(steps)

    def forget_scripts(self) -> None:
        self._scripts.clear()

    async def request(self, number: int = 1) -> Request:
        """The n-th request that is no probe, once it is there."""
        async with asyncio.timeout(DEADLINE_S), self.came:
            await self.came.wait_for(lambda: len(self.requests) >= number)
        return self.requests[number - 1]

    def script_for(self, request: Request) -> Sequence[Step]:
        aside = {"/health": self.health, "/info": self.info, "/metrics": self.metrics, **self.pages}
        if request.method == "GET" and request.path in aside:
            self.probes += request.path == "/health"
            return aside[request.path]
        if request.get("x-fleet-probe"):
            self.one_token_calls.append(request)
            return self.one_token
        self.requests.append(request)
        return self._scripts.popleft() if self._scripts else self.otherwise


class _Peer(asyncio.Protocol):
    """One connection from the router."""

    def __init__(self, replica: ScriptedReplica) -> None:
        self._replica = replica
        self._received = b""
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._replica.connections += 1
        self._replica.open.add(self)
        if self._replica.on_accept is not None:
            self.act(self._replica.on_accept)
        else:
            self._replica.tasks.spawn(self._serve(), f"peer of {self._replica.name}")

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.open.discard(self)
        self.gone.set()
        self._more.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def act(self, act: Act) -> None:
        if act is RST:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            self._transport.abort()
        elif act is CUT:
            self._transport.close()

    async def _serve(self) -> None:
        while (request := await self._next_request()) is not None:
            script = self._replica.script_for(request)
            async with self._replica.came:
                self._replica.came.notify_all()
            for step in script:
                await self._do(step, request)
                if self._transport.is_closing():
                    return

    async def _do(self, step: Step, request: Request) -> None:
        if isinstance(step, bytes):
            self._transport.write(step)
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif isinstance(step, Flood):
            await self._flood(step, request)
        elif step is STALL:
            await self.gone.wait()
        else:
            self.act(step)

    async def _flood(self, flood: Flood, request: Request) -> None:
        for _ in range(flood.count):
            if self._transport.is_closing():  # `gone` is only told once this loop waits
                return
            self._transport.write(flood.data)
            request.flooded_bytes += len(flood.data)
            if not self._writable.is_set():
                request.waits.set()
                await self._writable.wait()
                request.waits.clear()

    async def _next_request(self) -> Request | None:
        while b"\r\n\r\n" not in self._received:
            if not await self._receive():
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        pairs = [line.partition(":") for line in lines]
        fields = [(name.lower(), value.strip()) for name, _, value in pairs]
        length = int(dict(fields).get("content-length", "0"))
        while len(self._received) < length:
            if not await self._receive():
                return None
        body, self._received = self._received[:length], self._received[length:]
        return Request(method, path, fields, head, body, self.gone)

    async def _receive(self) -> bool:
        """More bytes; false when the peer is gone."""
        if self.gone.is_set():
            return False
        self._more.clear()
        await self._more.wait()
        return not self.gone.is_set()


# ---- bytes to send ----

INFO = {
    "model_id": "scripted/model",
    "version": "3.3.5",
    "max_concurrent_requests": 128,
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "max_batch_total_tokens": 100_000,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_client_batch_size": 4,
}


def reply(
    body: bytes,
    status: str = "200 OK",
    *,
    content_type: str = "application/json",
    fields: str = "",
    length: int | None = None,
) -> bytes:
    """A whole reply; `length` declares another length than the body has."""
    told = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {told}\r\n"
    return head.encode() + fields.encode() + b"\r\n" + body


def stream_head(fields: str = "") -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        + fields.encode()
        + b"\r\n"
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def streamed(*events: bytes) -> bytes:
    """A whole stream, each event in a chunk of its own."""
    return stream_head() + b"".join(map(chunk, events)) + LAST_CHUNK


def generated(text: str) -> bytes:
    return json.dumps({"generated_text": text}).encode()


def token(index: int, text: str = " a", last: str | None = None) -> bytes:
    """One event of TGI's stream; with `last` the final one."""
    event = {
        "index": index,
        "token": {"id": 7, "text": text, "logprob": -0.5, "special": False},
        "generated_text": last,
        "details": None,
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    """One chunk of a chat stream."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    event = {"id": "", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def error(message: str, error_type: str) -> bytes:
    return json.dumps({"error": message, "error_type": error_type}).encode()


def error_event(message: str, error_type: str) -> bytes:
    return b"data: " + error(message, error_type) + b"\n\n"
