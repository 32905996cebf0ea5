"""Nothing a client, or a replica, writes becomes a second message on the router's other side.

What RFC 9112 calls ambiguous is tried against the real edge, with a replica that takes every byte.
Whatever becomes of it: at most one request of a known form reaches a replica for one call, and what
is refused ends its connection.
"""

import json
import re

import pytest

BODY = b'{"inputs":"hello","parameters":{"max_new_tokens":3}}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
JSON = b"Content-Type: application/json\r\n"
HOST = b"Host: a\r\n"
START = b"POST /generate HTTP/1.1\r\n" + HOST + JSON
HIDDEN = b"POST /generate HTTP/1.1\r\nHost: hidden\r\nX-Hidden: 1\r\n" + JSON
HIDDEN += b"Content-Length: 18\r\n\r\n" + b'{"inputs":"hidden"}'[:18]
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def post(*fields: bytes, body=BODY, start=START) -> bytes:
    return start + b"".join(fields) + b"\r\n" + body


REFUSED = {
    # two framings of one body
    "CL and TE": post(LENGTH, CHUNKED, body=ONE_CHUNK + HIDDEN),
    "TE and CL": post(CHUNKED, LENGTH, body=ONE_CHUNK + HIDDEN),
    "CL 0 and TE": post(b"Content-Length: 0\r\n", CHUNKED, body=ONE_CHUNK + HIDDEN),
    "two CLs": post(LENGTH, b"Content-Length: 0\r\n", body=BODY + HIDDEN),
    "two equal CLs": post(LENGTH, LENGTH, body=BODY + HIDDEN),
    "CL as a list": post(b"Content-Length: 52, 0\r\n", body=BODY + HIDDEN),
    "CL with a plus": post(b"Content-Length: +52\r\n", body=BODY + HIDDEN),
    "CL in hex": post(b"Content-Length: 0x34\r\n", body=BODY + HIDDEN),
    "CL with an inner space": post(b"Content-Length: 5 2\r\n", body=BODY + HIDDEN),
    "CL beyond 64 bits": post(b"Content-Length: 18446744073709551668\r\n", body=BODY + HIDDEN),
    "CL empty": post(b"Content-Length: \r\n", body=BODY + HIDDEN),
    "CL with a NUL": post(b"Content-Length: 52\x00\r\n", body=BODY + HIDDEN),
    # transfer codings
    "TE identity": post(b"Transfer-Encoding: identity\r\n", body=ONE_CHUNK + HIDDEN),
    "TE gzip": post(b"Transfer-Encoding: gzip\r\n", body=ONE_CHUNK + HIDDEN),
    "TE chunked, identity": post(b"Transfer-Encoding: chunked, identity\r\n", body=ONE_CHUNK),
    "TE chunked twice": post(CHUNKED, CHUNKED, body=ONE_CHUNK + HIDDEN),
    "TE xchunked": post(b"Transfer-Encoding: xchunked\r\n", body=ONE_CHUNK + HIDDEN),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", body=ONE_CHUNK),
    "TE quoted": post(b'Transfer-Encoding: "chunked"\r\n', body=ONE_CHUNK),
    "TE with a space before the colon": post(b"Transfer-Encoding : chunked\r\n", body=ONE_CHUNK),
    "TE in HTTP/1.0": post(
        CHUNKED, body=ONE_CHUNK + HIDDEN, start=START.replace(b"1.1\r\n", b"1.0\r\n")
    ),
    "TE after a folded line": post(b"X-A: 1\r\n Transfer-Encoding: chunked\r\n", body=ONE_CHUNK),
    # chunks
    "chunk size with 0x": post(CHUNKED, body=b"0x34\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size with a minus": post(CHUNKED, body=b"-34\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size that overflows": post(
        CHUNKED, body=b"f" * 17 + b"34\r\n" + BODY + b"\r\n0\r\n\r\n"
    ),
    "chunk without its line end": post(CHUNKED, body=b"34\r\n" + BODY + b"0\r\n\r\n"),
    "chunk extension with a bare LF": post(CHUNKED, body=b"34;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk line ended by LF": post(CHUNKED, body=b"34\n" + BODY + b"\n0\n\n"),
    # fields
    "obs-fold": post(LENGTH, b"X-A: a\r\n b\r\n"),
    "space before a colon": post(b"Content-Length : 52\r\n"),
    "no colon": post(LENGTH, b"X-A\r\n"),
    "empty name": post(LENGTH, b": a\r\n"),
    "first field folded": START.replace(HOST, b" " + HOST) + LENGTH + b"\r\n" + BODY,
    "bare CR in a value": post(LENGTH, b"X-A: a\rX-Hidden: 1\r\n"),
    "bare LF in a value": post(LENGTH, b"X-A: a\nX-Hidden: 1\n\r\n"),
    "NUL in a value": post(LENGTH, b"X-A: a\x00b\r\n"),
    "NUL in a name": post(LENGTH, b"X-\x00A: a\r\n"),
    "no Host": b"POST /generate HTTP/1.1\r\n" + JSON + LENGTH + b"\r\n" + BODY,
    "two Hosts": post(LENGTH, b"Host: b\r\n"),
    # request lines
    "no version": b"POST /generate\r\n" + HOST + JSON + LENGTH + b"\r\n" + BODY,
    "HTTP/2.0": post(LENGTH, start=START.replace(b"HTTP/1.1", b"HTTP/2.0")),
    "HTTP/1.10": post(LENGTH, start=START.replace(b"HTTP/1.1", b"HTTP/1.10")),
    "tabs": post(LENGTH, start=START.replace(b" ", b"\t", 2)),
    "CR in the target": post(LENGTH, start=START.replace(b"generate", b"gene\rrate")),
    "NUL in the target": post(LENGTH, start=START.replace(b"generate", b"gene\x00rate")),
    "space in the target": post(LENGTH, start=START.replace(b"generate", b"generate /x")),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}

HARMLESS = {
    # one call, or none; whatever it says reaches nobody
    "absolute form": post(LENGTH, start=START.replace(b"/gen", b"http://evil/gen", 1)),
    "absolute form with credentials": post(
        LENGTH, start=START.replace(b"/gen", b"http://u:hidden@evil/gen", 1)
    ),
    "absolute form, https": post(LENGTH, start=START.replace(b"/gen", b"https://evil:1/gen", 1)),
    "encoded path": post(LENGTH, start=START.replace(b"/generate", b"/%67enerate")),
    "encoded slash": post(LENGTH, start=START.replace(b"/generate", b"/x%2f..%2fgenerate")),
    "encoded line end": post(
        LENGTH, start=START.replace(b"/generate", b"/generate%0d%0aX-Hidden:%201")
    ),
    "query with a line end": post(
        LENGTH, start=START.replace(b"/generate", b"/generate?a=%0d%0aX-Hidden:%201")
    ),
    "two slashes": post(LENGTH, start=START.replace(b"/generate", b"//generate")),
    "a host in the path": post(LENGTH, start=START.replace(b"/generate", b"//evil/generate")),
    "dot segments": post(LENGTH, start=START.replace(b"/generate", b"/health/../generate")),
    "dots to the admin API": post(
        LENGTH, start=START.replace(b"/generate", b"/generate/../admin/state")
    ),
    "the admin API": post(LENGTH, start=START.replace(b"/generate", b"/admin/replicas")),
    "fragment": post(LENGTH, start=START.replace(b"/generate", b"/generate#hidden")),
    "backslash": post(LENGTH, start=START.replace(b"/generate", b"/\\generate")),
    "asterisk": post(LENGTH, start=START.replace(b"/generate", b"*")),
    "raw bytes in the path": post(LENGTH, start=START.replace(b"/generate", b"/\xff\xfe")),
    "long path": post(LENGTH, start=START.replace(b"/generate", b"/" + b"a" * 9000)),
    "hop-by-hop": post(
        *(LENGTH, b"Connection: keep-alive, X-Request-Id, Host\r\n", b"TE: trailers\r\n"),
        *(b"Keep-Alive: timeout=1\r\n", b"Proxy-Connection: close\r\n"),
        *(b"Proxy-Authorization: Basic hidden\r\n", b"Trailer: X-Hidden\r\n"),
    ),
    "who forwards": post(
        *(LENGTH, b"X-Forwarded-For: hidden\r\n", b"X-Forwarded-Host: hidden\r\n"),
        *(b"Forwarded: for=hidden\r\n", b"X-Original-URL: /admin/hidden\r\n"),
        *(b"X-Rewrite-URL: /admin/hidden\r\n", b"X-HTTP-Method-Override: DELETE\r\n"),
    ),
    "credentials": post(
        LENGTH,
        b"Authorization: Bearer hidden\r\n",
        b"Cookie: a=hidden\r\n",
        b"X-Api-Key: hidden\r\n",
    ),
    "whitelisted, malformed": post(
        *(LENGTH, b"X-Request-Id: a\tX-Hidden: 1\r\n", b"traceparent: hidden\r\n"),
        b"tracestate: \xff\xfe hidden\r\n",
    ),
    "two request ids": post(LENGTH, b"X-Request-Id: a b hidden\r\n", b"X-Request-Id: c\r\n"),
    "trailers": post(CHUNKED, body=ONE_CHUNK[:-2] + b"X-Hidden: 1\r\nContent-Length: 99\r\n\r\n"),
    "chunk extensions": post(CHUNKED, body=b'34;hidden="a"\r\n' + BODY + b"\r\n0;hidden\r\n\r\n"),
    "chunk size with zeros": post(CHUNKED, body=b"00000034\r\n" + BODY + b"\r\n000\r\n\r\n"),
    "Expect": post(LENGTH, b"Expect: 100-continue\r\n"),
    "Expect twice": post(LENGTH, b"Expect: 100-continue\r\n", b"Expect: hidden\r\n"),
    "another Expect": post(LENGTH, b"Expect: hidden\r\n"),
    "Expect without a body": b"GET /health HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n",
    "a GET with a body": b"GET /health HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n" + BODY,
    "TRACE": b"TRACE /generate HTTP/1.1\r\n" + HOST + b"Cookie: hidden\r\n\r\n",
    "CONNECT": b"CONNECT evil:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "DELETE": post(LENGTH, start=START.replace(b"POST", b"DELETE")),
}


def only_requests(replica):
    """What a replica got was written by the router: method, path and every field are known."""
    for request in replica.requests:
        head = request.raw_head.decode("latin-1").split("\r\n")
        assert head[0] == "POST /generate HTTP/1.1"
        for field in head[1:]:
            assert re.fullmatch(
                rf"Host: 127\.0\.0\.1:{replica.port}|Content-Type: application/json"
                r"|Content-Length: \d+|x-request-id: [A-Za-z0-9._:/+=@-]{1,128}",
                field,
            ), field
        assert json.loads(request.body)["inputs"] in ("hello", "hidden")
        assert b"hidden" not in request.raw_head.lower()


LAST = b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""Ends a connection that is still open."""


@pytest.mark.parametrize("name", REFUSED)
async def test_what_two_could_read_differently_is_refused_and_ends_its_connection(
    app, name, caplog
):
    rig = await app(timeouts={"body_s": 0.5})
    client = await rig.client()
    client.write(REFUSED[name] + HIDDEN)
    received = await client.rest()
    status = int(received.split(b" ", 2)[1])
    assert 400 <= status < 500, received[:300]
    assert len(re.findall(rb"HTTP/1\.[01] \d{3}", received)) == 1, received
    assert rig.replicas[0].requests == []
    assert not [record for record in caplog.records if record.exc_info]
    assert (await rig.post("/generate", BODY)).status == 200


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_may_be_sent_adds_nothing_to_what_a_replica_gets(app, name, caplog):
    rig = await app(timeouts={"body_s": 0.5})
    client = await rig.client()
    client.write(HARMLESS[name] + LAST)
    received = await client.rest()
    assert re.match(rb"HTTP/1\.[01] [1-4]\d\d ", received), received[:300]
    assert len(rig.replicas[0].requests) <= 1
    only_requests(rig.replicas[0])
    assert b"\r\nX-Hidden" not in received
    assert not [record for record in caplog.records if record.exc_info]
    assert (await rig.post("/generate", BODY)).status == 200


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n",
    ],
)
async def test_an_upgrade_is_not_taken_and_what_follows_is_http(app, upgrade):
    rig = await app()
    client = await rig.client()
    for _ in range(2):
        client.write(post(LENGTH, upgrade))
        reply = await client.reply()
        assert reply.status == 200
        assert reply.get("upgrade") is None
    assert len(rig.replicas[0].requests) == 2
    only_requests(rig.replicas[0])


async def test_a_request_inside_a_body_is_that_body(app):
    rig = await app()
    client = await rig.client()
    inner = json.dumps({"inputs": HIDDEN.decode()}).encode()
    client.post("/generate", inner)
    assert (await client.reply()).status == 200
    [request] = rig.replicas[0].requests
    assert request.body == inner


async def test_the_rest_of_a_refused_body_is_no_request(app):
    """415 comes before the body was read: it must not be read as a call after that."""
    rig = await app()
    client = await rig.client()
    size = b"Content-Length: %d\r\n" % (len(HIDDEN) + 100_000)
    head = START.replace(JSON, b"Content-Type: text/plain\r\n") + size + b"\r\n"
    client.write(head + HIDDEN)
    reply = await client.reply()
    assert (reply.status, reply.get("connection")) == (415, "close")
    client.write(HIDDEN * 100)
    assert await client.is_closed()
    assert rig.replicas[0].requests == []


async def test_of_pipelined_calls_each_is_one_request(app):
    rig = await app()
    client = await rig.client()
    client.write(post(LENGTH) * 5)
    for _ in range(5):
        assert (await client.reply()).status == 200
    assert len(rig.replicas[0].requests) == 5
    only_requests(rig.replicas[0])


# ---- a hostile replica ----

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SECOND = b"HTTP/1.1 200 OK\r\nx-hidden: 1\r\ncontent-length: 6\r\n\r\nsecond"
ANSWER = b'{"generated_text":"ok"}'
SIZED = b"content-length: %d\r\n" % len(ANSWER)
PASSED = {
    "named by Connection": OK + SIZED + b"connection: x-hidden\r\nx-hidden: 1\r\n\r\n" + ANSWER,
    "hop-by-hop": OK + SIZED + b"keep-alive: hidden\r\nproxy-authenticate: hidden\r\n"
    b"upgrade: hidden\r\ntrailer: hidden\r\n\r\n" + ANSWER,
    "cookie": OK + SIZED + b"set-cookie: a=hidden\r\nset-cookie2: a=hidden\r\n\r\n" + ANSWER,
    "ours": OK + SIZED + b"x-fleet-replica: hidden\r\nserver: hidden\r\n"
    b"access-control-allow-origin: hidden\r\nx-request-id: hidden\r\n\r\n" + ANSWER,
    "what speaks for the whole site": OK + SIZED + b"alt-svc: hidden\r\n"
    b"strict-transport-security: hidden\r\nclear-site-data: hidden\r\n"
    b"x-accel-redirect: /hidden\r\nx-sendfile: /hidden\r\n\r\n" + ANSWER,
    "interim": b"HTTP/1.1 103 Early Hints\r\nx-hidden: 1\r\n\r\n" + OK + SIZED + b"\r\n" + ANSWER,
    "interim twice": b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + OK + SIZED + b"\r\n" + ANSWER,
    "trailers": OK
    + b"transfer-encoding: chunked\r\n\r\n17\r\n"
    + ANSWER
    + b"\r\n0\r\nx-hidden: 1\r\n\r\n",
    "another reason": OK.replace(b"OK", b"hidden") + SIZED + b"\r\n" + ANSWER,
}
NOT_PASSED = {
    "two replies": OK + SIZED + b"\r\n" + ANSWER + SECOND,
    "bare CR in a value": OK + SIZED + b"x-a: a\rx-hidden: 1\r\n\r\n" + ANSWER,
    "bare LF in a value": OK + SIZED + b"x-a: a\nx-hidden: 1\n\r\n" + ANSWER,
    "NUL in a value": OK + SIZED + b"x-a: a\x00b\r\n\r\n" + ANSWER,
    "folded": OK + SIZED + b"x-a: a\r\n x-hidden: 1\r\n\r\n" + ANSWER,
    "space before a colon": OK + b"content-length : 23\r\n\r\n" + ANSWER,
    "two lengths": OK + SIZED + b"content-length: 0\r\n\r\n" + ANSWER + SECOND,
    "length and chunks": OK + SIZED + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND,
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: hidden\r\n"
    b"connection: upgrade\r\n\r\n" + SECOND,
    "no HTTP": b"hidden\r\n\r\n",
}


@pytest.mark.parametrize("name", PASSED)
async def test_a_replica_adds_nothing_to_the_clients_connection(app, name):
    rig = await app()
    rig.replicas[0].say(PASSED[name])
    client = await rig.client()
    client.post("/generate", BODY)
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, ANSWER)
    assert b"hidden" not in reply.head
    client.post("/generate", BODY)
    assert (await client.reply()).status == 200, "what came behind it is no reply to this one"


async def test_trailers_of_a_stream_are_no_fields_either(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.streamed(wire.token(1, last="x"))[:-2] + b"x-hidden: 1\r\n\r\n")
    reply = await rig.post("/generate_stream", BODY)
    assert (reply.body, reply.is_whole) == (wire.token(1, last="x"), True)
    assert b"hidden" not in reply.head


@pytest.mark.parametrize("name", NOT_PASSED)
async def test_a_reply_that_two_could_read_differently_is_no_reply(app, name):
    rig = await app(retries={"max_attempts": 1}, health={"interval_s": 1000})
    rig.replicas[0].say(NOT_PASSED[name])
    client = await rig.client()
    client.post("/generate", BODY)
    reply = await client.reply()
    assert b"hidden" not in reply.head
    assert b"second" not in reply.body
    assert reply.status in (200, 502), reply.body
    assert (reply.status == 200) == (reply.body == ANSWER)
    client.post("/generate", BODY)
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, b'{"generated_text": "ok"}')
