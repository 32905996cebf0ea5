"""What a check of the machine is, and what it finds. Pure values.

A check looks and tells; it starts nothing that stays and changes nothing. One file per area of the
machine; `checkup/__init__.py` lists all checks in the order they are told.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from router.errors import OperatorError

if TYPE_CHECKING:
    from launcher.checkup.subject import Subject

USUAL_LIMIT_S = 20.0


class Verdict(StrEnum):
    """How one thing is. `skip`: it could not be looked at; `bug`: the check itself failed."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `about`: which of several, `cuda:0` or an image."""

    verdict: Verdict
    found: str
    advice: str = ""
    about: str = ""


def passed(found: str, *, about: str = "") -> Finding:
    return Finding(Verdict.PASS, found, "", about)


def warned(found: str, advice: str = "", *, about: str = "") -> Finding:
    return Finding(Verdict.WARN, found, advice, about)


def failed(found: str, advice: str = "", *, about: str = "") -> Finding:
    return Finding(Verdict.FAIL, found, advice, about)


def skipped(found: str, advice: str = "", *, about: str = "") -> Finding:
    return Finding(Verdict.SKIP, found, advice, about)


def failed_by(exc: OperatorError, *, about: str = "") -> Finding:
    """Our errors say what was found, then what to do."""
    found, _, advice = str(exc).partition("; ")
    return failed(found, advice, about=about)


class NotTold(Exception):
    """Something that a check needs to know was not to be had; another check says why."""


def _always(subject: "Subject") -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the machine.

    `find` may block; after `limit_s` it is given up and counts as failed. It raises NotTold where
    nothing can be said, and an OperatorError counts as a failure. `matters` says whether a config
    depends on it; if not, the check is left out. `clean_up_s`: how long it may take to remove what
    it made, should somebody interrupt it.
    """

    name: str
    find: Callable[["Subject"], Iterable[Finding]]
    matters: Callable[["Subject"], bool] = _always
    limit_s: float = USUAL_LIMIT_S
    clean_up_s: float = 0.0
