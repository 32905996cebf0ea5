"""Which fault strikes which replica when: all decided beforehand, by a seed. Pure.

At every moment at least one replica is well: no fault is at it, and the last one is long enough ago
for the router to have noticed. So no call has a reason to fail.
"""

import random
from dataclasses import dataclass

RECOVERY_S = 4.0
"""From a fault's end until the router certainly sends calls there again."""
MEAN_GAP_S = 0.8

PROCESS = ("kill", "stop")
WIRE = ("cut", "reset", "deaf", "stall", "drip", "late", "garbage", "refuse")
ENGINE = (
    *("overload", "error_next", "die_mid_stream", "incomplete", "cut_mid_event"),
    *("wrong_length", "hang", "engine_garbage", "unhealthy"),
)
KINDS = (*PROCESS, *WIRE, *ENGINE)

LASTING_S = {
    "kill": (0.1, 2.0),
    "stop": (0.3, 4.0),
    "deaf": (0.5, 4.0),
    "stall": (0.1, 1.5),
    "drip": (0.5, 3.0),
    "late": (0.5, 3.0),
    "refuse": (0.3, 2.0),
    "overload": (0.3, 3.0),
    "hang": (0.5, 3.0),
    "unhealthy": (1.0, 3.0),
}
"""Shortest and longest. `hang` ends by a kill, as nothing else ends it: whoever runs the replica
sees that it makes no progress."""
ARMED_S = (0.3, 1.5)
"""The others: so long may calls or bytes meet them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    """From the campaign's start."""
    replica: int
    kind: str
    lasts_s: float = 0.0
    amount: int = 0
    """What it is counted in: bytes until a cut or of a drip, events or tokens until an engine's
    fault, milliseconds of latency."""
    calls: int = 1
    """An engine's fault: so many calls meet it."""
    is_told: bool = True
    """A kill: the router is told of the next generation, as by a launcher; else it finds out."""

    @property
    def well_again_s(self) -> float:
        return self.at_s + self.lasts_s + RECOVERY_S

    def __str__(self) -> str:
        return (
            f"{self.at_s:7.2f} s  replica-{self.replica}  {self.kind:<14}"
            f" lasts {self.lasts_s:.2f} s, amount {self.amount}, calls {self.calls}"
            + ("" if self.is_told else ", untold")
        )


def planned(seed: int, duration_s: float, replicas: int) -> tuple[Fault, ...]:
    """All faults of a campaign, in order; the same for the same arguments."""
    rng = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    at_s = 0.0
    while True:
        at_s += rng.expovariate(1 / MEAN_GAP_S)
        fault = _drawn(rng, at_s, rng.randrange(replicas))
        if fault.at_s + fault.lasts_s > duration_s:
            return tuple(faults)
        if leaves_one_well(faults, fault, replicas):
            faults.append(fault)


def leaves_one_well(faults: list[Fault], more: Fault, replicas: int) -> bool:
    """Whether another fault may be added: its replica has none now, and one other stays well."""
    near = [fault for fault in faults if fault.well_again_s > more.at_s]
    if any(f.replica == more.replica and f.at_s + f.lasts_s >= more.at_s for f in near):
        return False
    ill = {fault.replica for fault in near} | {more.replica}
    return len(ill) < replicas


def _drawn(rng: random.Random, at_s: float, replica: int) -> Fault:
    kind = rng.choice(KINDS)
    return Fault(
        at_s=round(at_s, 3),
        replica=replica,
        kind=kind,
        lasts_s=round(rng.uniform(*LASTING_S.get(kind, ARMED_S)), 3),
        amount=_amount(rng, kind),
        calls=rng.randint(1, 3) if kind in ENGINE else 1,
        is_told=rng.random() < 0.5,
    )


def _amount(rng: random.Random, kind: str) -> int:
    if kind in ("cut", "reset", "garbage"):
        return rng.choice((0, 1, rng.randint(2, 200), rng.randint(200, 5_000)))
    if kind == "drip":
        return rng.randint(1, 40)
    if kind == "late":
        return rng.randint(5, 100)
    # What an engine sends before its fault: nothing, or some tokens.
    return rng.choice((0, 1, rng.randint(2, 30)))
