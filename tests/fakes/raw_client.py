"""An HTTP client that shows every byte: nothing is decoded, retried or kept from the test."""

import asyncio
import json
import socket
import ssl
import struct
from dataclasses import dataclass

DEADLINE_S = 10.0


@dataclass(frozen=True)
class Reply:
    status: int
    fields: list[tuple[str, str]]
    head: bytes
    body: bytes = b""
    is_whole: bool = True
    """Its framing said that it ended: all bytes of its length, or the last chunk."""

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def json(self):
        return json.loads(self.body)


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(
        cls, port: int, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None
    ) -> "RawClient":
        """A small receive buffer makes a slow reader slow at once."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        limit = 2**16 if receive_buffer is None else 2**10
        name = None if tls is None else "localhost"
        return cls(
            *await asyncio.open_connection(sock=sock, limit=limit, ssl=tls, server_hostname=name)
        )

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._writer.drain()

    def post(self, path: str, body: bytes | dict, *fields: str, version: str = "1.1") -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/{version}", "Host: router", f"Content-Length: {len(body)}"]
        if not any(field.lower().startswith("content-type") for field in fields):
            lines.append("Content-Type: application/json")
        self.write("\r\n".join([*lines, *fields, "", ""]).encode("latin-1") + body)

    def ask(self, method: str, path: str, *fields: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: router", *fields, "", ""]
        self.write("\r\n".join(lines).encode("latin-1"))

    async def head(self) -> Reply:
        async with asyncio.timeout(DEADLINE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        fields = [(name.lower(), value.strip()) for name, _, value in pairs]
        return Reply(int(first.split(" ")[1]), fields, head)

    async def chunk(self) -> bytes:
        """One chunk's data; empty for the last."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def reply(self, *, to_head: bool = False) -> Reply:
        """A whole reply, however it is framed; one that is cut comes with `is_whole` false."""
        head = await self.head()
        body, is_whole = b"", True
        if to_head or head.status in (100, 204, 304):
            return head
        if head.get("transfer-encoding") == "chunked":
            try:
                while piece := await self.chunk():
                    body += piece
            except (asyncio.IncompleteReadError, ConnectionError):
                is_whole = False
        elif (length := head.get("content-length")) is not None:
            async with asyncio.timeout(DEADLINE_S):
                body = await self._reader.readexactly(int(length))
        else:
            body = await self.rest()
        return Reply(head.status, head.fields, head.head, body, is_whole)

    async def rest(self) -> bytes:
        """Everything until the router closes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._reader.read(-1)

    async def is_closed(self) -> bool:
        """Waits for the end; true when nothing more came before it."""
        try:
            return not await self.rest()
        except ConnectionError:
            return True

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def leave(self) -> None:
        self._writer.close()
