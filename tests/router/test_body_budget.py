"""Bodies that are being received are bounded over all calls, not only each by itself."""

import pytest

LARGE = 700_000
BUDGET = 1_000_000
HEAD = (
    "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)
START = b'{"inputs":"'


async def begun(rig, until, *, total_bytes=LARGE + 1000):
    """A client that has sent most of its body, and the bytes that are missing."""
    client = await rig.client()
    body = START + b"a" * (total_bytes - len(START) - 2) + b'"}'
    client.write(HEAD.format(len(body)).encode() + body[:LARGE])
    await client.drain()
    return client, body[LARGE:]


@pytest.fixture
async def rig(app):
    return await app(queue={"max_bytes": BUDGET})


async def test_what_does_not_fit_beside_the_others_is_429(rig, until):
    bodies = rig.app.handlers._bodies
    first, rest = await begun(rig, until)
    await until(lambda: bodies.held_bytes >= LARGE - 2**16)
    second, _ = await begun(rig, until)
    reply = await second.reply()
    assert reply.status == 429
    assert reply.json()["error_type"] == "overloaded"
    assert int(reply.get("retry-after")) >= 1
    assert reply.get("connection") == "close"
    await until(lambda: bodies.held_bytes <= LARGE)
    line = await rig.line()
    assert (line["status"], line["route"]) == (429, "/generate")
    assert rig.metric("calls_total", route="/generate", status="429") == 1
    small = await rig.post("/generate", {"inputs": "small ones need no budget"})
    assert small.status == 200
    first.write(rest)
    assert (await first.reply()).status == 200
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("how", ["leave", "reset"])
async def test_a_client_that_leaves_gives_its_share_back(rig, until, how):
    bodies = rig.app.handlers._bodies
    first, _ = await begun(rig, until)
    await until(lambda: bodies.held_bytes >= LARGE - 2**16)
    getattr(first, how)()
    await until(lambda: bodies.held_bytes == 0)
    second, rest = await begun(rig, until)
    second.write(rest)
    assert (await second.reply()).status == 200


async def test_a_body_that_does_not_come_gives_its_share_back(app, until):
    rig = await app(queue={"max_bytes": BUDGET}, timeouts={"body_s": 0.2})
    first, _ = await begun(rig, until)
    assert (await first.reply()).status == 408
    assert rig.app.handlers._bodies.held_bytes == 0


async def test_one_large_body_alone_is_not_measured_against_the_others(rig, until):
    client, rest = await begun(rig, until, total_bytes=BUDGET - 1000)
    client.write(rest)
    assert (await client.reply()).status == 200
