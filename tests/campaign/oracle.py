"""What a reply is worth: the right answer, an honest error, or something that must never be. Pure.

The only judge of the campaign. It looks at every byte: framing was checked while reading, events
must be whole and in order, texts and counts those of the engine, errors of their route's shape.
"""

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from launcher.simulator.tokens import EOS, TokenModel
from tests.campaign.asks import CHAT, SAMPLED, TGI, Answer, Ask, undisturbed
from tests.campaign.http_reply import Reply
from tests.campaign.seams import explained

POISON = "refused:"
MANY = 10_000


class Kind(Enum):
    RIGHT = "right"
    LEFT = "client left"
    EXCUSED = "excused error"
    NOT_RESUMED = "not resumed"
    REFUSED = "error without need"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    cause: str = ""
    seams: int = 0
    """At least so many times was the text continued elsewhere, as far as the text shows."""


class Wrong(Exception):
    """The reply is not what it must be; the message says why."""


@dataclass(frozen=True, slots=True)
class Told:
    """An error as the client was told it."""

    status: int
    error_type: str
    message: str
    is_inside: bool
    """In the stream, after at least one event of the answer."""

    @property
    def cause(self) -> str:
        where = "event" if self.is_inside else str(self.status)
        message = re.sub(r"\d+([.:]\d+)*", "N", self.message)
        return f"{where} {self.error_type}: {message[:90]}"


