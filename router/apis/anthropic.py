"""Anthropic's Messages route, which vLLM and llama-server have as well: its errors."""

from typing import Any

import orjson

from router.apis.plain import PlainApi
from router.errors import RouterError

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicApi(PlainApi):
    """Its client drops events without a name, so an error in a stream has one."""

    def error_body(self, error: RouterError) -> bytes:
        return orjson.dumps(_error(error))

    def error_event(self, error: RouterError) -> bytes:
        return b"event: error\ndata: " + self.error_body(error) + b"\n\n"


def _error(error: RouterError) -> dict[str, Any]:
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    kind = ERROR_TYPES.get(error.status, fallback)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
