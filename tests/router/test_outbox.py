"""Messages of one turn of the loop: the first at once, the others together, each in its order."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from router.http_client import HttpClient
from router.outbox import BATCH, LARGE_BYTES, Outbox


class Wire:
    """A transport that keeps what is written, in one list with the others'."""

    def __init__(self, name, written):
        self.name, self.written = name, written
        self.is_closed = False
        self.on_write = None
        self.unsent_bytes = 0

    def is_closing(self):
        return self.is_closed

    def write(self, data):
        assert not self.is_closed, "one that is closed for good raises"
        if self.on_write is not None:
            self.on_write()
        self.written.append((self.name, data))

    def get_write_buffer_size(self):
        return self.unsent_bytes

    def close(self):
        self.is_closed = True
        self.written.append((self.name, "closed"))


@pytest.fixture
async def written():
    return []


@pytest.fixture
async def outbox():
    outbox = Outbox(asyncio.get_running_loop())
    yield outbox
    await turn()
    assert len(outbox) == 0, "nothing is left behind"


async def turn():
    await asyncio.sleep(0)


async def test_the_first_of_a_turn_goes_out_at_once_and_the_others_at_its_end(outbox, written):
    a, b, c = (Wire(name, written) for name in "abc")
    outbox.write(a, b"1")
    assert written == [("a", b"1")]
    outbox.write(b, b"2")
    outbox.write(c, b"3")
    assert written == [("a", b"1")]
    await turn()
    assert written == [("a", b"1"), ("b", b"2"), ("c", b"3")]
    outbox.write(c, b"4")
    assert written[-1] == ("c", b"4"), "the next turn has a first one again"


async def test_it_is_open_from_the_first_message_to_the_turns_end(outbox, written):
    assert not outbox.is_open
    outbox.write(Wire("a", written), b"1")
    assert outbox.is_open
    await turn()
    assert not outbox.is_open


async def test_what_goes_to_one_connection_keeps_its_order(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    sent = {"a": [], "b": []}
    for n in range(5 * BATCH):
        wire = b if n % 3 else a
        data = b"%d" % n if n % 50 else b"%d" % n * LARGE_BYTES
        outbox.write(wire, data)
        sent[wire.name].append(data)
    await turn()
    for name, messages in sent.items():
        assert [data for to, data in written if to == name] == messages


async def test_so_many_do_not_wait_for_the_turns_end(outbox, written):
    a = Wire("a", written)
    for n in range(BATCH):
        outbox.write(a, b"%d" % n)
    assert len(written) == 1
    outbox.write(a, b"the last of the batch")
    assert len(written) == 1 + BATCH


async def test_a_large_one_does_not_wait_nor_do_those_before_it(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(b, b"2")
    outbox.write(a, b"3" * (LARGE_BYTES + 1))
    assert [name for name, _ in written] == ["a", "b", "a"]


async def test_a_connection_that_closes_meanwhile_gets_nothing_and_harms_no_other(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(a, b"2")
    outbox.write(b, b"3")
    a.is_closed = True
    await turn()
    assert written == [("a", b"1"), ("b", b"3")]


async def test_closed_by_us_it_gets_what_was_written_before(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(b, b"2")
    outbox.write(a, b"3")
    outbox.close(a)
    assert written == [("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", "closed")]


async def test_for_a_connection_that_is_behind_nothing_waits(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(a, b"2")
    b.unsent_bytes = 1
    outbox.write(b, b"3")
    assert written == [("a", b"1"), ("a", b"2"), ("b", b"3")]


@pytest.mark.parametrize("late", [b"4", b"4" * (LARGE_BYTES + 1)], ids=["small", "large"])
async def test_what_is_written_while_all_goes_out_follows_it(outbox, written, late):
    """A connection that will take no more says so while it is written to."""
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(a, b"2")
    outbox.write(b, b"3")

    def once():
        a.on_write = None
        outbox.write(b, late)

    a.on_write = once
    await turn()
    assert [data for name, data in written if name == "a"] == [b"1", b"2"]
    assert [data for name, data in written if name == "b"] == [b"3", late]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_one_that_cannot_be_written_harms_no_other(outbox, written):
    a, b, c = (Wire(name, written) for name in "abc")
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
    outbox.write(a, b"1")
    outbox.write(b, b"2")
    outbox.write(c, b"3")

    def fail():
        raise MemoryError

    b.on_write = fail
    await turn()
    await turn()
    assert [name for name, _ in written] == ["a", "c"]
    assert [type(about["exception"]) for about in told] == [MemoryError]
    assert not outbox.is_open
    outbox.write(c, b"4")
    assert written[-1] == ("c", b"4")


async def test_a_reply_that_is_cut_off_has_gone_out_up_to_there(outbox, written):
    a, b = Wire("a", written), Wire("b", written)
    edge = SimpleNamespace(is_draining=False, writing_paused=False)
    client = HttpClient(b, edge, b"", edge, outbox)
    outbox.write(a, b"1")
    client.start(200, b"")
    client.write(b"data: 1\n\n")
    client.cut()
    assert [name for name, _ in written] == ["a", "b", "b"]
    assert b"data: 1" in written[1][1]
    assert written[2] == ("b", "closed")


# ---- over real connections: two requests are read in one turn ----

REFUSED = json.dumps({"inputs": 1}).encode()  # no text
REQUEST = (
    b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(REFUSED), REFUSED)
)


@pytest.fixture
async def two(app, until):
    """A router, two clients, and the router's ends of their connections."""
    rig = await app()
    clients = [await rig.client(), await rig.client()]
    await until(lambda: len(rig.app._edge.connections) == 2)
    return rig, clients, rig.app._edge.connections


async def test_a_reply_that_waits_goes_out_before_its_connection_is_closed(two):
    rig, clients, edges = two
    rig.app.handlers.is_draining = True
    for edge in edges:
        edge.data_received(REQUEST)
    for client in clients:
        reply = await client.reply()
        assert (reply.status, reply.get("connection")) == (422, "close")
        assert await client.is_closed()


async def test_a_reply_that_waits_goes_out_though_the_client_sends_no_more(two):
    _, clients, edges = two
    for edge in edges:
        edge.data_received(REQUEST)
    for edge in edges:  # as uvloop does where it reads the end
        assert not edge.eof_received()
        edge.transport.close()
    for client in clients:
        assert (await client.reply()).status == 422
        assert await client.is_closed()


async def test_aiohttp_is_told_that_the_connection_it_gets_is_behind(two):
    _, _, (edge, _) = two
    transport = edge.transport
    edge.pause_writing()
    edge._hand_over()
    ordinary = transport.get_protocol()
    assert ordinary is not edge
    assert ordinary.writing_paused
    ordinary.resume_writing()


async def test_an_idle_client_that_has_not_read_its_replies_is_dropped(app, until):
    """Closed, its connection would wait for it for ever."""
    rig = await app(timeouts={"idle_s": 0.2})
    await rig.client(receive_buffer=4096)
    await until(lambda: rig.app._edge.connections)
    (edge,) = rig.app._edge.connections
    edge.transport.write(b"x" * 10_000_000)
    assert edge.writing_paused
    await until(lambda: not rig.app._edge.connections)


async def test_replies_of_one_turn_come_before_what_aiohttp_answers_on_the_connection(app):
    rig = await app()
    clients = [await rig.client() for _ in range(3)]
    for client in clients:
        client.write(REQUEST * 2 * BATCH + b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
    for client in clients:
        statuses = [(await client.reply()).status for _ in range(2 * BATCH + 1)]
        assert statuses == [422] * 2 * BATCH + [200]
