"""Bad input gets a clear answer and harms nobody else."""

import asyncio
import gzip
import json
import logging
import zlib

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
BODY = json.dumps(GENERATE).encode()
LARGE = b" " * (256 * 1024 + 1)
"""In front of a document: the same document, but over the bound for parsing on the loop."""

PATHS = ["/generate", "/generate_stream", "/", "/v1/chat/completions", "/v1/completions"]
PATHS += ["/invocations", "/vertex", "/tokenize", "/chat_tokenize"]

NOT_JSON = {
    "nothing": b"",
    "half": b'{"inputs": "a"',
    "text": b"hello",
    "array": b'["inputs"]',
    "null": b"null",
    "number": b"1",
    "string": b'"inputs"',
    "twice": b'{"inputs":"a","inputs":"b"}',
    "twice inside": b'{"inputs":"a","parameters":{"seed":1,"seed":2}}',
    "NaN": b'{"inputs":"a","parameters":{"temperature":NaN}}',
    "Infinity": b'{"inputs":"a","parameters":{"temperature":-Infinity}}',
    "beyond double": b'{"inputs":"a","parameters":{"temperature":1e999}}',
    "huge integer": b'{"inputs":"a","parameters":{"seed":' + b"9" * 40 + b"}}",
    "very huge integer": b'{"inputs":"a","parameters":{"seed":' + b"9" * 100_000 + b"}}",
    "lone surrogate": b'{"inputs":"\\ud800"}',
    "lone surrogate key": b'{"inputs":"a","\\udfff":1}',
    "raw surrogate": b'{"inputs":"\xed\xa0\x80"}',
    "not UTF-8": b'{"inputs":"\xff"}',
    "UTF-16": '{"inputs":"a"}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"inputs":"a"}',
    "deep arrays": b'{"inputs":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"inputs":"a","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "unclosed depth": b"[" * 200_000,
    "control character": b'{"inputs":"a\x00b"}',
    "trailing": b'{"inputs":"a"} x',
    "comma": b'{"inputs":"a",}',
    "quotes": b"{'inputs':'a'}",
}


@pytest.mark.parametrize("prefix", [b"", LARGE], ids=["small", "large"])
async def test_documents_that_are_no_json_object_are_422_on_every_route(app, prefix, caplog):
    """One router for all of them: each leaves it and its connection as they were."""
    rig = await app()
    client = await rig.client()
    for name, document in NOT_JSON.items():
        for path in PATHS if not prefix else PATHS[:1]:
            client.post(path, prefix + document)
            reply = await client.reply()
            assert reply.status == 422, (name, path, reply.body)
            error = reply.json()["error"]
            assert error["message"] if path.startswith("/v1/") else error, (name, path)
    client.post("/generate", BODY)
    assert (await client.reply()).status == 200
    assert [request.body for request in rig.replicas[0].requests] == [BODY]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


WRONG_VALUES = [
    ("/generate", {}, "inputs"),
    ("/generate", {"inputs": ""}, "inputs"),
    ("/generate", {"inputs": None}, "inputs"),
    ("/generate", {"inputs": 5}, "inputs"),
    ("/generate", {"inputs": ["a"]}, "inputs"),
    ("/generate", {"inputs": "a", "parameters": []}, "parameters"),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": "3"}}, "max_new_tokens"),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": -1}}, "max_new_tokens"),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1.5}}, "max_new_tokens"),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": True}}, "max_new_tokens"),
    ("/generate", {"inputs": "a", "parameters": {"best_of": "x"}}, "best_of"),
    ("/generate", {"inputs": "a", "parameters": {"truncate": {}}}, "truncate"),
    ("/generate", {"inputs": "a", "model": 7}, "model"),
    ("/", {"inputs": "a", "stream": "yes"}, "stream"),
    ("/", {"inputs": ""}, "inputs"),
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": "a"}, "messages"),
    ("/v1/chat/completions", {"messages": [1]}, "messages"),
    ("/v1/chat/completions", {"messages": [{}], "stream": 1}, "stream"),
    ("/v1/chat/completions", {"messages": [{}], "max_tokens": -2}, "max_tokens"),
    ("/v1/completions", {}, "prompt"),
    ("/v1/completions", {"prompt": ""}, "prompt"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": ["a", ""]}, "prompt"),
    ("/v1/completions", {"prompt": ["a", 1]}, "prompt"),
    ("/vertex", {"instances": []}, "instances"),
    ("/vertex", {"instances": [1]}, "instances"),
    ("/vertex", {}, "instances"),
    ("/invocations", {}, "inputs"),
    ("/tokenize", {}, "inputs"),
]


async def test_wrong_values_are_422_and_the_message_names_the_field(app):
    rig = await app()
    client = await rig.client()
    for path, body, field in WRONG_VALUES:
        client.post(path, body)
        reply = await client.reply()
        assert reply.status == 422, (path, body, reply.body)
        error = reply.json()["error"]
        message = error["message"] if path.startswith("/v1/") else error
        assert f"`{field}`" in message, (path, body, message)
        if not path.startswith("/v1/"):
            assert reply.json()["error_type"] == "validation"
    assert rig.replicas[0].requests == []


async def test_every_tgi_parameter_may_be_null(app):
    names = "best_of repetition_penalty return_full_text seed stop temperature top_k top_p"
    names += " truncate typical_p watermark decoder_input_details max_new_tokens do_sample"
    rig = await app()
    body = {"inputs": "a", "parameters": dict.fromkeys(names.split())}
    assert (await rig.post("/generate", body)).status == 200
    assert json.loads((await rig.replicas[0].request()).body) == body


