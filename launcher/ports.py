"""TCP ports: which one is free for a replica, and who holds one that is not.

Called by the process runtime before a start and by the listener when its address is taken. A free
port is only a likely one: another program may take it before the child binds, which is why
`holders_of` is asked again before a replica is believed.
"""

import errno
import fcntl
import ipaddress
import os
import socket
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from router.errors import StartError

_LISTEN = "0A"
_LAST_PORT = 65_535


def free_ports(
    host: str, first: int, taken: Container[int], preferred: int | None = None
) -> Iterator[int]:
    """Ports on `host` that nobody has and that are not in `taken`; `preferred` comes first."""
    candidates = [preferred] if preferred is not None else []
    for port in chain(candidates, range(first, _LAST_PORT + 1)):
        if port not in taken and is_free(host, port):
            yield port


@contextmanager
def choosing() -> Iterator[None]:
    """Only one launcher of this user chooses ports, and starts what takes them, at a time.

    An engine may load for minutes before it listens; until then only its marks say what is taken.
    Without a place for the lock the choice is merely less safe.
    """
    path = Path(tempfile.gettempdir()) / f"gpu-fleet-{os.getuid()}.ports"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # held for milliseconds
        yield
    finally:
        os.close(fd)


def holders_of(port: int) -> list[int]:
    """The pids that listen on `port`, on any address; none when they are another user's."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return []
    pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    return [pid for pid in pids if inodes & set(_socket_inodes(pid))]


def describe_holder(port: int) -> str:
    """For an error message: `pid 4711 (python -m http.server)`, or that it is unknown."""
    pids = holders_of(port)
    if not pids:
        return "a process of another user, or one that just left"
    command = ""
    with suppress(OSError):
        raw = Path(f"/proc/{pids[0]}/cmdline").read_bytes()
        command = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return f"pid {pids[0]} ({command[:120]})" if command else f"pid {pids[0]}"


def url_of(host: str, port: int) -> str:
    """Where what listens there is reached from this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def address_of(host: str) -> str:
    """The IP address of a name such as `localhost`. StartError when it has none."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        return socket.gethostbyname(host)
    except OSError as exc:
        raise StartError(
            f"runtime.host: found {host!r}, expected an address of this machine ({exc.strerror})",
            recoverable=False,
        ) from exc


def port_of(url: str) -> int:
    """The inverse of `url_of`; ValueError when there is none."""
    return int(url.rpartition(":")[2])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. StartError when `host` is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port in TIME_WAIT is free for an engine that sets the same option, as servers do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Two sockets may both be bound with that option as long as neither listens.
            probe.listen(1)
        except OSError as exc:
            if exc.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise StartError(
                f"runtime.host: found {host!r}, expected an address of this machine "
                f"({exc.strerror})",
                recoverable=False,
            ) from exc
    return True


def _listening_inodes(port: int) -> Iterator[str]:
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and fields[1].endswith(suffix):
                    yield fields[9]


def _socket_inodes(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
                if link.startswith("socket:["):
                    yield link[8:-1]
