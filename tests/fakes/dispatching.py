"""A dispatcher over replicas that exist only as records: no sockets, the loop's clock.

What a call costs is written, not estimated: `call(input_tokens=…, new_tokens=…)` reserves their sum
on every replica, because a character is a token here.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from router.call import Ask, Call, Priority
from router.config import HealthConfig, QueueConfig
from router.dispatcher import Dispatcher
from router.health import Event, State
from router.lease import Lease, Outcome, Report
from router.policies import POLICIES
from router.pool import Member, Pool
from router.replica import Replica
from router.request_queue import LOOK_AHEAD
from router.retry import Attempts


@dataclass
class Seen:
    """The dispatcher's observer: everything it was told."""

    waits: list[float] = field(default_factory=list)
    sheds: list[str] = field(default_factory=list)
    idle_s: float = 0.0
    used_tokens: Counter[str] = field(default_factory=Counter)

    def waited(self, model, wait_s):
        self.waits.append(wait_s)

    def shed(self, reason, tenant):
        self.sheds.append(reason)

    def idled(self, model, idle_s):
        self.idle_s += idle_s

    def tokens(self, model, report):
        pass

    def used(self, tenant, input_tokens, output_tokens):
        self.used_tokens[tenant] += input_tokens + output_tokens


class World:
    """One pool, its dispatcher, and calls of known size."""

    def __init__(self, clock, *, policy="least_tokens", queue=None, health=None, weights=None):
        self.clock = clock
        self.seen = Seen()
        self.changes: list[tuple[str, str, str]] = []
        health = health or HealthConfig(warm_up=False)  # of warming, the tests of health and prober
        self.pool = Pool("m", health, clock, self._on_change)
        self.pool.estimates.chars_per_token = 1.0
        self.pool.look = self._look
        self.deaf: set[str] = set()
        """Replicas that pass no probe that is asked for."""
        self.dispatcher = Dispatcher(
            self.pool, POLICIES[policy](), queue or QueueConfig(), self.seen, clock, weights
        )
        self.leases: list[Lease] = []
        self._members: dict[str, Member] = {}
        self._calls = 0

    def _on_change(self, replica, before, after, reason):
        self.changes.append((replica.id, before.value, after.value))

    def _look(self, replica):
        """As the prober does: soon, and only one that is up passes."""
        asyncio.get_running_loop().call_soon(self._looked, replica)

    def _looked(self, replica):
        is_up = replica.health.state in (State.HEALTHY, State.WARMING)
        if is_up and replica.id not in self.deaf:
            self.pool.on_event(replica, Event.PROBE_OK, "look")

    # ---- replicas ----

    def sync(self, *members: Member, draining=()):
        self._members = {member.id: member for member in members}
        return self.pool.sync(list(members), frozenset(draining))

    def add(self, *ids: str, up=True, **fields) -> list[Replica]:
        """Joins replicas with room for `requests` calls and `tokens` tokens."""
        fresh = [self.member(name, **fields) for name in ids]
        self.sync(*self._members.values(), *fresh)
        if up:
            for name in ids:
                self.up(name)
        return [self[name] for name in ids]

    @staticmethod
    def member(name, *, generation=1, requests=4, tokens=None, port=80, phase="ready"):
        return Member(
            id=name,
            generation=generation,
            host="127.0.0.1",
            port=port,
            model="m",
            phase=phase,
            max_requests=requests,
            max_tokens=tokens,
        )

    def __getitem__(self, name: str) -> Replica:
        replica = self.pool.get(name)
        assert replica is not None
        return replica

    def up(self, name: str):
        for event in (Event.PROBE_OK, Event.PROBE_OK, Event.WARMED):
            self.pool.on_event(self[name], event, "test")

    def down(self, name: str):
        self.pool.on_event(self[name], Event.REFUSED, "test")

    def lose(self, name: str):
        self.pool.on_event(self[name], Event.LOST, "test")

    # ---- calls ----

    def call(
        self,
        *,
        input_tokens=10,
        new_tokens=10,
        body=b"{}",
        wait_s=60.0,
        limit_s=1800.0,
        sequences=1,
        tenant="",
        priority=Priority.NORMAL,
        stream=False,
    ):
        """`limit_s` is what a client writes into `X-Request-Timeout`."""
        self._calls += 1
        now_s = self.clock()
        return Call(
            id=f"call-{self._calls}",
            route="/generate",
            ask=Ask(
                stream=stream,
                input_chars=input_tokens,
                new_tokens=new_tokens,
                sequences=sequences,
            ),
            body=body,
            headers=(),
            arrived_s=now_s,
            queue_deadline_s=now_s + min(wait_s, limit_s),
            deadline_s=now_s + limit_s,
            tenant=tenant,
            priority=priority,
        )

    async def acquire(self, call=None, attempts=None, *, is_retry=False, **fields) -> Lease:
        call = call or self.call(**fields)
        lease = await self.dispatcher.acquire(call, attempts or Attempts(), is_retry=is_retry)
        self.leases.append(lease)
        return lease

    def waiting(self, *args, **fields) -> "asyncio.Task[Lease]":
        return asyncio.get_running_loop().create_task(self.acquire(*args, **fields))

    def end(self, lease, outcome=Outcome.DONE, report=None):
        self.dispatcher.release(lease, outcome, report or Report())
        if lease in self.leases:
            self.leases.remove(lease)

    def end_all(self):
        """Every open lease ends, and those that this lets in, until nothing moves."""
        while self.leases:
            self.end(self.leases[-1])

    # ---- what must always hold ----

    def check(self):
        """Loads are exactly the open leases, and nobody waits who could run."""
        dispatcher = self.dispatcher
        assert dispatcher.open_leases == len(self.leases)
        for replica in {*self.pool, *(lease.replica for lease in self.leases)}:
            mine = [lease for lease in self.leases if lease.replica is replica]
            assert replica.load.requests == sum(lease.cost.requests for lease in mine)
            assert replica.load.tokens == sum(lease.cost.reserve_tokens for lease in mine)
            assert replica.alone == any(lease.alone for lease in mine)
            assert len(mine) == 1 or not replica.alone
        waiting = list(dispatcher.queue)
        assert dispatcher.queue.waiting_bytes == sum(len(ticket.call.body) for ticket in waiting)
        assert not any(ticket.grant.done() for ticket in waiting)
        self._check_shares(waiting)
        if waiting:
            assert self.pool.can_come
            self._check_idle()

    def _check_shares(self, waiting):
        """What each tenant holds adds up, and the head is the one of least counter."""
        queue, head = self.dispatcher.queue, self.dispatcher.queue.head
        held = Counter((ticket.call.tenant, ticket.call.priority) for ticket in waiting)
        told = {
            (name, p): places.calls[p] for name, places in queue.places.items() for p in Priority
        }
        assert {key: count for key, count in told.items() if count} == held
        holders = Counter(holder.account for holder in (*waiting, *self.leases))
        assert all(account.users == count for account, count in holders.items())
        if head is not None and not head.is_retry:
            assert head.account.counter == min(
                ticket.account.counter
                for ticket in waiting
                if ticket.call.priority is head.call.priority and not ticket.is_retry
            )

    def _check_idle(self):
        """An idle replica is left so only by calls that it failed and that have another one.

        Or it is kept for a suspect, until it has passed a probe.
        """
        usable = [replica for replica in self.pool if replica.is_usable]
        idle = [r for r in usable if not r.load.requests and not r.room.is_paused]
        queue = self.dispatcher.queue
        suspect, kept = self.dispatcher.choosing.kept or (None, None)
        if suspect is queue.head and suspect.alone and kept in idle:
            assert kept.health.confirmed_s < suspect.enqueued_s
            idle.remove(kept)
        for ticket in (queue.head, *(t for t in queue.behind_head() if not t.alone)):
            others = [replica for replica in usable if replica.id not in ticket.excluded]
            for replica in idle:
                if ticket.alone:
                    assert replica.health.confirmed_s < ticket.enqueued_s
                    continue
                if self._is_patient(ticket, replica):
                    continue
                assert replica.id in ticket.excluded
                assert others

    def _is_patient(self, ticket, replica):
        """It waits for a faster one, not for long, and not because others do not get their turn."""
        dispatcher, now_s = self.dispatcher, self.clock()
        if not dispatcher.choosing.policy.weighs_speed or ticket.patient_until_s is None:
            return False
        free = [one for one in self.pool if one.takes(ticket.cost)]
        usual_tokens = dispatcher._work.usual_tokens
        return (
            now_s < ticket.patient_until_s
            and len(dispatcher.queue) <= LOOK_AHEAD
            and dispatcher._speeds.is_too_long(
                replica, free, ticket.cost.expected_tokens, usual_tokens
            )
        )

    def check_at_rest(self):
        dispatcher = self.dispatcher
        assert dispatcher.open_leases == 0
        assert len(dispatcher.queue) == 0
        assert dispatcher.queue.waiting_bytes == 0
        assert dispatcher.queue.waiting_tokens == 0.0
        assert dispatcher.queue.places == {}
        for replica in self.pool:
            assert (replica.load.requests, replica.load.tokens) == (0, 0)
            assert not replica.alone


async def settle(rounds: int = 10):
    """Lets everything that is ready run; the clock stands still."""
    for _ in range(rounds):
        await asyncio.sleep(0)


def seeds(count: int) -> list[int]:
    return [random.Random(position).randrange(2**32) for position in range(count)]
