"""Who may load now: how many at once, one first where a model is not on disk yet, one at a time
where running replicas are replaced.

Made by the supervisor, used by keepers. All of it is held only while a replica loads, and given
back however that ends.
"""

import asyncio
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
    """Held from the moment a replica of a model is taken out until its successor is ready.

    One that fails to come back keeps the turn: a change that does not work takes out one replica.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._owner: object | None = None

    @property
    def owner(self) -> object | None:
        return self._owner

    async def take(self, owner: object) -> None:
        await self._lock.acquire()
        self._owner = owner

    def give_back(self, owner: object) -> None:
        """By anybody, at any time: nothing happens unless `owner` holds it."""
        if self._owner is owner:
            self._owner = None
            self._lock.release()
