"""What goes wrong at replicas: unseen before the first event, honestly told after it."""

import asyncio
import json

import pytest

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
OFF = {"enabled": False}
OVERLOADED = ("Model is overloaded", "overloaded")
FAILED = ("Request failed during generation: out of memory", "generation")


def bad_unary(wire):
    """Replies that are no answer, by name; the client must never see any of them."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    answer = wire.generated("half an ans")
    return {
        "reset before the head": [wire.RST],
        "closed before the head": [wire.CUT],
        "half a head": [head, wire.RST],
        "half a status": [b"HTTP/1.1 2", wire.CUT],
        "garbage": [b"\x00\xff" * 100],
        "another protocol": [b"SSH-2.0-OpenSSH_9.6\r\n"],
        "only an interim reply": [b"HTTP/1.1 100 Continue\r\n\r\n", wire.CUT],
        "other protocol agreed": [
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            wire.CUT,
        ],
        "too many fields": [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n{}"],
        "less than its length": [wire.reply(answer, length=len(answer) + 50), wire.CUT],
        "more than its length": [wire.reply(answer, length=10)],
        "bad chunk": [head + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n"],
        "half the chunks": [head + b"transfer-encoding: chunked\r\n\r\n5\r\n{}", wire.CUT],
        "no JSON": [wire.reply(b"<html>")],
        "empty": [wire.reply(b"")],
        "moved": [wire.reply(b"", "302 Found", fields="location: http://evil/\r\n")],
        "500": [wire.reply(b"oops", "500 Internal Server Error", content_type="text/plain")],
        "503": [wire.reply(wire.error(*OVERLOADED), "503 Service Unavailable")],
        "429": [wire.reply(wire.error(*OVERLOADED), "429 Too Many Requests")],
        "424": [wire.reply(wire.error(*FAILED), "424 Failed Dependency")],
        "502": [wire.reply(b"<html>bad gateway", "502 Bad Gateway", content_type="text/html")],
    }


def bad_streams(wire):
    """The same, told as a stream before its first event was whole."""
    late = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\n'
    event = wire.token(1)
    return {
        "overload of 1.4": [wire.streamed(wire.error_event(*OVERLOADED))],
        "overload of 3.3": [wire.streamed(late, wire.DONE)],
        "overload without a space": [wire.streamed(b"data:" + wire.error(*OVERLOADED) + b"\n\n")],
        "overload behind a comment": [wire.streamed(b":\n\n", wire.error_event(*OVERLOADED))],
        "failed at once": [wire.streamed(wire.error_event(*FAILED))],
        "no event": [wire.stream_head(), wire.LAST_CHUNK],
        "no event, closed": [wire.stream_head(), wire.CUT],
        "comments alone": [wire.streamed(b":\n\n", b": hi\n\n")],
        "half an event": [wire.stream_head(), wire.chunk(event[:20]), wire.CUT],
        "half an event, ended": [wire.streamed(event[:20])],
        "half an event, reset": [wire.stream_head(), wire.chunk(event[:20]), wire.RST],
        "garbage for a chunk": [wire.stream_head(), b"zz\r\n"],
        "429": [wire.reply(wire.error(*OVERLOADED), "429 Too Many Requests")],
        "reset": [wire.RST],
    }


async def test_unary_faults_are_retried_unseen_on_another_replica(app, wire, until, caplog):
    rig = await app(2, health={"eject_after": 1000}, retries={"budget_share": 1.0})
    for number, (name, script) in enumerate(bad_unary(wire).items()):
        for replica in rig.replicas:
            replica.requests.clear()
        await until(lambda: not rig["r0"].room.is_paused)  # a 503 before
        rig.replicas[0].otherwise = script
        rig.replicas[1].otherwise = [wire.reply(wire.generated(name))]
        replies = await asyncio.gather(*(rig.post("/generate", GENERATE) for _ in range(2)))
        assert [reply.status for reply in replies] == [200, 200], name
        assert [reply.body for reply in replies] == [wire.generated(name)] * 2, name
        assert rig.replicas[0].requests, (name, number)
        attempts = {reply.get("x-fleet-attempts") for reply in replies}
        assert attempts <= {"1", "2"}, name
        assert "2" in attempts, name
    assert not [record for record in caplog.records if record.exc_info]


async def test_stream_faults_before_the_first_event_are_retried_unseen(app, wire, until):
    rig = await app(2, health={"eject_after": 1000}, retries={"budget_share": 1.0})
    good = wire.token(1) + wire.token(2, last="x")
    for name, script in bad_streams(wire).items():
        for replica in rig.replicas:
            replica.requests.clear()
        await until(lambda: not rig["r0"].room.is_paused)  # an overload before
        rig.replicas[0].otherwise = script
        rig.replicas[1].otherwise = [wire.streamed(good)]
        calls = (rig.post("/generate_stream", GENERATE) for _ in range(2))
        for reply in await asyncio.gather(*calls):
            assert (reply.status, reply.body, reply.is_whole) == (200, good, True), name
        assert rig.replicas[0].requests, name


async def test_a_refused_connection_is_retried_and_marks_the_replica_down(app, wire):
    rig = await app(2, health={"interval_s": 1000})
    await rig.replicas[0].die()
    for _ in range(3):
        reply = await rig.post("/generate", GENERATE)
        assert (reply.status, reply.get("x-fleet-replica")) == (200, "r1")
    assert rig["r0"].health.state.value == "unhealthy"


async def test_a_replica_that_accepts_nothing_is_left_after_the_time_to_first_event(app, wire):
    rig = await app(2, timeouts={"first_event_s": 0.1})
    good = wire.token(1, last="x")
    rig.replicas[0].otherwise = [wire.STALL]
    rig.replicas[1].otherwise = [wire.streamed(good)]
    calls = (rig.post("/generate_stream", GENERATE) for _ in range(2))
    assert [reply.body for reply in await asyncio.gather(*calls)] == [good, good]
    first = await rig.replicas[0].request()
    async with asyncio.timeout(5):
        await first.gone.wait()


async def test_a_deaf_replica_never_becomes_healthy_and_harms_no_call(app, wire):
    deaf, good = wire.ScriptedReplica("deaf"), wire.ScriptedReplica("good")
    await deaf.start(is_deaf=True)
    await good.start()
    rig = await app([deaf, good], is_up=False, health={"timeout_s": 0.1})
    await rig.is_up("good")
    assert (await rig.post("/generate", GENERATE)).get("x-fleet-replica") == "good"
    assert rig["deaf"].health.state.value in ("unknown", "unhealthy")


async def test_an_idle_connection_that_the_replica_closed_is_no_failure(app, wire, until):
    rig = await app()
    rig.replicas[0].otherwise = [wire.reply(wire.generated("a")), wire.CUT]
    for _ in range(5):
        reply = await rig.post("/generate", GENERATE)
        assert (reply.status, reply.get("x-fleet-attempts")) == (200, "1")
    assert rig["r0"].failed == 0


async def test_the_only_replica_is_asked_again(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.reply(wire.error(*OVERLOADED), "429 Too Many Requests"))
    reply = await rig.post("/generate", GENERATE)
    assert (reply.status, reply.get("x-fleet-attempts")) == (200, "2")


async def test_calls_wait_while_all_replicas_are_down_and_succeed_when_one_is_back(
    app, wire, until
):
    """Connections refused by one after the other: the call has been in nobody's hands."""
    rig = await app(4, health={"interval_s": 1000})
    for replica in rig.replicas:
        await replica.die()
    client = await rig.client()
    client.post("/generate", GENERATE)
    client.post("/generate_stream", GENERATE)
    await until(lambda: not any(replica.is_usable for replica in rig.all()))
    rig.replicas[2].otherwise = [wire.reply(wire.generated("back"))]
    await rig.replicas[2].start()
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, wire.generated("back")), reply
    assert (await client.reply()).status == 200


