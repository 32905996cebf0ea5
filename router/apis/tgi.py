"""TGI's own routes: /generate, /generate_stream, / and its wrappers for SageMaker and Vertex.

`POST /` takes `stream` and, unlike /generate, is what the official clients call. `/invocations`
takes any of TGI's and OpenAI's bodies, told apart by their fields.
"""

import re
from typing import Any

import orjson

from router.apis import body as read
from router.apis.openai import chat_ask, completion_ask
from router.apis.plain import SHAPES, plain_ask
from router.call import Ask, NewTokens
from router.errors import InvalidRequest, RouterError

AFFINITY_CHARS = 256
IMAGE = re.compile(r"!\[[^\]]*\]\((?:data:|https?:)[^)]*\)")
"""How TGI's multimodal models take an image inside a prompt."""


class TgiApi:
    def parse(self, path: str, body: bytes) -> Ask:
        values = read.load_object(body)
        if path in ("/invocations", "/chat_tokenize") and "inputs" not in values:
            return _openai_shaped(values, path)
        if path == "/tokenize" and "inputs" not in values and _is_another_engines(values):
            return plain_ask(path, values)
        if path == "/vertex":
            return _vertex(values)
        stream = path == "/generate_stream" or (path != "/generate" and read.flag(values, "stream"))
        return generate_ask(values, stream=stream)

    def error_body(self, error: RouterError) -> bytes:
        return orjson.dumps({"error": error.message, "error_type": error.error_type})

    def error_event(self, error: RouterError) -> bytes:
        return b"data: " + self.error_body(error) + b"\n\n"


def generate_ask(values: dict[str, Any], *, stream: bool) -> Ask:
    inputs = read.text(values, "inputs")
    if not inputs:
        raise InvalidRequest("Input validation error: `inputs` cannot be empty")
    parameters = read.mapping(values, "parameters") or {}
    sequences = max(1, read.whole(parameters, "best_of", high=1024) or 1)
    images = IMAGE.findall(inputs) if "](" in inputs else []
    return Ask(
        model=read.optional_text(values, "model"),
        stream=stream,
        sequences=sequences,
        input_chars=sequences * (len(inputs) - sum(map(len, images))),
        images=sequences * len(images),
        new_tokens=new_tokens(parameters, "max_new_tokens"),
        truncate_tokens=read.whole(parameters, "truncate", high=2**63),
        affinity=inputs[:AFFINITY_CHARS],
    )


def new_tokens(values: dict[str, Any], key: str) -> NewTokens:
    """Absent and null mean different things to TGI below 3.0: they are kept apart."""
    number = read.whole(values, key)
    if number is not None:
        return number
    return "rest" if key in values else "absent"


def _is_another_engines(values: dict[str, Any]) -> bool:
    """vLLM's `prompt` or `messages`, llama-server's `content`."""
    return any(key in values for key in SHAPES["/tokenize"].texts)


def _openai_shaped(values: dict[str, Any], path: str) -> Ask:
    if "messages" in values:
        return chat_ask(values)
    if "prompt" in values:
        return completion_ask(values)
    wanted = "`inputs`, `messages` or `prompt`" if path == "/invocations" else "`messages`"
    raise InvalidRequest(f"the body has no {wanted}")


def _vertex(values: dict[str, Any]) -> Ask:
    """A list of prompts, all run at once."""
    instances = read.listed(values, "instances")
    if not instances or not all(isinstance(item, dict) for item in instances):
        raise InvalidRequest("`instances` must be an array of at least one object")
    asks = [generate_ask(item, stream=False) for item in instances]
    longest = max((ask.new_tokens for ask in asks if isinstance(ask.new_tokens, int)), default=None)
    return Ask(
        instances=len(asks),
        sequences=max(ask.sequences for ask in asks),
        input_chars=sum(ask.input_chars for ask in asks),
        new_tokens=asks[0].new_tokens if longest is None else longest,
        affinity=asks[0].affinity,
    )
