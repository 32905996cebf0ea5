"""SIGHUP: the file is read again, and what it says counts from the next call on."""

import asyncio
import os
import signal
from functools import partial

import pytest
import yaml

from router.config import RouterConfig
from router.options import RouterOptions, resolve
from router.reload import news
from router.tasks import Tasks

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}
TOKEN = "a token of some length"


def config(**fields):
    return RouterConfig.model_validate(fields)


# ---- what can be taken over, and what cannot ----


def test_what_can_change_at_once_is_taken_over():
    found = news(config(), config(queue={"timeout_s": 5}, policy="round_robin"))
    assert found.config == config(queue={"timeout_s": 5}, policy="round_robin")
    assert found.changed == [
        "policy: expected_finish -> round_robin",
        "queue.timeout_s: 60.0 -> 5.0",
    ]
    assert found.needs_restart == []


def test_addresses_stay_and_are_named_as_needing_a_restart():
    running = config(port=1)
    written = config(port=2, host="::", admin={"port": 3, "token": TOKEN}, log_calls=False)
    found = news(running, written)
    assert (found.config.port, found.config.host, found.config.admin.port) == (1, "127.0.0.1", None)
    assert found.needs_restart == [
        "host: 127.0.0.1 -> ::",
        "port: 1 -> 2",
        "admin.port: none -> 3",
    ]
    assert found.changed == ["admin.token: changed (not shown)", "log_calls: true -> false"]
    assert news(found.config, written).needs_restart == found.needs_restart


def test_an_admin_port_never_loses_its_token():
    running = config(admin={"port": 3, "token": TOKEN})
    found = news(running, config())
    assert found.config.admin == running.admin
    assert found.needs_restart == ["admin.port: 3 -> none", "admin.token: changed (not shown)"]


# ---- a router that reads its file again ----


