"""Two attempts at the same time: the first that has a good reply counts. Leases are no concern."""

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


async def first_good(own: Runner, second: Runner) -> Started | None:
    """Who has a good reply first; None when the second failed while the first still runs.

    Raises how the first failed if neither gets one.
    """
    await asyncio.wait((own, second), return_when=asyncio.FIRST_COMPLETED)
    if own.done() and not isinstance(own.result(), Started):
        await asyncio.wait((second,))
    for runner in (own, second):
        if runner.done() and isinstance(result := runner.result(), Started):
            return result
    if not own.done():
        return None
    failure = own.result()
    assert isinstance(failure, RouterError)
    raise failure
