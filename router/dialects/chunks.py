"""Continuing a stream of OpenAI's chunks (/v1/completions, /v1/chat/completions). Pure.

The engines differ in few things, which `Manner` names. Rules at the seam (see `resume`):

 - a chat is continued by ending its messages with the assistant's text so far. TGI, from 3.0 on,
   and vLLM, when told (`continue_final_message`), cut the white space at its end: it comes again,
   and is dropped here. llama-server cuts nothing, but newer builds begin their answer with that
   text;
 - vLLM and llama-server hold back what may be the start of a stop sequence, so none begins before
   the seam; TGI does not: there the router looks for it;
 - TGI sends a chunk for each token; the others may put several into one, so what the text so far
   counts is asked of the replica that continues it;
 - what identifies the answer (`id`, `created`, `model`) stays as the client has it, and the numbers
   of `usage` are those of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from router import sse
from router.call import Call
from router.dialects.fields import an_object, count, objects, parsed
from router.dialects.tgi_tokens import prefix_of, refusal_of, stops_of
from router.resume import Continuation, NotResumable, Question, SoFar, StopWatch

DONE = b"[DONE]"
IDENTITY = ("id", "created", "model", "system_fingerprint")
LIMITS = ("max_tokens", "max_completion_tokens")
STRUCTURED = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
    *("grammar", "json_schema"),
)
"""vLLM's and llama-server's ways to ask for a structure; what is half written has a state."""
MANY = (("n", 1), ("best_of", 1))
REFUSED = {
    "logprobs": "it tells log probabilities",
    "prompt_logprobs": "it tells log probabilities",
    "return_token_ids": "it tells token ids",
    "tools": "it may call tools",
    "functions": "it may call tools",
    "suffix": "it has a suffix",
    "echo": "it echoes its prompt",
    "use_beam_search": "it is searched by beams",
    "audio": "it is spoken",
}
BEYOND_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "audio")
"""Fields of a delta that no prompt can be continued with."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How an engine streams chunks."""

    trims: bool
    """It cuts white space at the end of the message that it continues."""
    token_each: bool
    """A chunk for each token, whether it has text or not; else several may share one."""
    is_told_to_continue: bool = False
    """Wants `continue_final_message`, and answers a last message of the assistant's otherwise."""
    may_echo: bool = False
    """May begin a continued message with what it was given of it."""
    finds_stops: bool = True
    """Never sends the start of a stop sequence."""
    ends_with_done: bool = True
    has_usage_chunk: bool = True
    """`include_usage` brings a chunk of its own, after the one with the finish reason."""
    tells_usage: bool = False
    """The last chunk holds `usage`, asked for or not."""
    default_max_tokens: int | None = None
    count_prompt: str = ""
    """The route that counts the prompt's tokens; else the text so far is counted."""


