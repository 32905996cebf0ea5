"""`launcher up`: start (or adopt) a cluster and look after it, in front or detached.

Beside a launcher that runs already it has that one follow the edited config (`follow`); with
`--dry-run` it shows what would be done (`dry_run`).

In front it shows a live table, or plain lines where standard output is no terminal; Ctrl-C stops
everything. Detached (`-d`) the same supervisor runs in a session of its own and this command only
waits until all is ready, or says why not and leaves nothing running that it started. SIGHUP is a
second `launcher up`, unless it comes of a terminal that was closed: then it stops everything.
"""

import asyncio
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher import log_files, notify
from launcher.cluster import DEFAULT_CONFIG, Cluster
from launcher.state import ClusterLock, LockHeld
from launcher.status import ClusterStatus
from launcher.supervisor import Supervisor
from router.errors import OperatorError

LOG_NAME = "launcher"
LOCK_WAIT_S = 1.0  # a launcher that has just been killed may not be gone yet
CHANGE_SIGNAL = signal.SIGUSR1  # sent by a second `launcher up`: the config was edited
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXAMPLE = """\
models:
  - id: gpu-fleet/simulated-7b
    replicas: 2
engine: simulator
router:
  port: 8080
"""


def run(path: Path, *, detach: bool = False, dry_run: bool = False, is_child: bool = False) -> int:
    if not path.exists() and path == DEFAULT_CONFIG:
        print(next_steps(), file=sys.stderr)
        return 2
    cluster = Cluster.load(path)
    if dry_run:
        from launcher.commands import dry_run as rehearsal

        return rehearsal.run(cluster)
    try:
        if not detach:
            return _in_front(cluster, is_child=is_child)
        from launcher.commands import detached

        return detached.run(cluster)
    except LockHeld:
        if is_child or cluster.folder.holder() is None:
            raise
    from launcher.commands import follow

    return follow.run(cluster)


def _in_front(cluster: Cluster, *, is_child: bool) -> int:
    # Once the lock names this process it may be sent at any time, and would end it. What is asked
    # for before the supervisor hears it is not lost: it looks as soon as it can follow.
    signal.signal(CHANGE_SIGNAL, signal.SIG_IGN)
    if not _has_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ClusterLock(cluster.folder, wait_s=LOCK_WAIT_S):
        cluster = _as_it_is_now(cluster)
        cluster.folder.require_space()
        if not is_child:
            log_files.rotate(cluster.folder.log(LOG_NAME))
        _log_to(None if is_child else cluster.folder.log(LOG_NAME))
        if is_child or not sys.stdout.isatty():
            show = _silent() if is_child else _lines(cluster)
        else:
            show = _live(cluster)
        with show as on_change:
            asyncio.run(_supervise(Supervisor(cluster, notify.telling(on_change))))
    if not is_child:
        _say(f"cluster {cluster.config.cluster}: stopped, nothing of it runs")
    return 0


def _as_it_is_now(cluster: Cluster) -> Cluster:
    """Whoever edits it from here on asks this launcher; who did before may have asked nobody."""
    now = Cluster.load(cluster.path)
    if now.folder.path != cluster.folder.path:
        again = cluster.command("up")
        raise OperatorError(
            f"{cluster.path}: found the state folder {now.folder.path}, expected "
            f"{cluster.folder.path} as a moment ago: it was edited meanwhile; run `{again}` again"
        )
    return now


def next_steps() -> str:
    indented = "".join(f"    {line}\n" for line in EXAMPLE.splitlines())
    return (
        "error: found no fleet.yaml in this folder. Either\n"
        "  1. name a config:      launcher up -c configs/local.yaml\n"
        "  2. or write fleet.yaml here, for example\n\n"
        f"{indented}\n"
        "     and run `launcher up` again (`launcher validate` checks it first)."
    )


async def _supervise(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the kernel would eat exit codes
    for signum in _STOP_SIGNALS:
        loop.add_signal_handler(signum, supervisor.request_stop)
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            _write_nowhere()
            supervisor.request_stop()
        else:
            supervisor.request_reload()

    asked = {CHANGE_SIGNAL: supervisor.request_change}
    if not had_terminal or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked[signal.SIGHUP] = hang_up  # else nohup: it is meant to outlive the terminal
    # Not the loop's: those are removed with it, and then the signal would end the process.
    for signum, act in asked.items():
        signal.signal(signum, lambda *_, act=act: loop.call_soon_threadsafe(act))
    try:
        await supervisor.run()
    finally:
        for signum in asked:
            signal.signal(signum, signal.SIG_IGN)


def _write_nowhere() -> None:
    """What is still said would fail, and with it the rest of stopping."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        if stat.S_ISCHR(os.fstat(fd).st_mode):  # it was the terminal
            os.dup2(nowhere, fd)
    os.close(nowhere)


def _has_terminal() -> bool:
    """Whether this process belongs to one that is still there; it is taken from it when closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _log_to(path: Path | None) -> None:
    """To a file, or to standard error where that already is the log file."""
    if path:
        path.touch(mode=0o600)
    handler = logging.FileHandler(path) if path else logging.StreamHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("launcher")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


Show = Callable[[ClusterStatus], None]


@contextmanager
def _silent() -> Iterator[Show]:
    yield lambda status: None


@contextmanager
def _lines(cluster: Cluster) -> Iterator[Show]:
    from launcher import view

    last: list[ClusterStatus | None] = [None]

    def show(status: ClusterStatus) -> None:
        for line in view.transitions(last[0], status, command=cluster.command):
            _say(line)
        last[0] = status

    yield show


def _say(line: str) -> None:
    """Whoever reads may leave (`launcher up | head`); the cluster goes on."""
    try:
        print(line, flush=True)
    except UnicodeEncodeError:
        print(line.encode("ascii", "replace").decode(), flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for good


@contextmanager
def _live(cluster: Cluster) -> Iterator[Show]:
    from rich.console import Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    from launcher import view

    last: list[ClusterStatus] = []

    def render() -> RenderableType:
        if not last:
            return Text("starting ...")
        hint = Text(_hint(last[0], cluster), style="dim")
        picture = view.render(last[0], with_example=True, command=cluster.command)
        return Group(picture, hint)

    # Rendered on a timer, too: uptimes grow while nothing else changes.
    with Live(get_renderable=render, refresh_per_second=4):

        def show(status: ClusterStatus) -> None:
            last[:] = [status]

        yield show


def _hint(status: ClusterStatus, cluster: Cluster) -> str:
    if not status.is_stopping:
        detached = cluster.command("up", "-d")
        return f"Ctrl-C stops everything; `{detached}` leaves it running"
    if status.router.pid is None and not any(replica.is_running for replica in status.replicas):
        return "stopped"
    return "stopping: calls in flight are finished; Ctrl-C again kills at once"
