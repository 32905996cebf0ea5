"""Many clients at once, each checking every answer: what the tests of a fleet under load share.

Not a benchmark: it keeps what each call got (text, replica, wait, how it ended) so that a test can
judge it. Right answers are known beforehand, because the simulator's text is a pure function of
prompt and seed.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from launcher.simulator.chat_template import templated
from launcher.simulator.era import era_of
from launcher.simulator.tokens_text import TextModel

CHAT_SEED = 7
WORDS = ("river", "stone", "garden", "winter", "paper", "engine", "mountain", "letter", "window")
KINDS = ("generate", "generate_stream", "root", "root_stream", "chat", "chat_stream")


@dataclass(frozen=True, slots=True)
class Ask:
    """One call to make, and the text that is the right answer."""

    kind: str
    path: str
    body: dict[str, Any]
    is_stream: bool
    expected: str
    tokens: int
    """Prompt and answer together."""


@dataclass(slots=True)
class Answer:
    """What one call got. `error` is None for a whole answer."""

    ask: Ask
    sent_s: float
    done_s: float = 0.0
    text: str = ""
    replica: str = ""
    queue_s: float = 0.0
    attempts: int = 0
    events: int = 0
    error: str | None = None
    """"<status> ..." for a refusal, "event: ..." for one in a stream, "cut: ..." for a silent end,
    "lost: ..." for a connection that ended before any reply."""

    @property
    def is_right(self) -> bool:
        return self.error is None and self.text == self.ask.expected

    @property
    def service_s(self) -> float:
        """What was not waiting in the queue."""
        return self.done_s - self.sent_s - self.queue_s


def ask_for(kind: str, prompt: str, new_tokens: int) -> Ask:
    """A greedy call (chat: with a seed) in one of the six ways to ask."""
    is_stream = kind.endswith("_stream")
    if kind.startswith("chat"):
        messages = [{"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": "tgi", "messages": messages, "max_tokens": new_tokens}
        body |= {"seed": CHAT_SEED, "stream": is_stream}
        prompt, path, seed = templated(messages, era_of("3.3.5")), "/v1/chat/completions", CHAT_SEED
    else:
        parameters = {"max_new_tokens": new_tokens, "return_full_text": False, "details": True}
        body = {"inputs": prompt, "parameters": parameters}
        path, seed = f"/{kind}", None
        if kind.startswith("root"):
            body["stream"], path = is_stream, "/"
    expected, prompt_tokens = continued(prompt, new_tokens, seed)
    return Ask(kind, path, body, is_stream, expected, prompt_tokens + new_tokens)


def continued(prompt: str, new_tokens: int, seed: int | None) -> tuple[str, int]:
    """The simulator's answer, and the tokens of the prompt."""
    model = TextModel()
    cursor = model.cursor(prompt, seed)
    return "".join(cursor.advance().text for _ in range(new_tokens)), model.count(prompt)


def prompt_of(words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def mixed(count: int, seed: int) -> list[Ask]:
    """All ways to ask in equal parts; prompts and answers have heavy tails, to 160 tokens each."""
    rng = random.Random(seed)
    asks = []
    for i in range(count):
        words = min(160, int(12 * rng.paretovariate(1.2)))
        new_tokens = min(160, int(12 * rng.paretovariate(1.3)))
        asks.append(ask_for(KINDS[i % len(KINDS)], prompt_of(words, rng), new_tokens))
    rng.shuffle(asks)
    return asks


def small(seed: int, new_tokens: tuple[int, int], kinds: Iterable[str] = KINDS) -> Iterator[Ask]:
    """Endless calls with 5 to 15 prompt tokens each."""
    rng = random.Random(seed)
    for kind in itertools.cycle(kinds):
        yield ask_for(kind, prompt_of(rng.randint(5, 15), rng), rng.randint(*new_tokens))


@dataclass(slots=True)
class Load:
    """Clients that each make one call after the other, over connections that are kept.

    Answers appear in `answers` as they come, for tests that do something meanwhile.
    """

    endpoint: str
    asks: Iterator[Ask]
    clients: int = 256
    answers: list[Answer] = field(default_factory=list)
    in_flight: list[Answer] = field(default_factory=list)
    has_changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
    is_all_sent: bool = False
    """There are no more calls to make; some may be in flight."""

    async def run(self) -> list[Answer]:
        """Until there are no more asks, or `stop` was called; all answers have come then."""
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self.clients):
                group.create_task(self._client(session))
        return self.answers

    def stop(self) -> None:
        """No new calls; those in flight are finished."""
        self.is_stopping = True

    async def until(self, what: Callable[["Load"], bool], timeout_s: float = 20.0) -> None:
        """Waits until `what` holds; looked at after each answer. For one waiter at a time."""
        async with asyncio.timeout(timeout_s):
            while not what(self):
                self.has_changed.clear()
                await self.has_changed.wait()

    async def served(self, count: int) -> None:
        """Waits for so many more whole answers."""
        start = len(self.answers)
        await self.until(lambda load: sum(a.error is None for a in load.answers[start:]) >= count)

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self.is_stopping:
            if (ask := next(self.asks, None)) is None:
                self.is_all_sent = True
                self.has_changed.set()
                return
            answer = Answer(ask, time.monotonic())
            self.in_flight.append(answer)
            await _make(session, self.endpoint, answer)
            answer.done_s = time.monotonic()
            self.in_flight.remove(answer)
            self.answers.append(answer)
            self.has_changed.set()


