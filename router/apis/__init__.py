"""What clients speak: which path belongs to which API."""

from router.apis.anthropic import AnthropicApi
from router.apis.base import Api
from router.apis.openai import OpenAiApi
from router.apis.plain import PlainApi
from router.apis.tgi import TgiApi

TGI = TgiApi()
OPENAI = OpenAiApi()
PLAIN = PlainApi()
ANTHROPIC = AnthropicApi()

GENERATION_APIS: dict[str, Api] = {
    "/": TGI,
    "/generate": TGI,
    "/generate_stream": TGI,
    "/invocations": TGI,
    "/vertex": TGI,
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/responses": PLAIN,
    "/v1/messages": ANTHROPIC,
    "/v1/embeddings": PLAIN,
    "/v1/rerank": PLAIN,
    "/v1/score": PLAIN,
    "/completion": PLAIN,
    "/infill": PLAIN,
}
"""Routes that run the model: each takes a lease. Which engines have one, their dialect says."""

TOKENIZER_APIS: dict[str, Api] = {
    "/tokenize": TGI,
    "/chat_tokenize": TGI,
    "/detokenize": PLAIN,
    "/v1/messages/count_tokens": ANTHROPIC,
}
"""Routes that only count tokens: cheap, and no engine queues them, so no lease is needed."""

__all__ = ["GENERATION_APIS", "TOKENIZER_APIS", "Api"]
