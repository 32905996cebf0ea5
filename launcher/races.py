"""Waiting for whichever comes first, with nothing left running behind."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def first_of(*runs: Coroutine[Any, Any, T]) -> T:
    """The result of the one that ends first; the others are cancelled, and have ended on return.

    Of several that end at the same time the first in order counts. What one raises is raised, but
    not in place of a cancellation.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as exc:
        me = asyncio.current_task()
        if me is not None and me.cancelling():
            raise asyncio.CancelledError from exc
        raise exc.exceptions[0] from exc
    return next(task for task in tasks if task in done).result()
