"""The story of each kind of call, as the admin API tells it; never a word of prompt or answer."""

import asyncio
import json

import pytest

from router.health import Event

GENERATE = {"inputs": "a secret prompt", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "a secret prompt"}]}


class Explained:
    """A router with an admin socket, and what it tells of calls."""

    def __init__(self, rig, socket):
        self.rig = rig
        self.socket = socket

    async def ask(self, path):
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            reply = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b"secret" not in reply
        head, _, body = reply.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    async def story(self, call_id):
        status, told = await self.ask(f"/admin/calls/{call_id}")
        assert status == 200, told
        return told["calls"][0]

    async def post(self, path, call_id, body=GENERATE):
        reply = await self.rig.post(path, body, f"x-request-id: {call_id}")
        await self.rig.at_rest()
        return reply, await self.story(call_id)


@pytest.fixture
async def explained(app, tmp_path):
    async def make(*args, **options):
        rig = await app(*args, state_dir=tmp_path, **options)
        return Explained(rig, tmp_path / "router.sock")

    return make


def words(story):
    return [step["step"] for step in story["steps"]]


def only(story, word):
    return [step for step in story["steps"] if step["step"] == word]


async def test_a_served_call(explained):
    one = await explained()
    _, story = await one.post("/generate", "a")
    assert words(story) == ["read", "granted", "sent", "answering"]
    assert story["steps"][0]["body_bytes"] == len(json.dumps(GENERATE))
    assert story["steps"][1]["replica"] == "r0"
    assert (story["status"], story["error"], story["running"]) == (200, None, False)
    _, story = await one.post("/generate", "b")
    assert only(story, "sent")[0]["new_connection"] is False


async def test_a_served_stream(explained, wire):
    one = await explained()
    one.rig.replicas[0].say(wire.streamed(wire.token(1, " secret"), wire.token(2, last="secret")))
    _, story = await one.post("/generate_stream", "a")
    assert words(story) == ["read", "granted", "sent", "answering"]
    assert (story["stream"], story["generated_tokens"]) == (True, 2)


async def test_a_call_that_waited(explained, wire, until):
    one = await explained(entries={"max_requests": 1})
    gate = asyncio.Event()
    one.rig.replicas[0].say(gate, wire.reply(wire.generated("x")))
    clients = [await one.rig.client() for _ in range(3)]
    clients[0].post("/generate", GENERATE)
    await one.rig.replicas[0].request()
    for number in (1, 2):
        clients[number].post("/generate", GENERATE, f"x-request-id: c{number}")
        await until(lambda number=number: len(one.rig.dispatcher.queue) == number)
    running = await one.story("c2")
    assert running["running"]
    assert running["parts"][0]["part"] == "queue"
    assert only(running, "queued") == [
        {
            "at_ms": only(running, "queued")[0]["at_ms"],
            "step": "queued",
            "position": 2,
            "why": "every replica was full",
        }
    ]
    gate.set()
    for client in clients:
        assert (await client.reply()).status == 200
    await one.rig.at_rest()
    assert words(await one.story("c2"))[:3] == ["read", "queued", "granted"]


async def test_a_call_that_waited_in_vain(explained):
    one = await explained(1, is_up=False, is_deaf=True, queue={"timeout_s": 0.1})
    reply, story = await one.post("/generate", "a")
    assert reply.status == 503
    assert only(story, "queued")[0]["why"] == "no replica was ready"
    assert story["error_class"] == "QueueTimeout"
    assert story["parts"][0]["part"] == "queue"
    _, told = await one.ask("/admin/calls?failed")
    assert [call["id"] for call in told["calls"]] == ["a"]


async def test_a_call_that_was_asked_elsewhere(explained, wire):
    one = await explained(2)
    for replica in one.rig.replicas:
        replica.say(wire.reply(b"half", length=99), wire.CUT)
    reply, story = await one.post("/generate", "a")
    assert reply.status == 200
    first, _second = only(story, "failed")
    assert first["error_class"] == "ReplicaLost"
    assert first["replica"] == only(story, "granted")[0]["replica"]
    assert only(story, "next")[0]["decision"] == "again, first in the queue"
    line = await one.rig.line()
    assert line["tries"][0]["error"] == "ReplicaLost"
    assert len(line["tries"]) == line["attempts"] - 1


async def test_a_call_that_was_not_tried_again_has_no_tries_in_its_line(explained):
    one = await explained()
    await one.post("/generate", "a")
    assert "tries" not in await one.rig.line()


async def test_a_call_that_was_tried_alone_and_refused(explained, wire):
    one = await explained(1)
    one.rig.replicas[0].otherwise = [wire.CUT]
    reply, story = await one.post("/generate", "a")
    assert reply.status == 422
    assert "quiet" in words(story)
    assert only(story, "granted")[-1]["alone"] is True
    assert "to be tried alone" in only(story, "queued")[-1]["why"]
    assert story["error_class"] == "PoisonCall"
    assert len((await one.rig.line())["tries"]) == 3


