"""Faults of a wire strike where and when they are told to, on connections that are open already."""

import asyncio
import socket

import pytest

from tests.campaign.wire import GARBAGE, Wire

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Replica:
    """Answers what the test writes; keeps what comes."""

    def __init__(self):
        self.writers = []
        self.came = asyncio.Event()

    async def start(self):
        self.server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def _accepted(self, reader, writer):
        self.writers.append(writer)
        self.came.set()
        while await reader.read(100):
            pass
        writer.close()

    async def close(self):
        self.server.close()
        for writer in self.writers:
            writer.close()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
async def wired():
    """The wire, a connection through it, and the writer of answers at its end."""
    replica = Replica()
    wire = Wire(free_port(), await replica.start())
    await wire.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(b"ask")
    await replica.came.wait()
    yield wire, reader, replica.writers[0]
    writer.transport.abort()
    await wire.close()
    await replica.close()


async def told(reader, count):
    return await asyncio.wait_for(reader.readexactly(count), 5)


async def rest(reader):
    return await asyncio.wait_for(reader.read(-1), 5)


async def test_bytes_go_through(wired):
    _, reader, answers = wired
    answers.write(b"hello")
    assert await told(reader, 5) == b"hello"


@pytest.mark.parametrize("after", [1, 3, 7])
async def test_a_cut_comes_after_so_many_further_bytes(wired, after):
    wire, reader, answers = wired
    answers.write(b"before")
    await told(reader, 6)
    assert await wire.order("cut", after) == 1
    answers.write(b"0123456789")
    assert await rest(reader) == b"0123456789"[:after]


async def test_a_cut_after_no_byte_is_at_once(wired):
    wire, reader, _ = wired
    await wire.order("cut", 0)
    assert await rest(reader) == b""


async def test_a_reset_is_one(wired):
    wire, reader, answers = wired
    await wire.order("reset", 2)
    answers.write(b"0123456789")
    with pytest.raises(ConnectionResetError):
        await rest(reader)


async def test_what_was_stalled_comes_later_whole(wired):
    wire, reader, answers = wired
    await wire.order("stall")
    answers.write(b"0123456789")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.05)
    await wire.order("none")
    assert await told(reader, 10) == b"0123456789"


async def test_a_deaf_connection_ends_by_a_reset(wired):
    wire, reader, answers = wired
    await wire.order("deaf")
    answers.write(b"0123456789")
    await wire.order("none")
    with pytest.raises(ConnectionResetError):
        await rest(reader)


async def test_a_drip_changes_no_byte(wired):
    wire, reader, answers = wired
    await wire.order("drip", 3)
    answers.write(b"0123456789")
    assert await told(reader, 10) == b"0123456789"


@pytest.mark.parametrize("frame", [HEAD, b"5\r\nhello\r\n"])
async def test_garbage_takes_the_place_of_a_frame(wired, frame):
    wire, reader, answers = wired
    await wire.order("garbage", 0)
    answers.write(b"the rest of a chunk\r\n")
    assert await told(reader, 21) == b"the rest of a chunk\r\n"
    answers.write(frame)
    assert await rest(reader) == GARBAGE


async def test_a_wire_that_refuses_takes_calls_again_after_it(wired):
    wire, reader, answers = wired
    await wire.order("refuse")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", wire.port)
    answers.write(b"hello")
    assert await told(reader, 5) == b"hello"
    await wire.order("none")
    _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.close()


async def test_nobody_behind_a_wire_resets_its_connections():
    wire = Wire(free_port(), free_port())
    await wire.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    with pytest.raises(ConnectionResetError):
        await rest(reader)
    writer.close()
    await wire.close()
