"""What the simulator can answer besides success, in TGI's words.

``ApiError`` is an inference error: JSON with ``error`` and ``error_type``, or an event of a
stream. ``HttpRejection`` comes from the HTTP layer before any handler: plain text and always a
real status, on stream routes too. ``StartRefused`` ends the process with exit code 1.
"""

from __future__ import annotations


class ApiError(Exception):
    """An error that TGI reports as JSON; ``counter`` is its label in tgi_request_failure."""

    def __init__(self, status: int, text: str, error_type: str, counter: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.error_type = error_type
        self.counter = counter


def overloaded() -> ApiError:
    return ApiError(429, "Model is overloaded", "overloaded", "overloaded")


def invalid(detail: str) -> ApiError:
    return ApiError(422, f"Input validation error: {detail}", "validation", "validation")


def generation_failed(message: str) -> ApiError:
    text = f"Request failed during generation: Server error: {message}"
    return ApiError(424, text, "generation", "generation")


def incomplete(*, is_stream: bool) -> ApiError:
    """The engine stopped without a last token; a stream's has words of its own from 3.0 on."""
    suffix = " stream" if is_stream else ""
    kind = "incomplete_generation" + suffix.replace(" ", "_")
    return ApiError(500, f"Incomplete generation{suffix}", kind, "incomplete")


def unhealthy() -> ApiError:
    return ApiError(503, "unhealthy", "healthcheck", "generation")


def tools_refused() -> ApiError:
    text = "Tool error: this is a simulator, it has no model that could call tools"
    return ApiError(422, text, "tool_error", "validation")


def suffix_refused() -> ApiError:
    text = "Suffix is not supported and can be achieved by preprocessing the prompt."
    return ApiError(422, text, "suffix not supported", "validation")


def batch_size_exceeded(limit: int) -> ApiError:
    text = f"Number of prompts exceeds the maximum allowed batch size of {limit}"
    return ApiError(422, text, "batch size exceeded", "validation")


class HttpRejection(Exception):
    """A refusal in plain text by the HTTP layer, before the request means anything."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def wrong_shape(detail: str) -> HttpRejection:
    prefix = "Failed to deserialize the JSON body into the target type"
    return HttpRejection(422, f"{prefix}: {detail}")


class StartRefused(Exception):
    """The engine cannot start with these settings; ``name`` is the launcher's error name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