class ChunkTranscript:
    """What the client of a stream of chunks has received."""

    def __init__(self, call: Call, manner: Manner, *, seeded: bool) -> None:
        """Raises NotResumable for what the call asks."""
        self.call = call
        self.manner = manner
        self.values = parsed(call.body)
        self.is_chat = "messages" in self.values
        self.so_far = SoFar(trims=self.is_chat and manner.trims)
        self.identity: dict[str, Any] = {}
        self.form: dict[str, Any] = {}
        """A chunk's fields outside `choices` and `usage`, for chunks of our own."""
        self.prefix = b"data: "
        self.finish = ""
        """Its finish reason, once that is out."""
        self._has_usage = False
        self._has_done = False
        _check(call, self.values, seeded=seeded)
        self._prompt()

    @property
    def max_tokens(self) -> int | None:
        """None: no bound of the client's own."""
        asked = self.call.ask.new_tokens
        if asked == "absent":
            return self.manner.default_max_tokens
        return asked if isinstance(asked, int) else None

    @property
    def wants_usage(self) -> bool:
        """In a chunk of its own, as the client asked for it."""
        return an_object(self.values.get("stream_options")).get("include_usage") is True

    def _prompt(self) -> str:
        """The one prompt of a text completion; the last message's text of a chat."""
        if self.is_chat:
            content = self.values["messages"][-1].get("content")
            return content if isinstance(content, str) else ""
        prompt = self.values.get("prompt")
        prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        if not isinstance(prompt, str):
            raise NotResumable("its prompt is not one text")
        return prompt

    # ---- what has come ----

    def read(self, events: bytes) -> None:
        for event in sse.events(events):
            data = sse.payload(event)
            if data == DONE:
                self._has_done = True
                continue
            chunk = parsed(data)
            choices = objects(chunk.get("choices"))
            self._has_usage = self._has_usage or bool(chunk.get("usage"))
            if choices:
                self._identify(event, chunk)
                self._read(choices)

    def _identify(self, event: bytes, chunk: dict[str, Any]) -> None:
        if not self.form:
            self.prefix = prefix_of(event)
            self.form = {k: chunk[k] for k in chunk if k not in ("choices", "usage", "timings")}
            self.identity = {key: chunk[key] for key in IDENTITY if key in chunk}

    def _read(self, choices: list[dict[str, Any]]) -> None:
        choice = choices[0]
        if len(choices) > 1 or choice.get("index") not in (None, 0):
            raise NotResumable("it has several answers")
        if any(an_object(choice.get("delta")).get(key) for key in BEYOND_TEXT):
            raise NotResumable("it holds more than text: reasoning or tool calls")
        if choice.get("logprobs"):
            raise NotResumable(REFUSED["logprobs"])
        text = text_of(choice)
        if text or self.manner.token_each:
            self.so_far.add(text)
        self.finish = str(choice.get("finish_reason") or "")

    @property
    def has_ended(self) -> bool:
        return bool(self.finish)

    @property
    def is_finished(self) -> bool:
        """There is nothing left that only an engine could tell."""
        owes_usage = self.wants_usage and not self._has_usage and not self.manner.token_each
        return bool(self.finish) and not owes_usage

    # ---- what is asked next ----

    def question(self) -> Question | None:
        manner, values = self.manner, self.values
        if manner.token_each:
            is_wanted = self.wants_usage or manner.tells_usage
            if not is_wanted or not manner.count_prompt or (self.finish and self._is_told):
                return None
            prompt = values if self.is_chat else {"inputs": self._prompt()}
            return Question(manner.count_prompt, orjson.dumps(prompt))
        text = self._asked_text
        if self.is_finished or not text:
            return None
        plain = {"add_special_tokens": False, "add_special": False}
        named = {"model": values["model"]} if "model" in values else {}
        return Question(
            "/tokenize", orjson.dumps({**named, "prompt": text, "content": text, **plain})
        )

    @property
    def _is_told(self) -> bool:
        return self._has_usage or not (self.wants_usage and self.manner.has_usage_chunk)

    @property
    def _asked_text(self) -> str:
        """What the continued prompt ends with. Where only usage is missing, the last piece is left
        out: the engine that generates it again tells what the answer came to."""
        text = self.so_far.prompt
        return text.removesuffix(self.so_far.last) if self.finish else text

    def kept(self, counted: int | None) -> int:
        """Tokens of the answer that the continued prompt holds."""
        if counted is not None and not self.manner.token_each:
            return counted
        return max(0, self.so_far.tokens - self.so_far.again - bool(self.finish))

    def continued(self, counted: int | None) -> Continuation:
        kept, limit, text = self.kept(counted), self.max_tokens, self._asked_text
        left = None if limit is None else limit - kept
        is_spent = bool(self.finish) or (left is not None and left <= 0)
        if self.finish:
            again = len(self.so_far.last) + 1  # tokens it can have, and the end of the text
            left = again if left is None else max(1, min(left, again))
        elif is_spent:  # only an engine can tell what follows the last token
            kept, left, text = max(0, kept - 1), 1, text.removesuffix(self.so_far.last)
        body = {**self.values, **self._continued_prompt(text)}
        if left is not None:
            given = [key for key in LIMITS if body.get(key) is not None] or [LIMITS[0]]
            body |= dict.fromkeys(given, left)
        if least := count(body, "min_tokens"):
            body["min_tokens"] = max(0, least - kept)
        if cut := count(body, "truncate_prompt_tokens"):
            body["truncate_prompt_tokens"] = cut + kept
        ask = self.call.ask._replace(
            input_chars=self.call.ask.input_chars + len(text),
            new_tokens=self.call.ask.new_tokens if left is None else left,
        )
        call = self.call._replace(ask=ask, body=orjson.dumps(body))
        return Continuation(call, ChunkSeam(self, kept, counted, is_spent=is_spent))

    def _continued_prompt(self, text: str) -> dict[str, Any]:
        if not self.is_chat:
            return {"prompt": self._prompt() + text}
        if not text:
            return {}
        messages = list(self.values["messages"])
        is_begun = messages[-1].get("role") == "assistant"
        if self.manner.is_told_to_continue:
            is_begun = is_begun and self.values.get("continue_final_message") is True
        if is_begun and self.manner.may_echo:
            raise NotResumable("the engine may repeat the message that the client began")
        if is_begun and not isinstance(messages[-1].get("content"), str):
            raise NotResumable("the message that it continues is no plain text")
        if is_begun:
            begun = self._prompt().rstrip() if self.manner.trims else self._prompt()
            messages[-1] = {**messages[-1], "content": begun + text}
        else:
            messages.append({"role": "assistant", "content": text})
        told = {"continue_final_message": True, "add_generation_prompt": False}
        return {"messages": messages, **(told if self.manner.is_told_to_continue else {})}

    def last_words(self, counted: int | None) -> bytes:
        """Usage can only be told where each token had a chunk, and the prompt could be counted."""
        words = b""
        if not self._is_told and self.manner.token_each and counted:
            words += self.chunk([], usage(counted, self.so_far.tokens))
        if self.manner.ends_with_done and not self._has_done:
            words += self.prefix + DONE + b"\n\n"
        return words

    def chunk(self, choices: list[dict[str, Any]], numbers: dict[str, int] | None) -> bytes:
        """A chunk of the router's own."""
        value = {**self.form, "choices": choices}
        if numbers is not None:
            value["usage"] = numbers
        return self.prefix + orjson.dumps(value) + b"\n\n"


