"""Engines with OpenAI's HTTP API: vLLM, Aphrodite (a fork of it) and llama.cpp's llama-server.

Which of them it is shows in what they answer, release by release: llama-server tells its slots on
/props, the others how many tokens their cache holds on /metrics. The first takes a slot per
sequence; slots may share one cache, and when that is full every running call fails, so a call holds
all that it might produce. The others take pages as a sequence grows and preempt, so there it holds
what it is likely to; how many run at a time (`--max-num-seqs`) they do not say.

None of them sends a stream without a last word ([DONE], or its route's own), so one that ends
without it is broken. What is wrong with a call is a status of its own, as it is checked before the
stream begins; so an error inside a stream is the engine's, even where vLLM types it
`BadRequestError` (as it does any exception, up to 0.10).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from router import sse
from router.call import Ask, Call, Cost
from router.dialects.base import Ending, EngineInfo
from router.dialects.chunks import ChunkTranscript, Manner
from router.dialects.fields import an_object, count, looks_whole, objects, parsed
from router.errors import (
    ReplicaLoading,
    RouterError,
    UpstreamBroken,
    UpstreamFault,
    UpstreamRefusal,
    UpstreamShed,
)
from router.estimates import Estimates
from router.lease import Report
from router.resume import NotResumable, Transcript
from router.room import Capacity

ROUTES = frozenset(
    (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/v1/rerank", "/v1/score", "/completion", "/infill"),
        *("/tokenize", "/detokenize", "/v1/messages/count_tokens"),
    )
)
"""What any of the three has; one that an engine lacks it answers with its own 404."""
LARGEST_BATCH = 1024
"""vLLM's largest default of --max-num-seqs. No permits are told: the engine's queue has no end."""
USUAL_BATCH = 256
"""vLLM's usual default, for an engine that shows no gauges (--disable-log-stats)."""
SHARING_SLOTS = 4
"""So many slots llama-server has when --parallel is not given; then all share the context that
/props tells of each. Where that is not so, `max_tokens` of the replica says it."""
OPEN_MARGIN = 4
"""Times the usual length: what an answer of unsaid length might need."""
IMAGE_TOKENS = 1500
"""What an image is counted as: never the length of its base64."""
MAX_NEW_TOKENS = 65_536
"""Longer answers than this nobody means."""
MAX_READ_BYTES = 256 * 1024
"""A whole reply larger than this is embeddings: not parsed for its counts."""
LAST_EVENTS = 4
"""Token, usage, last word, [DONE]: what may stand at the end of a stream."""

CACHE = re.compile(rb"^(?:vllm|aphrodite):cache_config_info\{([^\n]*)\}", re.MULTILINE)
BLOCKS = re.compile(rb'(?:^|,)num_gpu_blocks="(\d{1,12})"')
BLOCK_SIZE = re.compile(rb'(?:^|,)block_size="(\d{1,6})"')
QUEUED = re.compile(
    rb"^(?:(?:vllm|aphrodite):num_requests_(?:waiting|swapped)|llamacpp:requests_deferred)"
    rb"(?:\{[^\n]*\})? (\S+)",
    re.MULTILINE,
)
"""One line per engine behind the endpoint. Swapped calls (V0) wait as well."""

CONTINUED = ("/v1/chat/completions", "/v1/completions")
VLLM = Manner(trims=True, token_each=False, is_told_to_continue=True)
LLAMA = Manner(trims=False, token_each=False, may_echo=True)
"""How the two stream chunks; Aphrodite is as vLLM."""

LAST_TYPES = ("message_stop", "response.completed", "response.incomplete", "response.cancelled")
"""How /v1/messages and /v1/responses end, in place of [DONE] or before it."""
ERROR_TYPES = ("error", "response.failed")
REFUSALS = {
    *("invalid_request_error", "exceed_context_size_error", "not_supported_error"),
    *("authentication_error", "permission_error", "not_found_error"),
}
"""llama-server's types for what is the call's own fault; early builds send them in-band."""


