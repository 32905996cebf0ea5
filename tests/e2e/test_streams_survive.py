"""256 streams over four replicas that are killed, stopped and made to fail: not one breaks.

What is greedy comes to the same text wherever it is continued, so every answer is compared with the
undisturbed one to the letter.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import urllib.request
from collections import Counter
from dataclasses import replace

import pytest

from launcher.simulator.chat_template import templated
from launcher.simulator.era import era_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
CLIENTS = 256
KINDS = ("generate_stream", "root_stream", "chat_stream")


def configure(fleet, **args):
    fleet.config["engine"] = {
        "name": "simulator",
        "version": "3.3.5",
        "args": {"load-s": 0.1, "gpu": "a10g", "time-scale": 1, "faults": True, **args},
    }
    fleet.config["models"][0]["max_total_tokens"] = 2048
    fleet.write()


def greedy(loads, kind, prompt, new_tokens):
    ask = loads.ask_for(kind, prompt, new_tokens)
    if kind != "chat_stream":
        return ask
    body = {key: value for key, value in ask.body.items() if key != "seed"} | {"temperature": 0}
    text, tokens = loads.continued(templated(body["messages"], era_of("3.3.5")), new_tokens, None)
    return replace(ask, body=body, expected=text, tokens=tokens + new_tokens)


def streams(loads, seed=1):
    rng = random.Random(seed)
    for kind in itertools.cycle(KINDS):
        yield greedy(loads, kind, loads.prompt_of(rng.randint(5, 15), rng), rng.randint(60, 120))


class Streams:
    """256 clients, each with one stream after the other, until the block is left."""

    def __init__(self, loads, endpoint):
        self.loads = loads
        self.load = loads.Load(endpoint, streams(loads), clients=CLIENTS)

    async def __aenter__(self):
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._group.create_task(self.load.run())
        await self.load.until(lambda load: len(load.in_flight) == CLIENTS)
        await asyncio.sleep(1.0)  # into mid-answer
        return self.load

    async def __aexit__(self, *error):
        self.load.stop()
        await self._group.__aexit__(*error)


async def check(loads, endpoint, load, kind):
    wrong = Counter(
        f"{a.ask.kind}: {a.error or 'another text than expected'}"
        for a in load.answers
        if not a.is_right
    )
    counters = await loads.counters(endpoint)
    resumed = counters("fleet_resumes_total", outcome="resumed")
    longest_s = max(a.done_s - a.sent_s for a in load.answers)
    print(
        f"\n{kind}: {len(load.answers)} streams, resumed {resumed:.0f}, broken {wrong.total()}, "
        f"longest {longest_s:.1f} s"
    )
    assert wrong == {}
    assert counters("fleet_resumes_total", outcome="refused") == 0
    assert resumed >= CLIENTS / 8
    return resumed


async def test_a_replica_killed_again_and_again_breaks_no_stream(fleet, loads):
    configure(fleet)
    status = fleet.up()
    async with Streams(loads, status["endpoint"]) as load:
        for number in range(6):
            victim = status["replicas"][number % 4]
            os.kill(victim["pid"], signal.SIGKILL)
            await asyncio.sleep(1.0)
            status = await asyncio.to_thread(fleet.until_ready)
            await asyncio.sleep(1.0)
    await check(loads, status["endpoint"], load, "kill -9")


async def test_a_replica_stopped_again_and_again_breaks_no_stream(fleet, loads):
    configure(fleet)
    status = fleet.up()
    async with Streams(loads, status["endpoint"]) as load:
        for number in range(3):
            victim = status["replicas"][number]["pid"]
            os.kill(victim, signal.SIGSTOP)
            try:
                await asyncio.sleep(6.0)
            finally:
                os.kill(victim, signal.SIGCONT)
            await asyncio.sleep(2.0)
    await check(loads, status["endpoint"], load, "SIGSTOP")


async def test_a_replica_whose_engine_fails_in_mid_answer_breaks_no_stream(fleet, loads):
    """Its error events never reach a client that can be helped."""
    configure(fleet)
    status = fleet.up()
    async with Streams(loads, status["endpoint"]) as load:
        for replica in status["replicas"][:2]:
            await asyncio.to_thread(
                arm, replica["url"], "die_mid_stream", after_events=20, count=40
            )
            await asyncio.sleep(3.0)
    resumed = await check(loads, status["endpoint"], load, "in-band error")
    assert resumed >= 40


def arm(url, mode, **fields):
    request = urllib.request.Request(
        f"{url}/simulator/faults",
        json.dumps({"mode": mode, **fields}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.status == 200


async def test_unary_calls_of_a_stopped_replica_are_answered_within_the_clients_patience(
    fleet, loads
):
    """The official client gives up after 10 s."""
    configure(fleet)
    status = fleet.up()
    asks = loads.small(3, (20, 40), ("generate", "root"))
    load = loads.Load(status["endpoint"], asks, clients=64)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.served(64)
        for number in range(2):
            victim = status["replicas"][number]["pid"]
            os.kill(victim, signal.SIGSTOP)
            try:
                await asyncio.sleep(12.0)
            finally:
                os.kill(victim, signal.SIGCONT)
            await asyncio.sleep(1.0)
        load.stop()
    longest_s = max(a.done_s - a.sent_s for a in load.answers)
    counters = await loads.counters(status["endpoint"])
    hedged = counters("fleet_hedges_total", outcome="won")
    print(f"\nunary: {len(load.answers)} calls, hedged {hedged:.0f}, longest {longest_s:.1f} s")
    assert not [a.error for a in load.answers if not a.is_right]
    assert hedged > 0
    assert longest_s < 10
