"""What the system allows a user: open files for the router, threads for engines, memory maps."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from launcher.checkup.base import Check, Finding, failed, passed, warned
from launcher.checkup.subject import Subject

_FILES_PER_CALL = 2  # the client's connection and the replica's
_FILES_FOR_ITSELF = 100
_FEW_FILES, _TOO_FEW_FILES = 4096, 512
_FEW_THREADS = 4096  # an engine starts some hundred
_NEVER_OVERCOMMIT = "2"
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def _files(subject: Subject) -> Iterator[Finding]:
    """The router raises its own limit as far as it may: to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        yield passed("no limit")
        return
    calls = max(0, hard - _FILES_FOR_ITSELF) // _FILES_PER_CALL
    found = f"at most {hard:,}: room for about {calls:,} calls at a time"
    waiting = subject.router.queue.max_calls if subject.router else None
    advice = "raise it: LimitNOFILE= in a systemd unit, `ulimit -Hn`, /etc/security/limits.conf"
    if hard < _TOO_FEW_FILES:
        yield failed(found, advice)
    elif waiting is not None and waiting > calls:
        yield warned(f"{found}, but router.queue.max_calls is {waiting:,}", advice)
    elif hard < _FEW_FILES:
        yield warned(found, advice)
    else:
        yield passed(found)


def _kernel(subject: Subject) -> Iterator[Finding]:
    """Only what engines are known to stumble over."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    concerns = []
    if os.geteuid() != 0 and soft != resource.RLIM_INFINITY and soft < _FEW_THREADS:
        concerns.append(
            warned(
                f"this user may have {soft:,} processes and threads, engines start hundreds",
                "raise `ulimit -u`: TasksMax= in a systemd unit, /etc/security/limits.conf",
            )
        )
    if subject.uses_gpus and _overcommit() == _NEVER_OVERCOMMIT:
        concerns.append(
            warned(
                "vm.overcommit_memory is 2: CUDA reserves far more addresses than it uses, and "
                "may be refused them",
                "`sudo sysctl vm.overcommit_memory=0`",
            )
        )
    yield from concerns or [passed("threads and memory maps are not held short")]


def _overcommit() -> str:
    with suppress(OSError):
        return _OVERCOMMIT.read_text().strip()
    return ""


CHECKS = (
    Check("open files", _files),
    Check("kernel limits", _kernel, lambda subject: subject.config is not None),
)
