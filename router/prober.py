"""Asks each replica how it is: one task per replica, quickly while it is down.

A replica that comes up, or back, gets a call of one token before it is called healthy; an idle one
now and then (`canary`), as an engine's health check may be fine while all its calls fail.

A busy engine answers its health check late, so a probe that times out while tokens flow counts as
passed. What a replica tells of itself (/info) is learned before it is called healthy, so that the
first calls meet the right limits.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from router.config import HealthConfig, RouterConfig
from router.dialects import EngineInfo
from router.errors import (
    ConnectFailed,
    ConnectTimeout,
    NoSockets,
    ReplicaLoading,
    ReplicaLost,
    RouterError,
    UpstreamBroken,
    UpstreamShed,
    UpstreamTimeout,
)
from router.health import Event, State
from router.pool import Pool
from router.replica import Replica
from router.silence import SilenceWatch
from router.tasks import Tasks
from router.upstream import Upstream

log = logging.getLogger("router.prober")

FIRST_DOWN_S = 0.1
MAX_DOWN_S = 1.0
DOWN_GROWTH = 1.5
GAUGE_EVERY_S = 1.0
GAUGE_FIRST_S = 0.2
"""While the limit still doubles: the sooner the engine is full, the sooner it shows."""
UNKNOWN_URL_S = 0.1
PROBE_FIELD = "x-fleet-probe"
"""Marks the router's own calls, for an engine's log."""
NO_SUCH_PAGE = frozenset({404, 405, 501})
"""501: llama-server's answer where a page is switched off."""
KEY_HINTS = dict.fromkeys((401, 403), ": it wants the key that router.engine_api_key sets")


@dataclass(slots=True)
class _Watched:
    """What looks after one replica."""

    task: asyncio.Task[None]
    wake: asyncio.Event
    silence: SilenceWatch
    call: asyncio.Task[None] | None = None
    """The router's own, of one token; one at a time."""

    def close(self) -> None:
        self.silence.close()
        self.task.cancel()
        if self.call is not None:
            self.call.cancel()


