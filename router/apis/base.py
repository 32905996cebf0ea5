"""What the router needs to know of a client's HTTP language. Implementations are pure."""

from typing import Protocol

from router.call import Ask
from router.errors import RouterError


class Api(Protocol):
    def parse(self, path: str, body: bytes) -> Ask:
        """Reads what routing depends on; the engine judges the rest. Raises InvalidRequest."""
        ...

    def error_body(self, error: RouterError) -> bytes:
        """The JSON body a client of this API understands."""
        ...

    def error_event(self, error: RouterError) -> bytes:
        """The same as whole server-sent events, for a stream whose head is out."""
        ...
