"""Questions to what hangs: nobody waits for them longer than the limit, nor for their end."""

import asyncio
import subprocess
import sys
import threading

import pytest

from launcher import asking
from router.errors import DeviceError


@pytest.fixture
def hang():
    """Sets what the silent wait for, so that no thread is left behind."""
    over = threading.Event()
    yield over
    over.set()


def halved(number: int) -> float:
    return 1 / number


@pytest.fixture(params=["blocking", "aside"])
def ask(request):
    if request.param == "blocking":
        return asking.ask
    return lambda question, *args: asyncio.run(asking.ask_aside(question, *args))


def test_an_answer_is_given_and_an_error_raised_as_it_is(ask) -> None:
    assert ask(halved, 2) == 0.5
    with pytest.raises(ZeroDivisionError):
        ask(halved, 0)


def test_another_thread_asks(ask) -> None:
    assert ask(threading.get_ident) != threading.get_ident()


def test_a_timeout_of_the_question_itself_is_no_silence(ask) -> None:
    def question() -> None:
        raise TimeoutError("the disk")

    with pytest.raises(TimeoutError, match="the disk"):
        ask(question)


def test_silence_is_told_with_what_to_do(ask, hang, monkeypatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.05)
    with pytest.raises(DeviceError) as caught:
        ask(hang.wait)
    assert str(caught.value).startswith("the NVIDIA driver has not answered for 0.05 s; ")
    assert "reboot" in str(caught.value)


async def test_who_asks_aside_may_leave_at_any_time(hang) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asking.ask_aside(hang.wait)


async def test_a_late_answer_is_heard_by_nobody_and_harms_nobody(monkeypatch) -> None:
    begun, over, ended = threading.Event(), threading.Event(), threading.Event()

    def question() -> None:
        begun.set()
        over.wait()
        threading.current_thread().name = "answered"
        ended.set()
        raise ZeroDivisionError

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asking.ask_aside(question)
    assert begun.wait(10)
    over.set()
    assert ended.wait(10)
    while any(thread.name == "answered" for thread in threading.enumerate()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # an unheard error would be logged, and fail this test


def test_the_process_ends_though_the_question_does_not() -> None:
    code = """
import asyncio, threading
from launcher import asking
asking.ANSWER_S = 0.1
try:
    asyncio.run(asking.ask_aside(threading.Event().wait))
except Exception as exc:
    print(type(exc).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "DeviceError\n", "")
