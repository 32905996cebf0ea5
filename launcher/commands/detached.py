"""`launcher up -d`: the supervisor as a process of its own, and the wait until all is ready.

The child is the same command in its own session, its output in `launcher.log`. This side only
reads the status record, so it may be interrupted: then it stops the child and what that started,
unless something ran before it came: that serves, so all of it is left running.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from launcher import log_files, processes
from launcher.cluster import Cluster
from launcher.commands.up import LOCK_WAIT_S, LOG_NAME
from launcher.processes import Marks, ProcessId
from launcher.router_process import running_routers
from launcher.runtimes import Handle
from launcher.spawn import spawn
from launcher.state import ClusterLock
from launcher.status import FAILED_STARTS, ClusterStatus, recorded
from launcher.supervisor import make_runtime
from router.errors import OperatorError, StartError

_LOOK_S = 0.1
_SAY_EVERY_S = 10.0  # what is waited for, while nothing else is told
_STOP_MARGIN_S = 60.0


def run(cluster: Cluster) -> int:
    # Refuses here, where the operator looks. Not named as the launcher: nobody may ask it anything.
    with ClusterLock(cluster.folder, wait_s=LOCK_WAIT_S, is_launcher=False):
        cluster.folder.require_space()
        log_files.rotate(cluster.folder.log(LOG_NAME))
    adopts = _runs_already(cluster)
    child = _spawn(cluster)
    try:
        trouble = _wait(cluster, child)
    except KeyboardInterrupt:
        if adopts:
            print(f"interrupted: {_left_running(cluster, child)}", file=sys.stderr)
        else:
            print("interrupted: stopping what was started", file=sys.stderr)
            _stop(cluster, child)
        raise
    if trouble is None:
        stop = cluster.command("down")
        print(f"launcher: detached, pid {child.pid}; `{stop}` stops everything")
        return 0
    print(f"error: {trouble}", file=sys.stderr)
    if adopts:  # stopping what served before this command came would make a bad night worse
        print(_left_running(cluster, child), file=sys.stderr)
    else:
        _stop(cluster, child)
        print("nothing was left running", file=sys.stderr)
    return 1


def _runs_already(cluster: Cluster) -> bool:
    return bool(running_routers(cluster.folder) or asyncio.run(owned(cluster)))


async def owned(cluster: Cluster) -> list[Handle]:
    """What runs of the cluster. Raises RuntimeAway."""
    runtime = make_runtime(cluster)
    try:
        return await runtime.owned()
    finally:
        await runtime.aclose()


def _wait(cluster: Cluster, child: ProcessId) -> str | None:
    """Until all is ready, or why it is not worth waiting any longer. Says how it goes on."""
    from launcher import view

    last: ClusterStatus | None = None
    said_s = time.monotonic()
    while True:
        status = _status_by(child, cluster)
        if status is not None:
            for line in view.transitions(last, status, command=cluster.command):
                print(line, flush=True)
                said_s = time.monotonic()
            last = status
            if status.is_ready:
                return None
            if trouble := trouble_of(cluster, status):
                return trouble
        if not processes.is_running(child):
            raise _died(cluster, child)
        if time.monotonic() >= said_s + _SAY_EVERY_S:
            what = view.waiting_for(last) if last else f"launcher pid {child.pid} to begin"
            print(f"waiting for: {what}", flush=True)
            said_s = time.monotonic()
        time.sleep(_LOOK_S)


def _left_running(cluster: Cluster, child: ProcessId) -> str:
    return (
        f"left running: what served before, and launcher pid {child.pid}, which goes on trying; "
        f"see `{cluster.command('status')}`, `{cluster.command('down')}` stops everything"
    )


def _spawn(cluster: Cluster) -> ProcessId:
    argv = [sys.executable, "-m", "launcher", "up", "-c", str(Path(cluster.path).absolute())]
    marks = Marks(cluster.folder.path, "launcher")
    env = processes.without_marks(dict(os.environ)) | marks.as_env()
    return spawn([*argv, "--foreground-child"], env, cluster.folder.log(LOG_NAME))


def _status_by(child: ProcessId, cluster: Cluster) -> ClusterStatus | None:
    status = recorded(cluster)
    return status if status is not None and status.launcher_pid == child.pid else None


def trouble_of(cluster: Cluster, status: ClusterStatus) -> str | None:
    """Why it is not worth waiting any longer."""
    for replica in status.replicas:
        if replica.is_in_trouble:
            return f"{replica.id}: {replica.reason}; see `{cluster.command('logs', replica.id)}`"
    if status.router.failed_starts >= FAILED_STARTS:
        return f"router: {status.router.reason}; see `{cluster.command('logs', 'router')}`"
    return None


def _stop(cluster: Cluster, child: ProcessId) -> None:
    processes.send_signal(child, signal.SIGTERM)
    runtime, drain_s = cluster.config.runtime, cluster.config.router.timeouts.drain_s
    deadline_s = time.monotonic() + runtime.stop_grace_s + drain_s + _STOP_MARGIN_S
    while processes.is_running(child):
        if time.monotonic() > deadline_s:
            hint = cluster.command("down")
            raise OperatorError(f"launcher pid {child.pid} does not stop; try `{hint}`")
        time.sleep(_LOOK_S)
    os.waitpid(child.pid, 0)


def _died(cluster: Cluster, child: ProcessId) -> StartError:
    _, status = os.waitpid(child.pid, 0)
    lines = log_files.tail(cluster.folder.log(LOG_NAME), 30)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return StartError("\n".join(errors))
    code = os.waitstatus_to_exitcode(status)
    last = "; ".join(lines[-3:])
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    up, down = cluster.command("up", "-d"), cluster.command("down")
    return StartError(
        f"the launcher {how}; its log ends with: {last}\nwhat it had started runs on: `{up}` takes "
        f"it over, `{down}` stops it"
    )
