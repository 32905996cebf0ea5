"""The public listening socket: made by the launcher, inherited by each router in turn.

It outlives routers, so calls that arrive while one restarts wait in the backlog instead of being
refused. A launcher that was killed leaves it with the router, which hands it to the next launcher
over the admin socket. A service manager may own it instead and hand it to every launcher
(sd_listen_fds(3)). Called by the router's keeper only.
"""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from launcher.ports import describe_holder
from router.errors import StartError

BACKLOG = 4096
_TAKE_TIMEOUT_S = 3.0
_INHERITED_FD = 3  # SD_LISTEN_FDS_START
_INHERITED_KEYS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_REQUEST = b"GET /admin/listener HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"


def bind(host: str, port: int) -> socket.socket:
    """Listen on `host:port`; StartError names who holds the port when it is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as exc:
        raise _bad_host(host, exc.strerror) from exc
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _bind_error(host, port, exc) from exc
    listener.setblocking(False)
    return listener


def inherited(host: str, port: int) -> socket.socket | None:
    """The socket that a service manager opened for this process; None when it opened none.

    It must listen on `host:port`, as the config says: StartError names both. The variables that
    tell of it are gone afterwards, since no child may take them for its own.
    """
    pid, count, _ = (os.environ.pop(key, "") for key in _INHERITED_KEYS)
    if pid != str(os.getpid()) or count in {"", "0"}:
        return None
    if count != "1":
        raise StartError(
            f"LISTEN_FDS: found {count} inherited sockets, expected one: calls to the others would "
            "wait for ever; leave one ListenStream= in the socket unit"
        )
    listener = _inherited_socket()
    if not is_at(listener, host, port):
        found = address_of(listener)
        listener.close()
        raise StartError(
            f"router.host/port: found {_joined(host, port)}, but the inherited socket listens on "
            f"{found}; make ListenStream= of the socket unit and the config say the same"
        )
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener


def take_from_router(admin_socket: Path) -> socket.socket | None:
    """The listening socket of the router behind `admin_socket`; None when it gives none. Blocks."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TAKE_TIMEOUT_S)
        client.connect(str(admin_socket))
        client.sendall(_REQUEST)
        return _receive(client)
    return None


def is_at(listener: socket.socket, host: str, port: int) -> bool:
    """Whether it listens where the config says; port 0 is content with any."""
    with suppress(OSError):
        wanted = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        name = listener.getsockname()
        return any(name[0] == item[4][0] and port in (0, name[1]) for item in wanted)
    return False


def is_same(one: socket.socket, other: socket.socket) -> bool:
    """Whether both descriptors are one and the same socket of the kernel."""
    return os.path.sameopenfile(one.fileno(), other.fileno())


def address_of(listener: socket.socket) -> str:
    """Where it listens, as `host:port`."""
    return _joined(*listener.getsockname()[:2])


def endpoint_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://{_joined(host, port)}"


def _inherited_socket() -> socket.socket:
    try:
        listener = socket.socket(fileno=_INHERITED_FD)
    except OSError as exc:
        raise _not_a_listener(exc.strerror or "no socket") from exc
    is_tcp = listener.family in {socket.AF_INET, socket.AF_INET6}
    if is_tcp and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return listener
    listener.close()
    raise _not_a_listener("another kind of socket")


def _receive(client: socket.socket) -> socket.socket | None:
    fds: list[int] = []
    data = b""
    while not fds:
        chunk, fds, _, _ = socket.recv_fds(client, 65_536, 1)
        data += chunk
        if not chunk:
            return None
    received = socket.socket(fileno=fds[0])
    if b" 200 " not in data.split(b"\r\n", 1)[0] or received.family == socket.AF_UNIX:
        received.close()
        return None
    received.set_inheritable(False)  # recv_fds makes them so, and drops its flags argument
    received.setblocking(False)
    return received


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _not_a_listener(found: str) -> StartError:
    return StartError(
        f"LISTEN_FDS: found {found} as descriptor {_INHERITED_FD}, expected a listening TCP "
        "socket: in the socket unit, ListenStream=HOST:PORT and Accept=no"
    )


def _bind_error(host: str, port: int, exc: OSError) -> StartError:
    where = f"router.host/port: found {host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return StartError(
            f"{where}, expected a free port: {describe_holder(port)} listens there; "
            "stop it or set router.port to another one (0 takes any free one)"
        )
    if exc.errno == errno.EACCES:
        return StartError(f"{where}, expected a port this user may open (1024 or above)")
    return _bad_host(host, exc.strerror)


def _bad_host(host: str, why: str | None) -> StartError:
    return StartError(f"router.host: found {host!r}, expected an address of this machine ({why})")