# ---- sizes ----


async def test_a_declared_body_of_100_mb_is_refused_before_it_is_sent(app):
    rig = await app()
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 104857600\r\n\r\n"
    )
    reply = await client.reply()
    assert reply.status == 413
    assert reply.json()["error_type"] == "validation"
    assert reply.get("connection") == "close"


async def test_a_chunked_body_without_length_is_refused_at_the_bound(app, until):
    rig = await app(max_body_bytes=100_000)
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"%x\r\n%b\r\n" % (50_000, b" " * 50_000)
    for _ in range(3):
        client.write(piece)
    reply = await client.reply()
    assert reply.status == 413
    assert reply.get("connection") == "close"


async def test_a_gzip_bomb_is_refused_at_the_bound(app):
    rig = await app(max_body_bytes=1024 * 1024)
    bomb = gzip.compress(b'{"inputs":"' + b"a" * (200 * 1024 * 1024) + b'"}')
    reply = await rig.post("/generate", bomb, "Content-Encoding: gzip")
    assert reply.status == 413
    assert rig.replicas[0].requests == []


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"no gzip at all"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-12]),
        ("deflate", b"\x00\x01\x02"),
        ("deflate", zlib.compress(BODY)[:-6]),
    ],
)
async def test_a_body_that_does_not_unpack_is_refused(app, encoding, body, caplog):
    rig = await app()
    reply = await rig.post("/generate", body, f"Content-Encoding: {encoding}")
    assert 400 <= reply.status < 500
    assert reply.json()["error"]
    assert (await rig.post("/generate", BODY)).status == 200
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", ["/generate", "/no/such/route"])
async def test_a_refused_body_that_does_not_unpack_leaves_no_traceback(app, path, caplog):
    """Nobody wants it any more, but it is read to its end."""
    rig = await app()
    fields = ("Content-Encoding: gzip", "Content-Type: text/plain")
    reply = await rig.post(path, b"no gzip at all", *fields)
    assert reply.status in (404, 415)
    assert (await rig.post("/generate", BODY)).status == 200
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_large_good_body_is_served(app):
    rig = await app()
    body = b'{"inputs":"' + b"a" * 600_000 + b'","parameters":{"truncate":100}}'
    assert (await rig.post("/generate", body)).status == 200
    assert (await rig.replicas[0].request()).body == body


# ---- media types ----


@pytest.mark.parametrize(
    "field",
    [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: ",
        "Content-Type: application/jsonl",
        "Content-Type: multipart/form-data; boundary=x",
    ],
)
async def test_other_media_types_are_415(app, field):
    rig = await app()
    reply = await rig.post("/generate", BODY, field)
    assert reply.status == 415
    assert "application/json" in reply.json()["error"]


# ---- slow and malformed clients ----


async def test_a_slow_body_is_408_and_the_connection_ends(app):
    rig = await app(timeouts={"body_s": 0.1})
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 500\r\n\r\n{"
    )
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (408, "close")
    assert reply.json()["error"]


async def test_a_client_that_leaves_inside_its_body_leaves_nothing(app):
    rig = await app()
    for leave in ("leave", "reset"):
        client = await rig.client()
        client.write(
            b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 500\r\n\r\n{"
        )
        await client.drain()
        getattr(client, leave)()
    assert (await rig.post("/generate", BODY)).status == 200
    await rig.at_rest()


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60 + b"\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "long field": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "many fields": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: 1\r\n" * 20_000 + b"\r\n",
    "bad length": b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "negative length": b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    "length and chunks": b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "space in field": b"GET / HTTP/1.1\r\nHost: a\r\nX A: 1\r\n\r\n",
    "NUL in field": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: a\x00b\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_http_is_refused_in_json_without_a_traceback(app, name, caplog):
    rig = await app()
    other = await rig.client()
    client = await rig.client()
    client.write(MALFORMED[name])
    reply = await client.reply()
    assert 400 <= reply.status < 500
    assert reply.get("content-type").startswith("application/json")
    assert reply.json()["error"]
    assert "\n" not in reply.json()["error"]
    assert not [record for record in caplog.records if record.exc_info]
    other.post("/generate", BODY)
    assert (await other.reply()).status == 200
    assert len(rig.replicas[0].requests) == 1


async def test_a_bad_chunk_inside_a_body_is_refused(app, caplog):
    """The head is good, so the call has begun when the body turns out malformed."""
    rig = await app(timeouts={"body_s": 0.2})
    client = await rig.client()
    client.write(
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert (await client.reply()).status == 100
    client.write(b"2\r\n{}\r\nzz\r\n\r\n")
    reply = await client.reply()
    assert 400 <= reply.status < 500
    assert reply.json()["error"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_flood_of_bad_calls_does_not_stop_a_good_one(app, wire):
    rig = await app()
    gate = asyncio.Event()
    rig.replicas[0].say(
        wire.stream_head(),
        wire.chunk(wire.token(1)),
        gate,
        wire.chunk(wire.token(2, last="x")),
        wire.LAST_CHUNK,
    )
    good = await rig.client()
    good.post("/generate_stream", BODY)
    await good.head()
    assert await good.chunk() == wire.token(1)
    bad = [rig.post("/generate", document) for document in list(NOT_JSON.values())[:12]]
    statuses = {reply.status for reply in await asyncio.gather(*bad)}
    assert statuses == {422}
    gate.set()
    assert await good.chunk() == wire.token(2, last="x")
    assert await good.chunk() == b""
