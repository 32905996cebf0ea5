"""A listening socket that a service manager hands over is used, or refused with a reason."""

import asyncio
import os
import socket

import pytest

from launcher import listener
from launcher.config import ClusterConfig
from launcher.router_client import RouterClient
from launcher.router_process import RouterKeeper
from router.errors import StartError

KEYS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@pytest.fixture
def hand_over(monkeypatch):
    """As systemd does before it executes us, but at another descriptor than 3."""

    def hand(fd: int, *, pid: int | None = None, count: str = "1") -> None:
        monkeypatch.setattr(listener, "_INHERITED_FD", fd)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_FDNAMES", "gpu-fleet.socket")

    return hand


@pytest.fixture
def public():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return server.getsockname()[1]


def test_the_socket_is_taken_and_no_child_will_hear_of_it(hand_over, public) -> None:
    fd = os.dup(public.fileno())
    os.set_inheritable(fd, True)
    hand_over(fd)
    taken = listener.inherited("127.0.0.1", port_of(public))
    assert taken is not None
    with taken:
        assert listener.is_same(taken, public)
        assert not os.get_inheritable(fd)
        assert not taken.getblocking()
    assert [key for key in KEYS if key in os.environ] == []


def test_without_one_there_is_none(monkeypatch) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    assert listener.inherited("127.0.0.1", 0) is None


@pytest.mark.parametrize("given", [{"pid": 1}, {"count": "0"}, {"count": ""}])
def test_what_is_meant_for_another_process_is_left_alone(hand_over, public, given) -> None:
    hand_over(public.fileno(), **given)
    assert listener.inherited("127.0.0.1", port_of(public)) is None
    assert public.fileno() >= 0
    assert [key for key in KEYS if key in os.environ] == []


def test_more_than_one_is_refused(hand_over, public) -> None:
    hand_over(public.fileno(), count="2")
    with pytest.raises(StartError, match=r"found 2 inherited sockets, expected one"):
        listener.inherited("127.0.0.1", port_of(public))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_another_address_than_the_configs_is_refused_with_both(hand_over, public, host) -> None:
    port = port_of(public) - (host == "127.0.0.1")
    hand_over(os.dup(public.fileno()))
    with pytest.raises(StartError) as caught:
        listener.inherited(host, port)
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert f"found {shown}" in str(caught.value)
    assert f"listens on 127.0.0.1:{port_of(public)}" in str(caught.value)
    assert "ListenStream=" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET, socket.SOCK_STREAM),  # bound, but does not listen: Accept=yes
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ],
)
def test_another_kind_of_socket_is_refused(hand_over, family, kind) -> None:
    with socket.socket(family, kind) as other:
        hand_over(os.dup(other.fileno()))
        with pytest.raises(StartError, match="expected a listening TCP socket"):
            listener.inherited("127.0.0.1", 0)


def test_a_descriptor_that_is_no_socket_is_refused(hand_over) -> None:
    read, write = os.pipe()
    hand_over(read)
    with pytest.raises(StartError, match="expected a listening TCP socket"):
        listener.inherited("127.0.0.1", 0)
    os.close(read)
    os.close(write)


class Answering(RouterKeeper):
    """Takes over, but starts no process."""

    started = 0

    def _start(self) -> None:
        self.started += 1


@pytest.fixture
async def make(folder):
    async with RouterClient(folder.admin_socket) as client:

        def keeper(port: int) -> Answering:
            router = {"host": "127.0.0.1", "port": port}
            config = {"models": [{"id": "m"}], "router": router}
            return Answering(folder, ClusterConfig.model_validate(config), client)

        yield keeper


async def test_the_router_gets_the_inherited_socket(make, hand_over, public) -> None:
    hand_over(os.dup(public.fileno()))
    keeper = make(port_of(public))
    await keeper.open()
    assert keeper.endpoint == f"http://127.0.0.1:{port_of(public)}"
    assert keeper.started == 1
    keeper.close()
    with socket.create_connection(public.getsockname(), timeout=5):
        pass  # its owner still has it


async def test_a_wrong_address_starts_nothing(make, hand_over, public) -> None:
    hand_over(os.dup(public.fileno()))
    keeper = make(port_of(public) - 1)
    with pytest.raises(StartError, match="inherited socket listens on"):
        await keeper.open()
    assert (keeper.endpoint, keeper.started) == (None, 0)


async def test_a_running_router_on_that_socket_serves_on(
    make, hand_over, public, fd_server, monkeypatch
) -> None:
    """The launcher was killed, its router was not, and the manager hands the socket over again."""
    monkeypatch.setattr("launcher.router_process.running_routers", lambda _: ["a router"])
    adopted: list[object] = []
    monkeypatch.setattr(Answering, "_adopt_or_replace", lambda _, running: adopted.extend(running))
    hand_over(os.dup(public.fileno()))
    keeper = make(port_of(public))
    await asyncio.gather(fd_server([public]), keeper.open())
    assert (adopted, keeper.started) == (["a router"], 0)
    keeper.close()


async def test_a_running_router_on_another_socket_is_replaced(
    make, hand_over, public, fd_server, monkeypatch
) -> None:
    monkeypatch.setattr("launcher.router_process.running_routers", lambda _: ["a router"])
    hand_over(os.dup(public.fileno()))
    keeper = make(port_of(public))
    with socket.create_server(("127.0.0.1", 0)) as old:
        await asyncio.gather(fd_server([old]), keeper.open())
    assert keeper.endpoint == f"http://127.0.0.1:{port_of(public)}"
    assert (keeper._outdated, keeper.started) == (["a router"], 1)
    keeper.close()
