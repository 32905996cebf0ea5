"""A real router in this process, over scripted replicas, with its log and a check at the end."""

import asyncio
import io
import json
import socket
from collections.abc import Callable

from router.app import App
from router.config import RouterConfig
from router.event_log import EventLog
from router.fleet import ReplicaEntry, ReplicaList
from router.health import State

DEADLINE_S = 10.0
LOOK_EVERY_S = 0.005


async def until(is_so: Callable[[], object], what: str = "the condition") -> None:
    """Waits for what no event tells of; fails after a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110  # several owners, none of whom tells
            await asyncio.sleep(LOOK_EVERY_S)


def listener(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    sock.setblocking(False)
    return sock


class Rig:
    def __init__(self, replicas, client_class, *, state_dir=None, sock=None, **options) -> None:
        self.replicas = replicas
        self.client_class = client_class
        self.clients = []
        self.sock = sock or listener()
        self.port = self.sock.getsockname()[1]
        self.out = io.BytesIO()
        self.is_closed = False
        # Scripted replicas are as slow as their scripts: nothing is to be learned from that.
        given = {"port": 0, "policy": "least_tokens", **options}
        config = RouterConfig.model_validate(given)
        self.app = App(config, self.sock, state_dir=state_dir, log=EventLog(self.out))

    def listed(self, *, epoch=0, cluster="test", models=(), **fields) -> ReplicaList:
        """The list of all replicas; `models` names each one's pool."""
        entries = [
            ReplicaEntry(
                id=replica.name,
                generation=1,
                url=replica.url,
                model=models[position] if models else "default",
                **fields,
            )
            for position, replica in enumerate(self.replicas)
        ]
        return ReplicaList(protocol=1, cluster=cluster, epoch=epoch, replicas=entries)

    # ---- looking in ----

    def all(self):
        return list(self.app.fleet.replicas())

    def __getitem__(self, name):
        return next(replica for replica in self.all() if replica.id == name)

    @property
    def dispatcher(self):
        return next(iter(self.app.fleet))

    async def is_up(self, *names) -> None:
        def up():
            mine = [r for r in self.all() if not names or r.id in names]
            return mine and all(r.health.state is State.HEALTHY for r in mine)

        await until(up, "replicas up")

    def lines(self, kind="call"):
        """The log lines written so far."""
        self.app.log._flush()
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [line for line in lines if line["event"] == kind]

    async def line(self, number=1):
        """The n-th call's log line, once it is there."""
        await until(lambda: len(self.lines()) >= number, "a log line")
        return self.lines()[number - 1]

    def metric(self, name, **labels) -> float:
        return self.app.metrics.registry.get_sample_value(f"fleet_{name}", labels) or 0.0

    # ---- using it ----

    async def client(self, **options):
        client = await self.client_class.connect(self.port, **options)
        self.clients.append(client)
        return client

    async def post(self, path, body, *fields):
        """One call on a connection of its own."""
        client = await self.client()
        client.post(path, body, *fields)
        return await client.reply()

    async def get(self, path, *fields):
        client = await self.client()
        client.ask("GET", path, *fields)
        return await client.reply()

    # ---- ending ----

    async def at_rest(self) -> None:
        """No call is left anywhere: the router's books must say so."""
        await until(lambda: not self.app.handlers.calls_running, "the calls' end")
        for dispatcher in self.app.fleet:
            assert dispatcher.open_leases == 0
            assert len(dispatcher.queue) == 0
            assert dispatcher.queue.waiting_bytes == 0
            for replica in dispatcher.pool:
                assert (replica.load.requests, replica.load.tokens) == (0, 0), replica
                assert not replica.alone

    async def close(self) -> None:
        """Clients leave, the books are looked at, the router ends; nothing may be left."""
        for client in self.clients:
            client.leave()
        if not self.is_closed:
            self.is_closed = True
            await self.at_rest()
            await self.app.tasks.close()  # probes
            assert len(self.app.upstream) == 0
            await self.app.close()
        self.sock.close()
