"""The programs that the process runtime is to start."""

import os
import shutil
import sys
from collections.abc import Iterator

from launcher.checkup.base import Check, Finding, failed, passed
from launcher.checkup.subject import Subject
from launcher.engines import ENGINES
from launcher.engines.base import Command


def _programs(subject: Subject) -> Iterator[Finding]:
    assert subject.cluster is not None
    runtime = subject.cluster.config.runtime
    seen: dict[str, str | None] = {}
    engine_of: dict[str, str] = {}
    for spec in subject.specs:
        command = ENGINES[spec.engine_name].command(spec, runtime.first_port, runtime.host)
        path = command.env.get("PATH", subject.environ.get("PATH"))
        for program in _started_by(command):
            seen.setdefault(program, shutil.which(program, path=path))
            engine_of[program] = spec.engine_name
    for program, place in seen.items():
        if place is not None:
            yield passed(f"{program} is {place}" if place != program else f"{program} is there")
            continue
        yield failed(
            f"engine {engine_of[program]}: its program {program} is not on PATH",
            f"install {engine_of[program]} on this machine and start the launcher where `which "
            f"{program}` finds it, or take `runtime: docker`",
        )


def _started_by(command: Command) -> Iterator[str]:
    """The program, and behind `python -m some.wrapper` the one that the wrapper becomes."""
    first, *rest = command.argv
    yield first
    if first == sys.executable and len(rest) > 2 and rest[0] == "-m":
        program = rest[2]
        if not program.startswith("-") and os.sep not in program:
            yield program


def _starts_programs(subject: Subject) -> bool:
    return subject.config is not None and not subject.uses_docker


CHECKS = (Check("programs", _programs, _starts_programs, limit_s=60.0),)