async def test_a_call_in_flight_at_a_death_is_served_when_the_only_replica_is_back(app, wire):
    rig = await app()
    rig.replicas[0].say(wire.STALL)
    client = await rig.client()
    client.post("/generate", GENERATE)
    await rig.replicas[0].request()
    await rig.replicas[0].die()
    await rig.replicas[0].start()
    assert (await client.reply()).status == 200


async def test_a_fault_of_every_replica_is_told_as_it_was_sent(app, wire):
    rig = await app(3)
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(wire.error(*FAILED), "424 Failed Dependency")]
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 424
    assert reply.json() == {"error": FAILED[0], "error_type": FAILED[1]}
    assert reply.get("x-fleet-attempts") == "3"


async def test_retries_end_when_the_budget_is_spent(app, wire):
    """An engine that fails every call is not asked three times as much for it."""
    rig = await app(2, entries={"max_requests": 4}, retries={"budget_share": 0.0})
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(wire.error(*FAILED), "424 Failed Dependency")]
    attempts = [(await rig.post("/generate", GENERATE)).get("x-fleet-attempts") for _ in range(20)]
    assert attempts[0] == "3"
    assert attempts[-5:] == ["1"] * 5
    assert rig.metric("retries_total", reason="UpstreamFault") == 16


async def test_overload_everywhere_waits_and_is_told_at_the_queue_deadline(app, wire):
    rig = await app(2, timeouts={"total_s": 0.5})
    for replica in rig.replicas:
        replica.otherwise = [wire.reply(wire.error(*OVERLOADED), "429 Too Many Requests")]
    reply = await rig.post("/generate", GENERATE)
    assert reply.status in (429, 503)
    assert reply.json()["error_type"] == "overloaded"
    assert int(reply.get("retry-after")) >= 1


