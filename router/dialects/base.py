"""What the router needs to know of an engine's HTTP language. Implementations are pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from router.call import Ask, Call, Cost
from router.errors import RouterError
from router.estimates import Estimates
from router.lease import Report
from router.resume import Transcript
from router.room import Capacity


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself; None where it does not tell."""

    version: tuple[int, ...] = (0,)
    capacity: Capacity = field(default_factory=Capacity)
    model_id: str | None = None
    aliases: tuple[str, ...] = ()
    """Names it answers to beside `model_id`: further served names, and adapters."""
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_sequences: int = 1024
    """Generations one call may start; more are refused by the engine at once."""
    preempts: bool = False
    """Makes room by itself when what runs outgrows its cache; else such calls would fail."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """For /info, in TGI's words: everything as it was sent, or what there is."""

    def goes_by(self, name: str) -> bool:
        return name == self.model_id or name in self.aliases


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
    is_last_word: bool = False
    """Nothing can follow: what is lost behind it is not missed."""


class Dialect(Protocol):
    name: str
    routes: frozenset[str]
    """Paths that calls may be sent on; what comes in on another one is refused by the router."""
    health_path: str
    info_paths: tuple[str, ...]
    """Pages that tell the engine's limits, asked in this order."""
    metrics_path: str

    def info(self, pages: Mapping[str, bytes]) -> EngineInfo:
        """Reads what `info_paths` answered; a page that the engine does not have is missing.

        Raises ValueError when they are not of this dialect.
        """
        ...

    def engine_queue(self, metrics: bytes) -> int | None:
        """Calls waiting inside the engine, from its metrics page; None when it does not say."""
        ...

    def one_token(self, info: EngineInfo) -> tuple[str, bytes]:
        """Path and body of the smallest call there is; an engine without that path says 4xx."""
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

    def failure(self, event: bytes) -> RouterError | None:
        """What a stream's event means when it tells that the replica failed; None: relay it."""
        ...

    def report(self, headers: Mapping[str, str], body: bytes) -> Report:
        """What a unary reply tells of itself; the body is empty where it was too large to hold."""
        ...

    def ending(self, path: str, last_events: bytes) -> Ending:
        """Whether a stream that ended so is whole, and what its last events tell."""
        ...

    def transcript(self, call: Call, info: EngineInfo, *, seeded: bool) -> Transcript:
        """Reads what the call's client has received, to continue it with another replica.

        `seeded`: sampled calls with a seed are continued as well. Raises NotResumable.
        """
        ...

    def counted(self, answer: bytes) -> int | None:
        """The number of tokens that a transcript's question was answered with."""
        ...
