"""From chat messages to the prompt of the pretended model (pure).

The chat routes call it. The template is a plain one with a line for each role; from 3.0 on a
trailing assistant message is continued instead of answered, its end trimmed.
"""

from __future__ import annotations

from typing import Any

from launcher.simulator.era import Era
from launcher.simulator.errors import ApiError, wrong_shape


def templated(messages: Any, era: Era) -> str:
    """The prompt for these messages; raises ``HttpRejection`` for a wrong shape."""
    if not isinstance(messages, list):
        raise wrong_shape("messages: invalid type, expected a list of messages")
    turns = [_turn(message, index, era) for index, message in enumerate(messages)]
    if not turns:
        raise ApiError(422, "Template error: no messages", "template_error", "template")
    text = "\n".join(f"<|{role}|>\n{content}" for role, content in turns)
    if era.continue_assistant and turns[-1][0] == "assistant":
        return text.rstrip()
    return f"{text}\n<|assistant|>\n"


def _turn(message: Any, index: int, era: Era) -> tuple[str, str]:
    path = f"messages[{index}]"
    if not isinstance(message, dict):
        raise wrong_shape(f"{path}: invalid type, expected struct Message")
    role = message.get("role")
    if not isinstance(role, str):
        raise wrong_shape(f"{path}: missing field `role`")
    content = message.get("content")
    if isinstance(content, str):
        return role, content
    if isinstance(content, list) and era.content_chunks:
        return role, "".join(_chunk(chunk, path) for chunk in content)
    raise wrong_shape(f"{path}: missing field `content` or content of a wrong type")


def _chunk(chunk: Any, path: str) -> str:
    kind = chunk.get("type") if isinstance(chunk, dict) else None
    if kind == "text" and isinstance(text := chunk.get("text"), str):
        return text
    if kind == "image_url":
        return "![](image)"
    raise wrong_shape(f"{path}.content: expected chunks of type text or image_url")
