"""Routes that are passed on as they are: what they cost is read, all else is the engine's to judge.

Embeddings, reranking, Responses, Anthropic's messages, llama-server's own: engines have them in
several shapes, and newer ones every few months. So nothing here is refused but what cannot be
routed; a field of an unknown shape costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from router.apis import body as read
from router.apis.openai import AFFINITY_CHARS, CHARS_PER_TOKEN, IMAGE_PARTS, OpenAiApi
from router.call import Ask, NewTokens


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a route's body says what routing depends on."""

    texts: tuple[str, ...]
    """Fields that make up the prompt, in the order in which the engine reads them."""
    many: tuple[str, ...] = ()
    """Of those, the ones that hold an array of prompts, each run for itself."""
    length: str | None = None
    """Field with the most tokens to generate; None: it generates nothing."""


SHAPES: dict[str, Shape] = {
    "/v1/embeddings": Shape(("input", "messages"), many=("input",)),
    "/v1/responses": Shape(("instructions", "input"), length="max_output_tokens"),
    "/v1/messages": Shape(("system", "messages"), length="max_tokens"),
    "/v1/messages/count_tokens": Shape(("system", "messages")),
    "/v1/rerank": Shape(("query", "documents"), many=("documents",)),
    "/v1/score": Shape(
        ("text_1", "queries", "text_2", "documents"), many=("text_1", "text_2", "documents")
    ),
    "/completion": Shape(("prompt",), many=("prompt",), length="n_predict"),
    "/infill": Shape(("input_extra", "input_prefix", "prompt", "input_suffix"), length="n_predict"),
    "/tokenize": Shape(("prompt", "messages", "content")),
    "/detokenize": Shape(("tokens",)),
}
TEXT_KEYS = ("text", "content", "input", "output", "arguments", "prompt_string")
"""Keys of nested objects under which a prompt's text stands."""
MAX_DEPTH = 16
"""Nothing that is meant nests deeper, and what is not meant must not cost a stack."""


class PlainApi(OpenAiApi):
    """Errors in OpenAI's shape, as these engines tell them on all their routes."""

    def parse(self, path: str, body: bytes) -> Ask:
        return plain_ask(path, read.load_object(body))


def plain_ask(path: str, values: dict[str, Any]) -> Ask:
    shape = SHAPES[path]
    found = [piece for key in shape.texts for piece in _pieces(values.get(key))]
    texts = [piece for piece in found if piece is not None]
    sequences = max((_prompts(values.get(key)) for key in shape.many), default=1)
    return Ask(
        model=read.optional_text(values, "model"),
        stream=read.flag(values, "stream"),
        sequences=max(1, sequences),
        input_chars=max(1, sum(map(len, texts)) + CHARS_PER_TOKEN * _token_ids(values, shape)),
        images=len(found) - len(texts),
        new_tokens=_length(values, shape),
        affinity="\0".join(texts)[:AFFINITY_CHARS],
    )


def _pieces(value: Any, depth: int = 0) -> Iterator[str | None]:
    """The texts in a field, whatever its shape; None for an image."""
    if isinstance(value, str):
        yield value
    elif depth > MAX_DEPTH:
        return
    elif isinstance(value, list):
        for item in value:
            yield from _pieces(item, depth + 1)
    elif isinstance(value, dict) and value.get("type") in IMAGE_PARTS:
        yield None
    elif isinstance(value, dict):
        for key in TEXT_KEYS:
            yield from _pieces(value.get(key), depth + 1)


def _prompts(value: Any) -> int:
    """How many prompts a field holds; an array of token ids is one."""
    is_tokens = isinstance(value, list) and any(isinstance(item, int) for item in value)
    return len(value) if isinstance(value, list) and not is_tokens else 1


def _token_ids(values: dict[str, Any], shape: Shape) -> int:
    given = (values.get(key) for key in shape.texts)
    arrays = [value for value in given if isinstance(value, list)]
    arrays += [inner for outer in arrays for inner in outer if isinstance(inner, list)]
    return sum(isinstance(item, int) for array in arrays for item in array)


def _length(values: dict[str, Any], shape: Shape) -> NewTokens:
    """-1 is llama-server's word for no limit."""
    if shape.length is None:
        return 0
    number = values.get(shape.length)
    is_count = isinstance(number, int) and not isinstance(number, bool)
    return number if is_count and number is not None and 0 <= number < 2**32 else "absent"
