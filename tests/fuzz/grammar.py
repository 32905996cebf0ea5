"""Requests that nobody means: made from a grammar of what HTTP and JSON allow, and of what they do
not, then cut, doubled and mutated as bytes. Pure; the same ones for the same seed.
"""

import gzip
import json
import random
import zlib
from typing import Any

Rng = random.Random

ROUTES = (
    *("/generate", "/generate_stream", "/", "/v1/chat/completions", "/v1/completions"),
    *("/tokenize", "/chat_tokenize", "/invocations", "/vertex", "/v1/embeddings", "/v1/messages"),
    *("/v1/responses", "/v1/rerank", "/v1/score", "/completion", "/infill", "/detokenize"),
    *("/health", "/ping", "/info", "/metrics", "/v1/models", "/docs", "/api-doc/openapi.json"),
)
ODD_PATHS = (
    *("/generate/", "//generate", "/GENERATE", "/generate?x=1&x=2", "/generate%00", "/%67enerate"),
    *("/..", "/../../etc/passwd", "*", "http://other/generate", "http://[::1/", "/\xff\xfe"),
    *("/generate#x", "/v1", "/v1/", "/v1/chat/completions/" + "a/" * 200, "/" + "a" * 9_000, "?"),
    *("/admin/state", "/info?model=%ff", "/info?" + "model=a&" * 500, "generate", "/%", "/%zz"),
)
METHODS = (
    *("POST",) * 12,
    *("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "post", "PRI"),
    *("M-SEARCH", "X" * 40, "", "GE T", "\x00"),
)
VERSIONS = (*("HTTP/1.1",) * 12, "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "")
FIELDS: tuple[tuple[str, str], ...] = (
    ("Host", "fleet"),
    ("Host", ""),
    ("Content-Type", "application/json; charset=utf-8"),
    ("Content-Type", "text/plain"),
    ("Content-Type", "application/json; charset=utf-7"),
    ("Content-Type", "\xff"),
    ("Content-Encoding", "br"),
    ("Content-Encoding", "gzip, gzip"),
    ("Accept-Encoding", "gzip;q=9"),
    ("Connection", "close"),
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Upgrade", "h2c"),
    ("Expect", "100-continue"),
    ("Expect", "something"),
    ("Authorization", "Bearer " + "x" * 3_000),
    ("Cookie", "a=b; " * 200),
    ("Origin", "null"),
    ("Access-Control-Request-Method", "POST"),
    ("X-Request-Id", "a" * 200),
    ("X-Request-Id", "\x7f"),
    ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"),
    ("tracestate", "\t"),
    ("X-Fleet-Model", "nobody's"),
    ("X-Fleet-Model", "\xe9"),
    ("Range", "bytes=0-1"),
    ("Trailer", "X-A"),
    ("TE", "trailers"),
    ("X-Forwarded-For", "::1"),
    ("X-A", "a\tb"),
    ("X-" + "a" * 5_000, "1"),
)
HARMLESS = tuple(
    (name, value)
    for name, value in FIELDS
    if name not in ("Host", "Content-Type", "Content-Encoding", "Connection", "Upgrade", "Expect")
)
"""Those that make no other request of it."""
ODD_LINES = ("no colon", ": no name", "X A: 1", "X-A : 1", " folded: 1", "X-A: a\nb", "X-\x00: 1")
LENGTHS = ("-1", "+5", "0x5", "5, 5", "5 5", "", "99999999999999999999", "1e3", "\u0665", "007")
CODINGS = ("chunked", "Chunked", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**32, 2**53 + 1, 2**63, 2**64),
    *(10**40, "", "a", "\x00", "\ud800", "\uffff", "é", "🙂" * 50, "x" * 2_000, [], {}, [[]]),
    *([1], ["a"], [None], {"a": 1}, [{}], [[1, 2], [3]], {"": {"": []}}, {"type": "text"}),
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
    [{"role": 5, "content": None}],
    [{"inputs": "hi"}, {"inputs": "hi", "parameters": {"max_new_tokens": 1}}],
    [{"inputs": "hi", "parameters": {"top_p": 0, "best_of": 5, "max_new_tokens": 1}}],
)
KEYS = (
    *("inputs", "parameters", "stream", "model", "messages", "prompt", "max_tokens", "n", "stop"),
    *("max_new_tokens", "best_of", "seed", "temperature", "top_k", "top_p", "typical_p", "details"),
    *("truncate", "do_sample", "return_full_text", "decoder_input_details", "top_n_tokens"),
    *("watermark", "grammar", "frequency_penalty", "repetition_penalty", "stream_options"),
    *("instances", "input", "query", "documents", "text_1", "text_2", "system", "tokens", "tools"),
    *("logprobs", "response_format", "max_completion_tokens", "n_predict", "suffix", "echo", ""),
)
LITERALS = (b"NaN", b"-Infinity", b"1e999", b"9" * 5_000, b"-", b"01", b"tru", b"'a'", b'"\\u12"')
LITERALS += (b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\x00"', b'"', b"\xef\xbb\xbf", b"//x\n")
PADDING = b" " * (256 * 1024 + 1)
"""In front of a document: over the bound for parsing on the router's loop."""


def pieces_of(rng: Rng) -> list[bytes]:
    """What one connection sends: one request or several, in pieces as they are written."""
    data = b"".join(request(rng) for _ in range(rng.choice((1, 1, 1, 2, 5))))
    if rng.random() < 0.3:
        data = mutated(rng, data)
    return split(rng, data)


def request(rng: Rng) -> bytes:
    """A good call, a good head with an odd body, or anything."""
    kind = rng.random()
    if kind < 0.25:
        return good(rng)
    if kind < 0.7:
        path, body = rng.choice(ROUTES[:17]), document(rng)
        fields = [": ".join(rng.choice(HARMLESS)) for _ in range(rng.choice((0, 0, 1, 3)))]
        return _whole(["POST " + path + " HTTP/1.1", *_plain(len(body)), *fields], body)
    path = rng.choice(ROUTES) if rng.random() < 0.8 else rng.choice(ODD_PATHS)
    lines = [": ".join(rng.choice(FIELDS)) for _ in range(rng.choice((0, 1, 2, 5)))]
    lines += [rng.choice(ODD_LINES)] * (rng.random() < 0.05)
    lines += ["X-A: 1"] * (rng.choice((200, 20_000)) if rng.random() < 0.003 else 0)
    framing, body = _framed(rng, document(rng))
    lines += framing
    rng.shuffle(lines)
    first = f"{rng.choice(METHODS)} {path} {rng.choice(VERSIONS)}"
    return _whole([first, *lines], body)


def _whole(lines: list[str], body: bytes) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _plain(body_bytes: int) -> list[str]:
    return ["Host: fleet", "Content-Type: application/json", f"Content-Length: {body_bytes}"]


def good(rng: Rng) -> bytes:
    """A call as clients make it."""
    path = rng.choice(ROUTES[:5])
    body = json.dumps(_good_body(rng, path)).encode()
    return _whole([f"POST {path} HTTP/1.1", *_plain(len(body))], body)


def _good_body(rng: Rng, path: str) -> dict[str, Any]:
    count = rng.randint(1, 6)
    if path == "/v1/chat/completions":
        return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": count}
    if path == "/v1/completions":
        return {"prompt": "hi", "max_tokens": count, "stream": rng.random() < 0.5}
    return {"inputs": "hi", "parameters": {"max_new_tokens": count}}


# ---- bodies ----


def document(rng: Rng) -> bytes:
    """A body: JSON of a strange kind, or hardly JSON at all."""
    makers = (_strange, _strange, _strange, _with_literal, _deep)
    made = rng.choice(makers)(rng)
    return PADDING + made if rng.random() < 0.002 else made


def _strange(rng: Rng) -> bytes:
    """An object that some route might take, with values that it might not."""
    body = _good_body(rng, rng.choice(ROUTES[:5])) if rng.random() < 0.6 else {}
    for _ in range(rng.randint(0, 4)):
        body[rng.choice(KEYS)] = rng.choice(ODD_VALUES)
    inner = body.get("parameters")
    if isinstance(inner, dict):
        body["parameters"] = {**inner, rng.choice(KEYS): rng.choice(ODD_VALUES)}
    text = json.dumps(body, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.05:
        text = text[:-1] + f',"{rng.choice(KEYS)}":1,"{rng.choice(KEYS)}":2' + "}"
    return text.encode("utf-8", "surrogatepass")


def _with_literal(rng: Rng) -> bytes:
    key = rng.choice(KEYS).encode()
    return b'{"inputs":"a","prompt":"a","%b":%b}' % (key, rng.choice(LITERALS))


def _deep(rng: Rng) -> bytes:
    depth = rng.choice((10, 200, 1_000, 5_000))
    begin, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"content":[', b"]}")))
    inside = begin * depth + b"1" + end * (depth if rng.random() < 0.7 else depth // 2)
    key = rng.choice(("x", "messages", "prompt", "input", "parameters")).encode()
    return b'{"inputs":"a","%b":%b}' % (key, inside)


# ---- framing ----


def _framed(rng: Rng, body: bytes) -> tuple[list[str], bytes]:
    """Header lines that tell the body's length, rightly or not, and the body as sent."""
    lines = ["Content-Type: application/json"] * (rng.random() < 0.8)
    kind = rng.random()
    if kind < 0.08:
        packed = gzip.compress(body) if rng.random() < 0.5 else zlib.compress(body)
        body = packed if rng.random() < 0.6 else packed[: len(packed) // 2]
        lines.append(f"Content-Encoding: {rng.choice(('gzip', 'deflate'))}")
    if kind < 0.5:
        return [*lines, f"Content-Length: {len(body)}"], body
    if kind < 0.6:
        return [
            *lines,
            f"Content-Length: {max(0, len(body) + rng.choice((-1, 1, 5, 70_000)))}",
        ], body
    if kind < 0.65:
        return [*lines, f"Content-Length: {rng.choice(LENGTHS)}"], body
    if kind < 0.7:
        both = [f"Content-Length: {len(body)}", f"Content-Length: {rng.choice((0, len(body)))}"]
        return [*lines, *both], body
    coding = "chunked" if kind < 0.9 else rng.choice(CODINGS)
    lines.append(f"Transfer-Encoding: {coding}")
    lines += [f"Content-Length: {len(body)}"] * (rng.random() < 0.1)
    return lines, _chunked(rng, body)


def _chunked(rng: Rng, body: bytes) -> bytes:
    out = b""
    while body:
        size = min(len(body), rng.choice((1, 7, 100, 5_000)))
        wrong = rng.random() < 0.01
        line = rng.choice((b"%x;a=b", b"0x%x", b"-%x", b"%xg", b" %x")) if wrong else b"%x"
        out += line % size + b"\r\n" + body[:size] + (b"\n" if wrong else b"\r\n")
        body = body[size:]
    return out + rng.choice(
        (*(b"0\r\n\r\n",) * 8, b"0\r\nX-A: 1\r\n\r\n", b"0\r\n", b"00\r\n\r\n", b"")
    )


# ---- bytes ----


def mutated(rng: Rng, data: bytes) -> bytes:
    """A few bytes changed, lost, doubled or put in."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 100))
        piece = data[at : at + size]
        put = rng.choice(
            (
                b"",
                piece * 2,
                rng.randbytes(min(size, 8)),
                bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:] if piece else b"\x00",
                rng.choice((b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b":", b" ", b"0")),
            )
        )
        data = data[:at] + put + data[at + size :]
    return data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)]


def split(rng: Rng, data: bytes) -> list[bytes]:
    """In pieces, as a network may deliver them."""
    if rng.random() < 0.5 or len(data) < 2:
        return [data]
    cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.choice((1, 2, 8)))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
