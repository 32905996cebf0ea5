"""OpenAI's chat and text completion routes."""

from typing import Any

import orjson

from router.apis import body as read
from router.call import Ask, NewTokens
from router.errors import InvalidRequest, RouterError

AFFINITY_CHARS = 256
CHARS_PER_TOKEN = 4
"""What a prompt of token ids counts as, which is asked for in characters."""
IMAGE_PARTS = (
    *("image_url", "input_image", "image", "image_pil", "image_embeds"),
    *("video_url", "audio_url", "input_audio", "input_file", "document"),
)
"""Parts of a message that are no text."""
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class OpenAiApi:
    def parse(self, path: str, body: bytes) -> Ask:
        values = read.load_object(body)
        return chat_ask(values) if path == "/v1/chat/completions" else completion_ask(values)

    def error_body(self, error: RouterError) -> bytes:
        return orjson.dumps({"error": _error(error)})

    def error_event(self, error: RouterError) -> bytes:
        return b"data: " + self.error_body(error) + b"\n\ndata: [DONE]\n\n"


def chat_ask(values: dict[str, Any]) -> Ask:
    messages = read.listed(values, "messages")
    if not messages:
        raise InvalidRequest("`messages` must hold at least one message")
    texts, images = _contents(messages)
    chars = sum(map(len, texts))
    return Ask(
        model=read.optional_text(values, "model"),
        stream=read.flag(values, "stream"),
        input_chars=max(1, chars),
        images=images,
        choices=max(1, read.whole(values, "n") or 1),
        new_tokens=_max_tokens(values),
        affinity="\0".join(texts)[:AFFINITY_CHARS],
    )


def completion_ask(values: dict[str, Any]) -> Ask:
    prompts = _prompts(values)
    choices = max(read.whole(values, key) or 1 for key in ("n", "best_of"))
    return Ask(
        model=read.optional_text(values, "model"),
        stream=read.flag(values, "stream"),
        sequences=len(prompts),
        choices=choices,
        input_chars=sum(map(_chars, prompts)),
        new_tokens=_max_tokens(values),
        affinity=str(prompts[0][:AFFINITY_CHARS]),
    )


def _max_tokens(values: dict[str, Any]) -> NewTokens:
    for key in ("max_completion_tokens", "max_tokens"):
        number = read.whole(values, key, low=-1)
        if number is not None:
            return number if number >= 0 else "rest"  # -1: llama-server's word for no limit
    return "absent"


def _prompts(values: dict[str, Any]) -> list[str | list[int]]:
    """Texts, or arrays of token ids; one that stands alone is a prompt as well."""
    prompt = values.get("prompt")
    given: list[Any] = prompt if isinstance(prompt, list) and not _is_tokens(prompt) else [prompt]
    are_texts = all(isinstance(item, str) for item in given)
    if not given or not (are_texts or all(map(_is_tokens, given))):
        raise InvalidRequest(
            "`prompt` must be a string, an array of token ids, or an array of either"
        )
    if not all(given):
        raise InvalidRequest("`prompt` cannot be empty")
    return given


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _chars(prompt: str | list[int]) -> int:
    return len(prompt) if isinstance(prompt, str) else CHARS_PER_TOKEN * len(prompt)


def _contents(messages: list[Any]) -> tuple[list[str], int]:
    """Texts of all messages, and how many images stand among them."""
    texts: list[str] = []
    images = 0
    for message in messages:
        if not isinstance(message, dict):
            raise InvalidRequest(f"`messages` must hold objects: found {read.kind(message)}")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                texts.append(text)
            images += isinstance(part, dict) and part.get("type") in IMAGE_PARTS
    return texts, images


def _error(error: RouterError) -> dict[str, Any]:
    """OpenAI's error object, with TGI's two fields beside it for clients of either."""
    return {
        "message": error.message,
        "type": ERROR_TYPES.get(error.status, "server_error"),
        "code": error.error_type,
        "param": None,
        "http_status_code": error.status,
    }
