"""Who may load now: how many at once, one first where a model is not on disk yet, one at a time
where running replicas are replaced.

Made by the supervisor, used by keepers. All of it is held only while a replica loads, and given
back however that ends.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LoadGate:
    """The first of a model's replicas loads alone, as all would download the same files.

    `slots` bounds how many load at once, over all models. If the first one's start fails, the next
    in the queue is the first.
    """

    def __init__(self, slots: asyncio.Semaphore, *, is_open: bool = True) -> None:
        self._slots = slots
        self._first = asyncio.Lock()
        self._is_open = is_open

    @property
    def is_open(self) -> bool:
        """Whether the model's files are known to be here."""
        return self._is_open

    def open(self) -> None:
        """One of them is ready: what it needed is here, for the others, too."""
        self._is_open = True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Held while a replica loads."""
        if self._is_open:
            async with self._slots:
                yield
            return
        async with self._first:
            if not self._is_open:
                async with self._slots:
                    yield
                return
        async with self._slots:
            yield


class ReplaceTurn:
    """Held by a replica of a model that is out: from its being taken until it is back, for
    the router, too.

    One at a time is taken; those that are out already `join`, so that nobody follows them before
    they are back. One that fails to come back stays out: a change that does not work takes out one.
    """

    def __init__(self) -> None:
        self._out: dict[object, None] = {}
        self._waiting: deque[tuple[object, asyncio.Future[None]]] = deque()

    @property
    def owner(self) -> object | None:
        """The first of those that are out."""
        return next(iter(self._out), None)

    @property
    def is_free(self) -> bool:
        """Nobody is out."""
        return not self._out

    def join(self, owner: object) -> None:
        """It is out, and waits for nobody."""
        self._out[owner] = None

    async def take(self, owner: object) -> None:
        """First come, first served, once nobody is out."""
        if not self._out and not self._waiting:
            self._out[owner] = None
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._waiting.remove((owner, granted))
            else:  # its turn came in the same moment
                self.give_back(owner)
            raise

    def give_back(self, owner: object) -> None:
        """By anybody, at any time: nothing happens unless `owner` is out."""
        if owner not in self._out:
            return
        del self._out[owner]
        waiting = (one for one in self._waiting if not one[1].done())
        if not self._out and (following := next(waiting, None)):
            self._waiting.remove(following)
            self._out[following[0]] = None
            following[1].set_result(None)