class Oracle:
    """Knows the engine's model; stateless beside it."""

    def __init__(self, model: TokenModel, *, is_stable: bool) -> None:
        """`is_stable`: a part of an answer in the prompt continues to the same answer."""
        self._model = model
        self._is_stable = is_stable
        self._followers: dict[str, set[str]] = {}

    def judge(self, ask: Ask, reply: Reply) -> Verdict:
        """For a reply that was read to its end."""
        try:
            _check_head(ask, reply)
            if reply.status != 200:
                return _excused_or_not(ask, _error_in(_json(reply.body), reply.status, False))
            read = self._stream if ask.is_stream else self._unary
            outcome = read(ask, reply)
        except Wrong as wrong:
            return Verdict(Kind.LOST, str(wrong))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as exc:
            return Verdict(Kind.LOST, f"not of the route's shape: {exc!r}")
        if isinstance(outcome, Told):
            return _excused_or_not(ask, outcome)
        return Verdict(Kind.RIGHT, seams=outcome)

    # ---- unary ----

    def _unary(self, ask: Ask, reply: Reply) -> int:
        body = _json(reply.body)
        if ask.api == TGI:
            body = body[0] if ask.path == "/" else body
            text, reason, count, drawn = _tgi_body(body)
        else:
            text, reason, count = self._openai_body(ask, body)
            drawn = None
        if ask.draw == SAMPLED and drawn is None:
            _expect(self._is_likely(ask, text), "a text that the model cannot give")
            return 0
        whole = undisturbed(self._model, ask, drawn if ask.draw == SAMPLED else ask.seed)
        _same("text", text, whole.text)
        _expect(
            reason in (None, whole.finish_reason, _openai_reason(whole)), "finish_reason", reason
        )
        _expect(count in (None, len(whole.tokens)), "tokens", count, len(whole.tokens))
        return 0

    def _openai_body(self, ask: Ask, body: Any) -> tuple[str, str, int]:
        [choice] = body["choices"]
        text = choice["message"]["content"] if ask.api == CHAT else choice["text"]
        self._check_usage(ask, body["usage"], body["usage"]["completion_tokens"])
        return text, choice["finish_reason"], body["usage"]["completion_tokens"]

    # ---- streams ----

    def _stream(self, ask: Ask, reply: Reply) -> int | Told:
        content_type = reply.fields.get("content-type", "")
        _expect(content_type.startswith("text/event-stream"), "content-type", content_type)
        for chunk in reply.chunks:
            _expect(chunk.endswith(b"\n\n"), "a chunk ends inside an event", chunk[-60:])
        payloads = _payloads(reply.body)
        if ask.api == TGI:
            _expect(b"[DONE]" not in payloads, "[DONE] on a route that has none")
        else:
            _expect(payloads[-1:] == [b"[DONE]"], "no [DONE] at the end")
            payloads.pop()
        events = [_json(payload) for payload in payloads]
        _expect(bool(events), "a stream without an event")
        *before, last = events
        _expect(not any(map(_is_error, before)), "events after an error")
        if _is_error(last):
            self._check_order(ask, before)
            return _error_in(last, 200, bool(before))
        return self._tgi_stream(ask, events) if ask.api == TGI else self._openai(ask, events)

    def _check_order(self, ask: Ask, events: list[Any]) -> None:
        """Of an answer that an error ended: what came before it must be in order."""
        if ask.api == TGI:
            indexes = [event["index"] for event in events]
            _same("indexes", indexes, list(range(1, len(events) + 1)))
            if ask.draw != SAMPLED and self._is_stable:
                whole = undisturbed(self._model, ask, ask.seed)
                got = [event["token"]["text"] for event in events]
                _same("texts before an error", got, [t.text for t in whole.tokens][: len(got)])

    def _tgi_stream(self, ask: Ask, events: list[Any]) -> int:
        indexes = [event["index"] for event in events]
        _same("indexes", indexes, list(range(1, len(events) + 1)))
        *before, last = events
        _expect(all(e["generated_text"] is None for e in before), "generated_text before the end")
        tokens = [event["token"] for event in events]
        texts = ["" if token["special"] else token["text"] for token in tokens]
        text = last["generated_text"]
        _expect(isinstance(text, str), "a stream that has no end")
        _same("generated_text", text, "".join(texts))
        details = last["details"]
        _expect((details is not None) == ask.wants_details, "details", details)
        reason = None
        if details is not None:
            reason = details["finish_reason"]
            _expect(details["generated_tokens"] == len(events), "details", details)
            _expect(details["input_length"] == self._model.count(ask.prompt), "details", details)
            if ask.draw != SAMPLED:
                _expect(details["seed"] == ask.seed, "seed", details["seed"])
        return self._check_texts(ask, texts, reason, is_end=tokens[-1]["id"] == EOS.id)

    def _openai(self, ask: Ask, events: list[Any]) -> int:
        usage = None
        if ask.api == CHAT and ask.wants_usage:
            _expect(events[-1]["choices"] == [], "no usage chunk at the end")
            usage = events.pop()["usage"]
        elif ask.wants_usage:
            usage = events[-1].get("usage")
        choices = [choice for event in events for choice in event["choices"]]
        _expect(len(choices) == len(events), "a chunk without a choice")
        texts = [_content(ask, choice) for choice in choices]
        reasons = [choice["finish_reason"] for choice in choices]
        _expect(not any(reasons[:-1]), "finish_reason before the end", reasons)
        _expect(bool(reasons[-1]), "no finish_reason at the end")
        heads = {(event["object"], event["model"]) for event in events}
        _expect(len(heads) == 1, "chunks of several models", heads)
        _expect((usage is not None) == ask.wants_usage, "usage", usage)
        if usage is not None:
            self._check_usage(ask, usage, len(texts))
        reason = "eos_token" if reasons[-1] == "stop" else reasons[-1]
        return self._check_texts(ask, texts, reason, is_end=reason == "eos_token")

    def _check_usage(self, ask: Ask, usage: Any, completion_tokens: int) -> None:
        prompt_tokens = self._model.count(ask.prompt)
        wanted = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        _expect(usage == wanted, "usage", usage, wanted)

    # ---- texts ----

    def _check_texts(self, ask: Ask, texts: list[str], reason: str | None, *, is_end: bool) -> int:
        """Gives how many seams the text must have."""
        if reason == "length":
            _expect(len(texts) == ask.new_tokens, "tokens", len(texts), ask.new_tokens)
        if ask.draw == SAMPLED:
            _expect(self._is_likely(ask, "".join(texts)), "a text that the model cannot give")
            return 0
        if self._is_stable:
            whole = undisturbed(self._model, ask, ask.seed)
            wanted = ["" if token.special else token.text for token in whole.tokens]
            _same("texts", texts, wanted)
            _expect(reason in (None, whole.finish_reason), "finish_reason", reason)
            return 0
        seams = explained(self._model, ask.prompt, ask.seed, texts, has_ended=is_end)
        if seams is None:
            raise Wrong(f"no seams explain this text: {''.join(texts)[:200]!r}")
        if not seams:
            whole = undisturbed(self._model, ask, ask.seed)
            _expect(reason in (None, whole.finish_reason), "finish_reason", reason)
        elif reason == "stop_sequence":
            _expect(any(stop in "".join(texts) for stop in ask.stop), "no stop sequence met")
        return len(seams)

    def _is_likely(self, ask: Ask, text: str) -> bool:
        """Each token is one that the model may put after the word before it.

        Only where texts are stable: there a word that is missing or doubled breaks the chain.
        """
        if not self._is_stable:
            return True
        at, before = 0, _last_word(ask.prompt)
        for piece in self._model.pieces(text):
            if piece.start != at or piece.text not in self._may_follow(before):
                return False
            at, before = piece.stop, _last_word(before + piece.text)
        return at == len(text)

    def _may_follow(self, word: str) -> set[str]:
        if word not in self._followers:
            cursor = type(self._model)().cursor(word, None)
            cursor.advance()
            self._followers[word] = {token.text for token in cursor.ranked(MANY)}
        return self._followers[word]


