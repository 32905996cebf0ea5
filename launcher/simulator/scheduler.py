"""Which requests take part in the next engine step: TGI's two schedulers (pure).

The engine calls ``next_step`` whenever the previous step is over and ``leave`` when a request is
finished or its client gone. Neither scheduler knows tokens' texts, time or HTTP.

``PaddedScheduler`` is TGI's before chunking: a request reserves input + all it may generate; a
prefill is a step of its own that stalls the running batch; newcomers wait until enough of them
are queued or the batch has run long enough. ``ChunkingScheduler`` is that of 3.x: a prompt is
prefilled in pieces that share their step with the decodes. Both are strictly first come, first
served: the first that does not fit holds back all behind it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from launcher.simulator.prefix_cache import NO_PREFIX, Prefix, PrefixCache
from launcher.simulator.settings import BatchLimits


@dataclass(eq=False, slots=True)
class Entry:
    """One sequence as schedulers see it."""

    input_tokens: int
    #: Output tokens to hold room for.
    reserve_tokens: int
    prefix: Prefix = NO_PREFIX
    #: Prompt tokens that still have to be prefilled; set at admission.
    unfilled_tokens: int = field(default=0, init=False)
    #: Room it holds while in the batch, in tokens or in blocks.
    held: int = field(default=0, init=False)
    is_dropped: bool = field(default=False, init=False)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass. ``emits`` are the entries that have a new token after it."""

    prefill_tokens: int
    decoding: int
    emits: tuple[Entry, ...]
    admitted: int
    #: Why a running batch took newcomers in, as in tgi_batch_concat; None if it did not.
    concat_reason: str | None = None


class Scheduler(Protocol):
    """What the engine needs of either scheduler."""

    @property
    def waiting(self) -> int:
        """Entries in the queue, dropped ones included until they are skipped."""
        ...

    @property
    def running(self) -> int:
        """Entries in the batch."""
        ...

    @property
    def reserved_tokens(self) -> int:
        """Tokens the batch holds room for."""
        ...

    def arrive(self, entry: Entry) -> None:
        """Put an entry at the end of the queue."""
        ...

    def next_step(self) -> Step | None:
        """The next forward pass, or None when there is nothing to do."""
        ...

    def leave(self, entry: Entry) -> None:
        """Take an entry out of the batch and free its room; unknown entries are ignored."""
        ...


def round_up(tokens: int, block: int) -> int:
    return -(-tokens // block) * block


class PaddedScheduler:
    """TGI's scheduler of 1.x and 2.x."""

    def __init__(self, limits: BatchLimits, block_tokens: int, zero_room_means_no_cap: bool):
        self._limits = limits
        self._block = block_tokens
        self._zero_room_means_no_cap = zero_room_means_no_cap
        self._queue: deque[Entry] = deque()
        self._batch: dict[Entry, None] = {}
        self._reserved = 0
        self._waiting_tokens = 0
        self._must_decode = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._batch)

    @property
    def reserved_tokens(self) -> int:
        return self._reserved

    def arrive(self, entry: Entry) -> None:
        self._queue.append(entry)

    def leave(self, entry: Entry) -> None:
        if entry in self._batch:
            del self._batch[entry]
            self._reserved -= entry.held

    def next_step(self) -> Step | None:
        if not self._batch:
            return self._first_prefill()
        if not self._must_decode:
            step = self._joining_prefill()
            if step is not None:
                return step
        self._must_decode = False
        self._waiting_tokens += 1
        batch = tuple(self._batch)
        return Step(0, len(batch), batch, admitted=0)

    def _first_prefill(self) -> Step | None:
        group = self._admit(None, self._limits.max_batch_size)
        return self._prefill(group, None) if group else None

    def _joining_prefill(self) -> Step | None:
        limits = self._limits
        has_waited = self._waiting_tokens >= limits.max_waiting_tokens
        min_size = None if has_waited else int(len(self._batch) * limits.waiting_served_ratio)
        room = None
        if limits.max_batch_size is not None:
            room = max(limits.max_batch_size - len(self._batch), 0)
        group = self._admit(min_size, room)
        if not group:
            return None
        self._must_decode = True
        return self._prefill(group, "wait_exceeded" if has_waited else "backpressure")

    def _prefill(self, group: list[Entry], reason: str | None) -> Step:
        self._waiting_tokens = 1
        tokens = sum(entry.input_tokens for entry in group)
        return Step(tokens, 0, tuple(group), admitted=len(group), concat_reason=reason)

    def _admit(self, min_size: int | None, max_size: int | None) -> list[Entry]:
        if max_size == 0:
            if not self._zero_room_means_no_cap:
                return []
            max_size = None
        if min_size is not None and len(self._queue) < min_size:
            return []
        group = self._scan(max_size)
        if min_size is not None and len(group) < min_size:
            self._queue.extendleft(reversed(group))
            return []
        for entry in group:
            self._batch[entry] = None
            self._reserved += entry.held
        return group

    def _scan(self, max_size: int | None) -> list[Entry]:
        group: list[Entry] = []
        prefill_left = self._limits.max_batch_prefill_tokens
        tokens_left = self._limits.max_batch_total_tokens - self._reserved
        while self._queue and (max_size is None or len(group) < max_size):
            entry = self._queue[0]
            if entry.is_dropped:
                self._queue.popleft()
                continue
            prefill = round_up(entry.input_tokens, self._block)
            entry.held = prefill + round_up(entry.reserve_tokens, self._block)
            prefill_left -= prefill
            tokens_left -= entry.held
            # Rounding to blocks can make the largest legal request too big: alone, it still runs.
            is_alone = not group and not self._batch
            if (prefill_left < 0 or tokens_left < 0) and not is_alone:
                break
            group.append(self._queue.popleft())
        return group


