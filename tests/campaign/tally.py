"""What came of all calls: counted as they end, then held against the router's own log. Pure."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.asks import Ask
from tests.campaign.oracle import Kind, Verdict

EXAMPLES = 3
BAD = (Kind.NOT_RESUMED, Kind.REFUSED, Kind.LOST)


@dataclass(slots=True)
class Tally:
    """Owned by the campaign; `ended` is called once per call."""

    calls: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    causes: dict[Kind, Counter[str]] = field(
        default_factory=lambda: {kind: Counter() for kind in Kind}
    )
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Ids of some calls by cause."""
    ends: dict[str, Kind] = field(default_factory=dict)
    longest_s: float = 0.0
    seams: int = 0
    again: int = 0
    """Calls of which the router's log tells more than one attempt."""

    def ended(self, ask: Ask, verdict: Verdict, took_s: float) -> None:
        self.ends[ask.id] = verdict.kind
        self.calls[ask.kind, verdict.kind] += 1
        self.longest_s = max(self.longest_s, took_s)
        self.seams += verdict.seams
        if verdict.cause:
            self._note(verdict.kind, verdict.cause, ask.id)

    def _note(self, kind: Kind, cause: str, id: str) -> None:
        self.causes[kind][cause] += 1
        some = self.examples.setdefault(cause, [])
        if len(some) < EXAMPLES:
            some.append(id)

    def count(self, kind: Kind) -> int:
        return sum(count for (_, found), count in self.calls.items() if found is kind)

    @property
    def is_good(self) -> bool:
        return not any(self.count(kind) for kind in BAD)

    # ---- the router's log ----

    def compare(self, lines: Iterable[bytes]) -> None:
        """Every call has exactly one line, which tells the same end as its client saw.

        Of a client that left the router may have seen nothing.
        """
        logged = _by_id(lines)
        for id, kind in self.ends.items():
            found = logged.get(id, [])
            least = 0 if kind in (Kind.LEFT, Kind.LOST) else 1
            if not least <= len(found) <= 1:
                self._lose(id, f"{len(found)} lines in the router's log")
            elif kind is Kind.RIGHT and (found[0]["status"] != 200 or found[0]["error"]):
                self._lose(id, f"right, but logged as {found[0]['status']} {found[0]['error']}")
            self.again += any(line["attempts"] > 1 for line in found)

    def _lose(self, id: str, cause: str) -> None:
        self.calls["by the log", Kind.LOST] += 1
        self._note(Kind.LOST, cause, id)


def _by_id(lines: Iterable[bytes]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if b'"event":"call"' in line:
            call = json.loads(line)
            found.setdefault(call["id"], []).append(call)
    return found
