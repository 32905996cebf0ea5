"""A request means the same to both edges, the one for plain calls and aiohttp's.

The plain edge may hand a connection over whenever it likes; what it may not do is to answer where
aiohttp would refuse, or otherwise. The bytes are put into the protocols directly, so that they
arrive in the pieces that are meant.
"""

import asyncio
import re

import pytest

from router import plain_edge
from tests.router.test_smuggling import BODY, HARMLESS, HOST, JSON, LENGTH, REFUSED, START, post

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
QUIET_S = 0.02
CALL = post(LENGTH)
PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
MORE = {
    "one call": CALL,
    "names in capitals": CALL.upper().replace(BODY.upper(), BODY).replace(b"/GEN", b"/gen")
    .replace(b"ERATE", b"erate"),
    "two calls at once": CALL + CALL,
    "a call and a page": CALL + PING + CALL,
    "a page and a call": PING + CALL,
    "a call and half of one": CALL + CALL[:-5],
    "an empty line before it": b"\r\n" + CALL,
    "many empty lines before it": b"\r\n\r\n\r\n" + CALL,
    "lines that end with LF": CALL.replace(b"\r\n", b"\n"),
    "a head that ends with LF": START + LENGTH + b"X-A: b\n\n" + BODY,
    "a head with LF LF in it": START + b"X-A: b\n\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/1.0": post(LENGTH, start=START.replace(b"1.1", b"1.0")),
    "Connection: close": post(LENGTH, b"Connection: close\r\n") + CALL,
    "Connection: Keep-Alive": post(LENGTH, b"Connection: Keep-Alive\r\n") + CALL,
    "Connection: upgrade": post(LENGTH, b"Connection: upgrade\r\nUpgrade: h2c\r\n") + CALL,
    "chunks": post(b"Transfer-Encoding: chunked\r\n", body=b"34\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "no length": START + b"\r\n",
    "length 0": post(b"Content-Length: 0\r\n", body=b""),
    "length with zeros": post(b"Content-Length: 0052\r\n"),
    "another route": post(LENGTH, start=START.replace(b"/generate", b"/v1/completions")),
    "a query": post(LENGTH, start=START.replace(b"/generate", b"/generate?a=b")),
    "no JSON": post(LENGTH, body=b"x" * len(BODY)),
    "no content type": b"POST /generate HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n" + BODY,
    "gzip, it says": post(LENGTH, b"Content-Encoding: gzip\r\n"),
    "a field twice": post(LENGTH, b"X-A: 1\r\nx-a: 2\r\n"),
    "an empty field": post(LENGTH, b"X-A:\r\n"),
    "spaces around a value": post(LENGTH, b"X-Request-Timeout: \t 5 \t \r\n"),
    "a bad timeout": post(LENGTH, b"X-Request-Timeout: soon\r\n"),
    "raw bytes in a value": post(LENGTH, b"X-A: \xff\xfe\r\n"),
    "a control character in a value": post(LENGTH, b"X-A: a\x01b\r\n"),
    "DEL in a value": post(LENGTH, b"X-A: a\x7fb\r\n"),
    "brackets in a name": post(LENGTH, b"X[A]: 1\r\n"),
    "a slash in a name": post(LENGTH, b"X/A: 1\r\n"),
    "an empty Host": b"POST /generate HTTP/1.1\r\nHost:\r\n" + JSON + LENGTH + b"\r\n" + BODY,
    "a strange Host": CALL.replace(b"Host: a", b"Host: a b/c@d"),
    "many fields": post(LENGTH, *(b"X-%d: 1\r\n" % i for i in range(97))),
    "too many fields": post(LENGTH, *(b"X-%d: 1\r\n" % i for i in range(98))),
    "a large head": post(LENGTH, b"X-A: " + b"a" * 32_000 + b"\r\n"),
    "too large a head": post(LENGTH, b"X-A: " + b"a" * 33_000 + b"\r\n"),
    "lower case method": post(LENGTH, start=START.replace(b"POST", b"post")),
    "an unknown method": post(LENGTH, start=START.replace(b"POST", b"BREW")),
}  # fmt: skip
CORPUS = MORE | REFUSED | HARMLESS
SPLIT = ("one call", "two calls at once", "a call and a page", "spaces around a value", "obs-fold")
SPLIT += ("lines that end with LF", "two CLs", "bare LF in a value")


class Wire(asyncio.Transport):
    """What the protocol writes is kept."""

    def __init__(self, protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closed = False
        self.paused: list[bytes] | None = None
        """What came while nobody wanted to read."""

    def feed(self, data) -> None:
        if self.paused is not None:
            self.paused.append(data)
        elif not self.closed:
            self.protocol.data_received(data)

    def write(self, data) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol) -> None:
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def pause_reading(self) -> None:
        self.paused = []

    def resume_reading(self) -> None:
        held, self.paused = self.paused or [], None
        for data in held:
            asyncio.get_running_loop().call_soon(self.feed, data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


@pytest.fixture
async def edges(app, wire, monkeypatch):
    """`await edges(pieces)`: what became of them at the plain edge, and at aiohttp's."""
    monkeypatch.setattr(plain_edge, "PATIENCE_S", QUIET_S / 4)
    rig = await app(1, limits={"head_s": 0.05})
    front = rig.app._edge

    async def outcome(protocol, pieces):
        line = Wire(protocol)
        protocol.connection_made(line)
        for piece in pieces:
            line.feed(piece)
            await asyncio.sleep(0)
        before, quiet = b"", 0
        while quiet < 3:  # nothing more comes of it
            await asyncio.sleep(QUIET_S)
            is_busy = rig.app.handlers.calls_running or line.written != before
            before, quiet = line.written, 0 if is_busy else quiet + 1
        found = [int(status) for status in STATUS.findall(line.written)], line.closed
        line.close()
        await asyncio.sleep(0)
        return found

    async def both(*pieces):
        ways = outcome(front(), pieces), outcome(front.ordinary(), pieces)
        return await asyncio.gather(*ways)

    return both


@pytest.mark.parametrize("name", CORPUS)
async def test_whole(edges, name):
    plain, ordinary = await edges(CORPUS[name])
    assert plain == ordinary


async def test_after_a_head_that_is_known(edges):
    """Its bytes are not read again: what only looks like it must be."""
    found = await asyncio.gather(*(edges(CALL, data) for data in CORPUS.values()))
    wrong = [name for name, one in zip(CORPUS, found, strict=True) if one[0] != one[1]]
    assert wrong == []
    assert all(plain[0][0] == 200 for plain, _ in found)


LENGTHS = (
    *(b"52", b"53", b"052", b"+52", b"-1", b"5 2", b"52 ", b" 52", b"\t52", b"52,52", b"", b"0x34"),
    *(b"52\x00", b"5\r2", b"52\r\nX-A: b", b"52\r\nContent-Length: 52", b"9" * 13, b"52\n"),
    *(b"000000000052", b"0000000000052", b"\xd9\xa5\xd9\xa2", b"52\r\n\r"),
)


async def test_a_head_that_is_known_but_for_its_length(edges):
    sent = [post(b"Content-Length: %b\r\n" % length) for length in LENGTHS]
    found = await asyncio.gather(*(edges(CALL, data) for data in sent))
    wrong = [length for length, one in zip(LENGTHS, found, strict=True) if one[0] != one[1]]
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "garbage", "statuses"),
    [
        (CALL, b"\x00\x01 garbage\r\n\r\n", [200, 400]),
        (post(b"Content-Length: 51\r\n")[:-1], b"}" + CALL, [422, 400]),
    ],
)
async def test_a_call_and_garbage(edges, call, garbage, statuses):
    """In two pieces: of one that holds both, aiohttp serves neither."""
    plain, ordinary = await edges(call, garbage)
    assert plain == ordinary == (statuses, True)


