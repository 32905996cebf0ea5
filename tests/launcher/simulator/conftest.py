"""A simulator inside the test's event loop, and one as a real process."""

import asyncio
import contextlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass, field

import aiohttp
import orjson
import pytest
from aiohttp import web

from launcher.simulator.app import build_app
from launcher.simulator.cli import parse
from launcher.simulator.serving import build_service

JSON = {"content-type": "application/json"}


@dataclass
class Simulator:
    """A running simulator and a client for it."""

    service: object
    session: aiohttp.ClientSession
    host: str
    port: int

    async def post(self, path, body, **headers):
        data = io.BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
        async with self.session.post(path, data=data, headers={**JSON, **headers}) as reply:
            return reply.status, await reply.read(), reply.headers

    async def get(self, path, method="GET", **headers):
        async with self.session.request(method, path, headers=headers) as reply:
            return reply.status, await reply.read(), reply.headers

    async def events(self, path, body):
        """The payloads of a stream's events, ``[DONE]`` as text."""
        status, data, _ = await self.post(path, body)
        assert status == 200, data
        payloads = [line[5:].strip() for line in data.splitlines() if line.startswith(b"data:")]
        return [p.decode() if p == b"[DONE]" else orjson.loads(p) for p in payloads]

    async def raw(self, request: bytes) -> bytes:
        """All bytes that come back on a connection of its own."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def _simulator(*argv: str, environ=None):
    settings = parse(["--time-scale", "0", *argv], environ or {})
    service = build_service(settings)
    runner = web.AppRunner(build_app(service), handler_cancellation=True, access_log=None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(service.engine.run())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            try:
                yield Simulator(service, session, host, port)
            finally:
                running.cancel()
                await runner.cleanup()


@pytest.fixture
def simulator():
    """``async with simulator("--version", "1.4.4") as sim``: in this event loop, without waits."""
    return _simulator


@dataclass
class Process:
    """A simulator process and everything it has logged so far."""

    popen: subprocess.Popen
    log: list[str] = field(default_factory=list)

    def read_until(self, pattern: str) -> re.Match:
        for line in self.popen.stdout:
            self.log.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"ended without {pattern!r}: {self.log}")

    @property
    def text(self) -> str:
        return "".join(self.log)

    def finish(self) -> int:
        """Wait for its end; the rest of its log is read meanwhile."""
        self.log.extend(self.popen.stdout)
        return self.popen.wait(timeout=30)


@pytest.fixture
def process():
    """Starts ``python -m launcher.simulator`` with arguments; kills what is left."""
    started = []

    def start(*argv: str) -> Process:
        popen = subprocess.Popen(
            [sys.executable, "-m", "launcher.simulator", "--port", "0", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(popen)
        return Process(popen)

    yield start
    for popen in started:
        popen.kill()
        popen.wait()
        popen.stdout.close()
