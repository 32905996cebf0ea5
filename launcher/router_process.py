"""Keeps the router running on a listening socket that outlives it.

The launcher holds the public socket and each router inherits it, so calls that arrive between two
routers wait in the backlog. A router that an earlier launcher started is adopted while its part of
the config is unchanged; else a new one takes the same socket and the old one drains. Owned by the
supervisor. It knows nothing of replicas.
"""

import asyncio
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from launcher import exits, listener, log_files, processes
from launcher.config import ClusterConfig
from launcher.processes import Marks, ProcessId
from launcher.restarts import History, RestartPolicy, next_start
from launcher.router_client import RouterAway, RouterClient
from launcher.spawn import spawn
from launcher.state import StateFolder
from router.config.tls_files import server_context
from router.errors import OperatorError

log = logging.getLogger("launcher")

LOG_NAME = "router"
_ROLE = "router"
_ANSWER_TIMEOUT_S = 15.0
_TAKE_TRIES = 3
_LOOK_S = 0.05
_STOP_MARGIN_S = 5.0  # past its own drain bound
_HANG_LOOK_S = 10.0
_HANG_MISSES = 3
_POLICY = RestartPolicy(max_s=30.0, reset_after_s=60.0)


@dataclass(slots=True)
class RouterView:
    """What operators see of the router; written by its keeper alone."""

    process: ProcessId | None = None
    is_answering: bool = False
    restarts: int = 0
    failed_starts: int = 0
    reason: str = ""
    history: History = field(default_factory=History)


@dataclass(frozen=True, slots=True)
class _Next:
    """What a change to the router takes. `listener` is None where the socket stays."""

    config: ClusterConfig
    listener: socket.socket | None


