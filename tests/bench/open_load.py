"""Calls that come at random times, whatever becomes of those before them: what overloads a fleet.

A closed load (clients that wait for their answer) slows down with the fleet and can never send
three times what it serves. This one runs in the benchmark's own process.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from tests.e2e.load import Ask, ask_for, prompt_of

PROMPT_WORDS = (10, 30)
NEW_TOKENS = (24, 40)
GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Source:
    """One tenant's calls."""

    tenant: str
    per_s: float
    limit_s: float | None = None
    """Sent along as X-Request-Timeout; an answer after it is none."""


@dataclass(slots=True)
class Answer:
    tenant: str
    sent_s: float
    new_tokens: int
    done_s: float = 0.0
    status: int = 0
    """0: no answer at all."""
    is_right: bool = False
    retry_after_s: int | None = None
    limit_s: float | None = None

    @property
    def latency_s(self) -> float:
        return self.done_s - self.sent_s

    @property
    def is_good(self) -> bool:
        """The right text, in time."""
        return self.is_right and (self.limit_s is None or self.latency_s <= self.limit_s)

    @property
    def is_wrong(self) -> bool:
        """Neither the right text nor an honest refusal with a time to come back."""
        if self.status == 200:
            return not self.is_right
        is_refusal = self.status in (429, 503) and self.retry_after_s is not None
        return not (is_refusal or (self.status == 504 and self.limit_s is not None))


@dataclass(slots=True)
class OpenLoad:
    """Sends to one endpoint; every call's fate is in `answers` when it is over."""

    endpoint: str
    seed: int
    answers: list[Answer] = field(default_factory=list)

    async def run(self, sources: list[Source], seconds: float) -> None:
        """For so long; returns when the last call sent has its answer."""
        async with _session() as session, asyncio.TaskGroup() as calls:
            senders = (self._send(session, source, seconds, calls) for source in sources)
            await asyncio.gather(*senders)

    async def saturate(self, clients: int, seconds: float) -> None:
        """So many clients, each with its next call as soon as the last is answered."""
        until_s = time.monotonic() + seconds
        asks = _asks(self.seed)

        async def client(session: aiohttp.ClientSession) -> None:
            while time.monotonic() < until_s:
                await self._call(session, next(asks), Source("", 0.0))

        async with _session() as session, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(session))

    async def _send(
        self,
        session: aiohttp.ClientSession,
        source: Source,
        seconds: float,
        calls: asyncio.TaskGroup,
    ) -> None:
        """At the times of a Poisson process; late wake-ups do not thin it out."""
        rng, asks = random.Random(f"{self.seed} {source.tenant}"), _asks(self.seed)
        begun_s = time.monotonic()
        at_s = begun_s + rng.expovariate(source.per_s)
        while at_s < begun_s + seconds:
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            calls.create_task(self._call(session, next(asks), source))
            at_s += rng.expovariate(source.per_s)

    async def _call(self, session: aiohttp.ClientSession, ask: Ask, source: Source) -> None:
        headers = {"x-fleet-tenant": source.tenant} if source.tenant else {}
        if source.limit_s is not None:
            headers["x-request-timeout"] = f"{source.limit_s:g}"
        new_tokens: int = ask.body["parameters"]["max_new_tokens"]
        answer = Answer(source.tenant, time.monotonic(), new_tokens, limit_s=source.limit_s)
        self.answers.append(answer)
        try:
            async with session.post(
                self.endpoint + ask.path, json=ask.body, headers=headers
            ) as reply:
                body = await reply.json()
                answer.status = reply.status
                told = reply.headers.get("retry-after")
                answer.retry_after_s = int(told) if told else None
                answer.is_right = body.get("generated_text") == ask.expected
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            answer.status = 0
        answer.done_s = time.monotonic()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=GIVE_UP_S)
    )


def _asks(seed: int) -> Iterator[Ask]:
    """A thousand different calls, over and over: making them up costs as much as sending them."""
    rng = random.Random(seed)
    made: list[Ask] = []
    for _ in range(1000):
        ask = ask_for(
            "generate", prompt_of(rng.randint(*PROMPT_WORDS), rng), rng.randint(*NEW_TOKENS)
        )
        made.append(ask)
        yield ask
    while True:
        yield from made
