"""Builds each object once, starts them, and takes them down again in order.

Stopping (SIGTERM): no new connections, the calls in flight are finished, then idle connections are
closed. Retiring (another router has the same listener): the same, but idle connections are left to
their clients until the drain bound, so that no call sent on one of them is lost.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from router.acceptor import Acceptor
from router.admin import AdminApi
from router.config import RouterConfig
from router.deadlines import Deadlines
from router.edge_server import make_server
from router.errors import ConfigError, OperatorError, RouterError, ShuttingDown
from router.event_log import EventLog
from router.fleet import Fleet, ReplicaList
from router.handlers import Handlers
from router.health import State
from router.keys import KeyStore
from router.metrics import Metrics
from router.options import Settings
from router.outbox import Outbox
from router.pages import Pages
from router.plain_edge import Front
from router.pool import Pool
from router.prober import Prober
from router.proxy import Proxy
from router.reload import news
from router.replica import Replica
from router.stories import Stories
from router.tasks import Tasks
from router.tokenizer import Tokenizer
from router.upstream import Upstream

log = logging.getLogger("router.app")

ReadAgain = Callable[[Mapping[str, str]], Settings]
POLL_S = 0.02
GARBAGE_OBJECTS = 20_000
"""So many more objects, and the collector looks for circles among them. Calls leave next to none,
so what it would look through again and again are the calls that run."""
LOADING = frozenset({"pending", "starting", "loading"})
FIRST_LIST_S = 5.0
"""Until a router without any list serves all the same, as its launcher may be gone."""
LAST_WORDS_S = 2.0
"""For error replies to go out once the drain bound has passed."""


class App:
    """One router on one listening socket."""

    def __init__(
        self,
        config: RouterConfig,
        listener: socket.socket,
        *,
        state_dir: Path | None = None,
        cluster: str | None = None,
        log: EventLog | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        clock = loop.time
        self.config = config
        self.listener = listener
        self.tasks = Tasks()
        self.log = log or EventLog(calls=config.log_calls)
        self.metrics = Metrics(lambda: self.fleet, config.tenants)
        deadlines = Deadlines()
        self.fleet = Fleet(
            config, self.metrics, self._on_state_change, clock, state_dir, deadlines=deadlines
        )
        outbox = Outbox(loop)
        self.upstream = Upstream(loop, deadlines, outbox, config)
        self.prober = Prober(self.upstream, config.health, self.tasks, clock)
        tokenizer = Tokenizer(self.upstream, clock)
        self.proxy = Proxy(self.upstream, tokenizer, config, self.metrics, self.tasks, clock)
        self.stories = Stories(clock)
        self.keys = KeyStore(config.keys, clock, self.metrics.key_refused)
        pages = Pages(self.fleet, self.metrics, clock)
        self.handlers = Handlers(
            *(config, self.fleet, self.proxy, tokenizer, self.keys, pages, self.metrics),
            *(self.log, self.stories, self.tasks, clock),
        )
        self.admin = AdminApi(
            config, self.fleet, self.handlers, self.stories, listener, self.retire
        )
        self._state_dir = state_dir
        self._cluster = cluster
        server = make_server(self.handlers, config)
        self._edge = Front(self.handlers, server, outbox, config)
        self.acceptor = Acceptor(listener, self._edge, config, self.tasks, self.metrics.turned_away)
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._is_stopping = False
        self._is_retiring = False
        self.read_again: ReadAgain | None = None
        """What was written by now, given the ids of replicas by URL; None: there is no file."""
        self._wants_reload = asyncio.Event()
        self._has_terminal = has_terminal()
        self.fleet.joined = self._joined
        self.fleet.left = self._left
        self.prober.tried = self.metrics.tried

    async def start(self, replicas: ReplicaList | None = None) -> None:
        """Serves from here on. Raises StartError."""
        if replicas is not None:
            self.fleet.apply(replicas)
        else:
            self.fleet.restore(self._cluster)
        if self._state_dir is not None:
            await self.admin.listen_unix(self._state_dir)
        admin = self.config.admin
        if admin.port is not None and admin.token is not None:
            port = await self.admin.listen_tcp(admin.port)
            self.log.event("admin", endpoint=f"http://127.0.0.1:{port}")
        # Under a launcher that has not told anything yet, calls wait in the socket.
        if self._state_dir is None or self.fleet.is_told:
            self.acceptor.open()
        else:
            self.tasks.spawn(self._serve_once_told(), "first list")
        gc.collect()
        gc.freeze()  # what exists now lives as long as the router: do not look at it again
        gc.set_threshold(GARBAGE_OBJECTS)

    async def _serve_once_told(self) -> None:
        """A call that starts a cluster, or comes with it, is not refused for being that early."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LIST_S):
                await self._until(lambda: self.fleet.is_told)
        if not self.handlers.is_draining:
            self.acceptor.open()

    def stop(self) -> None:
        """Finish the calls in flight and end; a second time (Ctrl-C twice): end at once."""
        if self._is_stopping:
            self._at_once.set()
        self._is_stopping = True
        self._stopping.set()

    def retire(self) -> None:
        """Another router has the listener; finish what is here."""
        self._is_retiring = True
        self._stopping.set()

    def hang_up(self) -> None:
        """SIGHUP: stop when the terminal it ran in was closed; else read the config again."""
        if self._has_terminal and not has_terminal():
            self.stop()
        else:
            self._wants_reload.set()

    def heed_signals(self) -> None:
        """From here on; what comes before `run` is done by it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)  # as often as anybody likes
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, self.retire)
        if not self._has_terminal or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self.hang_up)  # else nohup: it outlives it

    async def run(self) -> None:
        """Serves until told to stop, then drains and closes."""
        self.heed_signals()
        self.tasks.spawn(self._reload_when_asked(), "reload")
        await self._stopping.wait()
        await self.drain()
        await self.close()

    async def drain(self) -> None:
        """Within `drain_s`: no new connections, every call in flight finished."""
        self.handlers.is_draining = True
        await self.admin.leave_port()
        self.log.event("drain", calls=self.handlers.calls_running, retiring=self._is_retiring)
        self.acceptor.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeouts.drain_s):
                await self._until(lambda: not self.handlers.calls_running)
                if self._is_retiring:
                    await self._until(lambda: not self._edge.connections)
        if self.handlers.calls_running:
            await self._end_calls()

    async def _end_calls(self) -> None:
        """What is still in flight is told so; nothing is cut in silence.

        Again and again, as a call may be on its way from the one place to the other.
        """
        clock = asyncio.get_running_loop().time
        ends_s = clock() + LAST_WORDS_S
        while self.handlers.calls_running and clock() < ends_s:
            for dispatcher in self.fleet:
                dispatcher.fail_waiting(_shutting_down)
            self.upstream.fail_all(_shutting_down())
            await asyncio.sleep(POLL_S)

    async def _until(self, is_done: Callable[[], bool]) -> None:
        """Looks every 20 ms: what is waited for has several owners, and only at start and end."""
        while not is_done() and not self._at_once.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._at_once.wait()

    async def close(self) -> None:
        """Ends everything; safe to call after a start that failed half-way."""
        self.acceptor.close()
        await self._edge.shutdown(0.1)
        self.prober.close()
        await self.tasks.close()
        self.upstream.close()
        await self.handlers.close()
        await self.admin.close()
        self.log.close()

    # ---- a changed config ----

    async def _reload_when_asked(self) -> None:
        """One after the other; what is asked for meanwhile is looked at once more."""
        while True:
            await self._wants_reload.wait()
            self._wants_reload.clear()
            if self.read_again is None:
                self.log.event("reload", refused=["there is no config file to read again"])
                continue
            try:
                self.reload(await asyncio.to_thread(self.read_again, self.fleet.ids))
            except ConfigError as exc:
                self.log.event("reload", refused=[str(problem) for problem in exc.problems])
            except OperatorError as exc:
                self.log.event("reload", refused=[str(exc)])
            except Exception:
                log.exception("reload: a bug in the router")

    def reload(self, written: Settings) -> None:
        """Goes on with what is written, keys and certificate included.

        Nothing here waits, so no call sees half of it. Raises StartError, having changed nothing.
        """
        found = news(self.config, written.config)
        config = found.config
        self.acceptor.use(config)  # raises when its certificate cannot be used: nothing has changed
        self.config = config
        self.keys.use(config)
        self.log.use(config)
        self.metrics.use(config.tenants)
        self.fleet.use(config)
        self.upstream.use(config)
        self.prober.use(config)
        self.proxy.use(config)
        self.handlers.use(config)
        self.admin.use(config)
        self._edge.use(config)
        before = self.fleet.ids
        if written.replicas is not None:
            self.fleet.apply(written.replicas)
        after = self.fleet.ids
        self.log.event(
            "reload",
            changed=found.changed,
            needs_restart=found.needs_restart,
            joined=sorted(after[url] for url in after.keys() - before.keys()),
            left=sorted(before[url] for url in before.keys() - after.keys()),
        )

    # ---- membership and health ----

    def _joined(self, pool: Pool, replica: Replica) -> None:
        pool.look = self.prober.hurry
        pool.busy = self.prober.busy
        pool.suspected = self.upstream.doubt
        self.prober.watch(pool, replica)

    def _left(self, replica: Replica, is_replaced: bool) -> None:
        self.prober.forget(replica)
        self.upstream.forget(replica, has_died=is_replaced)

    def _on_state_change(self, replica: Replica, before: State, after: State, reason: str) -> None:
        if after is State.EJECTED:
            self.metrics.ejected(replica)
        if after is State.SUSPECT:
            self.metrics.suspected(replica)
        self.prober.hurry(replica)
        if replica.phase in LOADING and after is State.UNHEALTHY:
            return  # it cannot answer yet, and whoever starts it says so
        self.log.event(
            "health",
            replica=replica.id,
            generation=replica.generation,
            before=before.value,
            after=after.value,
            reason=reason,
        )


def _shutting_down() -> RouterError:
    return ShuttingDown("the router shuts down", retry_after_s=5)


def has_terminal() -> bool:
    """Whether this process belongs to one that is still there; it is taken from it when closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
