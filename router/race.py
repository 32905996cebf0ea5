"""Two attempts at the same time: the first that has a reply counts. No lease is made or ended here."""

import asyncio
from collections.abc import Coroutine

from router.errors import RouterError
from router.service import Started

Runner = asyncio.Task[Started | RouterError]


async def outcome_of(attempt: Coroutine[None, None, Started]) -> Started | RouterError:
    """What came of it, as a value: for somebody who waits for two."""
    try:
        return await attempt
    except RouterError as error:
        return error


async def first_good(own: Runner, second: Runner) -> Started:
    """Who has a reply first. Raises how the first failed if neither gets one."""
    pending = {own, second}
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for runner in (own, second):
            if runner.done() and isinstance(result := runner.result(), Started):
                return result
    failure = own.result()
    assert isinstance(failure, RouterError)
    raise failure