class Reloading:
    """A router whose `run` goes on, and the file that it reads."""

    def __init__(self, rig, path):
        self.rig = rig
        self.path = path
        self.written = {"router": {"port": 0}, "replicas": [r.url for r in rig.replicas]}

    def write(self, **fields):
        self.written["router"] = {"port": 0, **fields}
        self.path.write_text(yaml.safe_dump(self.written))

    async def hup(self, until):
        """The log line that follows."""
        before = len(self.rig.lines("reload"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(self.rig.lines("reload")) > before)
        return self.rig.lines("reload")[-1]


@pytest.fixture
async def reloading(app, tmp_path, until):
    """`await reloading(replicas=2, queue=...)`; `edit(**fields)` writes the file and sends HUP."""
    tasks = Tasks()

    async def make(*args, **options):
        rig = await app(*args, **options)
        made = Reloading(rig, tmp_path / "router.yaml")
        made.write(**options)
        given = RouterOptions(made.path, [], None, None, None, None)
        rig.app.read_again = partial(resolve, given)
        rig.app.reload(resolve(given))
        await rig.is_up()
        tasks.spawn(rig.app.run(), "run")
        await asyncio.sleep(0)  # it listens to signals from here on

        async def edit(**fields):
            made.write(**fields)
            return await made.hup(until)

        return rig, made, edit

    yield make
    await tasks.close()


async def test_what_changed_is_logged_and_nothing_of_what_is_secret(reloading):
    _, _, edit = await reloading(engine_api_key="hidden")
    line = await edit(engine_api_key="unseen", retries={"max_attempts": 2}, port=9)
    assert line["changed"] == [
        "retries.max_attempts: 3 -> 2",
        "engine_api_key: changed (not shown)",
    ]
    assert line["needs_restart"] == ["port: 0 -> 9"]
    assert "unseen" not in str(line)
    assert (line["joined"], line["left"]) == ([], [])


async def test_the_same_file_again_changes_nothing(reloading, until):
    rig, made, _ = await reloading()
    replica = rig.all()[0]
    line = await made.hup(until)
    assert (line["changed"], line["needs_restart"], line["joined"]) == ([], [], [])
    assert rig.all() == [replica]


WRONG = {
    "wrong values": ("router: {prot: 1, policy: luck}\nreplicas: [http://a:1]\n", 2),
    "no YAML": ("router: {\n", 1),
    "no replica": ("router: {port: 0}\n", 1),
    "one replica twice": ("replicas: [http://a:1, http://a:1]\n", 1),
    "empty": ("", 1),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_file_changes_nothing_and_every_problem_is_logged(reloading, until, what):
    rig, made, edit = await reloading(queue={"timeout_s": 7})
    text, problems = WRONG[what]
    made.path.write_text(text)
    line = await made.hup(until)
    assert len(line["refused"]) == problems
    assert "changed" not in line
    assert rig.app.config.queue.timeout_s == 7
    assert (await rig.post("/generate", GENERATE)).status == 200
    line = await edit(queue={"timeout_s": 8})
    assert line["changed"] == ["queue.timeout_s: 7.0 -> 8.0"]


async def test_a_file_that_is_gone_changes_nothing(reloading, until):
    rig, made, _ = await reloading()
    made.path.unlink()
    [problem] = (await made.hup(until))["refused"]
    assert str(made.path) in problem
    assert (await rig.post("/generate", GENERATE)).status == 200


async def test_without_a_file_that_is_said(reloading, until):
    rig, made, _ = await reloading()
    rig.app.read_again = None
    assert (await made.hup(until))["refused"] == ["there is no config file to read again"]


# ---- each part, from the next call on ----


async def test_the_edge(reloading):
    rig, _, edit = await reloading()
    large = {"inputs": "x" * 3000}
    assert (await rig.post("/generate", large)).status == 200
    await edit(max_body_bytes=2048, cors_allow_origin=["http://a"], timeouts={"idle_s": 0.2})
    assert (await rig.post("/generate", large)).status == 413
    reply = await rig.post("/generate", GENERATE, "Origin: http://a")
    assert reply.get("access-control-allow-origin") == "http://a"
    assert (await rig.get("/health", "Origin: http://b")).get("access-control-allow-origin") is None
    client = await rig.client()
    client.post("/generate", GENERATE)
    await client.reply()
    assert await client.is_closed()


async def test_the_queue(reloading, wire, until):
    rig, made, edit = await reloading()
    made.written["replicas"] = [{"url": rig.replicas[0].url, "max_requests": 1}]
    await edit()
    rig.replicas[0].say(wire.STALL)
    busy = await rig.client()
    busy.post("/generate", GENERATE)
    await rig.replicas[0].request()
    waiting = await rig.client()
    waiting.post("/generate", GENERATE)
    await until(lambda: len(rig.dispatcher.queue) == 1)
    await edit(queue={"timeout_s": 0.1, "max_calls": 7, "max_bytes": 9999})
    assert (await rig.post("/generate", GENERATE)).status == 503
    assert len(rig.dispatcher.queue) == 1  # it came with 60 s
    assert rig.dispatcher.queue.max_bytes == 9999
    busy.leave()
    assert (await waiting.reply()).status == 200


async def test_the_policy_only_where_it_is_another(reloading):
    rig, _, edit = await reloading(policy="round_robin")
    before = rig.dispatcher.choosing.policy
    await edit(policy="round_robin", log_calls=False)
    assert rig.dispatcher.choosing.policy is before
    await edit(policy="least_requests")
    assert type(rig.dispatcher.choosing.policy).__name__ == "LeastRequests"


async def test_the_call_log(reloading):
    rig, _, edit = await reloading()
    await edit(log_calls=False)
    await rig.post("/generate", GENERATE)
    assert rig.lines() == []
    await edit()
    await rig.post("/generate", GENERATE)
    assert len(rig.lines()) == 1


async def test_the_key_for_the_engines(reloading):
    rig, _, edit = await reloading(engine_api_key="one")
    await edit(engine_api_key="two")
    await rig.post("/generate", GENERATE)
    assert rig.replicas[0].requests[-1].get("authorization") == ["Bearer two"]


async def test_health_of_replicas_that_are_here(reloading):
    rig, _, edit = await reloading(health={"interval_s": 600})
    await edit(health={"interval_s": 600, "eject_after": 1, "fall": 9})
    [replica] = rig.all()
    assert (replica.health.config.eject_after, replica.health.config.fall) == (1, 9)


async def test_a_shorter_interval_does_not_wait_for_the_longer_one(reloading, until):
    rig, _, edit = await reloading(health={"interval_s": 600})
    [replica] = rig.all()
    before_s = replica.health.confirmed_s
    await edit(health={"interval_s": 0.05})
    await until(lambda: replica.health.confirmed_s > before_s)
    next_s = replica.health.confirmed_s
    await until(lambda: replica.health.confirmed_s > next_s)


async def test_retries(reloading, wire):
    rig, _, edit = await reloading()
    fault = wire.reply(wire.error("x", "generation"), "500 Internal Server Error")
    rig.replicas[0].say(fault)
    assert (await rig.post("/generate", GENERATE)).status == 200
    await edit(retries={"max_attempts": 1})
    rig.replicas[0].say(fault)
    assert (await rig.post("/generate", GENERATE)).status == 500


async def test_a_call_in_flight_keeps_the_limits_it_began_with(reloading, wire):
    rig, _, edit = await reloading()
    gate = asyncio.Event()
    rig.replicas[0].say(wire.stream_head(), gate, wire.chunk(wire.token(1)), wire.CUT)
    rig.replicas[0].say(wire.streamed(wire.token(1, last="a")))
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await rig.replicas[0].request()
    limits = {"total_s": 0.01, "first_event_s": 0.01, "between_events_s": 0.01}
    await edit(timeouts=limits, retries={"max_attempts": 1})
    assert (await rig.post("/generate_stream", GENERATE)).status == 200
    gate.set()
    reply = await client.reply()
    assert reply.status == 200
    assert b"incomplete_generation" in reply.body  # not: the deadline passed


async def test_the_admin_token(reloading, app, until):
    token = "another of some length"
    rig, _, edit = await reloading(admin={"port": 0, "token": TOKEN})
    [line] = rig.lines("admin")
    port = int(line["endpoint"].rpartition(":")[2])

    async def status(given):
        client = await rig.client_class.connect(port)
        rig.clients.append(client)
        client.ask("GET", "/admin/state", f"Authorization: Bearer {given}")
        return (await client.reply()).status

    assert (await status(TOKEN), await status(token)) == (200, 401)
    await edit(admin={"port": 0, "token": token})
    assert (await status(TOKEN), await status(token)) == (401, 200)
    await edit()
    assert (await status("None"), await status(token)) == (401, 200)


# ---- the list of replicas ----


async def test_replicas_join_and_leave_and_those_that_stay_keep_their_ids(reloading, wire, until):
    rig, made, edit = await reloading(3)
    first, second, third = rig.all()
    ids = {replica.base_url: replica.id for replica in rig.all()}
    made.written["replicas"] = [rig.replicas[2].url, rig.replicas[1].url]
    line = await edit()
    assert (line["joined"], line["left"]) == ([], [first.id])
    assert rig.all() == [third, second]
    made.written["replicas"] += [rig.replicas[0].url]
    line = await edit()
    assert len(line["joined"]) == 1
    assert {replica.base_url for replica in rig.all()} == set(ids)
    assert len({replica.id for replica in rig.all()}) == 3
    assert rig.all()[:2] == [third, second]


async def test_a_call_at_a_replica_that_leaves_is_finished(reloading, wire, until):
    """Also when its id goes to another one: it is not known to be dead."""
    rig, made, edit = await reloading(2)
    made.written["replicas"] = [{"id": "a", "url": rig.replicas[0].url}]
    await edit()
    await rig.is_up("a")
    gate = asyncio.Event()
    rig.replicas[0].say(
        wire.stream_head(),
        wire.chunk(wire.token(1)),
        gate,
        wire.chunk(wire.token(2, last="x")),
        wire.LAST_CHUNK,
    )
    client = await rig.client()
    client.post("/generate_stream", GENERATE)
    await client.head()
    assert await client.chunk() == wire.token(1)
    made.written["replicas"] = [{"id": "a", "url": rig.replicas[1].url}]
    await edit()
    await rig.is_up("a")
    gate.set()
    assert await client.chunk() == wire.token(2, last="x")
    assert (await rig.post("/generate", GENERATE)).status == 200
    assert len(rig.replicas[1].requests) == 1