# ---- poison ----


async def test_a_poison_call_is_tried_alone_and_then_refused(app, wire):
    """Replicas die of one call; those beside it are served, and no fourth replica dies."""
    rig = await app(4, health={"interval_s": 1000})

    def dies_of_poison(request):
        if b"poison" in request.body:
            return [wire.RST]
        return [wire.reply(wire.generated("fine"))]

    for replica in rig.replicas:
        scripted = replica.script_for
        replica.script_for = lambda request, scripted=scripted: (
            dies_of_poison(request) if request.method == "POST" else scripted(request)
        )
    poison = rig.post("/generate", {"inputs": "poison"})
    bystanders = [rig.post("/generate", GENERATE) for _ in range(12)]
    refused, *fine = await asyncio.gather(poison, *bystanders)
    assert refused.status == 422
    assert refused.get("x-fleet-attempts") == "3"
    assert {reply.status for reply in fine} == {200}


async def test_a_call_that_kills_replicas_outright_does_not_kill_them_all(app, wire):
    """Each dies with the call on a connection kept from before, and refuses from then on."""
    rig = await app(5, health={"interval_s": 1000})
    for replica in rig.replicas:

        def script_for(request, *, replica=replica, scripted=replica.script_for):
            if b"poison" not in request.body:
                return scripted(request)
            replica.tasks.spawn(replica.die(), "death")
            return [wire.STALL]

        replica.script_for = script_for
    assert (await rig.post("/generate", {"inputs": "poison"})).status == 422
    alive = [replica for replica in rig.replicas if replica._server is not None]
    assert len(alive) == 2
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_a_suspect_is_alone_on_its_replica(app, wire, until):
    rig = await app(1, entries={"max_requests": 8})
    replica = rig.replicas[0]
    gate = asyncio.Event()
    for _ in range(4):  # two each: on a connection kept from a probe, it may be that one's fault
        replica.say(wire.RST)
    replica.say(gate, wire.reply(wire.generated("alone")))
    suspect = await rig.client()
    suspect.post("/generate", GENERATE)
    await replica.request(5)
    assert rig["r0"].alone
    other = await rig.client()
    other.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    assert len(replica.requests) == 5
    gate.set()
    assert (await suspect.reply()).body == wire.generated("alone")
    assert (await other.reply()).status == 200


# ---- after the first event, where nothing is continued ----


