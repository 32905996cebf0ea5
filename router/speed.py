"""How soon a replica would be done with one more call: learned, for the choice between those with
room. Pure.

What an engine takes for a token grows with what it runs beside: a step reads the weights once,
whoever is in the batch, and then each sequence's cache. So a replica has a speed of its own, to
which all that was seen is put in relation:

    seconds per token = seconds per token when alone * (1 + crowd / KNEE)

`crowd` counts the calls it has, a long context as several. A call is best off where this is least;
how long it is itself changes nothing about the order. Replicas of equal speed are so filled evenly,
a slow one takes its first call when the fast ones have slowed down to it, and one that nothing is
known of is taken for as fast as the others.

Where all are full and one of the slow ones has room first, a long call is better off waiting: of
the fast ones, some call ends soon. The slow one gets a shorter call from behind, so that it is not
still at work on the longest when everybody else is done.
"""

from collections.abc import Container, Iterable
from math import inf

from router.replica import Replica
from router.room import Load

KNEE = 32.0
"""Calls at which a step takes twice as long as one for a single call; of that order for models that
fill a GPU, and the order between replicas depends little on it."""
CONTEXT_TOKENS = 2048.0
"""Tokens of context that weigh as much as another call."""
PRIOR_TOKENS = 100.0
"""A replica is taken for as fast as the pool is, until as many tokens say something else: short
calls tell little, as they wait for steps that others began."""
KEPT = 0.95
"""Of what earlier calls told, with each further one."""
LOOK_EVERY_S = 1.0
NEARLY = 1.2
"""So much slower is as good as equal."""
LONG = 3.0
"""A call is too long for a slow replica if it takes so many times as there as a usual one takes a
fast one. Simulated with 2, 4 and 8 replicas, one at half speed, and lognormal lengths: from 1.5 to
3 the last call is done 4 to 8 % sooner; below that two replicas leave the slow one idle."""
SOON_CALLS = 4
"""Running on the fast replicas: one of so many ends within a fourth of a call's time."""
KEPT_UNSEEN = 7 / 8
"""The same for each second in which a replica finished no call: one that was slow is given another
try after half a minute or so, one of which little is known at once."""


class Speeds:
    """Of one pool's replicas; keeps each one's `rank` up to date."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        """`replicas`: looked through anew each time."""
        self._replicas = replicas
        self._looked_s = -inf
        self._pool_s = 1.0
        """Seconds per token of the whole pool, as they would be without a crowd, over KNEE."""
        self._fastest_s = 0.0
        """Of the replicas that may be used."""

    def weigh(self, replica: Replica) -> None:
        """Its load has changed."""
        speed = replica.speed
        seconds = speed.seconds + PRIOR_TOKENS * self._pool_s
        replica.crowd = crowd = _crowd(replica.load)
        speed.each_s = each_s = seconds / (speed.tokens + PRIOR_TOKENS)
        replica.rank = each_s * (KNEE + crowd)

    def seen(self, replica: Replica, seconds: float, tokens: int, now_s: float) -> None:
        """A call of so many tokens took it so long, with the load it has now."""
        speed = replica.speed
        speed.seconds = KEPT * speed.seconds + seconds / (KNEE + _crowd(replica.load))
        speed.tokens = KEPT * speed.tokens + tokens
        speed.is_news = True
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._look(now_s)

    def is_too_long(
        self, choice: Replica, free: Container[Replica], tokens: float, usual_tokens: float
    ) -> bool:
        """Whether a call of so many tokens had better wait for a faster replica than the choice.

        `free`: the replicas that have room for it; `usual_tokens`: 0.0 while that is not known.
        """
        if not self._fastest_s or not usual_tokens:
            return False
        slower = choice.speed.each_s / self._fastest_s
        if slower <= NEARLY or tokens * slower <= LONG * usual_tokens:
            return False
        most_s = NEARLY * self._fastest_s
        fast = [one for one in self._replicas if one.is_usable and one.speed.each_s <= most_s]
        if any(one in free for one in fast):
            return False  # it is so full that the choice is no slower
        return sum(one.load.requests for one in fast) >= SOON_CALLS

    @property
    def are_mixed(self) -> bool:
        """Some are slower than others."""
        most_s = NEARLY * self._fastest_s
        return most_s > 0.0 and any(
            one.is_usable and one.speed.each_s > most_s for one in self._replicas
        )

    def _look(self, now_s: float) -> None:
        self._looked_s = now_s
        seconds = tokens = 0.0
        for replica in self._replicas:
            speed = replica.speed
            if not speed.is_news:
                speed.seconds *= KEPT_UNSEEN
                speed.tokens *= KEPT_UNSEEN
            speed.is_news = False
            seconds += speed.seconds
            tokens += speed.tokens
        self._pool_s = seconds / tokens if tokens else self._pool_s
        fastest_s = inf
        for replica in self._replicas:
            self.weigh(replica)
            if replica.is_usable and replica.speed.each_s < fastest_s:
                fastest_s = replica.speed.each_s
        self._fastest_s = fastest_s if fastest_s < inf else 0.0


def _crowd(load: Load) -> float:
    return load.requests + load.tokens / CONTEXT_TOKENS