class Prober:
    def __init__(
        self, upstream: Upstream, config: HealthConfig, tasks: Tasks, clock: Callable[[], float]
    ) -> None:
        self._upstream = upstream
        self._config = config
        self._tasks = tasks
        self._clock = clock
        self._watched: dict[Replica, _Watched] = {}
        self.tried: Callable[[Replica, str, bool], None] = lambda replica, kind, is_passed: None
        """Called after each call of one token: a warm-up or a canary, passed or failed."""

    def use(self, config: RouterConfig) -> None:
        """From the next probe on, which is due at once: the last interval may have been long."""
        self._config = config.health
        for watched in self._watched.values():
            watched.wake.set()

    def watch(self, pool: Pool, replica: Replica) -> None:
        wake = asyncio.Event()
        task = self._tasks.spawn(self._watch(pool, replica, wake), f"probe {replica.id}")
        self._watched[replica] = _Watched(task, wake, SilenceWatch(pool, replica, wake.set))

    def forget(self, replica: Replica) -> None:
        if watched := self._watched.pop(replica, None):
            watched.close()

    def hurry(self, replica: Replica) -> None:
        """Something happened to it: look again at once, or soon if it was just found dead."""
        if watched := self._watched.get(replica):
            watched.wake.set()

    def busy(self, replica: Replica) -> None:
        """It gets a call after having had none: from here on its silence means something."""
        if watched := self._watched.get(replica):
            watched.silence.busy()

    def close(self) -> None:
        for replica in list(self._watched):
            self.forget(replica)

    async def _watch(self, pool: Pool, replica: Replica, wake: asyncio.Event) -> None:
        down_s, due_s = FIRST_DOWN_S, self._clock()
        while True:
            wake.clear()
            if replica.port and self._clock() >= due_s:
                await self._safely(self._probe(pool, replica), replica)
                is_up = replica.health.is_sure and replica.health.confirmed_s >= pool.word_since_s
                down_s = FIRST_DOWN_S if is_up else min(MAX_DOWN_S, down_s * DOWN_GROWTH)
                due_s = self._clock() + (self._config.interval_s if is_up else down_s)
                if replica.health.state is State.EJECTED:
                    due_s = replica.health.ejected_until_s
                self._call(pool, replica)
            await self._safely(self._scrape(pool, replica), replica)
            if await self._pause(replica, wake, due_s):
                is_down = replica.health.state is State.UNHEALTHY
                down_s, due_s = FIRST_DOWN_S, self._clock() + (FIRST_DOWN_S if is_down else 0.0)

    async def _pause(self, replica: Replica, wake: asyncio.Event, due_s: float) -> bool:
        """Until the next thing to do; true when woken early."""
        delay_s = max(due_s - self._clock(), 0.01)
        if not replica.port:
            delay_s = UNKNOWN_URL_S
        elif _is_learning(replica):
            is_doubling = replica.room.is_doubling
            delay_s = min(delay_s, GAUGE_FIRST_S if is_doubling else GAUGE_EVERY_S)
        try:
            async with asyncio.timeout(delay_s):
                await wake.wait()
        except TimeoutError:
            return False
        return True

    async def _safely(self, probing: Coroutine[None, None, None], replica: Replica) -> None:
        """The top of a loop that must not end: a bug in one probe is logged, the next one runs."""
        try:
            await probing
        except Exception:
            log.exception("probe of %s: a bug in the router", replica.id)

    # While a replica is ejected only a refusal counts: then it did not misbehave, it died, and its
    # successor on the same port need not sit out the ejection.
    async def _probe(self, pool: Pool, replica: Replica) -> None:
        if replica.health.state is State.EJECTED:
            pool.on_event(replica, Event.TIME_UP, "ejection over")
        is_ejected = replica.health.state is State.EJECTED
        started_s = self._clock()
        try:
            status, _ = await self._get(replica, replica.dialect.health_path)
            self._learn_pace(replica, started_s)
            if status == 200 and replica.info is None:
                await self._learn(pool, replica)
        except NoSockets:  # our own want; it says nothing of the replica
            if watched := self._watched.get(replica):
                watched.silence.not_asked()
        except ConnectTimeout as error:
            if not is_ejected:
                pool.on_event(replica, Event.PROBE_LATE, error.message)
        except (ConnectFailed, ReplicaLost) as error:
            # Accepted and closed is what a proxy makes of a refusal.
            pool.on_event(replica, Event.REFUSED, error.message)
        except RouterError as error:
            if not is_ejected:
                event = _verdict(replica, error, started_s)
                pool.on_event(replica, event, error.message, started_s)
        else:
            event = Event.PROBE_OK if status == 200 else Event.PROBE_FAIL
            if not is_ejected:
                pool.on_event(replica, event, f"health check answered {status}", started_s)

    # ---- calls of one token: beside the probes, as they may take their time ----

    def _call(self, pool: Pool, replica: Replica) -> None:
        """The first call of one that has come up, or one to see whether an idle one still works."""
        watched = self._watched.get(replica)
        if watched is None or (watched.call is not None and not watched.call.done()):
            return
        call = None
        if replica.health.state is State.WARMING:
            call = self._warm_up(pool, replica)
        elif self._is_idle(replica):
            call = self._canary(pool, replica)
        if call is not None:
            watched.call = self._tasks.spawn(self._safely(call, replica), f"call {replica.id}")

    def _is_idle(self, replica: Replica) -> bool:
        """It could take calls and has had none for long."""
        idle_s = self._config.canary_idle_s
        is_free = replica.is_usable and replica.health.is_sure and not replica.load.requests
        since_s = max(replica.idle_since_s, replica.canary_s, replica.joined_s)
        return idle_s > 0 and is_free and self._clock() - since_s >= idle_s

    async def _warm_up(self, pool: Pool, replica: Replica) -> None:
        began_s = self._clock()
        error = await self._one_token(replica, "warm-up", self._config.warm_up_timeout_s)
        if isinstance(error, NoSockets):
            return
        event = _warm_up_event(error)
        self.tried(replica, "warm-up", event is Event.WARMED)
        reason = f"its first call failed: {error.message}" if error else "its first call was served"
        pool.on_event(replica, event, reason, began_s)

    async def _canary(self, pool: Pool, replica: Replica) -> None:
        """What comes of it counts as with any other call."""
        bound_s = replica.pace.first_token_deadline_s(1, self._clock())
        bound_s = min(bound_s, self._config.warm_up_timeout_s)
        error = await self._one_token(replica, "canary", bound_s)
        if error is not None and not error.hurts_health:
            return
        self.tried(replica, "canary", error is None)
        if error is None:
            replica.canary_s = self._clock()
            pool.on_event(replica, Event.CALL_OK, "canary served")
        elif isinstance(error, ConnectFailed) and not isinstance(error, ConnectTimeout):
            pool.on_event(replica, Event.REFUSED, error.message)
        else:
            pool.on_event(replica, Event.CALL_FAIL, f"canary: {error.message}")

    async def _one_token(self, replica: Replica, kind: str, bound_s: float) -> RouterError | None:
        """Makes the smallest call there is; gives how it failed.

        An engine that refuses it (4xx: it has no such route, it only embeds) is up and well.
        """
        route, body = replica.dialect.one_token(replica.info or EngineInfo())
        words = f"no answer to a call of one token within {bound_s:g} s"
        limit = (self._clock() + bound_s, partial(UpstreamTimeout, words))
        fields = ((PROBE_FIELD, kind),)
        try:
            exchange = await self._upstream.send(replica, "POST", route, fields, body, limit=limit)
        except RouterError as failure:
            return failure
        try:
            head = exchange.head
            if head is None:
                return ReplicaLost("the replica closed the connection without a reply")
            refusal = replica.dialect.refusal
            return refusal(head.status, head.text, exchange.body(), route)
        finally:
            exchange.close()

    # ---- what it tells of itself ----

    def _learn_pace(self, replica: Replica, started_s: float) -> None:
        now_s = self._clock()
        is_busy = replica.load.requests > 0
        replica.pace.probe_answered(now_s, now_s - started_s, is_busy=is_busy)

    async def _learn(self, pool: Pool, replica: Replica) -> None:
        """Its limits; an engine that has no page to tell them is taken with the defaults.

        Raises UpstreamBroken when it has one and cannot show it now.
        """
        pages: dict[str, bytes] = {}
        for path in replica.dialect.info_paths:
            status, body = await self._get(replica, path)
            if status == 200:
                pages[path] = body
            elif status not in NO_SUCH_PAGE:
                raise UpstreamBroken(f"{path} answered {status}{KEY_HINTS.get(status, '')}")
        try:
            info = replica.dialect.info(pages)
        except ValueError:
            info = EngineInfo()
        pool.learn(replica, info)

    async def _scrape(self, pool: Pool, replica: Replica) -> None:
        """The engine's own queue, where the limit has to be learned; no news is no news."""
        if not _is_learning(replica) or not replica.load.requests:
            return
        try:
            status, body = await self._get(replica, replica.dialect.metrics_path)
        except RouterError:
            return
        queued = replica.dialect.engine_queue(body) if status == 200 else None
        if queued is not None:
            replica.room.looked(queued, replica.load, self._clock())
            pool.changed()

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        timeout_s = self._config.timeout_s
        if watched := self._watched.get(replica):
            watched.silence.asked()
        error = partial(UpstreamTimeout, f"no answer to {path} within {timeout_s:g} s")
        exchange = await self._upstream.send(
            replica, "GET", path, limit=(self._clock() + timeout_s, error)
        )
        try:
            head = exchange.head
            return (head.status if head else 0), exchange.body()
        finally:
            exchange.close()


def _verdict(replica: Replica, error: RouterError, started_s: float) -> Event:
    """What a probe that got no answer means: tokens that flowed meanwhile are as good as one."""
    if not isinstance(error, UpstreamTimeout):
        return Event.PROBE_FAIL
    return Event.PROBE_OK if replica.pace.heard_s >= started_s else Event.PROBE_LATE


def _warm_up_event(error: RouterError | None) -> Event:
    """
    1. a token, or too full to give one: it works;
    2. nobody there, or no model in it yet: it is not up after all;
    3. any other failure: its health check is fine, and calls fail.
    """
    if error is None or isinstance(error, UpstreamShed):
        return Event.WARMED
    if isinstance(error, ReplicaLoading):
        return Event.PROBE_FAIL
    if isinstance(error, ConnectTimeout):
        return Event.PROBE_LATE
    return Event.REFUSED if isinstance(error, ConnectFailed) else Event.WARM_UP_FAIL


def _is_learning(replica: Replica) -> bool:
    return replica.health.state is State.HEALTHY and not replica.room.capacity.is_told
