"""One simulator process from its first log line to its exit code.

The port is bound only when the pretended model is loaded, as in TGI. SIGTERM, SIGINT and SIGHUP
drain: no new connection, calls in flight finish within the graceful time, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

from aiohttp import web

from launcher.simulator.app import build_app
from launcher.simulator.engine import Engine
from launcher.simulator.errors import StartRefused
from launcher.simulator.faults import Faults
from launcher.simulator.metrics import Metrics
from launcher.simulator.service import Service
from launcher.simulator.settings import Settings, check_start
from launcher.simulator.startup_log import StartupLog
from launcher.simulator.tokens import TokenModel
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel

_ROUTER = "text_generation_router"


def token_model(settings: Settings) -> TokenModel:
    models: dict[str, type[TextModel] | type[BpeModel]] = {"text": TextModel, "bpe": BpeModel}
    return models[settings.token_model](settings.eos_rate)


def build_service(settings: Settings) -> Service:
    """The composition root: every part once."""
    limits = settings.limits
    metrics = Metrics(limits.max_input_tokens, limits.max_total_tokens, settings.era.metrics_help)
    engine = Engine(settings, metrics)
    return Service(settings, engine, token_model(settings), metrics, Faults())


async def serve(settings: Settings) -> int:
    """Load, serve, drain; gives the process's exit code."""
    log = StartupLog(settings.json_output)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    log.info(f"Args {{ model_id: {settings.model_id!r}, port: {settings.port} }}")
    log.info(f"This is a simulator of TGI {settings.era.version}: no model runs here")
    try:
        check_start(settings)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        listening = await _loaded(settings, log, stop)
        if listening is None:
            log.info("signal received, starting graceful shutdown")
            return 0
        await _serve_on(listening, settings, log, stop)
    except StartRefused as refused:
        return _refuse(log, refused.name, str(refused))
    except OSError as exc:
        return _refuse(log, "WebserverFailed", f"cannot listen on port {settings.port}: {exc}")
    return 0


def _refuse(log: StartupLog, name: str, message: str) -> int:
    if name == "WebserverFailed":
        log.error(message, _ROUTER)
        log.error("Webserver Crashed")
        log.info("Shutting down shards")
        log.plain("Error: WebserverFailed")
    else:
        log.plain(f'Error: {name}("{message}")')
    return 1


async def _loaded(settings: Settings, log: StartupLog, stop: asyncio.Event) -> socket.socket | None:
    """Pretend to load; gives the listening socket, or None if told to stop meanwhile."""
    gate: asyncio.Server | None = None
    early: socket.socket | None = None
    if settings.accept_then_close:
        early = _listen(settings)
        gate = await asyncio.start_server(_close_at_once, sock=early.dup())
    try:
        was_stopped = await _load(settings, log, stop)
    finally:
        if gate is not None:
            gate.close()
    if was_stopped:
        if early is not None:
            early.close()
        return None
    return early or _listen(settings)


async def _close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _load(settings: Settings, log: StartupLog, stop: asyncio.Event) -> bool:
    """TGI's phases, spread over the load time; True if a signal came first."""
    era = settings.era
    first = "Starting check and download process for " if era.chunking else "Starting download "
    phases = [
        [f"{first}{settings.model_id}" if era.chunking else f"{first}process."],
        ["Files are already present on the host. Skipping download."],
        ["Successfully downloaded weights", "Starting shard"],
        ["Waiting for shard to be ready..."],
        ["Server started at unix:///tmp/text-generation-server-0", "Shard ready in 1s"],
        ["Starting Webserver", "Warming up model"],
    ]
    pause_s = settings.pace.waited_s(settings.load_s) / len(phases)
    for lines in phases:
        for line in lines:
            log.info(line)
        if await _stopped_within(stop, pause_s):
            return True
    if era.chunking and settings.batch.max_waiting_tokens:
        log.warn("`waiting_served_ratio` and `max_waiting_tokens` are ignored", _ROUTER)
    total = settings.batch.max_batch_total_tokens
    log.info(f"Setting max batch total tokens to {total}", _ROUTER)
    return False


async def _stopped_within(stop: asyncio.Event, wait_s: float) -> bool:
    if wait_s <= 0:
        await asyncio.sleep(0)
        return stop.is_set()
    try:
        await asyncio.wait_for(stop.wait(), wait_s)
    except TimeoutError:
        return False
    return True


def _listen(settings: Settings) -> socket.socket:
    sock = socket.create_server((settings.host, settings.port), backlog=1024)
    sock.setblocking(False)
    return sock


async def _serve_on(
    listening: socket.socket, settings: Settings, log: StartupLog, stop: asyncio.Event
) -> None:
    service = build_service(settings)
    runner = web.AppRunner(
        build_app(service), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(service.engine.run())
        try:
            await runner.setup()
            site = web.SockSite(runner, listening, backlog=1024)
            await site.start()
            host, port = listening.getsockname()[:2]
            log.info("Connected", _ROUTER)
            log.info(f"Simulator listening on http://{host}:{port}", _ROUTER)
            await stop.wait()
            log.info("signal received, starting graceful shutdown", _ROUTER)
            await site.stop()
            await _drain(service, runner, log)
        finally:
            running.cancel()
            await runner.cleanup()


async def _drain(service: Service, runner: web.AppRunner, log: StartupLog) -> None:
    """Let calls in flight finish, up to the graceful time; idle connections close at once."""
    log.info("Terminating webserver")
    log.info("Waiting for webserver to gracefully shutdown")
    for connection in runner.server.connections if runner.server else ():
        # The server's own shutdown leaves idle connections open until the busy ones are done.
        if service.is_busy(connection.transport):
            connection.close()
        else:
            connection.force_close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.graceful_termination_s):
            await service.wait_until_idle()
    log.info("webserver terminated")
    log.info("Shutting down shards")
