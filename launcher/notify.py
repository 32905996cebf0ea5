"""Tells the service manager how far the cluster is (sd_notify(3)), for units with `Type=notify`.

`launcher up` passes every status through `telling`; without NOTIFY_SOCKET nothing is told. It
decides when a unit counts as started, never what runs, and no trouble with the telling reaches
whoever told.
"""

import os
import socket
from collections.abc import Callable

from launcher.status import ClusterStatus

Show = Callable[[ClusterStatus], None]
_KEY = "NOTIFY_SOCKET"


def telling(show: Show) -> Show:
    """`show`, and the service manager is told the same, if one asked.

    Its variable is gone afterwards: what an engine or the router says is not for it.
    """
    address = os.environ.pop(_KEY, "")
    if not address:
        return show
    manager = ServiceManager(address)

    def tell(status: ClusterStatus) -> None:
        manager.tell(status)
        show(status)

    return tell


class ServiceManager:
    """Says each thing once: that it is ready, that it stops, and a line whenever that changes."""

    def __init__(self, address: str) -> None:
        # A name in the abstract namespace begins with a zero byte, written as @.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._said: set[str] = set()
        self._line = ""

    def tell(self, status: ClusterStatus) -> None:
        words = [word for word in _words(status) if word not in self._said]
        self._said.update(words)
        line = status_line(status)
        if line != self._line:
            self._line = line
            words.append(f"STATUS={line}")
        if words:
            self._send("\n".join(words))

    def _send(self, text: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto(text.encode(), self._address)
        except OSError:
            pass  # a manager that has gone, or is too busy, changes nothing for the cluster


def has_started(status: ClusterStatus) -> bool:
    """All that can be expected serves: the router, and each replica that is not in trouble.

    One replica that never comes up must not keep a unit, and all that waits for it, from starting.
    """
    some_serve = any(replica.is_up for replica in status.replicas)
    settled = all(replica.is_up or replica.is_in_trouble for replica in status.replicas)
    return status.router_serves and some_serve and settled


def status_line(status: ClusterStatus) -> str:
    """What `systemctl status` shows."""
    line = status.summary
    if status.is_stopping:
        return f"stopping, {line}"
    if not status.router_serves:
        line += ", no router"
    return f"{line}, {status.endpoint}" if status.endpoint else line


def _words(status: ClusterStatus) -> list[str]:
    if status.is_stopping:
        return ["STOPPING=1"]
    return ["READY=1"] if has_started(status) else []
