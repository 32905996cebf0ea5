"""The config, what is installed, and the programs that a process runtime is to start."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator

from launcher.checkup.base import Check, Finding, failed, passed, warned
from launcher.checkup.subject import Subject
from launcher.cluster import command_line
from launcher.engines import ENGINES
from launcher.engines.base import Command


def _config(subject: Subject) -> Iterator[Finding]:
    for problem in subject.problems:
        yield failed(str(problem))
    if subject.problems:
        return
    if subject.path is None:
        yield passed("none named, and no fleet.yaml here: this machine in general is looked at")
    elif subject.cluster is None:
        yield passed(f"{subject.path}: fine, for the router alone (`router --config`)")
    else:
        config = subject.cluster.config
        engines = ", ".join(dict.fromkeys(config.engine_of(m).name for m in config.models))
        text = f"cluster {config.cluster}, {engines}, runtime {config.runtime.name}"
        yield passed(f"{subject.path}: fine: {text}")


def _software(subject: Subject) -> Iterator[Finding]:
    from launcher.commands.version import installed_version

    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    text = f"gpu-fleet {installed_version()}, Python {platform.python_version()}, {system}"
    if sys.platform == "linux":
        yield passed(text)
    else:
        yield failed(text, "replicas are watched in ways that only Linux has: run it there")


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


def _endpoint(subject: Subject) -> Iterator[Finding]:
    from launcher.commands.validate import open_endpoint

    assert subject.router is not None
    found = False
    for warning in open_endpoint(subject.router):
        what, _, advice = warning.partition("; ")
        found = True
        yield warned(what, advice)
    if not found:
        yield passed(f"only this machine reaches {subject.router.host}")


def show_command(subject: Subject, *words: str) -> str:
    """A launcher command for the same cluster."""
    assert subject.path is not None
    return command_line(subject.path, *words)


CHECKS = (
    Check("config", _config),
    Check("software", _software),
    Check(
        "programs",
        _programs,
        lambda subject: subject.config is not None and not subject.uses_docker,
        limit_s=60.0,
    ),
    Check("endpoint", _endpoint, lambda subject: subject.router is not None),
)
