"""One call, straight through: acquire -> open -> relay -> release -> retry?

The only way back up is from a failed attempt to another one, and only until the first event has
reached the client. Nothing here knows how the call came in (edge) or what an engine's events mean
(dialects).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from router import sse
from router.apis import Api
from router.call import Call
from router.config import RetryConfig, TimeoutConfig
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import (
    CallTimeout,
    ClientGone,
    ConnectFailed,
    NoReplica,
    PoisonCall,
    ReplicaLost,
    Retry,
    RouterError,
    UpstreamBroken,
    UpstreamTimeout,
)
from router.event_log import EventLog
from router.health import Event
from router.lease import Lease, Outcome, Report
from router.metrics import Metrics
from router.retry import Attempts, RetryBudget, Step, next_step
from router.upstream import Exchange, Head, Upstream

COMMENT_EVERY_S = 15.0
HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("content-length", "server", "vary", "set-cookie", "x-request-id"),
    )
)
"""Not passed on from replicas: they belong to one connection (RFC 9110, 7.6.1) or to our edge."""
NOT_PASSED_ON = ("access-control-", "x-fleet-")


@dataclass(slots=True)
class Progress:
    """What one call has come to; local to `serve`, read by the log line."""

    status: int = 200
    replica: str = ""
    queue_s: float = 0.0
    first_event_s: float | None = None
    events: int = 0
    is_committed: bool = False
    is_plain: bool = False
    """A body that is no stream of events is passed on while it arrives."""
    report: Report = field(default_factory=Report)
    error: RouterError | None = None
    phase: str = "queue"


class Proxy:
    def __init__(
        self,
        upstream: Upstream,
        timeouts: TimeoutConfig,
        retries: RetryConfig,
        metrics: Metrics,
        log: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._timeouts = timeouts
        self._retries = retries
        self._budget = RetryBudget(retries.budget_share)
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._turn = 0

    async def serve(self, call: Call, api: Api, dispatcher: Dispatcher, client: Client) -> None:
        """Answers the client, whatever happens; only cancellation (the client left) comes out."""
        progress, attempts = Progress(), Attempts()
        opener = _StreamOpener(call, client, self._timeouts.stream_open_after_s)
        try:
            await self._attempts(call, dispatcher, client, attempts, progress, opener)
            self._budget.earn()
        except RouterError as error:
            self._fail(call, api, client, error, attempts, progress)
        except Exception:
            progress.status = 500
            raise
        except asyncio.CancelledError:
            progress.error, progress.status = ClientGone("the client left"), ClientGone.status
            self._metrics.cancelled(progress.phase)
            raise
        finally:
            opener.close()
            self._finish(call, dispatcher, attempts, progress)

    async def serve_unleased(self, call: Call, dispatcher: Dispatcher, client: Client) -> None:
        """Tokenizer routes: no generation, so no lease; any usable replica answers, in turn.

        Raises RouterError when none does.
        """
        usable = [replica for replica in dispatcher.pool if replica.is_usable]
        self._turn += 1
        error: RouterError = NoReplica("no replica is ready to tokenize", retry_after_s=1)
        for i in range(len(usable)):
            replica = usable[(self._turn + i) % len(usable)]
            try:
                exchange = await self._upstream.send(
                    replica, "POST", call.route, call.headers, call.body, limit=self._limit(call)
                )
            except RouterError as failure:
                error = failure
                continue
            try:
                head, body = exchange.head, exchange.body()
                if head is not None and head.status < 500 and exchange.is_done:
                    fields = [*_passed_back(head), ("x-request-id", call.id)]
                    client.send(head.status, [*fields, ("x-fleet-replica", replica.id)], body)
                    self._metrics.call_done(call.route, head.status, self._clock() - call.arrived_s)
                    return
                error = UpstreamBroken("the replica gave no whole answer")
            finally:
                exchange.close()
        raise error

    async def _attempts(
        self,
        call: Call,
        dispatcher: Dispatcher,
        client: Client,
        attempts: Attempts,
        progress: Progress,
        opener: "_StreamOpener",
    ) -> None:
        is_retry = False
        while True:
            progress.phase = "queue"
            lease = await dispatcher.acquire(call, attempts, is_retry=is_retry)
            attempts.count += 1
            progress.queue_s += lease.waited_s
            progress.replica = lease.replica.id
            try:
                await self._attempt(call, lease, dispatcher, client, attempts, progress, opener)
                return
            except RouterError as error:
                slots = max((replica.room.requests for replica in dispatcher.pool), default=0)
                self._budget.burst = max(16.0, slots)
                step = next_step(
                    error, attempts, self._budget, self._retries, is_committed=progress.is_committed
                )
                if step is Step.REFUSE:
                    raise PoisonCall(
                        f"refused: {attempts.deaths} replicas died while they served this call"
                    ) from error
                if step is Step.GIVE_UP or self._clock() >= call.deadline_s:
                    raise
                attempts.excluded |= {lease.replica.id}
                self._metrics.retried(type(error).__name__)
                is_retry = True

    async def _attempt(
        self,
        call: Call,
        lease: Lease,
        dispatcher: Dispatcher,
        client: Client,
        attempts: Attempts,
        progress: Progress,
        opener: "_StreamOpener",
    ) -> None:
        """One try at one replica; its lease ends with it, whichever way."""
        outcome, report = Outcome.ABANDONED, Report()
        exchange: Exchange | None = None
        try:
            progress.phase = "prefill"
            exchange = await self._open(call, lease)
            opener.close()
            progress.phase = "relay"
            report = await self._relay(
                call, lease, exchange, dispatcher, client, attempts, progress
            )
            progress.report = report
            outcome = Outcome.DONE
            if progress.error:  # the engine's own error event, relayed as it was sent
                outcome = self._failed(dispatcher, lease, progress.error, attempts)
        except RouterError as error:
            outcome = self._failed(dispatcher, lease, error, attempts)
            raise
        finally:
            if exchange is not None:
                exchange.close()
            if outcome is Outcome.DONE:
                dispatcher.pool.on_event(lease.replica, Event.CALL_OK, "call served")
            self._metrics.attempted(lease.replica, outcome.value)
            dispatcher.release(lease, outcome, report)

    async def _open(self, call: Call, lease: Lease) -> Exchange:
        """The request sent and its reply judged: what comes back may be relayed."""
        replica = lease.replica
        exchange = await self._upstream.send(
            replica, "POST", call.route, call.headers, call.body, limit=self._limit(call)
        )
        error = self._judge(exchange, lease)
        if error is not None:
            exchange.close()
            raise error
        return exchange

    def _limit(self, call: Call) -> tuple[float, RouterError]:
        first_s = self._timeouts.first_event_s if call.ask.stream else None
        if first_s is not None and self._clock() + first_s < call.deadline_s:
            error = UpstreamTimeout(f"the replica sent no event within {first_s:g} s")
            return self._clock() + first_s, error
        return call.deadline_s, CallTimeout("the call's deadline passed before its answer")

    def _judge(self, exchange: Exchange, lease: Lease) -> RouterError | None:
        head, dialect = exchange.head, lease.replica.dialect
        if head is None:
            return ReplicaLost("the replica closed the connection without a reply")
        if exchange.is_stream:
            event = exchange.first_event()
            if not event:
                return UpstreamBroken("the replica ended its stream before the first event")
            return dialect.first_event(event)
        if not exchange.is_done:
            return None  # too large to hold: its length is the only check left
        return dialect.refusal(head.status, dict(head.fields), exchange.body())

    async def _relay(
        self,
        call: Call,
        lease: Lease,
        exchange: Exchange,
        dispatcher: Dispatcher,
        client: Client,
        attempts: Attempts,
        progress: Progress,
    ) -> Report:
        head = exchange.head
        assert head is not None
        progress.is_committed = True
        progress.first_event_s = self._clock() - call.arrived_s
        fields = _passed_back(head) + reply_headers(call, lease, progress, attempts)
        if exchange.is_stream or not exchange.is_done:
            dispatcher.first_token(lease)
            return await self._relay_stream(call, lease, exchange, client, fields, progress)
        if client.has_started:  # the head went out while it waited: only an error can follow
            raise lease.replica.dialect.refused(head.status, exchange.body())
        progress.status = head.status
        client.send(head.status, fields, exchange.body())
        return lease.replica.dialect.report(dict(head.fields))

    async def _relay_stream(
        self,
        call: Call,
        lease: Lease,
        exchange: Exchange,
        client: Client,
        fields: list[tuple[str, str]],
        progress: Progress,
    ) -> Report:
        assert exchange.head is not None
        first_token_s = self._clock() - lease.granted_s
        if not client.has_started:
            progress.status = exchange.head.status
            client.start(exchange.head.status, fields)
        relay = Relay(client)
        progress.is_plain = not exchange.is_stream
        silence_s = self._timeouts.between_events_s
        try:
            while True:
                await exchange.forwarded(relay, silence_s, call.deadline_s)
                if not exchange.is_paused:
                    break
                await client.drain(silence_s)
                exchange.resume()
        finally:
            progress.events = relay.events
        if not exchange.is_stream:
            client.end()
            return lease.replica.dialect.report(dict(exchange.head.fields))
        return self._end_stream(call, lease, exchange, relay, progress, first_token_s)

    def _end_stream(
        self,
        call: Call,
        lease: Lease,
        exchange: Exchange,
        relay: "Relay",
        progress: Progress,
        first_token_s: float,
    ) -> Report:
        """Checks that the client has a whole answer before its stream is closed cleanly."""
        ending = lease.replica.dialect.ending(call.route, relay.last)
        if exchange.tail or not ending.is_whole:
            raise UpstreamBroken("the replica ended its stream before the answer was whole")
        relay.client.end()
        progress.error = ending.error
        tokens = ending.generated_tokens or relay.events
        spent_s = self._clock() - lease.granted_s - first_token_s
        return Report(
            prompt_tokens=ending.prompt_tokens,
            generated_tokens=tokens,
            first_token_s=first_token_s,
            between_tokens_s=spent_s / (tokens - 1) if tokens > 1 else None,
        )

    # ---- after an attempt ----

    def _failed(
        self, dispatcher: Dispatcher, lease: Lease, error: RouterError, attempts: Attempts
    ) -> Outcome:
        """One call blames at most one replica for failing; a refused connection is a fact."""
        if isinstance(error, ConnectFailed):
            dispatcher.pool.on_event(lease.replica, Event.REFUSED, error.message)
        elif error.hurts_health and not attempts.has_blamed:
            attempts.has_blamed = True
            dispatcher.pool.on_event(lease.replica, Event.CALL_FAIL, error.message)
        if error.hurts_health:
            return Outcome.FAILED
        return Outcome.SHED if error.retry is Retry.ELSEWHERE else Outcome.ABANDONED

    def _fail(
        self,
        call: Call,
        api: Api,
        client: Client,
        error: RouterError,
        attempts: Attempts,
        progress: Progress,
    ) -> None:
        progress.error = error
        if client.is_gone:
            progress.status = ClientGone.status
            self._metrics.cancelled(progress.phase)
        elif progress.is_plain:
            client.cut()
        elif client.has_started:
            client.write(api.error_event(error))
            client.end()
        else:
            progress.status = error.status
            client.send(
                error.status, error_headers(call.id, error, attempts), api.error_body(error)
            )

    def _finish(
        self, call: Call, dispatcher: Dispatcher, attempts: Attempts, progress: Progress
    ) -> None:
        seconds = self._clock() - call.arrived_s
        model, report = dispatcher.pool.model, progress.report
        self._metrics.call_done(call.route, progress.status, seconds)
        if call.ask.stream and progress.first_event_s is not None:
            self._metrics.first_token(model, progress.first_event_s)
        if report.between_tokens_s is not None:
            self._metrics.between_tokens(model, report.between_tokens_s)
        self._log.call(
            id=call.id,
            route=call.route,
            model=model,
            stream=call.ask.stream,
            status=progress.status,
            replica=progress.replica or None,
            attempts=attempts.count,
            queue_ms=round(progress.queue_s * 1000, 1),
            first_event_ms=_ms(progress.first_event_s),
            total_ms=round(seconds * 1000, 1),
            prompt_tokens=report.prompt_tokens,
            generated_tokens=report.generated_tokens,
            error=progress.error.message if progress.error else None,
            error_type=progress.error.error_type if progress.error else None,
        )


class Relay:
    """Where a stream's events go: to the client, counted. Nothing is parsed here."""

    __slots__ = ("client", "events", "last")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events = 0
        self.last = b""

    def forward(self, events: bytes) -> bool:
        if count := events.count(b"data:"):  # not comments alone: the ending is read from `last`
            self.events += count
            self.last = events
        return self.client.write(events)


