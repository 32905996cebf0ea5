"""The mixed load: which calls are made, in which manner, and what their right answers are. Pure.

The simulator is its own oracle: its text is a function of prompt and seed, so what an undisturbed
one would say is known before the call is made.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from launcher.simulator.chat_template import templated
from launcher.simulator.era import era_of
from launcher.simulator.generation import Sequence
from launcher.simulator.parameters import Ask as EngineAsk
from launcher.simulator.parameters import Parameters
from launcher.simulator.tokens import Token, TokenModel

ERA = era_of("3.3.5")
TGI, COMPLETION, CHAT = "tgi", "completion", "chat"
GREEDY, SEEDED, SAMPLED = "greedy", "seeded", "sampled"
WORDS = ("river", "stone", "garden", "winter", "paper", "engine", "Über", "漢字", "letter", "🙂")


@dataclass(frozen=True, slots=True)
class Manner:
    """How the client behaves."""

    is_new_connection: bool = False
    reads_slowly: bool = False
    leaves_after_bytes: int | None = None
    """It goes after so many bytes of the reply: at 0 before any."""
    resets: bool = False
    """It leaves by RST."""
    sends_in_pieces: bool = False


@dataclass(frozen=True)
class Ask:
    """One call to make."""

    id: str
    api: str
    path: str
    body: dict[str, Any]
    is_stream: bool
    prompt: str
    """As the model sees it."""
    new_tokens: int
    draw: str
    seed: int | None = None
    stop: tuple[str, ...] = ()
    manner: Manner = Manner()

    @property
    def kind(self) -> str:
        return f"{self.path} stream" if self.is_stream else self.path

    @property
    def may_resume(self) -> bool:
        """A client that gave a seed wants that seed's draw: not to be continued by another."""
        return self.draw != SEEDED

    @property
    def wants_usage(self) -> bool:
        return self.api == COMPLETION or bool(self.body.get("stream_options"))

    @property
    def wants_details(self) -> bool:
        return self.api == TGI and self.body["parameters"]["details"]

    @cached_property
    def engine_ask(self) -> EngineAsk:
        parameters = Parameters(max_new_tokens=self.new_tokens, stop=self.stop, details=True)
        return EngineAsk(self.prompt, self.prompt, 0, self.new_tokens, parameters)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine generates when nothing disturbs it."""

    tokens: list[Token]
    text: str
    finish_reason: str


def undisturbed(model: TokenModel, ask: Ask, seed: int | None) -> Answer:
    """The simulator's own generation, run to its end at once."""
    sequence = Sequence(ask.engine_ask, seed, model, ERA, _Nobody())
    while sequence.finish_reason is None:
        sequence.advance()
    return Answer(sequence.tokens, sequence.text, sequence.finish_reason)


class _Nobody:
    def token(self, sequence: Sequence, token: Token) -> None: ...
    def fail(self, error: Exception) -> None: ...


def mixed(seed: str, model: TokenModel) -> Iterator[Ask]:
    """Endless calls of all kinds; the same ones for the same seed."""
    rng = random.Random(f"asks {seed}")
    number = 0
    while True:
        number += 1
        yield _drawn(rng, f"c{seed}-{number}", model)


@dataclass(frozen=True, slots=True)
class Wish:
    """What can be asked for in any API."""

    id: str
    prompt: str
    new_tokens: int
    draw: str
    seed: int | None
    is_stream: bool


def _drawn(rng: random.Random, id: str, model: TokenModel) -> Ask:
    make = rng.choice((_tgi, _tgi, _tgi, _completion, _chat))
    prompt = " ".join(rng.choices(WORDS, k=rng.choice((3, 12, rng.randint(20, 200)))))
    new_tokens = rng.choice((rng.randint(1, 8), rng.randint(8, 60), rng.randint(60, 250)))
    draw = rng.choice((GREEDY, GREEDY, GREEDY, SAMPLED, SAMPLED, SEEDED))
    seed = rng.getrandbits(48) if draw == SEEDED else None
    ask = make(rng, Wish(id, prompt, new_tokens, draw, seed, is_stream=rng.random() < 0.7))
    ask = replace(ask, manner=_manner(rng))
    if draw != SAMPLED and new_tokens > 20 and rng.random() < 0.25:
        return _with_stop(rng, ask, model)
    return ask


def _tgi(rng: random.Random, wish: Wish) -> Ask:
    parameters: dict[str, Any] = {"max_new_tokens": wish.new_tokens, "return_full_text": False}
    parameters |= {"details": rng.random() < 0.7, "do_sample": wish.draw != GREEDY}
    if wish.seed is not None:
        parameters["seed"] = wish.seed
    body: dict[str, Any] = {"inputs": wish.prompt, "parameters": parameters}
    path = "/generate_stream" if wish.is_stream else "/generate"
    if rng.random() < 0.3:
        path, body["stream"] = "/", wish.is_stream
    return _ask(wish, TGI, path, body, wish.prompt)


def _completion(rng: random.Random, wish: Wish) -> Ask:
    body = {"model": "tgi", "prompt": wish.prompt, **_openai_fields(wish)}
    return _ask(wish, COMPLETION, "/v1/completions", body, wish.prompt)


def _chat(rng: random.Random, wish: Wish) -> Ask:
    messages = [{"role": "user", "content": wish.prompt}]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    body = {"messages": messages, **_openai_fields(wish)}
    if wish.is_stream and rng.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    return _ask(wish, CHAT, "/v1/chat/completions", body, templated(messages, ERA))


def _openai_fields(wish: Wish) -> dict[str, Any]:
    fields: dict[str, Any] = {"max_tokens": wish.new_tokens, "stream": wish.is_stream}
    if wish.draw == GREEDY:
        return fields | {"temperature": 0}
    return fields if wish.seed is None else fields | {"seed": wish.seed}


def _ask(wish: Wish, api: str, path: str, body: dict[str, Any], prompt: str) -> Ask:
    return Ask(
        id=wish.id,
        api=api,
        path=path,
        body=body,
        is_stream=wish.is_stream,
        prompt=prompt,
        new_tokens=wish.new_tokens,
        draw=wish.draw,
        seed=wish.seed,
    )


def _with_stop(rng: random.Random, ask: Ask, model: TokenModel) -> Ask:
    """A stop sequence that will come up, across two tokens of the answer."""
    text = undisturbed(model, ask, ask.seed).text
    if len(text) < 40:
        return ask
    at = rng.randint(10, len(text) - 12)
    stop = text[at : at + 10]
    body = dict(ask.body)
    if ask.api == TGI:
        body["parameters"] = body["parameters"] | {"stop": [stop]}
    else:
        body["stop"] = [stop]
    return replace(ask, body=body, stop=(stop,))


def _manner(rng: random.Random) -> Manner:
    leaves = rng.choice((0, 1, rng.randint(2, 4_000))) if rng.random() < 0.06 else None
    return Manner(
        is_new_connection=rng.random() < 0.2,
        reads_slowly=rng.random() < 0.05,
        leaves_after_bytes=leaves,
        resets=rng.random() < 0.5,
        sends_in_pieces=rng.random() < 0.1,
    )
