"""The config and what is installed."""

import platform
import sys
from collections.abc import Iterator

from launcher.checkup.base import Check, Finding, failed, passed
from launcher.checkup.subject import Subject


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


CHECKS = (Check("config", _config), Check("software", _software))
