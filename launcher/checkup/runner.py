"""Runs checks one after the other, each in a thread and only so long; none can end the others.

Called by `launcher doctor`. A check that raises what nobody expected is a bug of that check, which
is told as one; the rest goes on.
"""

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from launcher.checkup.base import Check, Finding, NotTold, Verdict, failed, failed_by, skipped
from launcher.checkup.subject import Subject
from router.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Result:
    """A finding, and the check it is of."""

    check: str
    finding: Finding


def examine(
    checks: Iterable[Check],
    subject: Subject,
    begin: Callable[[str], None] = lambda name: None,
) -> Iterator[Result]:
    """What the checks find that matter here, as soon as it is known. `begin` is told each name."""
    for check in checks:
        if check.matters(subject):
            begin(check.name)
            for finding in _findings(check, subject):
                yield Result(check.name, finding)


def _findings(check: Check, subject: Subject) -> list[Finding]:
    found: list[Finding] = []
    # Not `join`: Python 3.11 takes a thread for ended when that is interrupted.
    is_done = threading.Event()
    threading.Thread(target=_look, args=(check, subject, found, is_done), daemon=True).start()
    try:
        if is_done.wait(check.limit_s):
            return found
    except KeyboardInterrupt:
        subject.is_over.set()
        is_done.wait(check.clean_up_s)
        raise
    return [*found, failed(f"this check was not done within {check.limit_s:g} s")]


def _look(check: Check, subject: Subject, found: list[Finding], is_done: threading.Event) -> None:
    try:
        for finding in check.find(subject):
            found.append(finding)  # noqa: PERF402  # what was found before it hangs counts
    except NotTold as exc:
        found.append(skipped(str(exc)))
    except OperatorError as exc:
        found.append(failed_by(exc))
    except Exception as exc:
        traceback.print_exc()
        found.append(_bug(exc))
    finally:
        is_done.set()


def _bug(exc: Exception) -> Finding:
    return Finding(
        Verdict.BUG,
        f"this check failed itself, with {type(exc).__name__}: it says nothing of the machine",
        "please report the traceback above, it is a bug in gpu-fleet",
    )
