"""A router that its launcher has told nothing yet lets calls wait in the socket."""

import asyncio

import pytest

from router import app as app_module

GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.fixture
async def untold(app, wire, tmp_path):
    """A router under a launcher, before the first list; the replica is there already."""
    replica = wire.ScriptedReplica("r0")
    await replica.start()
    rig = await app(None, is_up=False, state_dir=tmp_path)
    rig.replicas = [replica]
    return rig


async def test_a_call_before_the_first_list_is_served_after_it(untold) -> None:
    client = await untold.client()
    client.post("/generate", GENERATE)
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(client.reply())
        await asyncio.sleep(0)
        assert untold.app.handlers.calls_running == 0
        untold.app.fleet.accept(untold.listed(epoch=1))
    assert reply.result().status == 200


async def test_without_a_launcher_it_serves_before_long(app, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(app_module, "FIRST_LIST_S", 0.1)
    untold = await app(None, is_up=False, state_dir=tmp_path)
    client = await untold.client()
    client.post("/generate", GENERATE)
    reply = await client.reply()
    assert reply.status == 503
    assert b"no replica is configured yet" in reply.body


async def test_an_empty_list_is_one(untold) -> None:
    client = await untold.client()
    client.ask("GET", "/metrics")
    untold.app.fleet.accept(untold.listed(epoch=1).model_copy(update={"replicas": []}))
    assert (await client.reply()).status == 200


async def test_a_router_that_is_ended_first_serves_nobody(untold, until) -> None:
    untold.app._is_stopping = True
    await untold.app.drain()
    untold.app.fleet.accept(untold.listed(epoch=1))
    await until(lambda: "first list" not in names_of_tasks())
    assert untold.app.handlers.is_draining


def names_of_tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}
