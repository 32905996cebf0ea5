"""`launcher explain` on a fleet of real processes, in which something has just died."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def running(load):
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        try:
            yield load
        finally:
            load.stop()


async def test_what_became_of_calls_whose_replica_died_and_what_a_new_router_knows(fleet, loads):
    fleet.config["engine"]["args"] |= {"time-scale": 1, "max-batch-total-tokens": 2000}
    fleet.config["models"][0] |= {"max_total_tokens": 1024, "replicas": 2}
    fleet.write()
    before = await asyncio.to_thread(fleet.up)
    asks = loads.small(2, (40, 60), kinds=["generate", "root"])
    async with running(loads.Load(before["endpoint"], asks, clients=128)) as load:
        await load.served(100)
        await asyncio.to_thread(fleet.kill, before["replicas"][1]["pid"])
        await load.served(200)
    assert [a.error for a in load.answers if not a.is_right] == []

    log = fleet.state_dir / "logs" / "router.log"
    calls = await asyncio.to_thread(
        fleet.logged, "call", lambda lines: len(lines) >= len(load.answers)
    )
    tried = [call for call in calls if call.get("tries")]
    assert {call["tries"][0]["replica"] for call in tried} == {"replica-1"}
    tried_twice = next(call for call in tried if call["tries"][0]["error"] == "ReplicaLost")
    said = (await asyncio.to_thread(fleet.run, "explain", tried_twice["id"])).stdout
    assert "replica-1: until its whole answer; it failed: ReplicaLost" in said
    assert "decided: again, first in the queue" in said
    assert "ended with 200" in said
    said = (await asyncio.to_thread(fleet.run, "explain", "--slowest", "--json")).stdout
    slowest = json.loads(said)["calls"]
    assert slowest[0]["total_ms"] == max(call["total_ms"] for call in calls)
    assert any(part["part"] == "queue" for part in slowest[0]["parts"])
    for word in loads.WORDS:
        assert f" {word} " not in said

    router = (await asyncio.to_thread(fleet.until_ready))["router"]["pid"]
    await asyncio.to_thread(fleet.kill, router)
    await asyncio.to_thread(fleet.until, lambda s: s["router"]["pid"] not in (None, router))
    await asyncio.to_thread(fleet.until_ready)
    said = (await asyncio.to_thread(fleet.run, "explain", tried_twice["id"])).stdout
    assert "replica-1: from asking to its last word; it failed: ReplicaLost" in said
    assert "as the router was restarted since, at " in said
    refused = await asyncio.to_thread(fleet.run, "explain", "none", rc=1)
    assert "this router began at " in refused.stderr
    assert str(log) in refused.stderr