class RouterKeeper:
    """`open` first, then `run`; `stop` after `run` was cancelled."""

    def __init__(
        self,
        folder: StateFolder,
        config: ClusterConfig,
        client: RouterClient,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.view = RouterView()
        self.answering = asyncio.Event()  # set while the router answers its admin socket
        self._folder = folder
        self._config = config
        self._client = client
        self._changed = changed
        self._children = exits.Children()
        self._listener: socket.socket | None = None
        self._next: _Next | None = None
        self._outdated: list[processes.Found] = []  # serve on until their successor does
        self._drain_s = config.router.timeouts.drain_s
        self._hang_look_s = _HANG_LOOK_S

    @property
    def endpoint(self) -> str | None:
        scheme = self._config.router.scheme
        return listener.endpoint_of(self._listener, scheme) if self._listener else None

    async def open(self) -> None:
        """Have the listening socket and a router process on it; raises StartError.

        Nothing that was not there before is left behind when it raises.
        """
        require_tls_files(self._config)
        host, port = self._config.router.host, self._config.router.port
        given = listener.inherited(host, port)
        running = running_routers(self._folder)
        taken = await self._take_listener() if running else None
        if taken is not None and _is_wanted(taken, given, host, port):
            self._listener = taken
            if given is not None:  # the same socket: one descriptor of it is enough
                given.close()
            self._adopt_or_replace(running)
            return
        if taken is not None:  # the address changed: the old router ends with its old socket
            taken.close()
        else:
            await self._end_all(running, grace_s=0.0)
            running = []
        self._listener = given if given is not None else listener.bind(host, port)
        try:
            self._start()
        except OperatorError:
            self.close()
            raise
        self._outdated = running

    def prepare_change(self, config: ClusterConfig) -> bool:
        """Get ready to follow a changed config; whether that takes a new router.

        Nothing has changed until `change`; `drop_change` lets go of what was got ready. Raises
        StartError when the new address cannot be had, or the certificate is of no use.
        """
        self.drop_change()
        if fingerprint_of(config) == fingerprint_of(self._config):
            return False
        require_tls_files(config)
        host, port = config.router.host, config.router.port
        stays = self._listener is not None and listener.is_at(self._listener, host, port)
        self._next = _Next(config, None if stays else listener.bind(host, port))
        return True

    def drop_change(self) -> None:
        """The change is refused, or made."""
        if self._next is not None and self._next.listener is not None:
            self._next.listener.close()
        self._next = None

    def change(self) -> None:
        """Put a new router on the socket; the old one finishes its calls once that answers.

        To be called between a `run` that was cancelled and the next one. Does not fail: a router
        that cannot be started is one that `run` starts again.
        """
        assert self._next is not None, "prepare_change() comes first"
        prepared, self._next = self._next, None
        self._config = prepared.config
        if prepared.listener is not None:
            self.close()
            self._listener = prepared.listener
        self._drain_s = self._config.router.timeouts.drain_s
        running = running_routers(self._folder)
        self.answering.clear()
        self.view.is_answering = False
        try:
            self._start()
        except OperatorError as exc:  # the old one serves on
            log.error("router: %s", exc)
            return
        self._outdated = running

    def is_handing_over(self) -> bool:
        """Whether an earlier router still finishes calls. Looks through /proc."""
        return len(running_routers(self._folder)) > 1

    def is_there(self) -> bool:
        """Whether any router of this cluster runs, also one that does not answer."""
        return bool(running_routers(self._folder))

    async def run(self) -> None:
        """Keep a router on the socket; returns only by cancellation."""
        while True:
            ready_for_s, cause = await self._watch()
            self.answering.clear()
            self.view.is_answering = False
            decision = next_start(_POLICY, self.view.history, ready_for_s, cause)
            self.view.history = decision.history
            self.view.failed_starts = decision.history.failed_starts
            self.view.reason = decision.reason
            log.warning("router: %s", decision.reason)
            self._changed()
            await asyncio.sleep(decision.delay_s or 0.0)
            self.view.restarts += 1
            try:
                self._start()
            except OperatorError as exc:
                log.error("router: %s", exc)

    async def stop(self, *, at_once: bool = False) -> None:
        """End every router of this cluster: after its calls in flight, or at once."""
        grace_s = 0.0 if at_once else self._drain_s + _STOP_MARGIN_S
        await self._end_all(running_routers(self._folder), grace_s)
        self.view.process = None
        self.close()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # ---- starting

    async def _take_listener(self) -> socket.socket | None:
        """A router that has just been started may need a moment before it answers."""
        for _ in range(_TAKE_TRIES):
            taken = await asyncio.to_thread(listener.take_from_router, self._folder.admin_socket)
            if taken is not None:
                return taken
            await asyncio.sleep(0.3)
        return None

    def _adopt_or_replace(self, running: list[processes.Found]) -> None:
        wanted = fingerprint_of(self._config)
        same = next((found for found in running if found.marks.fingerprint == wanted), None)
        if same is not None:
            self.view.process = same.process
            log.info("router: adopted, pid %d, %s", same.process.pid, self.endpoint)
            self._ask_to_retire([found for found in running if found is not same])
            return
        self._start()
        self._outdated = running

    def _start(self) -> None:
        assert self._listener is not None, "open() comes first"
        self._folder.create()
        log_path = self._folder.log(LOG_NAME)
        log_files.rotate(log_path)
        fd = self._listener.fileno()
        argv = [sys.executable, "-m", "router", "--config", str(self._folder.config_copy)]
        argv += ["--fd", str(fd), "--state-dir", str(self._folder.path)]
        marks = Marks(self._folder.path, _ROLE, 0, "", fingerprint_of(self._config))
        env = processes.without_marks(dict(os.environ)) | marks.as_env()
        oom_kills_before = exits.oom_kills()
        process = spawn(argv, env, log_path, pass_fds=[fd], is_private=True)
        self._children.add(process, oom_kills_before)
        self.view.process = process
        log.info("router: started, pid %d, %s", process.pid, self.endpoint)

    # ---- watching

    async def _watch(self) -> tuple[float | None, str]:
        """Until it ends: for how long it had answered, and why it ended."""
        process = self.view.process
        if process is None or not processes.is_running(process):
            return None, self._why_it_ended(process)
        if not await self._until_it_answers(time.monotonic() + _ANSWER_TIMEOUT_S):
            if processes.is_running(process):
                await self._end([process], grace_s=0.0)
                return None, f"it did not answer within {_ANSWER_TIMEOUT_S:g} s and was killed"
            return None, self._why_it_ended(process)
        self.view.is_answering, self.view.reason, self.view.failed_starts = True, "", 0
        self.answering.set()
        self._changed()
        self._ask_to_retire(self._outdated)
        self._outdated = []
        since_s = time.monotonic()
        hung = await self._until_it_ends_or_hangs(process)
        if hung:
            await self._end([process], grace_s=0.0)
        return time.monotonic() - since_s, hung or self._why_it_ended(process)

    async def _until_it_ends_or_hangs(self, process: ProcessId) -> str | None:
        """None when it ended; else since when it has been deaf: every call waits in vain then."""
        misses = 0
        while not await exits.has_ended(process, self._hang_look_s):
            try:
                await self._client.state()
                misses = 0
            except RouterAway:
                misses += 1
            if misses >= _HANG_MISSES:
                return f"it ran but did not answer {misses} times in a row, and was killed"
        return None

    async def _until_it_answers(self, deadline_s: float) -> bool:
        process = self.view.process
        while process and processes.is_running(process) and time.monotonic() < deadline_s:
            try:
                if (await self._client.state()).get("pid") == process.pid:
                    return True
            except RouterAway:
                pass  # not listening yet
            await asyncio.sleep(_LOOK_S)
        return False

    def _why_it_ended(self, process: ProcessId | None) -> str:
        if process is None:
            return "it could not be started"
        said = log_files.last_words(self._folder.log(LOG_NAME))
        detail = self._children.exit_of(process).detail
        return f"{detail} (its log says: {said})" if said else detail

    # ---- stopping

    def _ask_to_retire(self, running: list[processes.Found]) -> None:
        """Their calls and connections end one by one: clients that keep theirs must not be cut."""
        for found in running:
            log.info("router: pid %d finishes its calls, then ends", found.process.pid)
            processes.send_signal(found.process, signal.SIGUSR1)

    async def _end_all(self, running: list[processes.Found], grace_s: float) -> None:
        await self._end([found.process for found in running], grace_s)

    async def _end(self, routers: list[ProcessId], grace_s: float) -> None:
        if grace_s > 0:
            exits.signal_all(routers, signal.SIGTERM)
            exits.signal_all(routers, signal.SIGCONT)
            async with asyncio.TaskGroup() as group:
                for process in routers:
                    group.create_task(exits.has_ended(process, grace_s))
        for process in routers:
            processes.send_signal(process, signal.SIGKILL)
            await exits.has_ended(process, _STOP_MARGIN_S)
            self._children.exit_of(process)


def _is_wanted(taken: socket.socket, given: socket.socket | None, host: str, port: int) -> bool:
    """Whether the running router's socket is the one to go on with."""
    if given is not None:
        return listener.is_same(taken, given)
    return listener.is_at(taken, host, port)


def require_tls_files(config: ClusterConfig) -> None:
    """A router with files of no use would fail again and again. Raises StartError."""
    if config.router.tls is not None:
        server_context(config.router.tls)


def running_routers(folder: StateFolder) -> list[processes.Found]:
    """Every router of this cluster, the newest first."""
    found = [p for p in processes.marked(folder.path) if p.marks.role == _ROLE and p.is_leader]
    return sorted(found, key=lambda router: router.process.start_ticks, reverse=True)


def fingerprint_of(config: ClusterConfig) -> str:
    """Changes when a running router would have to be replaced, and only then."""
    text = f"{config.cluster}\n{config.router.model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
