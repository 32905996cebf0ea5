"""Messages of one turn of the loop: the first at once, the others together, each in its order."""

import asyncio
import json

import pytest

from router.outbox import BATCH, LARGE_BYTES, Outbox


class Wire:
    """A transport that keeps what is written, in one list with the others'."""

    def __init__(self, name, written):
        self.name, self.written = name, written
        self.is_closed = False
        self.on_write = None

    def is_closing(self):
        return self.is_closed

    def write(self, data):
        assert not self.is_closed, "a real one raises"
        self.written.append((self.name, data))
        if self.on_write is not None:
            self.on_write()

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


async def test_what_is_written_while_all_goes_out_follows_it(outbox, written):
    """A connection that will take no more says so while it is written to."""
    a, b = Wire("a", written), Wire("b", written)
    outbox.write(a, b"1")
    outbox.write(a, b"2")
    outbox.write(b, b"3")

    def once():
        a.on_write = None
        outbox.write(b, b"4")

    a.on_write = once
    await turn()
    assert written == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("b", b"4")]


async def test_replies_of_one_turn_come_before_what_aiohttp_answers_on_the_connection(app):
    rig = await app()
    bodies = [json.dumps({"inputs": n}).encode() for n in range(2 * BATCH)]  # no text: refused
    clients = [await rig.client() for _ in range(3)]
    for client in clients:
        heads = (
            b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
            for body in bodies
        )
        sent = b"".join(head + body for head, body in zip(heads, bodies, strict=True))
        client.write(sent + b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
    for client in clients:
        statuses = [(await client.reply()).status for _ in range(len(bodies) + 1)]
        assert statuses == [422] * len(bodies) + [200]
