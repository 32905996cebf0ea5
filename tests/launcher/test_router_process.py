"""The router's keeper with a stand-in for the router: a real process that answers as told."""

import asyncio
import os
import signal
import sys
import textwrap

import pytest

from launcher import exits, processes, router_process
from launcher.config import ClusterConfig
from launcher.router_client import RouterClient
from launcher.router_process import RouterKeeper, fingerprint_of, running_routers

# Answers /admin/state with its pid, and nothing else; SIGTERM ends it.
STAND_IN = """
    import json, os, socket, sys
    path = sys.argv[sys.argv.index("--state-dir") + 1] + "/router.sock"
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    public = socket.socket(fileno=fd)
    if os.path.exists(path):
        os.unlink(path)
    admin = socket.socket(socket.AF_UNIX)
    admin.bind(path)
    admin.listen()
    body = json.dumps({"pid": os.getpid()}).encode()
    head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
    while True:
        client, _ = admin.accept()
        request = client.recv(65536)
        if b"/admin/listener" in request:
            socket.send_fds(client, [b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"], [fd])
        else:
            client.sendall(head % len(body) + body)
        client.close()
"""


@pytest.fixture
def config(folder) -> ClusterConfig:
    router = {"port": 0, "timeouts": {"drain_s": 5}}
    return ClusterConfig.model_validate({"models": [{"id": "m"}], "router": router})


@pytest.fixture
async def make(folder, monkeypatch, tmp_path):
    """Keepers over the stand-in; whatever they started is gone afterwards."""
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    real = router_process.spawn

    def spawn(argv, *args, **kwargs):
        return real([sys.executable, str(script), *argv[3:]], *args, **kwargs)

    monkeypatch.setattr(router_process, "spawn", spawn)
    made: list[RouterKeeper] = []
    async with RouterClient(folder.admin_socket, timeout_s=0.5) as client:

        def keeper(config: ClusterConfig) -> RouterKeeper:
            made.append(RouterKeeper(folder, config, client))
            return made[-1]

        yield keeper
        for each in made:
            await each.stop(at_once=True)
    assert running_routers(folder) == []


class Run:
    """`keeper.run()` for the time of a block."""

    def __init__(self, keeper: RouterKeeper) -> None:
        self._keeper = keeper

    async def __aenter__(self) -> None:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._keeper.run())
        await asyncio.wait_for(self._keeper.answering.wait(), 10)

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await self._group.__aexit__(*exc)


async def next_answer(keeper: RouterKeeper) -> None:
    async with asyncio.timeout(10):
        while keeper.answering.is_set():  # noqa: ASYNC110  # it clears, which no event tells
            await asyncio.sleep(0.01)
        await keeper.answering.wait()


async def test_a_dead_router_is_replaced_on_the_same_socket(make, config) -> None:
    keeper = make(config)
    await keeper.open()
    async with Run(keeper):
        first, endpoint = keeper.view.process, keeper.endpoint
        os.kill(first.pid, signal.SIGKILL)
        await next_answer(keeper)
        assert keeper.view.process != first
        assert (keeper.endpoint, keeper.view.restarts) == (endpoint, 1)
        assert "SIGKILL" in keeper.view.reason or keeper.view.reason == ""


async def test_a_router_that_hangs_is_replaced(make, config) -> None:
    keeper = make(config)
    keeper._hang_look_s = 0.05
    await keeper.open()
    async with Run(keeper):
        first = keeper.view.process
        os.kill(first.pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            await next_answer_of_another(keeper, first)
        assert not processes.is_running(first)


async def test_the_next_keeper_adopts_it(make, config) -> None:
    first = make(config)
    await first.open()
    async with Run(first):
        pass
    second = make(config)
    await second.open()
    assert second.view.process == first.view.process
    assert second.endpoint == first.endpoint


async def test_a_changed_config_replaces_it_on_the_same_socket(make, config) -> None:
    first = make(config)
    await first.open()
    async with Run(first):
        pass
    router = config.router.model_copy(update={"policy": "round_robin"})
    changed = config.model_copy(update={"router": router})
    assert fingerprint_of(changed) != fingerprint_of(config)
    second = make(changed)
    await second.open()
    assert second.endpoint == first.endpoint
    async with Run(second):
        assert second.view.process != first.view.process
        async with asyncio.timeout(10):
            while processes.is_running(first.view.process):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_the_old_router_serves_on_while_the_new_one_cannot_start(
    make, config, monkeypatch
) -> None:
    first = make(config)
    await first.open()
    async with Run(first):
        pass
    real = router_process.spawn

    def broken(argv, *args, **kwargs):
        return real([sys.executable, "-c", "raise SystemExit(2)"], *args, **kwargs)

    router = config.router.model_copy(update={"policy": "round_robin"})
    second = make(config.model_copy(update={"router": router}))
    with monkeypatch.context() as patched:
        patched.setattr(router_process, "spawn", broken)
        await second.open()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(second.run())
            async with asyncio.timeout(10):
                while second.view.failed_starts < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            task.cancel()
    assert processes.is_running(first.view.process)
    async with Run(second):
        assert await exits.has_ended(first.view.process, within_s=10)


async def test_a_deaf_router_is_ended_and_its_port_taken_again(make, config, monkeypatch) -> None:
    monkeypatch.setattr(router_process.listener, "_TAKE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(router_process, "_TAKE_TRIES", 1)
    first = make(config)
    await first.open()
    async with Run(first):
        pass
    os.kill(first.view.process.pid, signal.SIGSTOP)
    second = make(config)
    await second.open()
    assert not processes.is_running(first.view.process)
    async with Run(second):
        assert second.view.process != first.view.process


async def test_a_change_that_is_only_prepared_changes_nothing(make, config) -> None:
    keeper = make(config)
    await keeper.open()
    endpoint = keeper.endpoint
    router = config.router.model_copy(update={"host": "127.0.0.2"})
    changed = config.model_copy(update={"router": router})
    assert keeper.prepare_change(changed)
    opened = keeper._next.listener
    assert opened.fileno() != -1
    keeper.drop_change()
    assert opened.fileno() == -1
    assert keeper.endpoint == endpoint
    async with Run(keeper):
        first = keeper.view.process
        os.kill(first.pid, signal.SIGKILL)
        await next_answer(keeper)
        (found,) = running_routers(keeper._folder)
        assert found.marks.fingerprint == fingerprint_of(config)


async def test_of_two_changes_that_are_prepared_the_first_lets_go(make, config) -> None:
    keeper = make(config)
    await keeper.open()
    router = config.router.model_copy(update={"host": "127.0.0.2"})
    assert keeper.prepare_change(config.model_copy(update={"router": router}))
    opened = keeper._next.listener
    assert not keeper.prepare_change(config)
    assert opened.fileno() == -1


async def test_stop_lets_it_end_by_itself(make, config, folder) -> None:
    keeper = make(config)
    await keeper.open()
    async with Run(keeper):
        process = keeper.view.process
    await keeper.stop()
    assert not processes.is_running(process)
    assert keeper.endpoint is None


async def next_answer_of_another(keeper: RouterKeeper, first) -> None:
    while keeper.view.process == first or not keeper.answering.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
