"""What a client asks for, and what it will cost an engine.

`Ask` is read from the body by an api; a pool's dialect turns it into a `Cost`; a `Call` carries the
ask and its body through queue and attempts, unchanged.
"""

from enum import IntEnum
from typing import Literal, NamedTuple

NewTokens = int | Literal["absent", "rest"]
"""max_new_tokens as written: a number, not given, or an explicit null (all that is left)."""

ANONYMOUS = ""
"""The tenant of all calls that name none."""


class Priority(IntEnum):
    """Whose turn comes first, whatever the tenant; the number is the place in the order."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


PRIORITY_WORDS = tuple(priority.name.lower() for priority in Priority)
"""By that number."""


class Ask(NamedTuple):
    """The part of a request body that routing depends on."""

    model: str | None = None
    stream: bool = False
    instances: int = 1
    """Prompts of a /vertex call, each run as a call of its own inside the engine."""
    sequences: int = 1
    """Generations it starts: best_of, or the number of prompts. Each takes one permit."""
    choices: int = 1
    """Answers wanted to each prompt (`n`). TGI gives one whatever is asked."""
    input_chars: int = 0
    """Characters over all prompts, once for each sequence; images not counted."""
    images: int = 0
    new_tokens: NewTokens = "absent"
    truncate_tokens: int | None = None
    affinity: str = ""
    """The start of the prompt: calls that share it profit from the same prefix cache."""


class Cost(NamedTuple):
    """What an engine will hold for a call, and what we expect it to produce."""

    requests: int
    input_tokens: int
    reserve_tokens: int
    expected_tokens: int


class Call(NamedTuple):
    """The client's wish. `*_s` are monotonic seconds."""

    id: str
    route: str
    """The path as routed: the metric label and the path asked of the replica."""
    ask: Ask
    body: bytes
    headers: tuple[tuple[str, str], ...]
    """Header fields passed on to the replica."""
    arrived_s: float
    queue_deadline_s: float
    deadline_s: float
    tenant: str = ANONYMOUS
    """Who shares the fleet with others; each gets its share of the tokens."""
    priority: Priority = Priority.NORMAL
