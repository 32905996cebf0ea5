"""What vLLM and llama-server say, for scripted replicas: their pages, and answers of each shape."""

import json

CHAT = {"model": "served", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
STREAM = {**CHAT, "stream": True}
PATH = "/v1/chat/completions"
UNAVAILABLE = "503 Service Unavailable"
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
QUEUE_FULL = {"error": {"message": "queue is full", "type": "ServiceUnavailable", "code": 503}}
FAULT = {"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}}
DONE = b"data: [DONE]\n\n"


def as_json(value, status="200 OK", length=None) -> bytes:
    """A whole JSON reply; `length` declares another length than the body has."""
    body = json.dumps(value).encode()
    return _reply(body, "application/json", status, length)


def as_page(text: str) -> bytes:
    return _reply(text.encode(), "text/plain; version=0.0.4")


def _reply(body, content_type, status="200 OK", length=None) -> bytes:
    told = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {told}\r\n\r\n"
    return head.encode() + body


# ---- pages ----


def vllm(replica, *, blocks=100_000, waiting=0, name="served", length=4096) -> None:
    replica.pages["/v1/models"] = [models(name, max_model_len=length)]
    replica.pages["/props"] = [as_json({"detail": "Not Found"}, "404 Not Found")]
    replica.metrics = [as_page(vllm_gauges(waiting, blocks))]


def llama(replica, *, slots=2, name="served", length=4096) -> None:
    """Without --metrics, as it is by default."""
    props = {"total_slots": slots, "default_generation_settings": {"n_ctx": length}}
    off = {"error": {"code": 501, "message": "no metrics", "type": "not_supported_error"}}
    replica.pages["/v1/models"] = [models(name, owned_by="llamacpp")]
    replica.pages["/props"] = [as_json(props)]
    replica.metrics = [as_json(off, "501 Not Implemented")]
    replica.health = [as_json({"status": "no slot available"})]


ENGINES = {"vllm": vllm, "llama": llama}


def models(*names, **more) -> bytes:
    entries = [{"id": name, "object": "model", **more} for name in names]
    return as_json({"object": "list", "data": entries})


def vllm_gauges(waiting, blocks=100_000) -> str:
    labels = f'block_size="16",num_gpu_blocks="{blocks}",num_gpu_blocks_override="None"'
    return (
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}.0\n'
        f"vllm:cache_config_info{{{labels}}} 1.0\n"
    )


# ---- answers ----


def answer(prompt=6, generated=4) -> dict:
    message = {"role": "assistant", "content": "ok"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": generated},
    }


def event(value, name=None) -> bytes:
    field = f"event: {name}\n" if name else ""
    return f"{field}data: {json.dumps(value)}\n\n".encode()


def chunk(text=None, finish=None) -> bytes:
    """One chunk of a chat stream; without a text the one that opens it."""
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def whole_stream() -> list[bytes]:
    """As with `stream_options.include_usage`."""
    usage = event({"choices": [], "usage": {"prompt_tokens": 6, "completion_tokens": 4}})
    return [chunk(), chunk("a"), chunk("b", finish="stop"), usage, DONE]
