"""The stories of recent calls, in memory: the last few thousand, failures and slow ones for longer.

Written by the record of each call as it ends; read by the admin API alone. Nothing is formatted
until somebody asks, and a call that has ended is kept as one tuple of plain values: the collector
stops looking at those, and no error holds on to a body any more.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from router.record import MAX_MESSAGE_CHARS, Record
from router.story import Story, is_failure

RECENT = 4096
FAILED = 1024
SLOW = 64
SLOW_FOR_S = 3600.0
"""How long one of the slowest stays; then a slow one of today is among them again."""

Kept = tuple[Any, ...]
"""The fields of a `Story`, in order."""


class Stories:
    """One per router; a new process begins with none."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began_at = time.time()
        self._running: set[Record] = set()
        self._recent: deque[Kept] = deque(maxlen=RECENT)
        self._failed: deque[Kept] = deque(maxlen=FAILED)
        self._slow: list[tuple[float, int, Kept]] = []
        """A heap: the least slow of the slowest first."""
        self._count = 0

    # ---- the calls' side ----

    def began(self, record: Record) -> None:
        self._running.add(record)

    def ended(self, record: Record, total_s: float) -> None:
        self._running.discard(record)
        self._count += 1
        kept = _kept(record, total_s, is_running=False)
        self._recent.append(kept)
        if is_failure(record.status, record.error or record.told, record.attempts):
            self._failed.append(kept)
        if len(self._slow) < SLOW:
            heapq.heappush(self._slow, (total_s, self._count, kept))
        elif total_s > self._slow[0][0]:
            heapq.heapreplace(self._slow, (total_s, self._count, kept))
        if self._count % RECENT == 0:
            self._forget_slow()

    def _forget_slow(self) -> None:
        since_s = self._clock() - SLOW_FOR_S
        self._slow = [one for one in self._slow if Story(*one[2]).arrived_s >= since_s]
        heapq.heapify(self._slow)

    # ---- who asks ----

    def find(self, call_id: str) -> list[Story]:
        """All that are known by that id, the latest first: clients choose ids, some twice."""
        found = [story for story in self._all() if story.id == call_id]
        once = {story.arrived_s: story for story in found}
        return sorted(once.values(), key=lambda story: -story.arrived_s)

    def failed(self) -> list[Story]:
        """The last one first."""
        return [Story(*kept) for kept in reversed(self._failed)]

    def slowest(self) -> list[Story]:
        """Those that run count with what they have taken so far."""
        slow = [*self._now_running(), *(Story(*kept) for _, _, kept in self._slow)]
        return sorted(slow, key=lambda story: -story.total_s)

    def remembered(self) -> dict[str, Any]:
        """From where on something may be found here."""
        return {
            "router_began": _iso(self._began_at),
            "calls": self._count,
            "running": len(self._running),
            "recent": _range(self._recent),
            "failed": _range(self._failed),
            "slow": _range([kept for _, _, kept in self._slow]),
        }

    def _all(self) -> Iterator[Story]:
        yield from self._now_running()
        for kept in (*self._recent, *self._failed, *(one[2] for one in self._slow)):
            yield Story(*kept)

    def _now_running(self) -> list[Story]:
        now_s = self._clock()
        return [
            Story(*_kept(record, now_s - record.arrived_s, is_running=True))
            for record in self._running
        ]


def _kept(record: Record, total_s: float, *, is_running: bool) -> Kept:
    report, error = record.report, record.error or record.told
    return (
        record.id,
        record.route,
        record.model,
        record.is_stream,
        record.status,
        record.replica,
        record.tenant,
        record.priority,
        record.account,
        record.attempts,
        record.queue_s,
        record.first_event_s,
        report.prompt_tokens,
        report.generated_tokens or record.events or None,
        type(error).__name__ if error else None,
        error.message[:MAX_MESSAGE_CHARS] if error else None,
        record.arrived_s,
        time.time() - total_s,
        total_s,
        is_running,
        record.left_out,
        tuple(record.steps),
    )


def _range(kept: Any) -> dict[str, Any]:
    """How many, and when the oldest came."""
    stories = [Story(*one) for one in kept]
    oldest = min((story.arrived_at for story in stories), default=None)
    return {"calls": len(stories), "since": None if oldest is None else _iso(oldest)}


def _iso(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