class _StreamOpener:
    """Sends the head and comments on a stream that waits long, so that nobody between gives up."""

    def __init__(self, call: Call, client: Client, after_s: float) -> None:
        self._client = client
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        if call.ask.stream:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(after_s, self._tick)

    def _tick(self) -> None:
        if not self._client.has_started:
            headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
            headers += [("x-accel-buffering", "no"), ("x-request-id", self._call.id)]
            self._client.start(200, headers)
        self._client.write(sse.COMMENT)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(COMMENT_EVERY_S, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _passed_back(head: Head) -> list[tuple[str, str]]:
    dropped = HOP_BY_HOP
    if named := head.get("connection"):
        dropped |= {name.strip().lower() for name in named.split(",")}
    return [
        (name, value)
        for name, value in head.fields
        if name not in dropped and not name.startswith(NOT_PASSED_ON)
    ]


def reply_headers(
    call: Call, lease: Lease, progress: Progress, attempts: Attempts
) -> list[tuple[str, str]]:
    """Who answered, after how long a wait, at which attempt."""
    return [
        ("x-request-id", call.id),
        ("x-fleet-replica", lease.replica.id),
        ("x-fleet-queue-ms", str(round(progress.queue_s * 1000))),
        ("x-fleet-attempts", str(attempts.count)),
    ]


def error_headers(
    call_id: str, error: RouterError, attempts: Attempts | None = None
) -> list[tuple[str, str]]:
    headers = [("content-type", "application/json"), ("x-request-id", call_id)]
    if attempts is not None:
        headers.append(("x-fleet-attempts", str(attempts.count)))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(error.retry_after_s)))
    return headers


def _ms(seconds: float | None) -> float | None:
    return round(seconds * 1000, 1) if seconds is not None else None