class ChunkingScheduler:
    """TGI's scheduler of 3.x.

    Blocks shared through the prefix cache are counted in full for each holder: the cache shortens
    prefills, it does not make room.
    """

    def __init__(self, limits: BatchLimits, block_tokens: int, cache: PrefixCache | None):
        self._limits = limits
        self._block = block_tokens
        # One block is set aside for the health check's own prefill.
        self._free_blocks = limits.max_batch_total_tokens // block_tokens - 1
        self._cache = cache
        self._queue: deque[Entry] = deque()
        self._batch: dict[Entry, None] = {}
        self._held_blocks = 0
        self._has_just_joined = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._batch)

    @property
    def reserved_tokens(self) -> int:
        return self._held_blocks * self._block

    def arrive(self, entry: Entry) -> None:
        self._queue.append(entry)

    def leave(self, entry: Entry) -> None:
        if entry in self._batch:
            del self._batch[entry]
            self._free_blocks += entry.held
            self._held_blocks -= entry.held

    def next_step(self) -> Step | None:
        emits = [entry for entry in self._batch if not entry.unfilled_tokens]
        decoding = len(emits)
        was_running = bool(self._batch)
        budget = self._limits.max_batch_prefill_tokens - decoding
        continued = self._continue_prefills(budget, emits)
        admitted, started = 0, 0
        if not self._has_just_joined or not self._batch:
            admitted, started = self._admit(budget - continued, emits)
        # As in TGI, a step that joins newcomers to a running batch is followed by an ordinary one.
        self._has_just_joined = admitted > 0 and was_running
        if not self._batch:
            return None
        reason = "chunking" if admitted and was_running else None
        return Step(continued + started, decoding, tuple(emits), admitted, reason)

    def _continue_prefills(self, budget: int, emits: list[Entry]) -> int:
        done = 0
        for entry in self._batch:
            if entry.unfilled_tokens:
                # A budget eaten up by decodes still moves a prompt on, however slowly.
                done += self._fill(entry, max(budget - done, 1), emits)
        return done

    def _admit(self, budget: int, emits: list[Entry]) -> tuple[int, int]:
        admitted, tokens = 0, 0
        while self._queue and tokens < budget:
            entry = self._queue[0]
            if entry.is_dropped:
                self._queue.popleft()
                continue
            blocks = -(-(entry.input_tokens + entry.reserve_tokens - 1) // self._block)
            if blocks > self._free_blocks and self._batch:
                break
            self._queue.popleft()
            self._take(entry, blocks)
            tokens += self._fill(entry, budget - tokens, emits)
            admitted += 1
        return admitted, tokens

    def _take(self, entry: Entry, blocks: int) -> None:
        entry.held = blocks
        self._free_blocks -= blocks
        self._held_blocks += blocks
        self._batch[entry] = None
        matched = self._cache.match(entry.prefix) if self._cache else 0.0
        entry.unfilled_tokens = max(entry.input_tokens - int(entry.input_tokens * matched), 1)

    def _fill(self, entry: Entry, budget: int, emits: list[Entry]) -> int:
        """Prefill as much of a prompt as fits; a complete one has a token after this step."""
        tokens = min(entry.unfilled_tokens, budget)
        entry.unfilled_tokens -= tokens
        if not entry.unfilled_tokens:
            emits.append(entry)
            if self._cache:
                self._cache.add(entry.prefix)
        return tokens
