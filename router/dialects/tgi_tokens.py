"""Continuing a stream of TGI's own events, one token each (/generate_stream and `POST /`). Pure.

Rules at the seam, by what TGI does (see `resume` for what is common to all formats):

 - the text of a special token is no part of the generated text, so none of the continued prompt;
 - a stop sequence counts only in what is generated after the seam: the router finds the one that
   began before it, and ends the stream as TGI would have;
 - `truncate` keeps the end of the prompt, so it grows by the tokens that the prompt has grown by;
 - `max_new_tokens` absent is 100 below 3.0, and from there on, as null is, the rest of the context;
 - without `parameters` TGI samples; with any, only if told to;
 - what is longer than the engine takes, it refuses at once, and the client is told that.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from router import sse
from router.call import Call
from router.dialects.base import EngineInfo
from router.dialects.fields import an_object, count, parsed
from router.resume import Continuation, NotResumable, Question, SoFar, StopWatch

DEFAULT_NEW_TOKENS = 100
"""max_new_tokens when absent, below 3.0."""
TELLS_INPUT_LENGTH = (2, 3)
"""From this version the last event's details hold `input_length`."""
ECHOED_TAGS = (None, "text-generation")
"""With these pipeline tags `POST /` gives the prompt back with the answer, unless told not to."""


class TokenTranscript:
    """What the client of a stream of tokens has received."""

    def __init__(self, call: Call, info: EngineInfo, *, seeded: bool) -> None:
        """Raises NotResumable for what the call asks."""
        values = parsed(call.body)
        self.call = call
        self.info = info
        self.values = values
        self.parameters = an_object(values.get("parameters"))
        self.so_far = SoFar(trims=False)
        self.prefix = b"data: "
        self.is_finished = False
        is_bare = values.get("parameters") is None
        _check(call, self.parameters, is_sampled=is_bare or samples(self.parameters), seeded=seeded)

    @property
    def prompt(self) -> str:
        return str(self.values["inputs"])

    @property
    def max_new_tokens(self) -> int | None:
        """None: the rest of the context."""
        asked = self.call.ask.new_tokens
        if asked == "absent" and self.info.version < (3,):
            return DEFAULT_NEW_TOKENS
        return asked if isinstance(asked, int) else None

    @property
    def wants_details(self) -> bool:
        return self.parameters.get("details") is True

    @property
    def wants_input_length(self) -> bool:
        return self.wants_details and self.info.version >= TELLS_INPUT_LENGTH

    @property
    def echoes(self) -> bool:
        """Whether the prompt stands before the answer in `generated_text`."""
        asked = self.parameters.get("return_full_text")
        if asked is None and self.call.route in ("/", "/invocations"):
            return self.info.told.get("model_pipeline_tag") in ECHOED_TAGS
        return asked is True

    @property
    def has_ended(self) -> bool:
        return self.is_finished

    def read(self, events: bytes) -> None:
        for event in sse.events(events):
            value = parsed(sse.payload(event))
            token = an_object(value.get("token"))
            if not token:
                raise NotResumable("it holds an event that is no token")
            self.prefix = prefix_of(event)
            self.so_far.add(_text_of(token))
            self.is_finished = value.get("generated_text") is not None

    def question(self) -> Question | None:
        """The prompt's own length, which the engine that continues cannot tell."""
        if not self.wants_input_length or self.is_finished:
            return None
        return Question("/tokenize", orjson.dumps({"inputs": self.prompt}))

    def continued(self, counted: int | None) -> Continuation:
        so_far, limit = self.so_far, self.max_new_tokens
        kept = so_far.tokens - so_far.again
        if limit is not None and kept >= limit:
            raise NotResumable("all its tokens are out already, but not its end")
        left = self.call.ask.new_tokens if limit is None else limit - kept
        truncate = self._truncate(kept)
        parameters = {**(self.parameters if "parameters" in self.values else {"do_sample": True})}
        if isinstance(left, int):
            parameters["max_new_tokens"] = left
        if truncate is not None:
            parameters["truncate"] = truncate
        body = {**self.values, "inputs": self.prompt + so_far.prompt, "parameters": parameters}
        ask = self.call.ask._replace(
            input_chars=self.call.ask.input_chars + len(so_far.prompt),
            new_tokens=left,
            truncate_tokens=truncate,
        )
        call = self.call._replace(ask=ask, body=orjson.dumps(body))
        return Continuation(call, TokenSeam(self, self._input_length(counted)))

    def _truncate(self, kept: int) -> int | None:
        truncate = self.call.ask.truncate_tokens
        if truncate is None:
            return None
        return max(truncate, min(truncate + kept, self.info.max_input_tokens or truncate + kept))

    def _input_length(self, counted: int | None) -> int | None:
        truncate = self.call.ask.truncate_tokens
        return min(counted, truncate) if counted and truncate else counted

    def last_words(self, counted: int | None) -> bytes:
        """Nothing: the last token's event holds everything."""
        return b""


