"""The load counts as wrong what a broken router could send: it must not look fast by it."""

import argparse
import asyncio

import pytest

from tests.bench import wire
from tests.bench.load import Load

TAG = wire.tag_of(0)
BODY = wire.answer(TAG)
EVENTS = wire.events(TAG, 3)


def whole(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def chunked(events, end=b"0\r\n\r\n"):
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + end


async def loaded(reply, events):
    """What the load tells of a server that answers everything with `reply`, then hangs up."""

    async def answer(reader, writer):
        await reader.readuntil(b"}}")
        writer.write(reply)
        writer.write_eof()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        given = argparse.Namespace(
            port=[server.sockets[0].getsockname()[1]],
            connections=1,
            events=events,
            warm_s=0.2,
            seconds=0.05,
            hold=False,
            watch=[],
            router_core=[],
            load_core=[],
        )
        return await Load(given).run()


@pytest.mark.parametrize(
    ("reply", "events", "error"),
    [
        pytest.param(whole(wire.answer(wire.tag_of(1))), 0, "wrong bytes", id="another's answer"),
        pytest.param(whole(BODY[:-1]), 0, "of", id="short"),
        pytest.param(whole(BODY + b" "), 0, "wrong bytes", id="long"),
        pytest.param(whole(BODY, "503 No"), 0, "status 503", id="refused"),
        pytest.param(whole(BODY)[:-5], 0, "closed", id="cut"),
        pytest.param(b"HTTQ/1.1 200 OK\r\n\r\n", 0, "framing", id="no HTTP"),
        pytest.param(whole(BODY) + whole(BODY), 0, "nobody asked", id="two answers"),
        pytest.param(chunked(EVENTS[:2]), 3, "status 200", id="an event missing"),
        pytest.param(chunked([EVENTS[0], *EVENTS]), 3, "wrong bytes", id="an event twice"),
        pytest.param(chunked(EVENTS, end=b""), 3, "closed", id="no end"),
        pytest.param(chunked(EVENTS, end=b"zz\r\n"), 3, "framing", id="bad chunk"),
    ],
)
async def test_a_wrong_reply_is_an_error(reply, events, error):
    result = await loaded(reply, events)
    assert result["errors"] >= 1
    assert error in result["first_error"]


async def test_a_right_reply_is_none():
    """Only that the server hangs up afterwards, before the next reply, is one."""
    result = await loaded(whole(BODY), 0)
    assert result["first_error"].startswith("the connection was closed at byte 0 of a reply")
