"""A reply that was judged good, on its way to the client: whole, event by event, or piece by piece.

What it was worth is a Report, and on the call's record. Whether a stream had its last word, the
dialect tells from its last events.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from router.call import Call
from router.config import TimeoutConfig
from router.dialects import Dialect
from router.errors import RouterError, UpstreamBroken
from router.exchange import Exchange
from router.lease import Lease, Report
from router.metrics import Metrics
from router.relay import Plain, Relay, reply_headers
from router.retry import PROGRESS_EVENTS
from router.service import Service, Started


class Delivery:
    def __init__(
        self, timeouts: TimeoutConfig, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._timeouts = timeouts
        self._metrics = metrics
        self._clock = clock

    async def deliver(self, service: Service, started: Started) -> Report:
        """The client has the whole reply when this returns. Raises RouterError when it breaks."""
        record, exchange = service.record, started.exchange
        if not record.is_committed:
            record.is_committed = True
            record.first_event_s = self._clock() - record.arrived_s
        if exchange.is_stream:
            service.dispatcher.first_token(started.lease)
            return await self._stream(service, started)
        if service.client.has_started:  # the head is out: only events can follow, or an error
            raise _no_stream(started.lease.replica.dialect, exchange)
        return await self._document(service, started)

    async def _document(self, service: Service, started: Started) -> Report:
        record, client, exchange = service.record, service.client, started.exchange
        head, dialect = exchange.head, started.lease.replica.dialect
        assert head is not None
        record.status = head.status
        if head.status >= 400 and exchange.is_done:
            record.told = dialect.refused(head.status, exchange.body())
        body = exchange.body() if exchange.is_done else b""
        report = dialect.report(dict(head.fields), body)
        if exchange.is_done:
            client.send(head.status, reply_headers(head, record), body)
            return report
        client.start(head.status, reply_headers(head, record))
        try:
            await self._forward(service.call, exchange, Plain(client), self._silence_s)
        except RouterError:
            client.cut()  # no error can be put into half a document
            raise
        client.end()
        return report

    async def _stream(self, service: Service, started: Started) -> Report:
        record, client, exchange = service.record, service.client, started.exchange
        lease, relay = started.lease, service.relay
        assert exchange.head is not None
        first_token_s = self._clock() - lease.granted_s
        if not client.has_started:
            record.status = exchange.head.status
            client.start(record.status, reply_headers(exchange.head, record))
        relay.begin(lease.replica.dialect, started.seam)
        if lease.alone:
            relay.when_further(PROGRESS_EVENTS, partial(_clear, service, lease))
        try:
            silence_s = partial(self._stream_silence_s, lease)
            await self._forward(service.call, exchange, relay, silence_s)
        except asyncio.CancelledError:
            record.is_told = self._is_told(service, lease, first_token_s)
            raise
        except RouterError as error:  # of a replica's failure behind its last word nobody is told
            last_word = lease.replica.dialect.ending(service.call.route, relay.last).is_last_word
            if not (last_word and error.hurts_health):
                raise
        finally:
            record.events = relay.events
            if not exchange.is_aligned:
                relay.ledger.give_up("one of its events was too large to be kept")
        if exchange.tail or not self._is_told(service, lease, first_token_s):
            raise UpstreamBroken("the replica ended its stream before the answer was whole")
        client.end()
        if service.broken is not None:
            self._metrics.resumed(record.model, "resumed")
        return record.report

    def _is_told(self, service: Service, lease: Lease, first_token_s: float) -> bool:
        """Whether the last word is out; if so, what it was is on the record."""
        record, relay = service.record, service.relay
        ending = lease.replica.dialect.ending(service.call.route, relay.last)
        if not ending.is_whole:
            return False
        record.error = ending.error
        if ending.error is not None:
            self._metrics.resumed(record.model, "refused")
        tokens = ending.generated_tokens or max(0, relay.events - ending.other_events)
        spent_s = self._clock() - lease.granted_s - first_token_s
        is_one = service.broken is None  # of several parts, the pauses between would count
        record.report = Report(
            prompt_tokens=ending.prompt_tokens,
            generated_tokens=tokens,
            first_token_s=first_token_s,
            between_tokens_s=spent_s / (tokens - 1) if is_one and tokens > 1 else None,
        )
        return True

    async def _forward(
        self, call: Call, exchange: Exchange, sink: Relay | Plain, silence_s: Callable[[], float]
    ) -> None:
        """Until the replica has sent everything and the client has taken it."""
        while True:
            await exchange.forwarded(sink, silence_s, call.deadline_s)
            if not exchange.is_paused:
                return
            await sink.client.drain(self._timeouts.between_events_s)
            exchange.resume()

    def _silence_s(self) -> float:
        return self._timeouts.between_events_s

    def _stream_silence_s(self, lease: Lease) -> float:
        """What this replica's streams need at the most, as far as that is known."""
        pace = lease.replica.pace
        return min(self._timeouts.between_events_s, pace.stream_deadline_s(self._clock()))


def _no_stream(dialect: Dialect, exchange: Exchange) -> RouterError:
    """What a whole reply to a stream's call means once its client has a head."""
    assert exchange.head is not None
    if exchange.head.status < 400:
        return UpstreamBroken("the replica answered a stream's call with no stream")
    return dialect.refused(exchange.head.status, exchange.body())


def _clear(service: Service, lease: Lease) -> None:
    """A suspect that got further than it ever did need not be alone any more."""
    service.attempts.got_further()
    service.dispatcher.share(lease)
