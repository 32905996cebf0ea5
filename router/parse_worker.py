"""Parses large bodies in another process, so that one huge document stops nobody else's stream.

A thread would not do: the JSON scanner holds the interpreter for the whole document. The process
starts with the first large body, has bounded memory and dies with the router.
"""

import asyncio
import ctypes
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from router.apis import GENERATION_APIS, TOKENIZER_APIS
from router.call import Ask
from router.errors import InvalidRequest

LARGE_BODY_BYTES = 256 * 1024
MAX_MEMORY_BYTES = 3 * 1024**3
PR_SET_PDEATHSIG = 1


def parse(path: str, body: bytes) -> Ask:
    """Reads what routing depends on. Raises InvalidRequest."""
    api = GENERATION_APIS.get(path) or TOKENIZER_APIS[path]
    return api.parse(path, body)


class ParseWorker:
    """One per router; `parse` decides where a body is parsed."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    async def parse(self, path: str, body: bytes) -> Ask:
        if len(body) <= LARGE_BODY_BYTES:
            return parse(path, body)
        loop = asyncio.get_running_loop()
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                max_workers=1, mp_context=get_context("spawn"), initializer=_confine
            )
        executor = self._executor
        try:
            return await loop.run_in_executor(executor, _parse_confined, path, body)
        except BrokenProcessPool:
            if self._executor is executor:
                self._executor = None
            raise InvalidRequest("the body is too costly to parse") from None

    def close(self) -> None:
        if self._executor is not None:
            processes = list((self._executor._processes or {}).values())  # shutdown forgets them
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            self._executor = None


def _parse_confined(path: str, body: bytes) -> Ask:
    try:
        return parse(path, body)
    except MemoryError:
        raise InvalidRequest("the body needs too much memory to parse") from None


def _confine() -> None:
    """Ends with its parent, leaves Ctrl-C to it, and cannot eat the machine's memory."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