@pytest.mark.parametrize("name", SPLIT)
async def test_split_at_every_byte(edges, name):
    data = CORPUS[name]
    whole = await edges(data)
    places = range(1, len(data))
    found = await asyncio.gather(*(edges(data[:at], data[at:]) for at in places))
    wrong = [at for at, one in zip(places, found, strict=True) if one != whole]
    assert wrong == []


async def test_one_byte_at_a_time(edges):
    for name in SPLIT:
        data = CORPUS[name]
        assert await edges(*(data[i : i + 1] for i in range(len(data)))) == await edges(data), name


# ---- what the plain edge is for


@pytest.fixture
def no_aiohttp(monkeypatch):
    def ordinary(front):
        raise AssertionError("handed over")

    monkeypatch.setattr(plain_edge.Front, "ordinary", ordinary)


@pytest.mark.usefixtures("no_aiohttp")
async def test_plain_calls_are_served_without_aiohttp(app):
    rig = await app(1)
    client = await rig.client()
    for path in ("/generate", "/generate", "/v1/completions"):
        client.post(path, BODY, "Authorization: Bearer x", "Connection: keep-alive", "X-A: b")
        assert (await client.reply()).status < 500
    client.write(CALL[:-5])
    await asyncio.sleep(0.05)
    client.write(CALL[-5:] + CALL * 3)
    for _ in range(4):
        assert (await client.reply()).status == 200
    assert len(rig.app._edge.connections) == 1
    client.leave()


