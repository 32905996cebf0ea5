"""Calls that share the start of their prompt go to one replica, within a bound on its load.

Rendezvous hashing gives each prefix an order of replicas that stays put when others come and go;
the first in that order whose load is at most 1.25 times the mean takes the call (consistent hashing
with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018), so a popular prefix cannot drive one
replica into the ground.
"""

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil

from router.call import Call
from router.policies.base import Turns
from router.policies.least_tokens import token_load
from router.replica import Replica

LOAD_BOUND = 1.25


class PrefixAffinity:
    weighs_speed = False

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, call: Call, candidates: Sequence[Replica], now_s: float) -> Replica | None:
        prefix = call.ask.affinity
        if not prefix or len(candidates) < 2:
            return self._turns.least(candidates, token_load)
        held = sum(replica.load.requests for replica in candidates)
        bound = ceil(LOAD_BOUND * (held + 1) / len(candidates))  # some replica is always below it
        within = [replica for replica in candidates if replica.load.requests < bound]
        return max(within, key=lambda replica: _weight(prefix, replica.id))


def _weight(prefix: str, replica_id: str) -> bytes:
    text = f"{replica_id}\0{prefix}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=8).digest()
