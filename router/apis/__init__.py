"""What clients speak: which path belongs to which API."""

from router.apis.base import Api
from router.apis.openai import OpenAiApi
from router.apis.tgi import TgiApi

TGI = TgiApi()
OPENAI = OpenAiApi()

GENERATION_APIS: dict[str, Api] = {
    "/": TGI,
    "/generate": TGI,
    "/generate_stream": TGI,
    "/invocations": TGI,
    "/vertex": TGI,
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
}
"""Routes that generate: each takes a lease."""

TOKENIZER_APIS: dict[str, Api] = {"/tokenize": TGI, "/chat_tokenize": TGI}
"""Routes that only count tokens: cheap, and TGI does not queue them, so no lease is needed."""

__all__ = ["GENERATION_APIS", "TOKENIZER_APIS", "Api"]