async def one(endpoint: str, ask: Ask) -> Answer:
    """A single call."""
    [answer] = await Load(endpoint, iter([ask]), clients=1).run()
    return answer


async def _make(session: aiohttp.ClientSession, endpoint: str, answer: Answer) -> None:
    data, status = b"", 0
    try:
        async with session.post(endpoint + answer.ask.path, json=answer.ask.body) as reply:
            status = reply.status
            answer.replica = reply.headers.get("x-fleet-replica", "")
            answer.queue_s = int(reply.headers.get("x-fleet-queue-ms", "0")) / 1000
            answer.attempts = int(reply.headers.get("x-fleet-attempts", "0"))
            async for piece in reply.content.iter_any():
                data += piece
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        answer.error = f"{'cut' if status else 'lost'}: {exc!r}"
        return
    if status != 200:
        answer.error = f"{status} {data[:300]!r}"
    elif answer.ask.is_stream:
        _read_stream(answer, data)
    else:
        _read_body(answer, json.loads(data))


def _read_body(answer: Answer, body: Any) -> None:
    if answer.ask.kind == "chat":
        answer.text = body["choices"][0]["message"]["content"]
    else:
        answer.text = (body[0] if answer.ask.kind == "root" else body)["generated_text"]


def _read_stream(answer: Answer, data: bytes) -> None:
    """Whole only with the engine's own last event; the tokens must add up to the text in it."""
    events = [
        event.removeprefix(b"data:").strip()
        for event in data.split(b"\n\n")
        if event.startswith(b"data:")
    ]
    bodies = [json.loads(event) for event in events if event != b"[DONE]"]
    answer.events = len(bodies)
    if failed := [body["error"] for body in bodies if body.get("error")]:
        answer.error = f"event: {failed[0]}"
        return
    is_chat = answer.ask.kind == "chat_stream"
    if not bodies or not (_is_last_chat(bodies[-1]) if is_chat else bodies[-1]["generated_text"]):
        answer.error = f"cut: no end after {len(bodies)} events"
        return
    if is_chat:
        answer.text = "".join(body["choices"][0]["delta"]["content"] for body in bodies)
        return
    answer.text = bodies[-1]["generated_text"]
    if answer.text != "".join(body["token"]["text"] for body in bodies):
        answer.error = "cut: the tokens do not add up to the text"


def _is_last_chat(chunk: dict[str, Any]) -> bool:
    return bool(chunk["choices"][0]["finish_reason"])


@dataclass(frozen=True, slots=True)
class Counters:
    """The router's metrics at one moment, by name and labels."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Sum over all series of that name with these labels; 0.0 where there is none."""
        wanted = frozenset(labels.items())
        return sum(v for (n, found), v in self.values.items() if n == name and wanted <= found)


async def counters(endpoint: str) -> Counters:
    async with aiohttp.ClientSession() as session, session.get(f"{endpoint}/metrics") as reply:
        text = await reply.text()
    return Counters(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )
