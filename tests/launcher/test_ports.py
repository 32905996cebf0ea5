"""Free ports, and who holds the others."""

import os
import socket
from collections.abc import Iterator
from itertools import islice

import pytest

from launcher import ports
from router.errors import StartError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_somebody_listens_on_is_passed_over(taken: int) -> None:
    assert taken not in list(islice(ports.free_ports("127.0.0.1", taken, set()), 3))


def test_a_port_on_all_addresses_is_taken_on_ours_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not ports.is_free("127.0.0.1", server.getsockname()[1])


def test_a_port_given_to_another_replica_is_passed_over() -> None:
    first = next(ports.free_ports("127.0.0.1", 24_500, set()))
    assert next(ports.free_ports("127.0.0.1", first, {first})) > first


def test_the_preferred_port_comes_first_if_it_is_free(taken: int) -> None:
    free = next(ports.free_ports("127.0.0.1", 24_600, set()))
    assert next(ports.free_ports("127.0.0.1", 24_500, set(), preferred=free)) == free
    assert next(ports.free_ports("127.0.0.1", 24_500, set(), preferred=taken)) != taken


def test_an_address_that_is_not_ours_is_an_error_of_the_config() -> None:
    with pytest.raises(StartError, match=r"runtime\.host") as caught:
        ports.is_free("192.0.2.1", 24_500)
    assert not caught.value.recoverable


def test_the_holder_of_a_port_is_found(taken: int) -> None:
    assert ports.holders_of(taken) == [os.getpid()]
    assert ports.describe_holder(taken).startswith(f"pid {os.getpid()} (")


def test_a_port_nobody_listens_on_has_no_holder(taken: int) -> None:
    free = next(ports.free_ports("127.0.0.1", 24_700, set()))
    assert ports.holders_of(free) == []
