"""What the edge relies on in aiohttp although aiohttp does not promise it.

The edge writes replies to the transport itself and hands aiohttp an object that has nothing left
to send. When one of these fails after an upgrade, look at `router/http_client.py` again.
"""

import asyncio
import inspect
from importlib import metadata

import aiohttp
import attr
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from router.http_client import Sent


def test_aiohttp_is_of_the_minor_version_that_was_looked_at():
    assert aiohttp.__version__.startswith("3.14.")
    [pinned] = [line for line in metadata.requires("gpu-fleet") or [] if line.startswith("aiohttp")]
    assert "<3.15" in pinned


def test_the_names_that_are_used_exist():
    assert inspect.iscoroutinefunction(RequestHandler._drain_helper)
    assert isinstance(RequestHandler.writing_paused, property)
    parameters = list(inspect.signature(RequestHandler.handle_error).parameters)
    assert parameters == ["self", "request", "status", "exc", "message"]
    assert "handler_cancellation" in inspect.signature(web.Server.__init__).parameters
    for name in ("protocol", "transport", "version", "keep_alive", "content"):
        assert hasattr(web.BaseRequest, name), name


def test_the_names_by_which_a_head_is_refused_exist():
    """`EdgeProtocol` puts a refusal where the parser puts a request."""
    assert {"_messages", "_waiter", "_request_count"} <= set(RequestHandler.__slots__)
    assert [field.name for field in attr.fields(_ErrInfo)] == ["status", "exc", "message"]
    assert {"raw_headers", "path"} <= set(dir(RawRequestMessage))


class Edge:
    """A bare server with aiohttp's handler, and a client's connection to it."""

    def __init__(self, handler):
        self.server = web.Server(handler, handler_cancellation=True, access_log=None)

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(self.server, "127.0.0.1", 0)
        port = self.listener.sockets[0].getsockname()[1]
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def __aexit__(self, *exc):
        self.writer.close()
        self.listener.close()
        await self.server.shutdown(1.0)
        await self.listener.wait_closed()

    async def read(self, count):
        async with asyncio.timeout(5):
            return await self.reader.readexactly(count)

    async def ended(self):
        async with asyncio.timeout(5):
            return await self.reader.read()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_nothing_is_added_to_what_was_written_and_the_connection_is_kept():
    async def handler(request):
        request.transport.write(REPLY)
        return Sent(keep_alive=True)

    async with Edge(handler) as edge:
        for _ in range(3):
            edge.writer.write(GET)
            assert await edge.read(len(REPLY)) == REPLY
        edge.writer.write(GET + GET)
        assert await edge.read(2 * len(REPLY)) == REPLY * 2


async def test_the_connection_is_closed_when_it_is_not_to_be_kept():
    async def handler(request):
        request.transport.write(REPLY)
        return Sent(keep_alive=False)

    async with Edge(handler) as edge:
        edge.writer.write(GET)
        assert await edge.ended() == REPLY


async def test_a_leaving_client_cancels_its_handler():
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request):
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with Edge(handler) as edge:
        edge.writer.write(GET)
        async with asyncio.timeout(5):
            await began.wait()
            edge.writer.close()
            await cancelled.wait()


async def test_a_reader_that_stops_pauses_writing_and_drain_waits():
    paused, drained = asyncio.Event(), asyncio.Event()

    async def handler(request):
        while not request.protocol.writing_paused:
            request.transport.write(b"x" * 65536)
        paused.set()
        await request.protocol._drain_helper()
        drained.set()
        return Sent(keep_alive=False)

    async with Edge(handler) as edge:
        edge.writer.write(GET)
        async with asyncio.timeout(5):
            await paused.wait()
        assert not drained.is_set()
        assert set(await edge.ended()) == set(b"x")
        assert drained.is_set()


async def test_drain_of_a_lost_connection_ends():
    raised = asyncio.get_running_loop().create_future()

    async def handler(request):
        while not request.protocol.writing_paused:
            request.transport.write(b"x" * 65536)
        try:
            request.transport.abort()
            await asyncio.sleep(0)
            await request.protocol._drain_helper()
        except (ConnectionError, asyncio.CancelledError) as exc:
            raised.set_result(type(exc))
            raise

    async with Edge(handler) as edge:
        edge.writer.write(GET)
        async with asyncio.timeout(5):
            assert issubclass(await raised, ConnectionError | asyncio.CancelledError)


async def test_the_rest_of_a_body_that_is_refused_does_not_become_a_request():
    seen = []

    async def handler(request):
        seen.append(request.path)
        request.transport.write(REPLY)
        return Sent(keep_alive=False)

    async with Edge(handler) as edge:
        edge.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        assert await edge.read(len(REPLY)) == REPLY
        edge.writer.write(GET)
        edge.writer.write_eof()
        assert await edge.ended() == b""
    assert seen == ["/"]
