"""An event loop whose clock jumps: time-outs of minutes pass in microseconds, in their order.

Whenever nothing is ready to run, the clock moves to the next timer instead of waiting for it. Code
under test must take its time from the loop. Sockets work, but the clock does not wait for them:
use it for code without I/O. When there is no timer either, the scene is stuck and says so.
"""

import asyncio
import selectors

STUCK_AFTER_S = 2.0
"""Real seconds; a thread may still report back."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Starts at 1,000 s, so that a forgotten 0.0 shows."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now_s

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Without Python 3.12's deadline: threads take real time, this clock would jump over it."""
        await super().shutdown_default_executor()


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None):
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            found = super().select(STUCK_AFTER_S)
            if not found:
                raise RuntimeError("stuck: nothing is ready and no timer is set")
            return found
        self._loop.now_s += timeout
        return []