class TokenSeam:
    """Tokens of a continuation, numbered on, with the whole text at the end."""

    def __init__(self, before: TokenTranscript, input_length: int | None) -> None:
        self.is_over = False
        self._before = before
        self._text = before.so_far.prompt
        self._tokens = before.so_far.tokens
        self._kept = before.so_far.tokens - before.so_far.again
        self._replay = before.so_far.replay()
        self._watch = StopWatch(stops_of(before.parameters.get("stop")), self._text)
        self._fresh: list[str] = []
        self._input_length = input_length

    def mend(self, events: bytes) -> bytes:
        found = sse.events(events)
        return b"".join(map(self._mended, found)) if found else events

    def _mended(self, event: bytes) -> bytes:
        value = parsed(sse.payload(event))
        token = an_object(value.get("token"))
        if not token:
            raise NotResumable(refusal_of(value))
        text, is_last = _text_of(token), value.get("generated_text") is not None
        if self.is_over or (self._replay.take(text) is None and not is_last):
            return b""
        limit = self._before.max_new_tokens
        self._tokens += 1
        self._fresh.append(text)
        value["index"] = self._tokens
        if is_last:
            self._end(value)
        elif self._watch.meets(text):
            self._end_early(value, "stop_sequence")
        elif limit is not None and self._tokens >= limit:
            self._end_early(value, "length")
        return self._before.prefix + orjson.dumps(value) + b"\n\n"

    def _end(self, value: dict[str, Any]) -> None:
        """The engine's last event; one that echoes its prompt has the text so far already."""
        text = str(value["generated_text"])
        is_echo = text != "".join(self._fresh) and text.startswith(self._before.prompt + self._text)
        value["generated_text"] = text if is_echo else self._text + text
        details = an_object(value.get("details"))
        if details:
            details["generated_tokens"] = self._tokens
        if told := count(details, "input_length"):
            details["input_length"] = self._input_length or max(1, told - self._kept)

    def _end_early(self, value: dict[str, Any], reason: str) -> None:
        """The router's own last event, where the engine would go on."""
        self.is_over = True
        echo = self._before.prompt if self._before.echoes else ""
        value["generated_text"] = echo + self._text + "".join(self._fresh)
        if not self._before.wants_details:
            return
        details = {"finish_reason": reason, "generated_tokens": self._tokens, "seed": None}
        if self._before.wants_input_length and self._input_length is not None:
            details["input_length"] = self._input_length
        value["details"] = details


def _check(call: Call, parameters: Mapping[str, Any], *, is_sampled: bool, seeded: bool) -> None:
    if parameters.get("grammar") is not None:
        raise NotResumable("it follows a grammar")
    if parameters.get("watermark"):
        raise NotResumable("it is watermarked")
    if call.ask.images:
        raise NotResumable("its prompt holds images")
    if call.ask.sequences > 1:
        raise NotResumable("it has several answers")
    if is_sampled and parameters.get("seed") is not None and not seeded:
        raise NotResumable("it is sampled with a seed (router.resume.seeded allows that)")


def samples(parameters: Mapping[str, Any]) -> bool:
    """Whether TGI draws its tokens: each of these asks for it, whatever `do_sample` says."""
    knobs = any(parameters.get(key) for key in ("do_sample", "top_k", "top_p", "typical_p"))
    return knobs or parameters.get("temperature") not in (None, 1)


def stops_of(value: object) -> tuple[str, ...]:
    """A `stop` field: a text, or several."""
    given = value if isinstance(value, list) else [value]
    return tuple(stop for stop in given if isinstance(stop, str))


def prefix_of(event: bytes) -> bytes:
    """`data:` as this engine writes it: with a space from TGI 2.1 on."""
    return b"data: " if event.startswith(b"data: ") else b"data:"


def refusal_of(value: Mapping[str, Any]) -> str:
    """Why a continuation's event is none: the engine's words, if it is an error."""
    error = value.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    if isinstance(message, str):
        return f"the engine refused to continue it: {message}"
    return "what the engine sent on is no token"


def _text_of(token: Mapping[str, Any]) -> str:
    text = token.get("text")
    return text if isinstance(text, str) and not token.get("special") else ""
