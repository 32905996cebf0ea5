"""How a reply goes out: what the proxy asks of whatever edge took the call in."""

from typing import Protocol

Fields = bytes
"""Header fields as they are sent: `name: value`, CR and LF, for each."""


def fields(*pairs: tuple[str, str]) -> Fields:
    """Written out; what is not Latin-1 becomes a question mark."""
    return "".join([f"{name}: {value}\r\n" for name, value in pairs]).encode("latin-1", "replace")


class Client(Protocol):
    """One call's way back. Either `send` once, or `start`, `write` ..., `end`."""

    @property
    def has_started(self) -> bool:
        """The head is out: errors must go in-band."""
        ...

    @property
    def is_gone(self) -> bool: ...

    def send(self, status: int, headers: Fields, body: bytes) -> None:
        """A whole reply, with its length."""
        ...

    def start(self, status: int, headers: Fields) -> None:
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
