"""What the router needs to know of an engine's HTTP language. Implementations are pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from router.call import Ask, Cost
from router.errors import RouterError
from router.estimates import Estimates
from router.lease import Report
from router.room import Capacity


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself; None where it does not tell."""

    version: tuple[int, ...] = (0,)
    capacity: Capacity = field(default_factory=Capacity)
    model_id: str | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_sequences: int = 1024
    """Generations one call may start; more are refused by the engine at once."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """Everything as it was sent, for /info."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended, read from its last events."""

    is_whole: bool
    """The client has everything; an error event of the engine's own counts as whole."""
    error: RouterError | None = None
    """The engine's in-band error, already relayed."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    other_events: int = 0
    """Events that carry no token: [DONE], a chunk of usage alone."""


class Dialect(Protocol):
    name: str
    health_path: str
    info_path: str
    metrics_path: str

    def info(self, body: bytes) -> EngineInfo:
        """Reads the answer of `info_path`. Raises ValueError when it is not of this dialect."""
        ...

    def engine_queue(self, metrics: bytes) -> int | None:
        """Calls waiting inside the engine, from its metrics page; None when it does not say."""
        ...

    def cost(self, ask: Ask, info: EngineInfo, estimates: Estimates) -> Cost:
        """What the engine will reserve for this call."""
        ...

    def refusal(
        self, status: int, headers: Mapping[str, str], body: bytes, path: str = ""
    ) -> RouterError | None:
        """What a whole reply that is no answer means; None: pass it on."""
        ...

    def refused(self, status: int, body: bytes) -> RouterError:
        """A whole 4xx reply as an error, for a stream whose head is out already."""
        ...

    def first_event(self, event: bytes) -> RouterError | None:
        """What a stream's first event means when it is no token; None: relay."""
        ...

    def report(self, headers: Mapping[str, str]) -> Report:
        """What a unary reply's header fields tell."""
        ...

    def ending(self, path: str, last_events: bytes) -> Ending:
        """Whether a stream that ended so is whole, and what its last events tell."""
        ...
