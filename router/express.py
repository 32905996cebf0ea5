"""A plain call that nothing comes between: served without a task of its own.

Its turn comes, it has a connection, and its reply, or its stream, comes back to its end and is
good: so it is with most calls. Whatever comes between - a refusal, doubt, a death, a client that is
behind - is `Proxy.serve`'s, which goes on from where this one is. Each step here is one of that
path's own.
"""

import asyncio
from collections.abc import Callable

from router.call import Call
from router.dispatcher import Dispatcher
from router.handlers import Handlers
from router.http_client import HttpClient
from router.incoming import WholeRequest
from router.keys import Permit
from router.lease import Lease
from router.service import Begun, Waiting


class Express:
    """One call on one connection. `ended` is called once nothing is left to do for its client."""

    _permit: Permit | None = None
    _waiting: Waiting | None = None
    _begun: Begun | None = None
    _task: "asyncio.Task[None] | None" = None
    _is_over = False
    _is_in_task = False
    _is_busy = False
    _call: Call
    _dispatcher: Dispatcher

    def __init__(
        self,
        handlers: Handlers,
        request: WholeRequest,
        client: HttpClient,
        ended: Callable[[HttpClient], None],
    ) -> None:
        self._handlers = handlers
        self._request = request
        self._client = client
        self._ended = ended
        self._record = handlers.record_of(request)

    def begin(self) -> None:
        """As far as it goes without waiting; `ended` may be called before this returns."""
        handlers, record = self._handlers, self._record
        handlers.calls_running += 1
        try:
            self._permit = permit = handlers.keys.admit(self._request.headers, record)
            self._call = handlers.whole_call(self._request, record)
            self._dispatcher = handlers.dispatcher_for(self._call, permit, record)
            self._begun = begun = handlers.proxy.first.begin(
                self._call, self._dispatcher, self._client, record
            )
            if begun is None:
                self._waiting = handlers.proxy.first.wait(
                    self._call, self._dispatcher, self._client, record
                )
                return self._waiting.ticket.grant.add_done_callback(self._turn)
        except Exception as exc:
            return self._failed(exc)
        self._go(begun)

    def _turn(self, grant: "asyncio.Future[Lease]") -> None:
        """It has come, or never will."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return  # the client has left
        try:
            self._begun = begun = self._handlers.proxy.first.turn(waiting, self._record)
        except Exception as exc:
            return self._failed(exc)
        self._go(begun)

    def _go(self, begun: Begun) -> None:
        if begun.started is None:
            self._task = self._handlers.tasks.spawn(self._connected(begun), "call")
        else:
            self._await_reply(begun)

    async def _connected(self, begun: Begun) -> None:
        """A connection has to be made; then the task has done its work."""
        try:
            self._begun = begun = await self._handlers.proxy.first.connect(begun, self._record)
            self._task = None
            self._await_reply(begun)
        except Exception as exc:
            self._failed(exc)

    def _await_reply(self, begun: Begun) -> None:
        started = begun.started
        if started is None or started.exchange.error is not None:
            self._go_on()
        else:
            started.exchange.tell(self._news, started.limit)

    def leave(self) -> None:
        """The client did."""
        if self._is_over:
            return
        if self._task is not None:
            self._task.cancel()
            if self._is_in_task:
                return
        first = self._handlers.proxy.first
        if self._waiting is not None:
            first.withdraw(self._waiting, self._dispatcher)
            self._waiting = None
        if self._begun is not None:
            first.abandon(self._begun, self._dispatcher, self._record)
        if not self._record.is_told:
            self._handlers.left(self._record)
        self._finish(None)

    # ---- the exchange's side ----

    def _news(self) -> None:
        if self._is_busy:
            return  # it comes of what is being done
        self._is_busy = True
        try:
            is_served = self._step()
        except Exception as exc:
            return self._failed(exc)
        finally:
            self._is_busy = False
        if is_served:
            self._over()

    def _step(self) -> bool:
        """Whether the client has all of its answer now."""
        begun = self._begun
        assert begun is not None
        assert begun.started is not None
        exchange, first = begun.started.exchange, self._handlers.proxy.first
        is_well = exchange.error is None
        if is_well and not exchange.is_forwarding:
            if not exchange.is_ready and not exchange.is_doubted:
                return False  # more of its reply has come
            if exchange.is_ready and first.begin_stream(begun) and exchange.is_flowing:
                return False
        exchange.tell_no_more()
        if not is_well or not first.is_answered(begun):
            self._go_on()
            return False
        first.finish(begun, self._dispatcher, self._client, self._record)
        self._finish(None)
        return True

    # ----

    def _failed(self, exc: Exception) -> None:
        begun = self._begun
        if begun is not None and begun.lease.is_open:
            self._handlers.proxy.first.abandon(begun, self._dispatcher, self._record)
        try:
            try:
                self._handlers.failed(self._request, self._client, self._record, exc)
            finally:
                self._finish(exc)
        finally:
            self._over()

    def _finish(self, failure: Exception | None) -> None:
        """Its line is written, its allowance settled; once, whatever goes wrong with it."""
        if self._is_over:
            return
        handlers, permit = self._handlers, self._permit
        self._is_over = True
        try:
            if self._begun is not None and self._begun.service is not None:
                self._begun.service.opener.close()
            if permit is not None:
                handlers.keys.settle(permit, failure)
            handlers.finish(self._request, self._record)
        finally:
            handlers.calls_running -= 1

    def _over(self) -> None:
        if self._client.is_behind:
            self._task = self._handlers.tasks.spawn(self._caught_up(), "call")
        else:
            self._ended(self._client)

    async def _caught_up(self) -> None:
        await self._handlers.caught_up(self._client)
        self._ended(self._client)

    # ---- with a task ----

    def _go_on(self) -> None:
        self._task = self._handlers.tasks.spawn(self._rest(), "call")

    async def _rest(self) -> None:
        self._is_in_task = True
        handlers = self._handlers
        try:
            await handlers.answered(self._request, self._client, self._record, self._served())
        finally:
            handlers.calls_running -= 1
            self._is_over = True
        self._ended(self._client)

    async def _served(self) -> None:
        assert self._permit is not None
        with self._permit:
            await self._handlers.proxy.serve(
                *(self._call, self._dispatcher, self._client, self._record, self._begun)
            )
