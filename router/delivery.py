"""A reply that was judged good, on its way to the client: whole, event by event, or piece by piece.

What it was worth is a Report, and on the call's record. Whether a stream had its last word, the
dialect tells from its last events.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from router.dialects import Dialect
from router.edge import Client
from router.errors import ClientGone, RouterError, UpstreamBroken
from router.exchange import Exchange
from router.lease import Lease, Report
from router.metrics import Metrics
from router.record import Record
from router.relay import Plain, reply_headers
from router.retry import PROGRESS_EVENTS
from router.service import Service, Started
from router.story import ANSWERING


class Delivery:
    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    async def deliver(self, service: Service, started: Started) -> Report:
        """The client has the whole reply when this returns. Raises RouterError when it breaks."""
        exchange = started.exchange
        if exchange.is_stream:
            if not exchange.is_forwarding:
                self.begin_stream(service, started)
            return await self._stream(service, started)
        self._begins(service.record, started)
        if service.client.has_started:  # the head is out: only events can follow, or an error
            raise _no_stream(started.lease.replica.dialect, exchange)
        if exchange.is_done:
            return self._whole(service.record, service.client, started)
        return await self._document(service, started)

    def whole(self, record: Record, client: Client, started: Started) -> Report:
        """A whole reply that is here, for a client that has nothing of it yet."""
        self._begins(record, started)
        return self._whole(record, client, started)

    def _begins(self, record: Record, started: Started) -> None:
        now_s = self._clock()
        record.step(now_s, ANSWERING, started.lease.replica.id)
        if not record.is_committed:
            record.is_committed = True
            record.first_event_s = now_s - record.arrived_s

    def _whole(self, record: Record, client: Client, started: Started) -> Report:
        head, dialect = started.exchange.head, started.lease.replica.dialect
        assert head is not None
        body = started.exchange.body()
        record.status = head.status
        if head.status >= 400:
            record.told = dialect.refused(head.status, body)
        report = dialect.report(head.text, body)
        client.send(head.status, reply_headers(head, record), body)
        return report

    async def _document(self, service: Service, started: Started) -> Report:
        """One that is too large to be held."""
        record, client, exchange = service.record, service.client, started.exchange
        head = exchange.head
        assert head is not None
        record.status = head.status
        report = started.lease.replica.dialect.report(head.text, b"")
        client.start(head.status, reply_headers(head, record))
        try:
            silence_s = service.config.timeouts.between_events_s
            exchange.forward(Plain(client), lambda: silence_s, service.call.deadline_s)
            await self._forward(service, exchange)
        except RouterError:
            client.cut()  # no error can be put into half a document
            raise
        client.end()
        return report

    def begin_stream(self, service: Service, started: Started) -> None:
        """From here on the client gets its events."""
        record, client, exchange = service.record, service.client, started.exchange
        lease, relay = started.lease, service.relay
        assert exchange.head is not None
        self._begins(record, started)
        service.dispatcher.first_token(lease)
        service.first_token_s = self._clock() - lease.granted_s
        if not client.has_started:
            record.status = exchange.head.status
            client.start(record.status, reply_headers(exchange.head, record))
        relay.begin(lease.replica.dialect, started.seam)
        if lease.alone:
            relay.when_further(PROGRESS_EVENTS, partial(_clear, service, lease))
        silence_s = partial(self._silence_s, service, lease)
        exchange.forward(relay, silence_s, service.call.deadline_s)

    async def _stream(self, service: Service, started: Started) -> Report:
        record, exchange, lease = service.record, started.exchange, started.lease
        try:
            await self._forward(service, exchange)
        except asyncio.CancelledError:
            record.is_told = self.is_told(service, started)
            raise
        except RouterError as error:  # what comes behind the last word nobody is told
            ending = lease.replica.dialect.ending(service.call.route, service.relay.last)
            if isinstance(error, ClientGone) or not ending.is_last_word:
                raise
        finally:
            self._note(service, exchange)
        if not self.is_whole(service, started):
            raise UpstreamBroken("the replica ended its stream before the answer was whole")
        return self.end_stream(service)

    def is_whole(self, service: Service, started: Started) -> bool:
        """The stream that has ended was an answer to its end; what it was is on the record."""
        self._note(service, started.exchange)
        is_half = bool(started.exchange.tail) and not service.relay.is_over
        return not is_half and self.is_told(service, started)

    def end_stream(self, service: Service) -> Report:
        service.client.end()
        if service.broken is not None:
            self._metrics.resumed(service.record.model, "resumed")
        return service.record.report

    def _note(self, service: Service, exchange: Exchange) -> None:
        service.record.events = service.relay.events
        if not exchange.is_aligned:
            service.relay.ledger.give_up("one of its events was too large to be kept")

    def is_told(self, service: Service, started: Started) -> bool:
        """Whether the last word is out; if so, what it was is on the record."""
        record, relay = service.record, service.relay
        lease, first_token_s = started.lease, service.first_token_s
        ending = lease.replica.dialect.ending(service.call.route, relay.last)
        if not ending.is_whole:
            return False
        record.error = ending.error
        if ending.error is not None and ending.error.hurts_health:
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

    async def _forward(self, service: Service, exchange: Exchange) -> None:
        """Until the replica has sent everything and the client has taken it."""
        while True:
            await exchange.forwarded()
            if not exchange.is_paused:
                return
            await service.client.drain(service.config.timeouts.between_events_s)
            exchange.resume()

    def _silence_s(self, service: Service, lease: Lease) -> float:
        """What this replica's streams need at the most, as far as that is known; with nobody to go
        on instead, it gets all the time there is."""
        most_s, replica = service.config.timeouts.between_events_s, lease.replica
        if not any(other.is_usable for other in service.dispatcher.pool if other is not replica):
            return most_s
        return min(most_s, replica.pace.stream_deadline_s(self._clock()))


def _no_stream(dialect: Dialect, exchange: Exchange) -> RouterError:
    """What a whole reply to a stream's call means once its client has a head."""
    assert exchange.head is not None
    if exchange.head.status < 400:
        return UpstreamBroken("the replica answered a stream's call with no stream")
    return dialect.refused(exchange.head.status, exchange.body())


def _clear(service: Service, lease: Lease) -> None:
    """A suspect that got further need not be alone any more, if it has not done so too often."""
    service.attempts.got_further(service.fresh_events)
    if not service.attempts.alone:
        service.dispatcher.share(lease)
