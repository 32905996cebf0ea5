"""How much a replica may hold at a time: told by the engine, or learned. Pure.

Room is counted in requests and, where the engine tells its budget, in tokens. Permits
(`max_concurrent_requests`) are a ceiling: an engine takes 128 calls and runs 16, and what lies in
its private queue cannot go to another replica any more. So where no token budget is told (or it is
not all that bounds a batch: vLLM runs `--max-num-seqs` calls and does not say how many that is),
the request limit is learned: it starts low and doubles from one look at the engine's queue gauge
to the next while that stays empty, then grows by one per round; it falls to what the engine really
runs when calls wait inside it, by a factor when a reply tells a long wait there, and at once on a
refusal (AIMD, as in TCP; Chiu and Jain 1989). Time to first token is no signal here: it grows with
the prompt.

A replica that comes back beside others that serve starts slowly whatever its limits are: it takes a
few calls, and one more for each that it answers, which doubles them from round to round. Without
that, having nothing to do, it would get every call at once.
"""

from dataclasses import dataclass
from math import inf

FIRST_LIMIT = 8.0
SLOW_START_REQUESTS = 2
SLOWED_SHARE = 0.5
"""Of its room that a replica on a throttled GPU is given: others run the rest sooner, and it cools
down."""
DEFAULT_PERMITS = 128
GROWTH_PER_LOOK = 2.0
FLAT_LOOKS = 5
"""So many looks at an empty gauge in a row, at the limit, and it doubles again."""
BACK_OFF = 0.85
SHED_BACK_OFF = 0.8
FLAT_FACTOR = 2.0
FLAT_SLACK_S = 0.1
BASELINE_DRIFT = 1.02
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine said it takes: permits, tokens over all running calls, calls per batch."""

    requests: int = DEFAULT_PERMITS
    tokens: int | None = None
    batch: int | None = None
    hides_batch: bool = False
    """It tells its tokens, but not how many calls it runs at a time, however small."""

    @property
    def ceiling(self) -> int:
        """Requests it could hold at the very most."""
        return self.requests if self.batch is None else min(self.requests, self.batch)

    @property
    def is_told(self) -> bool:
        """Whether the number of requests to send at a time follows from what it told."""
        return self.batch is not None or (self.tokens is not None and not self.hides_batch)


@dataclass(slots=True)
class Load:
    """What a replica holds now, by our own leases. Written by the dispatcher only."""

    requests: int = 0
    tokens: int = 0


class Room:
    """One replica's limits; the dispatcher feeds it what each attempt showed."""

    def __init__(self, capacity: Capacity | None = None) -> None:
        self.capacity = capacity or Capacity()
        self.requests = 1
        """Requests it may hold now."""
        self.tokens = inf
        """Tokens, likewise."""
        self.is_paused = False
        """Just refused a call: nothing is sent until the dispatcher's pause is over."""
        self.is_doubling = True
        """No sign of a full engine so far."""
        self._told = self.capacity
        self._fixed_requests: int | None = None
        self._fixed_tokens: int | None = None
        self._limit = FIRST_LIMIT
        self._growth_bound = FIRST_LIMIT * GROWTH_PER_LOOK
        self._baseline_s: float | None = None
        self._lowered_s = float("-inf")
        self._sheds = 0
        self._queued = 0
        self._flat_looks = 0
        self._slow_requests: int | None = None
        self._share = 1.0
        self._settle()

    @property
    def is_slow(self) -> bool:
        """It is still starting slowly."""
        return self._slow_requests is not None

    def start_slowly(self) -> None:
        """It comes back while others serve."""
        self._slow_requests = SLOW_START_REQUESTS
        self._settle()

    def start_fully(self) -> None:
        """There is no other any more."""
        self._slow_requests = None
        self._settle()

    def told(self, capacity: Capacity) -> None:
        """The engine's own word."""
        self._told = capacity
        self._combine()

    def fix(self, requests: int | None, tokens: int | None, *, is_slowed: bool = False) -> None:
        """The operator's word, or what the launcher read in the engine's start-up log.

        It stands above what the engine tells, but never above its permits.
        """
        self._fixed_requests, self._fixed_tokens = requests, tokens
        self._share = SLOWED_SHARE if is_slowed else 1.0
        self._combine()

    def _combine(self) -> None:
        told, permits = self._told, self._told.requests
        if told == Capacity():  # it tells nothing: the operator knows better than our default
            permits = self._fixed_requests or permits
        self.capacity = Capacity(
            requests=permits,
            tokens=self._fixed_tokens or told.tokens,
            batch=self._fixed_requests or told.batch,
            hides_batch=told.hides_batch,
        )
        self._settle()

    def answered(
        self, engine_wait_s: float | None, load: Load, service_s: float, now_s: float
    ) -> None:
        """A call got its first token, or came back whole, while `load` was held.

        `engine_wait_s` is the wait inside the engine, where the reply tells it.
        """
        self._sheds = 0
        if self._slow_requests is not None:
            self._slow_requests += 1
            self._settle()
            return
        if self.capacity.is_told:
            return
        if engine_wait_s is not None and self._is_long(engine_wait_s):
            self._lower(self._limit * BACK_OFF, service_s, now_s)
        elif self._is_used_up(load):
            step = 1.0 if self.is_doubling else 1.0 / self._limit
            self._limit = max(self._limit, min(self._limit + step, self._growth_bound))
            self._settle()

    def looked(self, queued: int, load: Load, now_s: float) -> None:
        """The engine's own gauge says that so many calls wait inside it.

        One or two may be on their way into the next step, and a burst waits for one prefill: only
        what waits at two looks in a row counts. Long streams answer once and then run
        for minutes, so an empty gauge raises the limit by itself.
        """
        lasting, self._queued = min(queued, self._queued), queued
        allowance = 1 + load.requests // 16
        if lasting > allowance:
            self._lower(load.requests - lasting + 1.0, 0.0, now_s)
            self._flat_looks = 0
        elif queued <= allowance and self._is_used_up(load):
            self._flat_looks += 1
            self.is_doubling = self.is_doubling or self._flat_looks >= FLAT_LOOKS
            self._limit = self._limit * GROWTH_PER_LOOK if self.is_doubling else self._limit + 1.0
        self._growth_bound = self._limit * GROWTH_PER_LOOK
        self._settle()

    def shed(self, load: Load, now_s: float) -> float | None:
        """It refused a call while it held `load`; gives the seconds to leave it alone.

        None when it is left alone already: calls refused together are one refusal.
        """
        self._lower(load.requests * SHED_BACK_OFF, 0.0, now_s)
        if self.is_paused:
            return None
        self._sheds += 1
        self.is_paused = True
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._sheds - 1, 10))

    def _is_used_up(self, load: Load) -> bool:
        """Only what bounds it can be found too low; a share of it says nothing."""
        return self._share == 1.0 and load.requests >= self.requests - 1

    def _is_long(self, wait_s: float) -> bool:
        """Against the shortest wait seen, which is let drift up slowly."""
        base_s = self._baseline_s
        if base_s is None or wait_s <= base_s:
            self._baseline_s = wait_s
            return False
        self._baseline_s = min(base_s * BASELINE_DRIFT + 1e-4, wait_s)
        return wait_s > base_s * FLAT_FACTOR + FLAT_SLACK_S

    def _lower(self, limit: float, service_s: float, now_s: float) -> None:
        """At most once per service time: what is in flight was sent under the old limit."""
        self.is_doubling = False
        if now_s - self._lowered_s >= service_s:
            self._limit = max(1.0, min(self._limit, limit))
            self._lowered_s = now_s
            self._settle()

    def _settle(self) -> None:
        ceiling = self.capacity.ceiling
        self._limit = min(self._limit, float(ceiling))
        most = ceiling if self.capacity.is_told else self._limit
        self.requests = max(1, int(most * self._share))
        budget = self.capacity.tokens
        self.tokens = inf if budget is None else budget * self._share
        if self._slow_requests is not None and self._slow_requests < self.requests:
            self.requests = self._slow_requests
        else:
            self._slow_requests = None
