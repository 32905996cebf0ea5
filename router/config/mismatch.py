"""What a validator says when a value is impossible: where, what was found, what was expected.

Raised inside pydantic validators, of the router's models and of the launcher's. A plain ValueError
is understood too: its message is then taken as what was expected.
"""

from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One impossible value; `path` is relative to the model whose validator found it."""

    path: Path
    found: str
    expected: str


class Mismatches(ValueError):
    """Carries every mismatch one validator found, so that all are told at once."""

    def __init__(self, mismatches: Iterable[Mismatch]) -> None:
        self.mismatches = tuple(mismatches)
        super().__init__(
            "; ".join(f"found {m.found}, expected {m.expected}" for m in self.mismatches)
        )


def refuse(mismatches: Iterable[Mismatch]) -> None:
    """Raise `Mismatches` if there is at least one."""
    if found := tuple(mismatches):
        raise Mismatches(found)
