"""Hugging Face text-generation-inference, 1.4 to 3.3.

What differs between versions is decided by `/info`'s version: how many tokens a call reserves and
which limits are told. TGI reports inference errors on streams as HTTP 200 with an error event, and
overload without a status; so a stream's first event is inspected before it is relayed.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from router import sse
from router.call import Ask, Call, Cost
from router.dialects.base import Ending, EngineInfo
from router.dialects.chunks import ChunkTranscript, Manner
from router.dialects.fields import an_object, count, looks_whole, parsed, whole
from router.dialects.tgi_tokens import DEFAULT_NEW_TOKENS, TokenTranscript
from router.errors import (
    RouterError,
    UpstreamBroken,
    UpstreamFault,
    UpstreamRefusal,
    UpstreamShed,
)
from router.estimates import Estimates
from router.lease import Report
from router.resume import NotResumable, Transcript
from router.room import DEFAULT_PERMITS, Capacity

ROUTES = frozenset(
    (
        *("/", "/generate", "/generate_stream", "/invocations", "/vertex"),
        *("/v1/chat/completions", "/v1/completions", "/tokenize", "/chat_tokenize"),
    )
)
SLICED = (3, 1, 1)
"""From this version a long answer is reserved and run in slices of SLICE_TOKENS; from 3.0.0 one
whose length the call does not say."""
SLICE_TOKENS = 1024
DEFAULT_SEQUENCES = 4
"""TGI's own default for prompts per call; best_of may be 2."""
CHATS_CONTINUED = (3,)
"""From this version a last message of the assistant's is continued, not answered."""
IMAGE_TOKENS = 1500
"""What an image is counted as: never the length of its base64."""
QUEUE_SIZE = re.compile(rb"^tgi_queue_size (\S+)", re.MULTILINE)
FAULTS = {"generation", "incomplete_generation", "incomplete_generation_stream"}
FAULT_TEXTS = ("Request failed during generation", "Incomplete generation")
OVERLOAD_TEXT = "Model is overloaded"

Read = tuple[bytes, dict[str, Any]]
"""An event's data, and what that is as JSON."""


