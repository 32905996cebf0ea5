"""TGI's own JSON bodies and stream events, byte for byte, from sequences (pure).

The reply writers call these; field order is TGI's. Nothing here looks at versions: what differs
is a value of the ``Era`` handed in.
"""

from __future__ import annotations

from typing import Any

import orjson

from launcher.simulator.era import Era
from launcher.simulator.errors import ApiError
from launcher.simulator.generation import Sequence
from launcher.simulator.parameters import Ask
from launcher.simulator.tokens import Token, TokenModel

COMMENT = b":\n\n"


def event(era: Era, value: Any) -> bytes:
    """One server-sent event with a JSON payload."""
    return era.sse_prefix + orjson.dumps(value) + b"\n\n"


def error_body(error: ApiError) -> bytes:
    return orjson.dumps({"error": error.text, "error_type": error.error_type})


def token_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
    }


class TgiStream:
    """Events of ``/generate_stream`` and of ``POST /`` with ``stream: true``."""

    def __init__(self, era: Era, full_text: bool) -> None:
        self._era = era
        self._full_text = full_text

    def token(self, sequence: Sequence, token: Token) -> bytes:
        parameters = sequence.ask.parameters
        value: dict[str, Any] = {"index": len(sequence.tokens), "token": token_json(token)}
        if parameters.top_n_tokens:
            value["top_tokens"] = [token_json(other) for other in sequence.ranked()]
        is_last = sequence.finish_reason is not None
        value["generated_text"] = full_text(sequence, self._full_text) if is_last else None
        value["details"] = self._details(sequence) if is_last and parameters.details else None
        return event(self._era, value)

    def error(self, error: ApiError) -> bytes:
        return event(self._era, {"error": error.text, "error_type": error.error_type})

    def end(self) -> bytes:
        return b""

    def _details(self, sequence: Sequence) -> dict[str, Any]:
        details: dict[str, Any] = {
            "finish_reason": sequence.finish_reason,
            "generated_tokens": len(sequence.tokens),
            "seed": sequence.seed,
        }
        if self._era.stream_input_length:
            details["input_length"] = sequence.ask.input_tokens
        return details


def full_text(sequence: Sequence, with_prompt: bool) -> str:
    return sequence.ask.prompt + sequence.text if with_prompt else sequence.text


class UnaryBody:
    """The answer of ``/generate``; ``POST /`` wraps it in a list."""

    def __init__(self, model: TokenModel, with_prefill: bool) -> None:
        self._model = model
        self._with_prefill = with_prefill

    def generated(
        self, best: Sequence, others: list[Sequence], with_prompt: bool
    ) -> dict[str, Any]:
        """One answer from the winning sequence and, for ``best_of``, its losers."""
        body: dict[str, Any] = {"generated_text": full_text(best, with_prompt)}
        parameters = best.ask.parameters
        if parameters.details or parameters.decoder_input_details:
            details = self._details(best)
            if others:
                top = details.pop("top_tokens", None)
                details["best_of_sequences"] = [
                    {"generated_text": full_text(other, with_prompt), **self._details(other)}
                    for other in others
                ]
                if top is not None:
                    details["top_tokens"] = top
            body["details"] = details
        return body

    def _details(self, sequence: Sequence) -> dict[str, Any]:
        ask = sequence.ask
        details: dict[str, Any] = {
            "finish_reason": sequence.finish_reason,
            "generated_tokens": len(sequence.tokens),
            "seed": sequence.seed,
            "prefill": self._prefill(ask) if ask.parameters.decoder_input_details else [],
            "tokens": [token_json(token) for token in sequence.tokens],
        }
        if sequence.top_tokens:
            details["top_tokens"] = [
                [token_json(token) for token in ranked] for ranked in sequence.top_tokens
            ]
        return details

    def _prefill(self, ask: Ask) -> list[dict[str, Any]]:
        if not self._with_prefill:
            return []
        return [
            {"id": piece.id, "text": piece.text, "logprob": _prefill_logprob(index, piece.id)}
            for index, piece in enumerate(self._model.pieces(ask.context))
        ]


def _prefill_logprob(index: int, token_id: int) -> float | None:
    """The first token has nothing before it to be likely after."""
    return None if index == 0 else -((token_id % 4096) + 1) / 512
