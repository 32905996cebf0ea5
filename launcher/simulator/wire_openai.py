"""Bodies and stream events of TGI's OpenAI-style routes (pure).

The chat and completions handlers call these; every difference between versions is a field of the
``Era``.
"""

from __future__ import annotations

import time
from typing import Any

from launcher.simulator.era import Era
from launcher.simulator.errors import ApiError
from launcher.simulator.generation import Sequence
from launcher.simulator.tokens import Token
from launcher.simulator.wire import event

DOCKER_LABEL = "simulator"


def fingerprint(era: Era) -> str:
    return f"{era.version}-{DOCKER_LABEL}"


def usage_of(sequences: list[Sequence]) -> dict[str, int]:
    prompt = sum(sequence.ask.input_tokens for sequence in sequences)
    completion = sum(len(sequence.tokens) for sequence in sequences)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _head(era: Era, model_id: str, object_name: str) -> dict[str, Any]:
    return {
        "id": "",
        "object": object_name,
        "created": int(time.time()),
        "model": model_id,
        "system_fingerprint": fingerprint(era),
    }


def _reason(sequence: Sequence, eos_name: str) -> str | None:
    reason = sequence.finish_reason
    return eos_name if reason == "eos_token" else reason


def chat_body(era: Era, model_id: str, sequence: Sequence, logprobs: bool) -> dict[str, Any]:
    """The unary chat answer."""
    shown = [_logprob(token, ranked) for token, ranked in _with_ranks(sequence)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": sequence.text},
        "logprobs": {"content": shown} if logprobs else None,
        "finish_reason": _reason(sequence, era.chat_eos_name),
    }
    head = _head(era, model_id, era.chat_object)
    return {**head, "choices": [choice], "usage": usage_of([sequence])}


def completion_body(era: Era, model_id: str, sequences: list[Sequence]) -> dict[str, Any]:
    """The unary completions answer, one choice for each prompt."""
    choices = [
        {
            "index": index,
            "text": sequence.text,
            "logprobs": None,
            "finish_reason": _reason(sequence, era.chat_eos_name),
        }
        for index, sequence in enumerate(sequences)
    ]
    head = _head(era, model_id, "text_completion")
    return {**head, "choices": choices, "usage": usage_of(sequences)}


def _with_ranks(sequence: Sequence) -> list[tuple[Token, list[Token]]]:
    ranks = sequence.top_tokens or [[] for _ in sequence.tokens]
    return list(zip(sequence.tokens, ranks, strict=True))


def _logprob(token: Token, ranked: list[Token]) -> dict[str, Any]:
    others = [{"token": other.text, "logprob": other.logprob} for other in ranked]
    return {"token": token.text, "logprob": token.logprob, "top_logprobs": others}


class _OpenAiStream:
    """What chat and completions streams share: errors and the end mark."""

    def __init__(self, era: Era, model_id: str) -> None:
        self._era = era
        self._model_id = model_id

    def error(self, error: ApiError) -> bytes:
        if self._era.v1_stream_errors == "flat":
            return event(self._era, {"error": error.text, "error_type": error.error_type})
        # TGI writes 422 here whatever went wrong, overload included.
        return event(self._era, {"error": {"message": error.text, "http_status_code": 422}})

    def end(self) -> bytes:
        return self._era.sse_prefix + b"[DONE]\n\n" if self._era.v1_done else b""


class ChatStream(_OpenAiStream):
    """Chunks of a streamed chat; each repeats the role, as TGI's do."""

    def __init__(self, era: Era, model_id: str, include_usage: bool, logprobs: bool) -> None:
        super().__init__(era, model_id)
        self._include_usage = include_usage and era.usage_option != "none"
        self._logprobs = logprobs

    def token(self, sequence: Sequence, token: Token) -> bytes:
        is_last = sequence.finish_reason is not None
        logprobs = None
        if self._logprobs:
            ranked = sequence.ranked() if sequence.ask.parameters.top_n_tokens else []
            logprobs = {"content": [_logprob(token, ranked)]}
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": "" if token.special else token.text},
            "logprobs": logprobs,
            "finish_reason": _reason(sequence, self._era.chat_eos_name) if is_last else None,
        }
        rides = is_last and self._include_usage and self._era.usage_option == "ride"
        data = self._chunk([choice], usage_of([sequence]) if rides else None)
        if is_last and self._include_usage and self._era.usage_option == "extra":
            data += self._chunk([], usage_of([sequence]))
        return data

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        value = _head(self._era, self._model_id, self._era.chat_chunk_object)
        value["choices"] = choices
        if self._era.usage_in_chunks:
            value["usage"] = usage
        return event(self._era, value)


class CompletionStream(_OpenAiStream):
    """Chunks of streamed completions; ``index`` tells the prompts apart."""

    def __init__(self, era: Era, model_id: str, index: int) -> None:
        super().__init__(era, model_id)
        self._index = index

    def token(self, sequence: Sequence, token: Token) -> bytes:
        is_last = sequence.finish_reason is not None
        value = _head(self._era, self._model_id, "text_completion")
        value["choices"] = [
            {
                "index": self._index,
                "text": "" if token.special else token.text,
                "logprobs": None,
                # Streamed completions keep TGI's own name for the end of the text.
                "finish_reason": sequence.finish_reason if is_last else "",
            }
        ]
        if is_last and self._era.usage_in_chunks:
            value["usage"] = usage_of([sequence])
        return event(self._era, value)
