"""Requests that together meet every route and status of TGI's documents.

Used against the simulator here, and meant for anything else that claims to answer like TGI.
"""

import json
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
GREEDY = {"max_new_tokens": 4, "details": True}
CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
COMPLETION = {"model": "tgi", "prompt": "Hello", "max_tokens": 4}


@dataclass(frozen=True)
class ContractCall:
    """One request and the status it must get; ``fault`` is armed before it."""

    name: str
    method: str
    path: str
    status: int = 200
    body: Any = None
    fault: dict[str, Any] | None = None
    since: str = "1.4.4"
    content_type: str = JSON
    raw: bytes | None = field(default=None, repr=False)

    @property
    def data(self) -> bytes | None:
        if self.raw is not None:
            return self.raw
        return None if self.body is None else json.dumps(self.body).encode()


def _post(name: str, path: str, body: Any, **more: Any) -> ContractCall:
    return ContractCall(name, "POST", path, body=body, **more)


def _inputs(text: str = "Hello there", **parameters: Any) -> dict[str, Any]:
    return {"inputs": text, "parameters": {**GREEDY, **parameters}}


def _generation(path: str, body: dict[str, Any]) -> list[ContractCall]:
    """A unary route in every state: good, refused, failed."""
    bad = {**body, "inputs": ""} if "inputs" in body else {**body, "top_p": 7}
    since = "3.3.5" if path in ("/invocations",) else "1.4.4"
    armed = {"error_next": 424, "overload": 429, "incomplete": 500}
    return [
        _post("good", path, body, since=since),
        _post("invalid", path, bad, status=422, since=since),
        *(
            _post(mode, path, body, status=status, fault={"mode": mode}, since=since)
            for mode, status in armed.items()
        ),
        _post("wrong shape", path, {}, status=422, since=since),
        ContractCall("bad JSON", "POST", path, status=400, raw=b"{", since=since),
        ContractCall(
            "not JSON", "POST", path, status=415, raw=b"{}", content_type="text/plain", since=since
        ),
    ]


def _stream(path: str, body: dict[str, Any]) -> list[ContractCall]:
    """A streaming route in every state: always 200, once it has begun."""
    streamed = {**body, "stream": True}
    bad = {**streamed, "inputs": ""} if "inputs" in body else {**streamed, "top_p": 7}
    since = "3.3.5" if path in ("/invocations",) else "1.4.4"
    modes = ("error_next", "overload", "die_mid_stream", "incomplete")
    return [
        _post("stream", path, streamed, since=since),
        _post("stream: invalid", path, bad, since=since),
        *(
            _post(f"stream: {mode}", path, streamed, fault={"mode": mode}, since=since)
            for mode in modes
        ),
    ]


SAMPLED = _inputs(
    best_of=2,
    do_sample=True,
    temperature=0.5,
    top_k=10,
    top_p=0.95,
    typical_p=0.95,
    repetition_penalty=1.03,
    top_n_tokens=5,
    decoder_input_details=True,
    truncate=5,
    watermark=True,
    stop=["never"],
    return_full_text=True,
    seed=None,
)
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}

CALLS: list[ContractCall] = [
    *_generation("/generate", _inputs()),
    *_generation("/", _inputs()),
    *_generation("/v1/chat/completions", CHAT),
    *_generation("/v1/completions", COMPLETION),
    *_generation("/invocations", _inputs()),
    *_stream("/generate_stream", _inputs()),
    *_stream("/", _inputs()),
    *_stream("/v1/chat/completions", CHAT),
    *_stream("/v1/completions", COMPLETION),
    *_stream("/invocations", _inputs()),
    _post("no details", "/generate", {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}),
    _post("everything", "/generate", SAMPLED),
    _post("top tokens", "/generate_stream", _inputs(top_n_tokens=2, seed=2**64 - 1, top_k=3)),
    _post("not streamable", "/generate_stream", _inputs(best_of=2)),
    _post("logprobs", "/v1/chat/completions", {**CHAT, **LOGPROBS}),
    _post("stream: logprobs", "/v1/chat/completions", {**CHAT, **LOGPROBS, "stream": True}),
    _post("stream: usage", "/v1/chat/completions", {**CHAT, **USAGE}, since="3.3.5"),
    _post("array", "/v1/completions", {**COMPLETION, "prompt": ["a", "b"]}, since="3.3.5"),
    _post("suffix", "/v1/completions", {**COMPLETION, "suffix": "x"}, status=422),
    _post("tokenize", "/tokenize", {"inputs": "Hello there"}),
    _post("tokenize: wrong shape", "/tokenize", {}, status=422),
    _post("chat tokenize", "/chat_tokenize", CHAT, since="3.3.5"),
    _post("chat as invocation", "/invocations", CHAT, since="3.3.5"),
    _post("completion as invocation", "/invocations", COMPLETION, since="3.3.5"),
    _post("vertex", "/vertex", {"instances": [_inputs()]}),
    _post("vertex: failed", "/vertex", {"instances": [{"inputs": ""}]}, status=500),
    ContractCall("info", "GET", "/info"),
    ContractCall("models", "GET", "/v1/models", since="3.3.5"),
    ContractCall("metrics", "GET", "/metrics"),
    ContractCall("docs", "GET", "/docs"),
    *(ContractCall("health", "GET", path) for path in ("/health", "/ping", "/")),
    ContractCall("unhealthy", "GET", "/health", status=503, fault={"mode": "unhealthy"}),
    ContractCall("too large", "POST", "/generate", status=413, raw=b" " * 2_100_000),
    ContractCall("wrong method", "GET", "/generate", status=405),
    ContractCall("unknown path", "GET", "/nowhere", status=404),
]


def calls_for(version: str) -> list[ContractCall]:
    """The calls that a version has routes for."""
    return [call for call in CALLS if call.since <= version]
