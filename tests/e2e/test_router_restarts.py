"""The router is replaced, or dies, under 500 calls a second that do not wait for each other."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import yaml

pytestmark = pytest.mark.e2e

PER_S = 520.0
TOLD_S = 0.05
"""Until a client has noticed that its connections are gone."""


@asynccontextmanager
async def steadily(fleet, loads, steady, endpoint):
    """Unary calls and streams in equal parts; afterwards each has been answered."""
    asks = [
        loads.ask_for(kind, loads.prompt_of(6, loads.random.Random(seed)), tokens)
        for seed, (kind, tokens) in enumerate([("generate", 4), ("generate_stream", 5)] * 4)
    ]
    load = steady.Steady(endpoint, await steady.questions(endpoint, asks), PER_S)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            await load.served(1000)
            yield load
        finally:
            load.stop()


async def up(fleet):
    """Replicas that cost so little that 500 calls a second fit into half a core."""
    fleet.config["engine"]["args"] |= {"time-scale": 100}
    fleet.write()
    return await asyncio.to_thread(fleet.up)


def told(load):
    calls = load.calls
    seconds = calls[-1].sent_s - calls[0].sent_s
    streams = sum(call.question.is_stream for call in calls)
    new = sum(call.is_new for call in calls)
    return (
        f"{len(calls)} calls at {len(calls) / seconds:.0f}/s, {streams} streams, {new} on new "
        f"connections: {len(load.failed)} failed, the longest took "
        f"{max(call.took_s for call in calls):.2f} s, at most {load.most_running} at a time"
    )


async def test_a_router_replaced_five_times_under_500_calls_a_second_fails_none(
    fleet, loads, steady
):
    status = await up(fleet)
    routers = [status["router"]["pid"]]
    took_s = []
    async with steadily(fleet, loads, steady, status["endpoint"]) as load:
        for number in range(5):
            fleet.config["router"]["queue"] = {"timeout_s": 30 + number}
            fleet.write()
            begun_s = time.monotonic()
            await asyncio.to_thread(fleet.run, "up")
            took_s.append(time.monotonic() - begun_s)
            routers.append((await asyncio.to_thread(fleet.status))["router"]["pid"])
            await load.served(500)
    print(f"\n{told(load)}; a change took {max(took_s):.1f} s at most")
    assert Counter(call.error for call in load.failed) == Counter()
    assert len(set(routers)) == 6
    assert len(load.calls) >= 500 * (load.calls[-1].sent_s - load.calls[0].sent_s)


async def test_a_router_killed_under_500_calls_a_second_costs_only_what_was_in_flight(
    fleet, loads, steady
):
    """Later calls wait in the socket, which the launcher holds: none of them is refused."""
    status = await up(fleet)
    async with steadily(fleet, loads, steady, status["endpoint"]) as load:
        killed_s = time.monotonic()
        await asyncio.to_thread(fleet.kill, status["router"]["pid"])
        gone_s = time.monotonic() + TOLD_S
        await load.served(1500)
    later = [call for call in load.calls if call.sent_s > gone_s]
    back_s = min(call.done_s for call in later if not call.error) - killed_s
    print(f"\n{told(load)}; it served again after {back_s:.2f} s")
    assert [call.error for call in later if call.error] == []
    assert Counter(call.error for call in load.failed).keys() <= {"lost", "cut"}
    assert all(call.done_s >= killed_s for call in load.failed)
    assert load.failed
    assert back_s < 2.0
    after = await asyncio.to_thread(fleet.until_ready)
    assert after["router"]["restarts"] == 1


async def test_a_stream_over_a_hand_over_is_finished_or_told_at_the_drain_bound(
    fleet, loads, steady
):
    """One that ends within the bound is whole; one that does not ends with an error event."""
    fleet.config["engine"]["args"] |= {"time-scale": 1}
    fleet.config["router"]["timeouts"]["drain_s"] = 4
    fleet.write()
    before = await asyncio.to_thread(fleet.up)
    asks = [loads.ask_for("generate_stream", "a river", tokens) for tokens in (60, 3000)]
    load = loads.Load(before["endpoint"], iter(asks), clients=2)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(load.run())
        await load.until(lambda load: load.is_all_sent or len(load.in_flight) == 2)
        fleet.config["router"]["queue"] = {"timeout_s": 33}
        fleet.write()
        await asyncio.to_thread(fleet.run, "up")
        await running
    short, long = sorted(load.answers, key=lambda answer: answer.ask.tokens)
    assert short.is_right, short.error
    assert long.error == "event: the router shuts down"
    assert long.events > 60
    after = await asyncio.to_thread(fleet.status)
    assert after["router"]["pid"] != before["router"]["pid"]
    assert await asyncio.to_thread(fleet.generate, after["endpoint"])


async def test_a_router_alone_that_reads_its_file_again_under_500_calls_a_second_fails_none(
    fleet, loads, steady, tmp_path
):
    """Every time with another replica left out: calls in flight there are finished all the same."""
    replicas = (await up(fleet))["replicas"]
    known = [{"url": replica["url"], "max_requests": 32} for replica in replicas]
    path, out = tmp_path / "router.yaml", tmp_path / "out"

    def write(replicas, timeout_s):
        router = {"port": 0, "queue": {"timeout_s": timeout_s}}
        path.write_text(yaml.safe_dump({"router": router, "replicas": replicas}))

    def lines(kind):
        said = out.read_text().splitlines()
        return [json.loads(line) for line in said if f'"event":"{kind}"' in line]

    write(known, 60)
    router = await asyncio.to_thread(start_router, path, out)
    try:
        await eventually(lambda: "serving on " in out.read_text())
        endpoint = out.read_text().split("serving on ")[1].split()[0]
        async with steadily(fleet, loads, steady, endpoint) as load:
            for number in range(8):
                write([one for one in known if one is not known[number % 4]], 30 + number)
                router.send_signal(signal.SIGHUP)
                await eventually(lambda wanted=number + 1: len(lines("reload")) == wanted)
                await load.served(300)
        print(f"\n{told(load)}")
        assert Counter(call.error for call in load.failed) == Counter()
        left = [line["left"] for line in lines("reload")]
        assert [len(ids) for ids in left] == [1] * 8
        assert router.poll() is None
    finally:
        router.terminate()
        router.wait(timeout=20)


def start_router(config, out):
    with out.open("w") as file:
        argv = [sys.executable, "-m", "router", "--config", str(config)]
        return subprocess.Popen(argv, stdout=file, stderr=file)


async def eventually(is_so):
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.02)