class TgiDialect:
    name = "tgi"
    routes = ROUTES
    health_path = "/health"
    info_paths: tuple[str, ...] = ("/info",)
    metrics_path = "/metrics"

    def info(self, pages: Mapping[str, bytes]) -> EngineInfo:
        told = parsed(pages.get("/info", b""))
        if "max_total_tokens" not in told:
            raise ValueError("no max_total_tokens in /info")
        model_id = told.get("model_id")
        return EngineInfo(
            version=_version(told.get("version")),
            capacity=Capacity(
                requests=count(told, "max_concurrent_requests") or DEFAULT_PERMITS,
                tokens=count(told, "max_batch_total_tokens"),
                batch=count(told, "max_batch_size"),
            ),
            max_sequences=max(
                count(told, "max_best_of") or DEFAULT_SEQUENCES,
                count(told, "max_client_batch_size") or DEFAULT_SEQUENCES,
            ),
            model_id=model_id if isinstance(model_id, str) else None,
            max_input_tokens=count(told, "max_input_tokens") or count(told, "max_input_length"),
            max_total_tokens=count(told, "max_total_tokens"),
            told=told,
        )

    def engine_queue(self, metrics: bytes) -> int | None:
        """A gauge that is missing was never touched yet: nothing waits."""
        found = QUEUE_SIZE.search(metrics)
        try:
            return int(float(found[1])) if found else 0
        except (ValueError, OverflowError):
            return None

    def one_token(self, info: EngineInfo) -> tuple[str, bytes]:
        return "/generate", b'{"inputs":"Hello","parameters":{"max_new_tokens":1}}'

    def cost(self, ask: Ask, info: EngineInfo, estimates: Estimates) -> Cost:
        asked = sequences = ask.sequences * ask.instances
        input_tokens = estimates.input_tokens(ask.input_chars) + IMAGE_TOKENS * ask.images
        each = input_tokens
        if asked > 1:
            each = max(1, input_tokens // asked)
            sequences = min(ask.sequences, info.max_sequences) * ask.instances
        # What is longer, or more, is cut by the engine or refused by it at once: it holds no room.
        longest = info.max_input_tokens or each
        if ask.truncate_tokens:
            longest = min(longest, ask.truncate_tokens)
        if longest < each or sequences < asked:
            each = min(each, longest)
            input_tokens = each * sequences
        new = self._new_tokens(ask, info, each)
        reserved = new
        if new > SLICE_TOKENS:
            says_length = isinstance(ask.new_tokens, int)
            is_sliced = info.version >= (SLICED if says_length else (3,))
            reserved = SLICE_TOKENS if is_sliced else new
        if info.max_total_tokens and not 0 < reserved <= info.max_total_tokens - each:
            reserved = max(1, min(reserved, info.max_total_tokens - each))
        expected = max(1, round(min(new, 65_536) * estimates.output_share))
        return Cost(
            requests=sequences,
            input_tokens=input_tokens,
            reserve_tokens=sequences * (each + reserved),
            expected_tokens=sequences * expected,
        )

    def _new_tokens(self, ask: Ask, info: EngineInfo, input_tokens: int) -> int:
        if isinstance(ask.new_tokens, int):
            return ask.new_tokens
        if ask.new_tokens == "absent" and info.version < (3,):
            return DEFAULT_NEW_TOKENS
        rest = (info.max_total_tokens or 2 * SLICE_TOKENS) - input_tokens
        return max(1, rest)

    def refusal(
        self, status: int, headers: Mapping[str, str], body: bytes, path: str = ""
    ) -> RouterError | None:
        """
        1. 429 and 503: full; ask elsewhere;
        2. 424 and every 5xx: it failed, or the call made it fail; but /vertex answers 500 to
           everything, the client's own mistakes included: there the type decides;
        3. other 4xx: the client's to see, as sent;
        4. a success whose JSON is cut short: broken.
        """
        if status in (429, 503):
            return UpstreamShed("every replica answers that it is overloaded")
        if status == 424 or status >= 500:
            message, error_type = _error_of(body)
            if path == "/vertex" and error_type == "overloaded":
                return UpstreamShed("every replica answers that it is overloaded")
            if path == "/vertex" and error_type not in FAULTS:
                return None
            return UpstreamFault(message, status=status, error_type=error_type)
        if 400 <= status < 500:
            return None
        if status != 200 or not looks_whole(headers, body):
            return UpstreamBroken(f"the replica answered {status} with a body that is no JSON")
        return None

    def refused(self, status: int, body: bytes) -> RouterError:
        message, error_type = _error_of(body, untyped="validation")
        return UpstreamRefusal(message, status=status, error_type=error_type)

    def failure(self, event: bytes) -> RouterError | None:
        if b'"error"' not in event:
            return None
        body = sse.payload(event)
        if parsed(body).get("error") is None:
            return None
        error = _in_band(body)
        return None if isinstance(error, UpstreamRefusal) else error

    def report(self, headers: Mapping[str, str], body: bytes) -> Report:
        """The header fields tell it all: the body is not looked at."""
        queue_ms = whole(headers.get("x-queue-time"))
        per_token_ms = whole(headers.get("x-time-per-token"))
        return Report(
            prompt_tokens=whole(headers.get("x-prompt-tokens")),
            generated_tokens=whole(headers.get("x-generated-tokens")),
            engine_wait_s=queue_ms / 1000 if queue_ms is not None else None,
            between_tokens_s=per_token_ms / 1000 if per_token_ms is not None else None,
        )

    def ending(self, path: str, last_events: bytes) -> Ending:
        last = [sse.payload(event) for event in sse.events(last_events)[-3:]]
        read = [(data, parsed(data)) for data in last]
        is_openai = path.startswith("/v1/") or any(_is_openai(*one) for one in read)
        return _openai_ending(read) if is_openai else _tgi_ending(read)

    def transcript(self, call: Call, info: EngineInfo, *, seeded: bool) -> Transcript:
        values = parsed(call.body)
        if "inputs" in values:
            return TokenTranscript(call, info, seeded=seeded)
        is_chat = "messages" in values
        if is_chat and info.version < CHATS_CONTINUED:
            raise NotResumable("TGI continues chats from 3.0 on")
        return ChunkTranscript(call, _manner(info.version, is_chat=is_chat), seeded=seeded)

    def counted(self, answer: bytes) -> int | None:
        """/tokenize answers with an array, /chat_tokenize with one inside an object."""
        try:
            told = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return None
        tokens = told.get("tokenize_response") if isinstance(told, dict) else told
        return len(tokens) if isinstance(tokens, list) else None


def _manner(version: tuple[int, ...], *, is_chat: bool) -> Manner:
    """How TGI of this version streams chunks."""
    tells = version >= (2, 3)
    return Manner(
        trims=True,
        token_each=True,
        finds_stops=False,
        ends_with_done=version >= (2, 2),
        has_usage_chunk=is_chat and version >= (3, 2),
        tells_usage=tells and not is_chat,
        default_max_tokens=DEFAULT_NEW_TOKENS if version < (3,) else None,
        count_prompt="/chat_tokenize" if is_chat else "/tokenize",
    )


def _tgi_ending(last: list[Read]) -> Ending:
    """The last event carries `generated_text`; details only if they were asked for.

    Of two error events (best_of on a stream) the first one says what is wrong.
    """
    for data, event in last:
        if event.get("error") is not None:
            return Ending(is_whole=True, error=_in_band(data))
    event = last[-1][1] if last else {}
    if event.get("generated_text") is None:
        return Ending(is_whole=False)
    details = an_object(event.get("details"))
    return Ending(
        is_whole=True,
        prompt_tokens=count(details, "input_length"),
        generated_tokens=count(details, "generated_tokens") or count(event, "index"),
        is_last_word=True,
    )


def _is_openai(data: bytes, chunk: dict[str, Any]) -> bool:
    """/invocations streams in the shape of the body it was asked with."""
    return data == b"[DONE]" or "choices" in chunk


def _openai_ending(last: list[Read]) -> Ending:
    """Whole with [DONE] (from 2.2.0), a finish reason, or the usage chunk after it."""
    is_whole, others = False, 0
    usage: Mapping[str, Any] = {}
    for data, chunk in last:
        if data == b"[DONE]":
            is_whole, others = True, others + 1
            continue
        if chunk.get("error") is not None:
            return Ending(is_whole=True, error=_in_band(data))
        usage = an_object(chunk.get("usage")) or usage
        choices = chunk.get("choices")
        choices = choices if isinstance(choices, list) else []
        others += not choices
        finished = [an_object(choice).get("finish_reason") for choice in choices]
        is_whole = is_whole or bool(usage) or any(finished)
    return Ending(
        is_whole=is_whole,
        prompt_tokens=count(usage, "prompt_tokens"),
        generated_tokens=count(usage, "completion_tokens"),
        other_events=others,
        is_last_word=bool(last) and last[-1][0] == b"[DONE]",
    )


def _in_band(body: bytes) -> RouterError:
    """An error event, as whose fault it is; from 2.4.1 /v1 streams send no type, only a text."""
    message, error_type = _error_of(body, untyped="validation")
    if error_type == "overloaded" or message.startswith(OVERLOAD_TEXT):
        return UpstreamShed("every replica answers that it is overloaded")
    if error_type in FAULTS:
        return UpstreamFault(message, error_type=error_type)
    if message.startswith(FAULT_TEXTS):
        return UpstreamFault(message)
    return UpstreamRefusal(message, status=422, error_type=error_type)


def _error_of(body: bytes, untyped: str = "generation") -> tuple[str, str]:
    """Message and type of an error body, TGI's shape or OpenAI's; anything else is shown cut."""
    error = parsed(body)
    found = error.get("error")
    if isinstance(found, dict):
        return str(found.get("message", "")), str(found.get("type") or untyped)
    if isinstance(found, str):
        return found, str(error.get("error_type") or untyped)
    text = body[:200].decode("utf-8", "replace").strip()
    return f"the replica failed: {text}" if text else "the replica failed", "generation"


def _version(text: object) -> tuple[int, ...]:
    """(3, 3, 5) of "3.3.5-dev0"; (0,) when there is none."""
    numbers = re.findall(r"\d+", str(text or "").split("-")[0])
    return tuple(map(int, numbers[:3])) or (0,)