def _last_word(text: str) -> str:
    return text[-48:].rpartition(" ")[2]


def _excused_or_not(ask: Ask, told: Told) -> Verdict:
    """
    1. an answer with a client's own seed is not continued by another engine;
    2. a call that replicas kept dying of is refused;
    3. any other stream that broke should have been resumed;
    4. any other error had no need to be, as one replica was well all the time.
    """
    if told.is_inside and not ask.may_resume:
        return Verdict(Kind.EXCUSED, f"not resumable, has a seed: {told.cause}")
    if told.status == 422 and told.message.startswith(POISON):
        return Verdict(Kind.EXCUSED, told.cause)
    if told.is_inside:
        return Verdict(Kind.NOT_RESUMED, told.cause)
    return Verdict(Kind.REFUSED, told.cause)


def _check_head(ask: Ask, reply: Reply) -> None:
    echoed = reply.fields.get("x-request-id")
    _expect(echoed == ask.id, "x-request-id", echoed)
    if reply.status != 200 or not ask.is_stream:
        content_type = reply.fields.get("content-type", "")
        _expect(content_type.startswith("application/json"), "content-type", content_type)
    _expect(reply.status != 500, "500", reply.body)


def _error_in(body: Any, status: int, is_inside: bool) -> Told:
    """TGI's shape, or OpenAI's; an engine's own error may have TGI's on OpenAI's routes."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        message, kind = error.get("message"), error.get("code", "")
        status = error.get("http_status_code", status)
    else:
        message, kind = error, body.get("error_type") if isinstance(body, dict) else None
    _expect(isinstance(message, str) and isinstance(kind, str), "no typed error", body)
    return Told(status, kind, message, is_inside)


def _is_error(event: Any) -> bool:
    return isinstance(event, dict) and "error" in event


def _payloads(body: bytes) -> list[bytes]:
    """Of each event; comments left out. Nothing else may stand in a stream."""
    _expect(body.endswith(b"\n\n"), "the stream ends inside an event", body[-60:])
    found = []
    for block in body[:-2].split(b"\n\n"):
        if block.startswith(b"data:") and b"\n" not in block:
            found.append(block[5:].removeprefix(b" "))
        else:
            _expect(block == b":", "neither event nor comment", block)
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except ValueError as exc:
        raise Wrong(f"no JSON: {exc}: {data[:80]!r}") from exc


def _tgi_body(body: Any) -> tuple[str, str | None, int | None, int | None]:
    details = body.get("details")
    if details is None:
        return body["generated_text"], None, None, None
    count = details["generated_tokens"]
    _expect(len(details["tokens"]) == count, "tokens", len(details["tokens"]), count)
    return body["generated_text"], details["finish_reason"], count, details["seed"]


def _content(ask: Ask, choice: Any) -> str:
    content: str = choice["delta"]["content"] if ask.api == CHAT else choice["text"]
    return content


def _openai_reason(answer: Answer) -> str:
    return "stop" if answer.finish_reason == "eos_token" else answer.finish_reason


def _expect(holds: bool, otherwise: str, *found: Any) -> None:
    """Raises Wrong, showing what was found."""
    if not holds:
        raise Wrong(": ".join([otherwise, *(repr(one)[:200] for one in found)]))


def _same(what: str, got: Any, wanted: Any) -> None:
    """Raises Wrong, showing where two texts, or lists, part."""
    if got == wanted:
        return
    pairs = enumerate(zip(got, wanted, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(got), len(wanted)))
    raise Wrong(f"{what} at {at}: {got[at : at + 30]!r}, not {wanted[at : at + 30]!r}")
