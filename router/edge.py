"""How a reply goes out: what the proxy asks of whatever edge took the call in."""

from collections.abc import Sequence
from typing import Protocol

Headers = Sequence[tuple[str, str]]


class Client(Protocol):
    """One call's way back. Either `send` once, or `start`, `write` ..., `end`."""

    @property
    def has_started(self) -> bool:
        """The head is out: errors must go in-band."""
        ...

    @property
    def is_gone(self) -> bool: ...

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole reply, with its length."""
        ...

    def start(self, status: int, headers: Headers) -> None:
        """The head of a reply of unknown length."""
        ...

    def write(self, data: bytes) -> bool:
        """More of its body; false: the client is behind, wait for `drain`."""
        ...

    def end(self) -> None: ...

    def cut(self) -> None:
        """Breaks off a body that cannot be ended honestly: its framing says it is not whole."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Until the client has caught up. Raises ClientGone when it does not."""
        ...