class ChunkSeam:
    """Chunks of a continuation under the answer's own name, with the numbers of the whole."""

    def __init__(
        self, before: ChunkTranscript, kept: int, counted: int | None, *, is_spent: bool
    ) -> None:
        """`is_spent`: the client has all the text; what is wanted is how it ends."""
        manner = before.manner
        self.is_over = False
        self._is_spent = is_spent
        self._before = before
        self._kept = kept
        self._prompt_tokens = counted if manner.token_each else None
        self._tokens = before.so_far.tokens
        self._replay = before.so_far.replay()
        stops = () if manner.finds_stops else stops_of(before.values.get("stop"))
        self._watch = StopWatch(stops, before.so_far.text)
        self._has_begun = bool(before.form)
        self._echo = before.so_far.prompt if before.is_chat and manner.may_echo else ""

    def mend(self, events: bytes) -> bytes:
        found = sse.events(events)
        return b"".join(map(self._mended, found)) if found else events

    def _mended(self, event: bytes) -> bytes:
        data = sse.payload(event)
        if self.is_over:
            return b""
        if data == DONE:
            return self._before.prefix + DONE + b"\n\n"
        chunk = parsed(data)
        if "choices" not in chunk:
            raise NotResumable(refusal_of(chunk))
        choices = objects(chunk["choices"])
        if choices and not self._take(choices[0]):
            return b""
        chunk |= self._before.identity
        self._renumber(an_object(chunk.get("usage")))
        if self.is_over and self._rides and self._prompt_tokens:
            chunk["usage"] = usage(self._prompt_tokens, self._tokens)
        mended = self._before.prefix + orjson.dumps(chunk) + b"\n\n"
        return mended + (self._end_early() if self.is_over else b"")

    def _take(self, choice: dict[str, Any]) -> bool:
        """Takes one choice in; false: the client has had it."""
        token_each = self._before.manner.token_each
        text, is_last = self._unechoed(choice), bool(choice.get("finish_reason"))
        delta = an_object(choice.get("delta"))
        if is_last and self._before.finish:
            return False
        if not text and not token_each and not is_last:
            return not (self._has_begun and "role" in delta)  # it opens the message once more
        fresh = None if self._is_spent else self._replay.take(text)
        if fresh is None and not is_last:
            return False
        if text != (fresh or ""):
            _put(choice, fresh or "")
        self._tokens += 1
        limit = self._before.max_tokens
        if is_last:
            return True
        if self._watch.meets(fresh or ""):
            choice["finish_reason"] = "stop_sequence"
        elif token_each and limit is not None and self._tokens >= limit:
            choice["finish_reason"] = "length"
        self.is_over = bool(choice.get("finish_reason"))
        return True

    def _unechoed(self, choice: dict[str, Any]) -> str:
        """Its text; the first one without what the engine repeats."""
        text = text_of(choice)
        if not text or not self._echo:
            return text
        fresh, self._echo = text.removeprefix(self._echo), ""
        if fresh != text:
            _put(choice, fresh)
        return fresh

    def _renumber(self, told: dict[str, Any]) -> None:
        """The engine counts the text so far as prompt, and only what it has added as completion."""
        if not told:
            return
        prompt, added = count(told, "prompt_tokens") or 0, count(told, "completion_tokens") or 0
        token_each = self._before.manner.token_each
        generated = self._tokens if token_each else self._kept + added
        told |= usage(self._prompt_tokens or max(1, prompt - self._kept), generated)

    @property
    def _rides(self) -> bool:
        """Usage stands on the chunk with the finish reason."""
        manner = self._before.manner
        asked = self._before.wants_usage and not manner.has_usage_chunk
        return manner.tells_usage or asked

    def _end_early(self) -> bytes:
        """What follows the router's own finish reason."""
        before, manner = self._before, self._before.manner
        words = b""
        if before.wants_usage and manner.has_usage_chunk and self._prompt_tokens:
            words += before.chunk([], usage(self._prompt_tokens, self._tokens))
        return words + (before.prefix + DONE + b"\n\n" if manner.ends_with_done else b"")


def _check(call: Call, values: Mapping[str, Any], *, seeded: bool) -> None:
    for key, why in REFUSED.items():
        if values.get(key) and values.get("tool_choice" if key == "tools" else key) != "none":
            raise NotResumable(why)
    if any(values.get(key) is not None for key in STRUCTURED):
        raise NotResumable("it follows a grammar")
    if an_object(values.get("response_format")).get("type") not in (None, "text"):
        raise NotResumable("it follows a grammar")
    if any((values.get(key) or usual) != usual for key, usual in MANY) or call.ask.sequences > 1:
        raise NotResumable("it has several answers")
    if call.ask.images:
        raise NotResumable("its prompt holds images")
    if values.get("seed") is not None and values.get("temperature") != 0 and not seeded:
        raise NotResumable("it is sampled with a seed (router.resume.seeded allows that)")


def text_of(choice: Mapping[str, Any]) -> str:
    """A choice's text, of either route."""
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _put(choice: dict[str, Any], text: str) -> None:
    if isinstance(choice.get("delta"), dict):
        choice["delta"]["content"] = text
    else:
        choice["text"] = text


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