async def test_a_stream_that_was_continued(explained, wire):
    one = await explained()
    [replica] = one.rig.replicas
    replica.say(
        wire.stream_head(),
        wire.chunk(wire.token(1)),
        wire.chunk(wire.token(2, " secret")),
        wire.CUT,
    )
    replica.say(wire.streamed(wire.token(1, last=" a")))
    reply, story = await one.post("/generate_stream", "a")
    assert (reply.status, story["attempts"], story["error"]) == (200, 2, None)
    assert only(story, "continued")[0]["events"] == 2
    assert words(story).count("answering") == 2
    assert "lost inside its reply" in only(story, "failed")[0]["message"]


@pytest.mark.parametrize("is_second_good", [True, False])
async def test_a_call_that_two_replicas_had_at_a_time(explained, wire, until, is_second_good):
    one = await explained(2, health={"interval_s": 1000})
    gate = asyncio.Event()
    for replica in one.rig.replicas:
        replica.say(gate, wire.reply(wire.generated("first")))
        replica.otherwise = [wire.reply(b"half", length=99), wire.RST]
        if is_second_good:
            replica.otherwise = [wire.reply(wire.generated("second"))]
    client = await one.rig.client()
    client.post("/generate", GENERATE, "x-request-id: a")
    await until(lambda: any(replica.requests for replica in one.rig.replicas))
    first, second = sorted(one.rig.replicas, key=lambda replica: -len(replica.requests))
    second.forget_scripts()
    one.rig.dispatcher.pool.on_event(one.rig[first.name], Event.SUSPECTED, "nothing comes")
    await second.request()
    if not is_second_good:
        await until(lambda: one.rig.metric("attempts_total", replica=second.name, outcome="failed"))
        gate.set()
    winner = second if is_second_good else first
    assert (await client.reply()).get("x-fleet-replica") == winner.name
    await one.rig.at_rest()
    story = await one.story("a")
    assert only(story, "hedged")[0]["replica"] == second.name
    assert only(story, "answering")[0]["replica"] == winner.name
    assert len(only(story, "hedge_failed")) == (0 if is_second_good else 1)
    assert (await one.rig.line())["tries"][0]["hedged"] == second.name


async def test_a_call_whose_client_left(explained, wire):
    one = await explained()
    one.rig.replicas[0].say(wire.STALL)
    client = await one.rig.client()
    client.post("/generate", GENERATE, "x-request-id: a")
    await one.rig.replicas[0].request()
    client.leave()
    await one.rig.line()
    story = await one.story("a")
    assert (story["status"], story["error_class"]) == (499, "ClientGone")
    assert words(story) == ["read", "granted", "sent"]
    assert (await one.ask("/admin/calls?failed"))[1]["calls"] == []


async def test_a_tokenizer_call(explained, wire):
    one = await explained(2)
    fault = wire.reply(b"x", "500 Internal Server Error")
    for replica in one.rig.replicas:
        replica.otherwise = [fault]
    reply, story = await one.post("/tokenize", "a")
    assert reply.status == 502
    assert words(story) == ["read", *["granted", "sent", "failed"] * 2]


async def test_a_call_refused_for_what_it_is(explained):
    one = await explained()
    reply, story = await one.post("/generate", "a", b'{"inputs":"","secret":1}')
    assert reply.status == 422
    assert words(story) == []
    assert story["error_class"] == "InvalidRequest"


@pytest.mark.parametrize(("call_id", "asked"), [("a/b", "a%2Fb"), ("a+b=:@", "a%2Bb%3D%3A%40")])
async def test_ids_are_the_clients_and_may_hold_odd_characters(explained, call_id, asked):
    one = await explained()
    await one.rig.post("/generate", GENERATE, f"x-request-id: {call_id}")
    await one.rig.at_rest()
    assert (await one.story(asked))["id"] == call_id


async def test_an_unknown_id_tells_what_is_remembered(explained):
    one = await explained()
    await one.post("/generate", "a")
    status, told = await one.ask("/admin/calls/none")
    assert status == 404
    assert "'none'" in told["error"]
    assert (told["remembered"]["calls"], told["remembered"]["recent"]["calls"]) == (1, 1)


async def test_the_slowest_come_first_and_what_is_asked_for_has_to_be_said(explained):
    one = await explained()
    await one.post("/generate", "a")
    await one.post("/generate", "b")
    status, told = await one.ask("/admin/calls?slow")
    assert status == 200
    assert {call["id"] for call in told["calls"]} == {"a", "b"}
    assert (await one.ask("/admin/calls"))[0] == 422
