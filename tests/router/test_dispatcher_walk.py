"""A random walk over everything that can happen to a pool, checked after every step.

Whatever the order: loads are exactly the open leases, nobody waits who could run, what each tenant
holds adds up, the turn is the least counter's, and at the end nothing is left.
"""

import asyncio
import random

import pytest

from router.call import Priority
from router.config import HealthConfig, QueueConfig
from router.errors import NoReplica, QueueFull, QueueTimeout, TooLate
from router.health import Event
from router.lease import Outcome, Report
from router.policies import POLICIES
from router.replica import Admin
from router.retry import Attempts

pytestmark = pytest.mark.virtual_time
STEPS = 400
NAMES = ["a", "b", "c", "d"]
WEIGHTS = {
    "arrive": 34,
    "finish": 20,
    "cancel": 4,
    "cancel_granted": 4,
    "health": 12,
    "wait": 8,
    "sync": 3,
    "admin": 4,
}
TENANTS = ["", "x", "y", "z"]
ALLOWED = (NoReplica, QueueFull, QueueTimeout, TooLate, asyncio.CancelledError)


class Walk:
    def __init__(self, world, settle, seed, policy):
        self.rng = random.Random(seed)
        self.settle = settle
        self.one = world(
            policy=policy,
            queue=QueueConfig(max_calls=20, max_bytes=400, max_overtake_s=self.rng.choice([0, 2])),
            weights={"x": 3.0},
            health=HealthConfig(eject_after=2, fall=2, max_ejected_share=0.5),
        )
        self.tasks = []
        self.tenants = seed % len(TENANTS)
        self.generations = dict.fromkeys(NAMES, 1)
        self.here = set(NAMES)
        self.push()
        for name in NAMES:
            self.one.up(name)
        self.happened = dict.fromkeys([*WEIGHTS, "waited", "held"], 0)

    async def run(self):
        for _ in range(STEPS):
            step = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            self.happened[step] += 1
            await getattr(self, step)()
            await self.settle(4)
            self.one.check()
            self.drop_ended()
            self.happened["waited"] += len(self.one.dispatcher.queue) > 1
            self.happened["held"] += len(self.one.leases) > 1
        assert all(self.happened.values()), "a walk that met nothing has shown nothing"

    def drop_ended(self):
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled():
                assert task.exception() is None or isinstance(task.exception(), ALLOWED)

    async def arrive(self):
        rng = self.rng
        tried = frozenset(rng.sample(NAMES, rng.choice([0, 0, 0, 1, 2, 4])))
        attempts = Attempts(count=len(tried), excluded=tried, alone=rng.random() < 0.05)
        call = self.one.call(
            input_tokens=rng.choice([1, 10, 100, 1000]),
            new_tokens=rng.choice([1, 50, 500]),
            body=b"x" * rng.choice([1, 10, 100]),
            sequences=rng.choice([1, 1, 1, 3]),
            wait_s=rng.choice([0, 1, 60]),
            limit_s=rng.choice([0.5, 20, 1800]),
            tenant=rng.choice(TENANTS[: 1 + self.tenants]),
            priority=rng.choice(list(Priority)),
        )
        is_retry = bool(tried) or attempts.alone
        self.tasks.append(self.one.waiting(call, attempts, is_retry=is_retry))

    async def finish(self):
        if self.one.leases:
            lease = self.rng.choice(self.one.leases)
            outcome = self.rng.choice([Outcome.DONE] * 5 + list(Outcome))
            report = Report(
                generated_tokens=self.rng.choice([None, 5]),
                engine_wait_s=self.rng.choice([None, 0.0, 3.0]),
            )
            self.one.end(lease, outcome, report)

    async def cancel(self):
        if self.tasks:
            self.rng.choice(self.tasks).cancel()

    async def cancel_granted(self):
        """The race: a lease ends and a waiter leaves in one tick, in either order."""
        both = [self.finish, self.cancel]
        self.rng.shuffle(both)
        for act in both:
            await act()

    async def health(self):
        if self.here:
            replica = self.one[self.rng.choice(sorted(self.here))]
            event = self.rng.choice([Event.PROBE_OK] * 6 + list(Event))
            self.one.pool.on_event(replica, event, "walk")

    async def wait(self):
        await asyncio.sleep(self.rng.choice([0.01, 0.5, 0.5, 5.0, 70.0]))

    async def sync(self):
        """Replicas leave, come back, start again, fail for good."""
        self.here = set(self.rng.sample(NAMES, self.rng.choice([0, 1, 3, 4, 4])))
        for name in self.here:
            self.generations[name] += self.rng.random() < 0.3
        self.push(failed=self.rng.random() < 0.1)

    def push(self, *, failed=False):
        self.one.sync(
            *(
                self.one.member(
                    name,
                    generation=self.generations[name],
                    requests=3 + NAMES.index(name),
                    tokens=[None, 300, 1200, 5000][NAMES.index(name)],
                    phase="failed" if failed else "ready",
                )
                for name in sorted(self.here)
            )
        )

    async def admin(self):
        if self.here:
            replica = self.one[self.rng.choice(sorted(self.here))]
            self.one.pool.set_admin(replica, self.rng.choice(list(Admin)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
async def test_a_random_walk_keeps_every_promise(world, settle, policy, seed):
    walk = Walk(world, settle, seed, policy)
    await walk.run()
    for task in walk.tasks:
        task.cancel()
    await asyncio.gather(*walk.tasks, return_exceptions=True)
