"""Where clients' connections come in: accepted, counted, made TLS; those too many are turned away.

The listening socket stays the launcher's: this only accepts from it, which several routers may do
side by side. What is counted is every connection from its first moment, so that one that never
finishes its TLS handshake counts as well. Owned by the app; what is said on a connection is the
edge's affair.
"""

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from router.apis import GENERATION_APIS
from router.config import RouterConfig
from router.config.tls_files import server_context
from router.errors import QueueFull, RouterError
from router.tasks import Tasks

log = logging.getLogger("router.edge")

ACCEPTS_AT_ONCE = 64
REST_S = 1.0
"""After an accept that failed for want of files or memory: trying again at once would not help."""
GOODBYE_S = 2.0
"""How long a TLS connection that is being closed waits for its client to agree."""
LINGER_S = 1.0
"""How long a connection that was turned away is kept, so that its client sees why."""
MAX_LINGERING = 64


class Guest(Protocol):
    """The protocol of one connection."""

    on_lost: Callable[[], None] | None
    """Called once it is over."""


class Acceptor:
    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], Any],
        config: RouterConfig,
        tasks: Tasks,
        turned_away: Callable[[str], None],
    ) -> None:
        """`protocol` makes a Guest; `turned_away` is told the reason, once for each.

        Raises StartError when the certificate cannot be used.
        """
        self.connections = 0
        self._listener = listener
        self._protocol = protocol
        self._tasks = tasks
        self._turned_away = turned_away
        self._loop = asyncio.get_running_loop()
        self._by_client: Counter[str] = Counter()
        self._lingering: set[socket.socket] = set()
        self._is_closed = False
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # who is let in inherits it
        self.use(config)

    def use(self, config: RouterConfig) -> None:
        """From now on these are the limits and, read again, the certificate; who is in stays.

        Raises StartError when the certificate cannot be used; nothing has changed then.
        """
        self._tls = server_context(config.tls) if config.tls else None
        self._limits = config.limits

    def open(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Nobody else comes in; who is in stays."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for sock in list(self._lingering):
            self._let_go(sock)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):  # another router was faster
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                log.error("no connection can be accepted for %g s: %s", REST_S, exc.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(REST_S, self.open)
                return
            sock.setblocking(False)
            self._meet(sock, client_of(address))

    def _meet(self, sock: socket.socket, client: str) -> None:
        if error := self._refusal(client):
            self._turn_away(sock, error)
            return
        self.connections += 1
        self._by_client[client] += 1
        self._tasks.spawn(self._let_in(sock, client), "connection")

    def _refusal(self, client: str) -> RouterError | None:
        if self._by_client[client] >= self._limits.connections_per_client:
            self._turned_away("client_connections")
            most = self._limits.connections_per_client
            return QueueFull(f"{most} connections from your address are open already")
        if self.connections >= self._limits.connections:
            self._turned_away("connections")
            return QueueFull("as many connections as there may be are open already")
        return None

    async def _let_in(self, sock: socket.socket, client: str) -> None:
        """Counted until it is over, or its TLS handshake has failed."""
        tls, guest = self._tls, self._protocol()
        is_in = False

        def left() -> None:
            self.connections -= 1
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

        guest.on_lost = left
        try:
            await self._loop.connect_accepted_socket(
                lambda: guest,
                sock,
                ssl=tls,
                ssl_handshake_timeout=self._limits.head_s if tls else None,
                ssl_shutdown_timeout=GOODBYE_S if tls else None,
            )
            is_in = True
        except OSError as exc:  # left, or no TLS, or none in time
            log.debug("a connection came to nothing: %s", exc)
        finally:
            if not is_in and guest.on_lost is not None:
                guest.on_lost = None
                left()

    # ---- too many ----

    def _turn_away(self, sock: socket.socket, error: RouterError) -> None:
        """Says why, if that can be said at once; before a TLS handshake it cannot."""
        if self._tls is not None or len(self._lingering) >= MAX_LINGERING:
            sock.close()
            return
        self._lingering.add(sock)
        self._loop.call_later(LINGER_S, self._let_go, sock)
        try:
            sock.send(_too_many(error))
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has left
            self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        self._lingering.discard(sock)
        sock.close()


def client_of(address: Any) -> str:
    """Who is counted as one: an IPv4 address, or an IPv6 /64, as one machine may have all of it."""
    host = address[0] if isinstance(address, tuple) else "unix"
    if ":" not in host:
        return str(host)
    ip = ipaddress.IPv6Address(host.partition("%")[0])
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))


def _too_many(error: RouterError) -> bytes:
    body = GENERATION_APIS["/"].error_body(error)
    head = (
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
