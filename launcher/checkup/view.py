"""How findings are shown: wrapped lines for a terminal, whole ones for a pipe, JSON for scripts.

Used by `launcher doctor`. Pure rendering; what JSON promises is told in `commands/doctor.py`.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.checkup.base import Finding, Verdict
from launcher.checkup.runner import Result
from launcher.checkup.subject import Subject
from router.config.words import count

_VERDICT_WIDTH, _NAME_WIDTH = 6, 17
_LEAST_TEXT_WIDTH = 20
_STYLES = {
    Verdict.PASS: "green",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.SKIP: "dim",
    Verdict.BUG: "bold magenta",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its first word, which rich shows in `style`, and the rest."""

    verdict: str
    style: str
    text: str


def lines(result: Result, width: int) -> Iterator[Line]:
    """For people: at most `width` wide; what to do begins a line of its own."""
    finding = result.finding
    style, word = _STYLES[finding.verdict], _word(finding.verdict)
    room = max(_LEAST_TEXT_WIDTH, width - _VERDICT_WIDTH - _NAME_WIDTH)
    wrapped = _wrapped(_told(result), room)
    if finding.advice:
        wrapped += [
            f"{'   ' if at else '-> '}{text}"
            for at, text in enumerate(_wrapped(finding.advice, room - 3))
        ]
    for at, text in enumerate(wrapped):
        name = "" if at else result.check
        first = "" if at else word
        yield Line(f"{first:<{_VERDICT_WIDTH}}", style, f"{name:<{_NAME_WIDTH}}{text}")


def plain(result: Result) -> str:
    """For pipes: one line, whole however long."""
    finding = result.finding
    text = " ".join(_told(result).split())
    advice = f" -> {' '.join(finding.advice.split())}" if finding.advice else ""
    head = f"{finding.verdict:<{_VERDICT_WIDTH}}{result.check:<{_NAME_WIDTH}}"
    return f"{head}{text}{advice}"


def is_consequence(result: Result) -> bool:
    """Whether it only says that another check had the bad news."""
    return result.finding.verdict is Verdict.SKIP and not result.finding.advice


def together(results: Iterable[Result]) -> Iterator[Result]:
    """Checks that were skipped for the same reason as one, at the end."""
    names: dict[str, list[str]] = {}
    for result in results:
        names.setdefault(_told(result), []).append(result.check)
    for told, checks in names.items():
        yield Result(
            "not looked at", Finding(Verdict.SKIP, f"{', '.join(dict.fromkeys(checks))}: {told}")
        )


def summary(results: Iterable[Result]) -> str:
    """`12 passed, 1 warning, 0 failed, 2 skipped`."""
    counts = _counts(results)
    text = f"{counts[Verdict.PASS]} passed, {count(counts[Verdict.WARN], 'warning')}, "
    text += f"{counts[Verdict.FAIL]} failed"
    if counts[Verdict.SKIP]:
        text += f", {counts[Verdict.SKIP]} skipped"
    if counts[Verdict.BUG]:
        text += f", {count(counts[Verdict.BUG], 'broken check')}"
    return text


def as_json(subject: Subject, results: list[Result]) -> dict[str, Any]:
    counts = _counts(results)
    return {
        "config": str(subject.path) if subject.path else None,
        "cluster": subject.config.cluster if subject.config else None,
        "verdict": worst(results).value,
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "checks": [
            {
                "check": result.check,
                "about": result.finding.about,
                "verdict": result.finding.verdict.value,
                "found": result.finding.found,
                "advice": result.finding.advice,
            }
            for result in results
        ],
    }


def worst(results: Iterable[Result]) -> Verdict:
    """Of all; what was skipped takes nothing away."""
    counts = _counts(results)
    order = (Verdict.BUG, Verdict.FAIL, Verdict.WARN)
    return next((verdict for verdict in order if counts[verdict]), Verdict.PASS)


def _counts(results: Iterable[Result]) -> Counter[Verdict]:
    return Counter(result.finding.verdict for result in results)


def _told(result: Result) -> str:
    about = result.finding.about
    return f"{about}: {result.finding.found}" if about else result.finding.found


def _wrapped(text: str, width: int) -> list[str]:
    # Paths and commands are to be copied: never broken at a hyphen, only where they must be.
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _word(verdict: Verdict) -> str:
    """What needs somebody stands out without colours, too."""
    quiet = verdict in (Verdict.PASS, Verdict.SKIP)
    return verdict.value if quiet else verdict.value.upper()