async def test_a_connection_is_plain_then_ordinary_and_counted_once(app, until):
    rig = await app(1)
    client = await rig.client()
    client.write(CALL)
    assert (await client.reply()).status == 200
    assert (len(rig.app._edge._plain), len(rig.app._edge._server.connections)) == (1, 0)
    for _ in range(2):
        client.write(PING + CALL)
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 200
        assert (len(rig.app._edge._plain), len(rig.app._edge._server.connections)) == (0, 1)
        assert rig.app.acceptor.connections == 1
    client.leave()
    await until(lambda: rig.app.acceptor.connections == 0)
    assert rig.app._edge.connections == []


async def test_what_is_late_is_aiohttps_to_refuse(app, monkeypatch):
    monkeypatch.setattr(plain_edge, "PATIENCE_S", 0.05)
    rig = await app(1, limits={"head_s": 0.1}, timeouts={"body_s": 0.1})
    for part, status in ((CALL[:30], 408), (CALL[:-1], 408)):
        client = await rig.client()
        client.write(part)
        assert (await client.reply()).status == status


async def test_an_idle_connection_is_closed_in_time(app, monkeypatch):
    monkeypatch.setattr(plain_edge, "PATIENCE_S", 0.05)
    rig = await app(1, timeouts={"idle_s": 0.3})
    client = await rig.client()
    for _ in range(3):
        client.write(CALL)
        assert (await client.reply()).status == 200
        await asyncio.sleep(0.2)
    assert await client.is_closed()


async def test_who_sends_ahead_is_not_read_on(app, wire, until):
    rig = await app(1)
    gate = asyncio.Event()
    rig.replicas[0].say(gate, wire.reply(wire.generated("late")))
    client = await rig.client()
    client.write(CALL)
    await until(lambda: rig.replicas[0].requests)
    [edge] = rig.app._edge._plain
    client.write(b"POST /generate HTTP/1.1\r\n" + b"X-A: " + b"a" * 16_000_000)
    await until(lambda: edge._is_unread)
    size = len(edge._data)
    await asyncio.sleep(0.1)
    assert len(edge._data) == size < plain_edge.MAX_AHEAD_BYTES + 1_000_000
    gate.set()
    assert (await client.reply()).status == 200
    assert (await client.reply()).status == 431