@pytest.mark.parametrize("end", ["CUT", "RST", "half", "garbage", "clean"])
async def test_a_tgi_stream_that_breaks_ends_in_a_whole_error_event(app, wire, end):
    rig = await app(2, resume=OFF)
    steps = {
        "CUT": [wire.CUT],
        "RST": [wire.RST],
        "half": [wire.chunk(wire.token(2)[:25]), wire.CUT],
        "garbage": [b"zz\r\n"],
        "clean": [wire.LAST_CHUNK],
    }[end]
    gate = asyncio.Event()
    for replica in rig.replicas:
        replica.otherwise = [wire.stream_head(), wire.chunk(wire.token(1)), gate, *steps]
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1)
    gate.set()
    event = await client.chunk()
    assert await client.chunk() == b""
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event[6:])["error_type"] == "incomplete_generation"
    assert sum(len(replica.requests) for replica in rig.replicas) == 1
    assert (await rig.line())["error_type"] == "incomplete_generation"


async def test_a_chat_stream_that_breaks_ends_in_openai_s_error_and_done(app, wire):
    rig = await app(resume=OFF)
    gate = asyncio.Event()
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.delta("a")), gate, wire.RST)
    client = await rig.client()
    client.post("/v1/chat/completions", CHAT)
    await client.head()
    assert await client.chunk() == wire.delta("a")
    gate.set()
    tail = await client.chunk()
    assert await client.chunk() == b""
    error, done, rest = tail.split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["message"]
    assert (done, rest) == (b"data: [DONE]", b"")


@pytest.mark.parametrize("end", ["CUT", "RST", "garbage", "silence"])
@pytest.mark.parametrize("path", ["/generate_stream", "/v1/chat/completions"])
async def test_what_breaks_behind_the_last_word_is_not_told(app, wire, path, end):
    """The answer is whole and its last word out: an error would come too late to be one."""
    rig = await app(resume=OFF, timeouts={"between_events_s": 0.1})
    events = [wire.token(1, last=" a")]
    if path != "/generate_stream":
        events = [wire.delta("a", finish="length"), wire.DONE]
    steps = {"CUT": wire.CUT, "RST": wire.RST, "garbage": b"zz\r\n", "silence": wire.STALL}
    gate = asyncio.Event()
    said = [wire.chunk(event) for event in events]
    rig.replicas[0].say(wire.stream_head(), *said, gate, steps[end])
    client = await rig.client()
    client.post(path, CHAT if path != "/generate_stream" else GENERATE)
    await client.head()
    got = b""
    while len(got) < len(b"".join(events)):
        got += await client.chunk()
    gate.set()
    assert await client.chunk() == b""
    assert got == b"".join(events)
    line = await rig.line()
    assert (line["status"], line["error"]) == (200, None)


async def test_an_engine_s_own_error_event_is_relayed_as_sent(app, wire):
    rig = await app(resume=OFF)
    events = [wire.token(1), wire.error_event(*FAILED)]
    rig.replicas[0].say(wire.streamed(*events))
    reply = await rig.post("/generate_stream", GENERATE)
    assert reply.body == b"".join(events)
    assert (await rig.line())["error"] == FAILED[0]
    assert rig["r0"].failed == 1


async def test_silence_inside_a_stream_ends_it_with_an_error(app, wire):
    rig = await app(timeouts={"between_events_s": 0.1}, resume=OFF)
    rig.replicas[0].say(wire.stream_head(), wire.chunk(wire.token(1)), wire.STALL)
    reply = await rig.post("/generate_stream", GENERATE)
    events = reply.body.split(b"\n\n")
    assert events[0] + b"\n\n" == wire.token(1)
    assert "silent" in json.loads(events[1][6:])["error"]
    assert reply.is_whole
    async with asyncio.timeout(5):
        await rig.replicas[0].requests[0].gone.wait()


async def test_a_call_s_deadline_ends_a_stream_that_goes_on_for_ever(app, wire):
    rig = await app(timeouts={"total_s": 0.3})
    rig.replicas[0].say(wire.stream_head(), wire.Flood(wire.chunk(wire.token(1)), 10**9))
    reply = await rig.post("/generate_stream", GENERATE)
    assert b"deadline" in reply.body[-200:]
    assert reply.is_whole


