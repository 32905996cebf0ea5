"""The first attempt of a call that nothing comes between, in steps that do not wait.

`connect` is the only one that does. Who takes them one after the other is `express`; from whatever
else comes, `Proxy.serve` goes on.
"""

from collections.abc import Callable

from router.call import Call
from router.config import RouterConfig
from router.delivery import Delivery
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import RouterError
from router.exchange import Exchange, Limit
from router.lease import NOTHING_TOLD, Outcome
from router.outcomes import Outcomes, counted, learned, served, verdict
from router.record import Record
from router.retry import Attempts
from router.service import (
    Begun,
    Service,
    Started,
    Waiting,
    doubt_at_s,
    limit_of,
    made,
    out_of_time,
)
from router.upstream import Upstream


class FirstAttempt:
    """One per router."""

    def __init__(
        self,
        upstream: Upstream,
        delivery: Delivery,
        outcomes: Outcomes,
        config: RouterConfig,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._delivery = delivery
        self._outcomes = outcomes
        self._config = config
        self._clock = clock

    def use(self, config: RouterConfig) -> None:
        """For calls that begin from here on."""
        self._config = config

    def begin(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> Begun | None:
        """As much of the first attempt as can be made at once; None: not even a lease."""
        lease = dispatcher.at_once(call)
        if lease is None:
            return None
        service = self._service(call, dispatcher, client, record)
        return self._granted(Begun(lease, None, service), record)

    def wait(self, call: Call, dispatcher: Dispatcher, client: Client, record: Record) -> Waiting:
        """For its turn, where none can be had at once. Raises why it may not."""
        service = self._service(call, dispatcher, client, record)
        record.phase = "queue"
        if service is not None:
            service.opener.watch()
        try:
            ticket = dispatcher.join(call, Attempts(), queued=record.queued)
        except BaseException:
            if service is not None:
                service.opener.close()
            raise
        return Waiting(ticket, service)

    def turn(self, waiting: Waiting, record: Record) -> Begun:
        """It has come. Raises why it has not."""
        ticket, service = waiting
        try:
            lease = ticket.grant.result()
        except BaseException:
            if service is not None:
                service.opener.close()
            raise
        return self._granted(Begun(lease, None, service), record)

    def withdraw(self, waiting: Waiting, dispatcher: Dispatcher) -> None:
        """The client left."""
        ticket, service = waiting
        if service is not None:
            service.opener.close()
        dispatcher.withdraw(ticket)

    def _granted(self, begun: Begun, record: Record) -> Begun:
        """Sent, if there is an idle connection."""
        lease, call = begun.lease, begun.lease.call
        counted(record, lease)
        record.phase = "prefill"
        if begun.service is not None:
            begun.service.opener.watch()
        exchange = self._upstream.at_once(lease.replica, call.route, call.headers, call.body)
        return begun if exchange is None else self._sent(begun, exchange, record, is_new=False)

    async def connect(self, begun: Begun, record: Record) -> Begun:
        """Goes on from where there is no idle connection."""
        call = begun.lease.call
        try:
            exchange = await self._upstream.on_new(
                begun.lease.replica, call.route, call.headers, call.body
            )
        except RouterError as error:
            return begun._replace(failure=error)
        return self._sent(begun, exchange, record, is_new=True)

    def _sent(self, begun: Begun, exchange: Exchange, record: Record, *, is_new: bool) -> Begun:
        lease, service = begun.lease, begun.service
        record.sent(exchange.last_data_s, is_new)
        limit: Limit = lease.call.deadline_s, out_of_time
        if service is not None:
            now_s = self._clock()
            limit, exchange.doubt_at_s = limit_of(service, now_s), doubt_at_s(lease, now_s)
        return Begun(lease, Started(lease, exchange, None, limit), service)

    def begin_stream(self, begun: Begun) -> bool:
        """Passes a stream's events on from here on, if the first one is an answer's."""
        lease, started, service, _ = begun
        assert started is not None
        if service is None or not started.exchange.is_stream or verdict(lease.call, started):
            return False
        service.opener.close()
        service.record.phase = "relay"
        self._delivery.begin_stream(service, started)
        return True

    def is_answered(self, begun: Begun) -> bool:
        """It has its whole reply, and that is an answer; a stream has been passed on."""
        lease, started, service, _ = begun
        assert started is not None
        exchange = started.exchange
        if service is not None:
            return exchange.is_passed_on and self._delivery.is_whole(service, started)
        return exchange.is_done and not exchange.is_stream and not verdict(lease.call, started)

    def finish(self, begun: Begun, dispatcher: Dispatcher, client: Client, record: Record) -> None:
        """The client gets what is missing of that reply."""
        lease, started, service, _ = begun
        assert started is not None
        record.phase = "relay"
        outcome, report = Outcome.ABANDONED, NOTHING_TOLD
        try:
            if service is not None:
                self._delivery.end_stream(service)
                outcome = self._outcomes.told(service, lease)
                report = learned(service, outcome)
            else:
                report = record.report = self._delivery.whole(record, client, started)
                outcome = Outcome.DONE
            if outcome is Outcome.DONE:
                served(dispatcher.pool, lease.replica)
        finally:
            self._outcomes.end(dispatcher, lease, started, outcome, report)
        if record.error is None:
            dispatcher.budget.earn()

    def abandon(self, begun: Begun, dispatcher: Dispatcher, record: Record) -> None:
        """The client left; many do at the last word, not at the end of the body."""
        lease, started, service, _ = begun
        outcome, report = Outcome.ABANDONED, NOTHING_TOLD
        if service is not None and started is not None:
            service.opener.close()
            if started.exchange.is_forwarding:
                record.is_told = self._delivery.is_whole(service, started)
                outcome = self._outcomes.told(service, lease) if record.is_told else outcome
            report = learned(service, outcome)
        if outcome is Outcome.DONE:
            served(dispatcher.pool, lease.replica)
        self._outcomes.end(dispatcher, lease, started, outcome, report)

    def _service(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> Service | None:
        """Only a stream needs one as long as nothing comes between."""
        return made(call, dispatcher, client, record, self._config) if call.ask.stream else None
