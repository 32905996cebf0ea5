"""The result as text."""

import json
from collections import Counter
from typing import Any

from tests.campaign.campaign import Report
from tests.campaign.oracle import Kind
from tests.campaign.tally import Tally

COLUMNS = tuple(Kind)
MIB = 1024**2


def plain(report: Report) -> str:
    tally = report.tally
    return "\n".join(
        [
            *_faults(report),
            "",
            *_calls(tally),
            "",
            f"tried more than once {tally.again}, seams in texts {tally.seams}, "
            f"longest call {tally.longest_s:.1f} s",
            "the router's own count: " + _listed(report.counters),
            *_causes(tally),
            f"router's memory: {report.rss_bytes[0] / MIB:.0f} MiB before, "
            f"{report.rss_bytes[1] / MIB:.0f} MiB after",
            f"leaks: {len(report.leaks)}",
            *(f"  {leak}" for leak in report.leaks),
            verdict(report),
        ]
    )


def verdict(report: Report) -> str:
    tally = report.tally
    return (
        f"lost {tally.count(Kind.LOST)}, errors without need {tally.count(Kind.REFUSED)}, "
        f"not resumed {tally.count(Kind.NOT_RESUMED)}, leaks {len(report.leaks)}"
    )


def as_json(report: Report) -> str:
    tally = report.tally
    document: dict[str, Any] = {
        "seconds": report.seconds,
        "faults": dict(report.faults),
        "spared": report.spared,
        "calls": {kind.value: tally.count(kind) for kind in Kind},
        "tried_again": tally.again,
        "counters": dict(report.counters),
        "causes": {kind.value: dict(causes) for kind, causes in tally.causes.items() if causes},
        "examples": tally.examples,
        "leaks": report.leaks,
        "rss_bytes": report.rss_bytes,
    }
    return json.dumps(document, indent=1)


def _faults(report: Report) -> list[str]:
    total = report.faults.total()
    spared = f", {report.spared} spared as no other replica was healthy" * bool(report.spared)
    return [
        f"faults: {total} in {report.seconds:.0f} s{spared}",
        f"  {_listed(report.faults)}",
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.most_common()) or "none"


def _calls(tally: Tally) -> list[str]:
    kinds = sorted({kind for kind, _ in tally.calls})
    head = ["calls", "all", *(column.value for column in COLUMNS)]
    rows = [[kind, *_numbers(tally, [kind])] for kind in kinds]
    rows.append(["together", *_numbers(tally, kinds)])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]


def _numbers(tally: Tally, kinds: list[str]) -> list[str]:
    counts = [sum(tally.calls[kind, column] for kind in kinds) for column in COLUMNS]
    return [f"{number:,}" for number in (sum(counts), *counts)]


def _causes(tally: Tally) -> list[str]:
    lines = []
    for kind, causes in tally.causes.items():
        if causes:
            lines.append(f"{kind.value}:")
        for cause, count in causes.most_common():
            lines.append(f"  {count:5}  {cause}   ({', '.join(tally.examples[cause])})")
    return lines
