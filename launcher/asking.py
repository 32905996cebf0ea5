"""A question to what may hang: answered in time, or an error that says who is silent.

A call into the driver of a GPU that is dying may never return, and nothing can interrupt it. So a
daemon thread of its own makes it: neither who asks nor the end of the process waits for that. Used
by the supervisor, which may be stopped meanwhile, and by commands that look at the GPUs.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from router.errors import DeviceError

ANSWER_S = 30.0  # several GPUs that slept take seconds to wake; one that hangs never answers

T = TypeVar("T")
P = ParamSpec("P")


def ask(question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What it returns or raises; DeviceError when it does neither for ANSWER_S. Blocks."""
    answer = _asked(question, *args, **kwargs)
    concurrent.futures.wait([answer], ANSWER_S)
    if not answer.done():
        raise _silent()
    return answer.result()


async def ask_aside(question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same beside the event loop; cancelled, it returns at once and nobody hears the answer."""
    answer = asyncio.wrap_future(_asked(question, *args, **kwargs))
    try:
        await asyncio.wait([answer], timeout=ANSWER_S)
        if not answer.done():
            raise _silent()
        return answer.result()
    finally:
        answer.cancel()


def _asked(
    question: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> "concurrent.futures.Future[T]":
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()  # from here on it cannot be taken back, only not heard

    def run() -> None:
        try:
            result = question(*args, **kwargs)
        except BaseException as exc:  # raised again where it is heard
            answer.set_exception(exc)
        else:
            answer.set_result(result)

    threading.Thread(target=run, name="asking", daemon=True).start()
    return answer


def _silent() -> DeviceError:
    return DeviceError(
        f"the NVIDIA driver has not answered for {ANSWER_S:g} s; does `nvidia-smi` hang, too? "
        "A GPU that died does that: look at `dmesg | grep -i xid`, then reboot"
    )