async def test_a_unary_call_s_deadline_is_a_504(app, wire):
    rig = await app(timeouts={"total_s": 0.2})
    rig.replicas[0].say(wire.STALL)
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 504
    async with asyncio.timeout(5):
        await rig.replicas[0].requests[0].gone.wait()


# ---- streams that wait ----


@pytest.mark.parametrize("path", ["/generate_stream", "/v1/chat/completions"])
async def test_a_waiting_stream_gets_its_head_and_comments(app, wire, path):
    rig = await app(timeouts={"stream_open_after_s": 0.05})
    gate = asyncio.Event()
    last = wire.delta("a", "stop") if path.startswith("/v1/") else wire.token(1, last="x")
    rig.replicas[0].say(
        wire.stream_head(), wire.chunk(b":\n\n"), gate, wire.chunk(last), wire.LAST_CHUNK
    )
    client = await rig.client()
    client.post(path, CHAT if path.startswith("/v1/") else GENERATE)
    head = await client.head()
    assert (head.status, head.get("content-type")) == (200, "text/event-stream")
    assert head.get("x-request-id")
    assert await client.chunk() == b":\n\n"
    gate.set()
    rest = b""
    while piece := await client.chunk():
        rest += piece
    assert rest.replace(b":\n\n", b"") == last


async def test_faults_behind_an_opened_head_are_still_retried_unseen(app, wire):
    """The comments of one attempt and the events of the next are one stream to the client."""
    rig = await app(timeouts={"stream_open_after_s": 0.05})
    gate, good = asyncio.Event(), wire.token(1, last="x")
    rig.replicas[0].say(wire.stream_head(), wire.chunk(b":\n\n"), gate, wire.RST)
    rig.replicas[0].say(wire.streamed(good))
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == b":\n\n"
    gate.set()
    body = b""
    while piece := await client.chunk():
        body += piece
    assert body.replace(b":\n\n", b"") == good
    assert len(rig.replicas[0].requests) == 2


async def test_errors_behind_an_opened_head_come_in_band(app, wire):
    rig = await app(timeouts={"stream_open_after_s": 0.05})
    gate = asyncio.Event()
    refusal = wire.error("Input validation error: x", "validation")
    rig.replicas[0].say(gate, wire.reply(refusal, "422 Unprocessable Entity"))
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    assert (await client.head()).status == 200
    assert await client.chunk() == b":\n\n"
    gate.set()
    event = await client.chunk()
    assert json.loads(event[6:]) == json.loads(refusal)
    assert await client.chunk() == b""


async def test_a_stream_in_the_queue_is_opened_and_refused_in_band(app, wire):
    rig = await app(
        entries={"max_requests": 1},
        timeouts={"stream_open_after_s": 0.05},
        queue={"timeout_s": 0.3},
    )
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    client = await rig.client()
    client.post("/v1/chat/completions", CHAT)
    assert (await client.head()).status == 200
    body = b""
    while piece := await client.chunk():
        body += piece
    events = [event for event in body.split(b"\n\n") if event not in (b":", b"")]
    assert json.loads(events[0][6:])["error"]["code"] == "overloaded"
    assert events[1:] == [b"data: [DONE]"]


async def test_waiting_too_long_is_503_with_a_retry_after(app, wire):
    rig = await app(entries={"max_requests": 1}, queue={"timeout_s": 0.1})
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 503
    assert reply.json()["error_type"] == "overloaded"
    assert int(reply.get("retry-after")) >= 1


@pytest.mark.parametrize("queue", [{"max_calls": 1}, {"max_bytes": 100}])
async def test_a_full_queue_is_429_with_a_retry_after(app, wire, until, queue):
    rig = await app(entries={"max_requests": 1}, queue=queue)
    rig.replicas[0].say(wire.STALL)
    clients = [await rig.client() for _ in range(2)]
    clients[0].post("/generate", GENERATE)
    await rig.replicas[0].request()
    clients[1].post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    reply = await rig.post("/generate", GENERATE)
    assert reply.status == 429
    assert int(reply.get("retry-after")) >= 1
    assert rig.metric("sheds_total", reason="queue_full") == 1
