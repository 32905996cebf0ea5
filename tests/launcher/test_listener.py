"""The public socket: bound once, handed from router to launcher, refused with the holder's name."""

import asyncio
import os
import socket

import pytest

from launcher import listener
from router.errors import StartError


def test_a_taken_port_is_refused_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError) as caught:
            listener.bind("127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert f"pid {os.getpid()}" in str(caught.value)
    assert "router.port" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(StartError, match=r"router\.host"):
        listener.bind(host, 0)


def test_port_0_takes_a_free_one_and_the_endpoint_says_which() -> None:
    with listener.bind("0.0.0.0", 0) as bound:
        assert listener.endpoint_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert listener.is_at(bound, "0.0.0.0", 0)
        assert listener.is_at(bound, "0.0.0.0", bound.getsockname()[1])
        assert not listener.is_at(bound, "127.0.0.1", 0)
        assert not listener.is_at(bound, "0.0.0.0", 1)


async def test_the_routers_socket_is_taken_over(folder, fd_server) -> None:
    with listener.bind("127.0.0.1", 0) as public:
        answering = fd_server([public])
        request, received = await asyncio.gather(
            answering, asyncio.to_thread(listener.take_from_router, folder.admin_socket)
        )
        assert request.startswith(b"GET /admin/listener HTTP/1.1\r\n")
        assert received is not None
        with received:
            assert received.getsockname() == public.getsockname()
            assert not os.get_inheritable(received.fileno())


async def test_a_router_that_gives_no_socket_gives_none(folder, fd_server) -> None:
    answering = fd_server([])
    _, received = await asyncio.gather(
        answering, asyncio.to_thread(listener.take_from_router, folder.admin_socket)
    )
    assert received is None


def test_no_router_gives_none(folder) -> None:
    assert listener.take_from_router(folder.admin_socket) is None
