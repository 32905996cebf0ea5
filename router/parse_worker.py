"""Parses large bodies in another process, so that one huge document stops nobody else's stream.

A thread would not do: the JSON scanner holds the interpreter for the whole document. The process
(`python -m router.parse_worker`) starts with the first large body, has bounded memory, and ends
when its pipe does: with the router, however that ends.

Wire, both ways: a length of 8 bytes, big-endian, then so many bytes. Request: the path, a NUL, the
body. Reply: `ok` or `no`, then the ask as JSON or the refusal's text.
"""

import asyncio
import contextlib
import resource
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from typing import BinaryIO

import orjson

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.call import Ask
from router.errors import InvalidRequest

LARGE_BODY_BYTES = 256 * 1024
MAX_MEMORY_BYTES = 3 * 1024**3
LENGTH = struct.Struct(">Q")
OK, NO = b"ok", b"no"


def parse(path: str, body: bytes) -> Ask:
    """Reads what routing depends on. Raises InvalidRequest."""
    api = GENERATION_APIS.get(path) or TOKENIZER_APIS[path]
    return api.parse(path, body)


class ParseWorker:
    """One per router; `parse` decides where a body is parsed."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def parse(self, path: str, body: bytes) -> Ask:
        if len(body) <= LARGE_BODY_BYTES:
            return parse(path, body)
        async with self._turn:
            verdict = await self._asked(path.encode() + b"\0" + body)
        if verdict[:2] == NO:
            raise InvalidRequest(verdict[2:].decode())
        return Ask(**orjson.loads(verdict[2:]))

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def _asked(self, question: bytes) -> bytes:
        """An exchange that breaks off leaves the pipe of no use: the process goes with it."""
        try:
            return await self._exchanged(question)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.close()
            raise InvalidRequest("the body is too costly to parse") from None
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def _exchanged(self, question: bytes) -> bytes:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __spec__.name, stdin=PIPE, stdout=PIPE
            )
        sent, received = self._process.stdin, self._process.stdout
        assert sent is not None
        assert received is not None
        sent.write(LENGTH.pack(len(question)))
        sent.write(question)
        await sent.drain()
        (size,) = LENGTH.unpack(await received.readexactly(LENGTH.size))
        return await received.readexactly(size)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """The process's whole life: answers until the pipe ends."""
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        path, _, body = source.read(LENGTH.unpack(head)[0]).partition(b"\0")
        verdict = _verdict(path.decode(), body)
        sink.write(LENGTH.pack(len(verdict)) + verdict)
        sink.flush()


def _verdict(path: str, body: bytes) -> bytes:
    try:
        return OK + orjson.dumps(parse(path, body)._asdict())
    except InvalidRequest as error:
        return NO + error.message.encode("utf-8", "backslashreplace")
    except MemoryError:
        return NO + b"the body needs too much memory to parse"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the router's affair
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
