"""Talking to the router's admin socket, and getting along without a router."""

import asyncio
import socket

import pytest

from launcher.router_client import PushRefused, RouterAway, RouterClient, replica_states

REPLICAS = [{"id": "replica-0"}, {"id": "replica-1"}]


@pytest.fixture
async def client(folder):
    async with RouterClient(folder.admin_socket) as client:
        yield client


async def test_the_list_arrives_as_the_contract_has_it(admin, client) -> None:
    await client.push("c", 5, REPLICAS)
    expected = {"protocol": 1, "cluster": "c", "epoch": 5, "replicas": REPLICAS}
    assert admin.pushes == [expected]
    assert set(replica_states(await client.state())) == {"replica-0", "replica-1"}


async def test_an_older_epoch_is_refused_with_the_routers_words(admin, client) -> None:
    admin.epoch = 9
    with pytest.raises(PushRefused, match="409: epoch 9 is newer"):
        await client.push("c", 5, REPLICAS)


async def test_drain_and_undrain(admin, client) -> None:
    await client.push("c", 1, REPLICAS)
    admin.requests["replica-1"] = 3
    assert (await client.drain("replica-1"))["requests"] == 3
    assert admin.admin == {"replica-1": "draining"}
    assert (await client.drain("replica-1", undo=True))["admin"] == "active"
    assert await client.drain("nobody") is None


async def test_no_router_is_an_error_that_can_be_waited_out(folder, client) -> None:
    with pytest.raises(RouterAway, match=r"router\.sock"):
        await client.state()


async def test_an_answer_that_is_no_json_is_no_router(client, fd_server) -> None:
    _, found = await asyncio.gather(fd_server([]), client.state(), return_exceptions=True)
    assert isinstance(found, RouterAway)


async def test_a_deaf_router_is_not_waited_for(folder) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder.admin_socket))
        deaf.listen()
        async with RouterClient(folder.admin_socket, timeout_s=0.05) as client:
            with pytest.raises(RouterAway, match=r"router\.sock \(no answer within 0\.05 s\)$"):
                await client.state()


async def test_a_router_that_came_back_is_met_at_once(folder, client, admin) -> None:
    await client.state()
    admin.pid = 2
    assert (await client.state())["pid"] == 2
