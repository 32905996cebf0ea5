"""Replies that are broken on the level of the connection, for tests.

Routes call this instead of answering when an armed fault says so; see ``faults``.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import web

from launcher.simulator.faults import Fault

#: Faults that a unary reply shows here; errors are raised instead.
CONNECTION_FAULTS = ("hang", "garbage", "cut_mid_event", "wrong_length")


async def faulty_reply(request: web.Request, fault: Fault, body: bytes) -> web.StreamResponse:
    """Break a reply on the level of the connection: say nothing, or say the wrong bytes."""
    transport = cast(asyncio.Transport, request.transport)
    if fault.mode == "hang":
        await asyncio.get_running_loop().create_future()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    if fault.mode == "garbage":
        transport.write(b"\x16\x03\xff this is not HTTP \x00\r\n\r\n")
    elif fault.mode == "cut_mid_event":
        transport.write(head % len(body) + body[: len(body) // 2])
    elif fault.mode == "wrong_length":
        transport.write(head % (len(body) + 100) + body)
    transport.close()
    return web.Response()
