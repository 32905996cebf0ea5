"""Counting tokens: it takes no place in a queue and no lease, so any usable replica is asked."""

from collections.abc import Callable
from functools import partial

from router.call import Call
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import NoReplica, Retry, RouterError, UpstreamBroken, UpstreamTimeout
from router.exchange import MAX_HELD_BYTES, Exchange
from router.record import Record
from router.relay import reply_headers
from router.replica import Replica
from router.resume import Question
from router.story import GRANTED
from router.upstream import Upstream

TOKENIZE_TIMEOUT_S = 30.0
QUESTION_TIMEOUT_S = 2.0
"""A client waits meanwhile for its stream to go on."""
MAX_TOKENS_REPLY_BYTES = 16 * MAX_HELD_BYTES
"""A tokenizer's reply is many times its request."""


class Tokenizer:
    def __init__(self, upstream: Upstream, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._turn = 0

    async def serve(
        self, call: Call, dispatcher: Dispatcher, client: Client, record: Record
    ) -> None:
        """A client's own call: replicas in turn, until one answers.

        Raises RouterError when none does.
        """
        usable = [replica for replica in dispatcher.pool if replica.is_usable]
        self._turn += 1
        error: RouterError = NoReplica("no replica is ready to tokenize", retry_after_s=1)
        for i in range(len(usable)):
            replica = usable[(self._turn + i) % len(usable)]
            record.replica, record.attempts, record.phase = replica.id, i + 1, "relay"
            record.step(self._clock(), GRANTED, replica.id, False)
            try:
                await self._answered(call, replica, client, record)
                return
            except RouterError as failure:
                record.failed(self._clock(), failure)
                if failure.retry is Retry.NEVER:
                    raise
                error = failure
        raise error

    async def _answered(self, call: Call, replica: Replica, client: Client, record: Record) -> None:
        limit_s = min(call.deadline_s, self._clock() + TOKENIZE_TIMEOUT_S)
        exchange = await self._asked(
            replica, call.route, call.headers, call.body, limit_s, record.sent
        )
        try:
            head = exchange.head
            if head is None or head.status >= 500 or not exchange.is_done:
                raise UpstreamBroken(f"{replica.id} gave no whole answer")
            record.status = head.status
            client.send(head.status, reply_headers(head, record), exchange.body())
        finally:
            exchange.close()

    async def count(self, question: Question | None, replica: Replica) -> int | None:
        """The router's own question; None where the replica does not tell.

        Raises RouterError when it fails.
        """
        if question is None:
            return None
        limit_s = self._clock() + QUESTION_TIMEOUT_S
        try:
            exchange = await self._asked(replica, question.path, (), question.body, limit_s)
        except UpstreamTimeout:
            return None
        try:
            is_answer = exchange.head is not None and exchange.head.status == 200
            return replica.dialect.counted(exchange.body()) if is_answer else None
        finally:
            exchange.close()

    async def _asked(
        self,
        replica: Replica,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
        limit_s: float,
        sent: Callable[[float, bool], None] | None = None,
    ) -> Exchange:
        return await self._upstream.send(
            replica,
            "POST",
            path,
            headers,
            body,
            limit=(limit_s, partial(UpstreamTimeout, f"{replica.id} did not tokenize in time")),
            max_held_bytes=MAX_TOKENS_REPLY_BYTES,
            sent=sent,
        )
