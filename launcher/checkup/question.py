"""A question to something that may hang: asked once, by a thread of its own, heard by many.

A driver with a dead GPU, or a frozen daemon, never answers and cannot be interrupted. So nobody
waits longer than the limit, which counts from the moment of asking: later askers do not wait again.
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from router.errors import OperatorError

T = TypeVar("T")


class NoAnswer(OperatorError):
    """It hangs."""


class Question(Generic[T]):
    """`who` is asked by calling `ask`, when the answer is first wanted."""

    def __init__(self, who: str, ask: Callable[[], T], limit_s: float, advice: str) -> None:
        self._who = who
        self._ask = ask
        self._limit_s = limit_s
        self._advice = advice
        self._asking = threading.Lock()
        self._deadline_s: float | None = None
        self._is_over = threading.Event()
        self._answer: list[T] = []
        self._problem: Exception | None = None

    def answer(self) -> T:
        """Raises what `ask` raised, or NoAnswer."""
        self._begin()
        assert self._deadline_s is not None
        if not self._is_over.wait(max(0.0, self._deadline_s - time.monotonic())):
            raise NoAnswer(
                f"{self._who} has not answered within {self._limit_s:g} s; {self._advice}"
            )
        if self._problem is not None:
            raise self._problem
        return self._answer[0]

    def _begin(self) -> None:
        with self._asking:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + self._limit_s
                threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer.append(self._ask())
        except Exception as exc:
            self._problem = exc
        finally:
            self._is_over.set()
