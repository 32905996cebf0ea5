"""`launcher doctor`: whether this machine can run a cluster, told before anything starts.

Looks, and changes nothing. Where replicas are containers with GPUs it starts one tiny container for
each GPU, from an image that is here, and removes it. Exit code 0 when nothing failed (warnings
included), 1 when something did, 2 for a config that cannot be read, 70 when a check itself broke.

`--json` prints one object; fields are added to it, never renamed.

    config   the file that was read; null: none, the machine in general
    cluster  its name; null without a cluster config
    verdict  the worst of all checks: "pass", "warn", "fail" or "bug"
    counts   {"pass", "warn", "fail", "skip", "bug"}: how many findings of each
    checks   findings, in the order they were made; a check may have several, or none:
      check    its name: "gpu access"
      about    which of several: "cuda:0", an image, a model; "cuda:0, cuda:1" where it is the same
               for all of them; else ""
      verdict  "pass", "warn", "fail", "skip": it could not be looked at; "bug": the check broke
      found    what was found
      advice   what to do; ""
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cluster import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.checkup.runner import Result
    from launcher.checkup.subject import Subject

    Begin = Callable[[str], None]
    Show = Callable[[Result], None]

FINE, FAILED, NO_CONFIG, BUG = 0, 1, 2, 70


def run(path: Path | None, *, as_json: bool = False) -> int:
    """`path` None: nobody named a config; fleet.yaml is taken if it is here."""
    from launcher.checkup.subject import Subject

    if isinstance(sys.stdout, io.TextIOWrapper):  # a process may be named in any script
        sys.stdout.reconfigure(errors="replace")
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    subject = Subject.load(path)
    results = list(_examined(subject, as_json=as_json))
    if as_json:
        from launcher.checkup import view

        print(json.dumps(view.as_json(subject, results), indent=2))
    else:
        _conclude(subject, results)
    return exit_code(subject, results)


def exit_code(subject: "Subject", results: "list[Result]") -> int:
    from launcher.checkup.base import Verdict
    from launcher.checkup.view import worst

    verdict = worst(results)
    if verdict is Verdict.BUG:
        return BUG
    if subject.problems:
        return NO_CONFIG
    return FAILED if verdict is Verdict.FAIL else FINE


def _examined(subject: "Subject", *, as_json: bool) -> "Iterator[Result]":
    from launcher.checkup import CHECKS
    from launcher.checkup.runner import examine

    with _quiet() if as_json else _showing() as (begin, show):
        for result in examine(CHECKS, subject, begin):
            show(result)
            yield result


@contextmanager
def _quiet() -> "Iterator[tuple[Begin, Show]]":
    yield lambda name: None, lambda result: None


@contextmanager
def _showing() -> "Iterator[tuple[Begin, Show]]":
    if sys.stdout.isatty():
        with _live() as shown:
            yield shown
    else:
        from launcher.checkup import view

        yield lambda name: None, lambda result: print(view.plain(result), flush=True)


@contextmanager
def _live() -> "Iterator[tuple[Begin, Show]]":
    """Findings as they come, below them what is looked at now."""
    from rich.console import Console
    from rich.text import Text

    from launcher.checkup import view

    console = Console(highlight=False)
    held_back: list[Result] = []

    def show(result: "Result") -> None:
        for line in view.lines(result, console.width):
            # Text, not str: a process's name may hold what rich would take for markup.
            text = Text.assemble((line.verdict, line.style), line.text)
            console.print(text, no_wrap=True, overflow="fold", crop=False)

    def show_or_hold(result: "Result") -> None:
        (held_back.append if view.is_consequence(result) else show)(result)

    with console.status("") as status:
        yield lambda name: status.update(Text(f"{name} ...")), show_or_hold
        for result in view.together(held_back):
            show(result)


def _conclude(subject: "Subject", results: "list[Result]") -> None:
    from launcher.checkup import view
    from launcher.checkup.base import Verdict
    from launcher.cluster import command_line

    print()
    print(view.summary(results))
    if view.worst(results) in (Verdict.PASS, Verdict.WARN) and subject.cluster is not None:
        print(f"next: `{command_line(subject.cluster.path, 'up')}`")