class OpenAiDialect:
    name = "openai"
    routes = ROUTES
    health_path = "/health"
    info_paths: tuple[str, ...] = ("/v1/models", "/props", "/metrics")
    metrics_path = "/metrics"

    def info(self, pages: Mapping[str, bytes]) -> EngineInfo:
        """Any of the pages may be missing: /props is llama-server's, /metrics may be off."""
        models = objects(parsed(pages.get("/v1/models", b"")).get("data"))
        names = [name for model in models for name in _names(model)]
        props = parsed(pages.get("/props", b""))
        slots = count(props, "total_slots")
        slot = an_object(props.get("default_generation_settings"))  # n_ctx is one slot's part
        longest = next(filter(None, (count(model, "max_model_len") for model in models)), None)
        longest = longest or count(slot, "n_ctx")
        metrics = pages.get("/metrics", b"")
        capacity = _slots(slots, longest) if slots else _pages(metrics)
        return EngineInfo(
            capacity=capacity,
            model_id=names[0] if names else None,
            aliases=tuple(name for name in dict.fromkeys(names) if name != names[0]),
            max_total_tokens=longest,
            max_sequences=slots or LARGEST_BATCH,
            preempts=slots is None,
            told=_told(names, longest, slots, capacity.tokens),
        )

    def engine_queue(self, metrics: bytes) -> int | None:
        """An engine started without gauges says nothing."""
        found = QUEUED.findall(metrics)
        try:
            return int(sum(map(float, found))) if found else None
        except (ValueError, OverflowError):
            return None

    def one_token(self, info: EngineInfo) -> tuple[str, bytes]:
        """One that only embeds has no completions, and says so."""
        body = {"prompt": "Hello", "max_tokens": 1}
        named = body if info.model_id is None else {"model": info.model_id, **body}
        return "/v1/completions", orjson.dumps(named)

    def cost(self, ask: Ask, info: EngineInfo, estimates: Estimates) -> Cost:
        prompts = ask.sequences * ask.instances
        input_tokens = estimates.input_tokens(ask.input_chars) + IMAGE_TOKENS * ask.images
        longest = info.max_total_tokens
        each = max(1, input_tokens // prompts)
        if longest is not None and each > longest:  # refused at once: it holds no room
            each, input_tokens = longest, longest * prompts
        rest = MAX_NEW_TOKENS if longest is None else max(1, longest - each)
        expected = min(_expected(ask, estimates), rest)
        held = expected if info.preempts else min(_longest_answer(ask, estimates), rest)
        # Answers to one prompt share its pages.
        sequences = min(prompts * ask.choices, info.max_sequences)
        return Cost(
            requests=sequences,
            input_tokens=input_tokens,
            reserve_tokens=input_tokens + sequences * held,
            expected_tokens=sequences * expected,
        )

    def refusal(
        self, status: int, headers: Mapping[str, str], body: bytes, path: str = ""
    ) -> RouterError | None:
        """
        1. 503 of a server that loads its model: not there yet;
        2. 429 and other 503 (vLLM's --max-num-queued-reqs): full; ask elsewhere;
        3. 501 (switched off in this engine) and 4xx: the client's to see, as sent;
        4. other 5xx: it failed, or the call made it fail;
        5. a success whose JSON is cut short: broken.
        """
        if status in (429, 503):
            told = _told_error(body)
            return ReplicaLoading("the replica loads its model") if told.is_loading else _full()
        if status == 501 or 400 <= status < 500:
            return None
        if status >= 500:
            told = _told_error(body)
            return UpstreamFault(told.message, status=status, error_type=told.kind or "generation")
        if status != 200 or not looks_whole(headers, body):
            return UpstreamBroken(f"the replica answered {status} with a body that is no JSON")
        return None

    def refused(self, status: int, body: bytes) -> RouterError:
        told = _told_error(body)
        kind = told.kind or "validation"
        return UpstreamRefusal(told.message, status=status, error_type=kind)

    def failure(self, event: bytes) -> RouterError | None:
        if b"error" not in event:
            return None
        data = _data(event)
        if not _is_error(parsed(data)):
            return None
        error = _in_band(data)
        return None if isinstance(error, UpstreamRefusal) else error

    def report(self, headers: Mapping[str, str], body: bytes) -> Report:
        reply = parsed(body) if len(body) <= MAX_READ_BYTES else {}
        return Report(
            prompt_tokens=_prompt_tokens(reply),
            generated_tokens=_generated_tokens(reply),
            between_tokens_s=_between_tokens_s(reply),
        )

    def ending(self, path: str, last_events: bytes) -> Ending:
        is_whole = has_done = False
        prompt: int | None = None
        generated: int | None = None
        others = int(path == "/v1/chat/completions")  # its first event opens the message
        for data in [_data(event) for event in sse.events(last_events)[-LAST_EVENTS:]]:
            event = parsed(data)
            if _is_error(event):
                return Ending(is_whole=True, error=_in_band(data))
            prompt = _prompt_tokens(event) or prompt
            generated = _generated_tokens(event) or generated
            others += not _has_token(event)
            has_done = data == b"[DONE]"
            is_whole = is_whole or has_done or _is_last(event)
        return Ending(is_whole, None, prompt, generated, others, is_last_word=has_done)

    def transcript(self, call: Call, info: EngineInfo, *, seeded: bool) -> Transcript:
        if call.route not in CONTINUED:
            raise NotResumable(f"streams of {call.route} cannot be continued")
        return ChunkTranscript(call, VLLM if info.preempts else LLAMA, seeded=seeded)

    def counted(self, answer: bytes) -> int | None:
        """vLLM's /tokenize says how many, llama-server's only which."""
        told = parsed(answer)
        tokens = told.get("tokens")
        return count(told, "count") or (len(tokens) if isinstance(tokens, list) else None)


# ---- what it tells ----


def _names(model: dict[str, Any]) -> list[str]:
    """Its id, and llama-server's further --alias."""
    aliases = model.get("aliases")
    given = [model.get("id"), *(aliases if isinstance(aliases, list) else [])]
    return [name for name in given if isinstance(name, str)]


def _slots(slots: int, context: int | None) -> Capacity:
    """llama-server: a sequence takes a slot, whatever its length, and a part of what is shared."""
    return Capacity(requests=slots, batch=slots, tokens=context if slots == SHARING_SLOTS else None)


def _pages(metrics: bytes) -> Capacity:
    """vLLM: tokens are told; how many calls at a time has to be learned from the gauge."""
    tokens = 0
    for labels in CACHE.findall(metrics):
        blocks, size = BLOCKS.search(labels), BLOCK_SIZE.search(labels)
        tokens += int(blocks[1]) * int(size[1]) if blocks and size else 0
    return Capacity(
        requests=LARGEST_BATCH,
        tokens=tokens or None,
        batch=None if QUEUED.search(metrics) else USUAL_BATCH,
        hides_batch=True,
    )


def _told(
    names: list[str], longest: int | None, slots: int | None, tokens: int | None
) -> dict[str, Any]:
    told = {
        "model_id": names[0] if names else None,
        "max_total_tokens": longest,
        "max_concurrent_requests": slots,
        "max_batch_total_tokens": tokens,
    }
    return {key: value for key, value in told.items() if value is not None}


def _expected(ask: Ask, estimates: Estimates) -> int:
    """Tokens each answer is likely to get."""
    if not isinstance(ask.new_tokens, int):
        return max(1, round(estimates.open_tokens))
    return max(1, round(min(ask.new_tokens, MAX_NEW_TOKENS) * estimates.output_share))


def _longest_answer(ask: Ask, estimates: Estimates) -> int:
    if not isinstance(ask.new_tokens, int):
        return max(1, round(OPEN_MARGIN * estimates.open_tokens))
    return max(1, min(ask.new_tokens, MAX_NEW_TOKENS))


# ---- errors ----


@dataclass(frozen=True, slots=True)
class _Error:
    """An error in the engine's words."""

    message: str
    kind: str = ""
    code: int = 0
    """The HTTP status that it would have; 0 where that is not said."""

    @property
    def is_loading(self) -> bool:
        return self.kind == "unavailable_error" or "loading model" in self.message.lower()


def _told_error(body: bytes) -> _Error:
    """Flat (up to vLLM 0.9), nested, or nested twice; FastAPI's; else the text, cut."""
    error = parsed(body)
    while isinstance(error.get("error"), dict):
        error = error["error"]
    if not error and body.strip():
        text = body[:200].decode("utf-8", "replace").strip()
        return _Error(f"the replica failed: {text}")
    texts = (error.get(key) for key in ("message", "error", "detail", "status"))
    message = next((text for text in texts if isinstance(text, str)), "the replica failed")
    kind, code = error.get("type"), error.get("code")
    return _Error(
        message,
        kind if isinstance(kind, str) else "",
        code if isinstance(code, int) else 0,
    )


def _is_error(event: dict[str, Any]) -> bool:
    return (
        event.get("error") is not None
        or event.get("object") == "error"
        or event.get("type") in ERROR_TYPES
    )


def _in_band(data: bytes) -> RouterError:
    """An error event, as whose fault it is."""
    told = _told_error(data)
    if told.is_loading:
        return ReplicaLoading("the replica loads its model")
    if told.code in (429, 503):
        return _full()
    if told.kind in REFUSALS:
        status = told.code if 400 <= told.code < 500 else 400
        return UpstreamRefusal(told.message, status=status, error_type=told.kind)
    status = told.code if 500 <= told.code < 600 else 502
    return UpstreamFault(told.message, status=status, error_type=told.kind or "generation")


def _full() -> RouterError:
    return UpstreamShed("every replica answers that it is overloaded")


# ---- events ----


def _data(event: bytes) -> bytes:
    """Its data; llama-server of early 2025 sends errors in a field `error` of their own."""
    if event.startswith(b"error:"):
        return b'{"error":%b}' % event[6:].strip()
    return sse.payload(event)


def _is_last(event: dict[str, Any]) -> bool:
    """`stop` is /completion's and /infill's."""
    return event.get("stop") is True or event.get("type") in LAST_TYPES


def _has_token(event: dict[str, Any]) -> bool:
    if "choices" not in event:
        is_delta = str(event.get("type", "")).endswith("delta")
        return is_delta or bool(event.get("content"))
    return any(
        choice.get("text")
        or any(value for key, value in an_object(choice.get("delta")).items() if key != "role")
        for choice in objects(event["choices"])
    )


def _between_tokens_s(reply: dict[str, Any]) -> float | None:
    """llama-server tells its own pace."""
    each_ms = an_object(reply.get("timings")).get("predicted_per_token_ms")
    is_time = isinstance(each_ms, int | float) and 0 < each_ms < 1e6
    return each_ms / 1000 if is_time and each_ms is not None else None


def _prompt_tokens(reply: dict[str, Any]) -> int | None:
    """Anthropic's `input_tokens` and llama-server's `prompt_n` leave out what was cached."""
    usage, timings = _usage(reply), an_object(reply.get("timings"))
    if told := count(usage, "prompt_tokens") or count(usage, "input_tokens"):
        return told + (count(usage, "cache_read_input_tokens") or 0)
    if told := count(timings, "prompt_n"):
        return told + (count(timings, "cache_n") or 0)
    return count(reply, "tokens_evaluated")


def _generated_tokens(reply: dict[str, Any]) -> int | None:
    usage, timings = _usage(reply), an_object(reply.get("timings"))
    told = count(usage, "completion_tokens") or count(usage, "output_tokens")
    return told or count(timings, "predicted_n") or count(reply, "tokens_predicted")


def _usage(reply: dict[str, Any]) -> dict[str, Any]:
    """Of a reply, a chunk, or the last event of /v1/responses."""
    return an_object(reply.get("usage") or an_object(reply.get("response")).get("usage"))
