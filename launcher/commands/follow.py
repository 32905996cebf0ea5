"""`launcher up` beside a running launcher: show what the edited config changes, have it followed.

The running launcher reads the file itself, replaces what changed one replica after the other, and
goes on; this side only asks, and watches the status record until all is as the config says.
Interrupting it changes nothing: the launcher goes on.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from launcher import changes, processes
from launcher.asking import ask
from launcher.changes import ChangeRequest
from launcher.cluster import Cluster
from launcher.commands.detached import owned, trouble_of
from launcher.commands.up import CHANGE_SIGNAL
from launcher.config import load_cluster_config
from launcher.desired import desired
from launcher.placement import ReplicaSpec
from launcher.processes import ProcessId
from launcher.runtimes import Handle
from launcher.status import ClusterStatus, recorded
from router.errors import ConfigError, OperatorError, PlacementError, StartError

_LOOK_S = 0.1
_ANSWER_S = 120.0  # several questions to the driver and to Docker, which may be slow
_SAY_EVERY_S = 10.0


def run(cluster: Cluster) -> int:
    """Raises what refuses the change; nothing has changed then."""
    launcher = _launcher(cluster)
    if not _has_begun(recorded(cluster), launcher):
        print(f"launcher pid {launcher.pid} is starting; it follows this config then", flush=True)
    else:
        changed = list(differences(cluster))
        if not any(change.sign != "=" for change in changed) and _is_ready(cluster):
            see, stop = cluster.command("status"), cluster.command("down")
            runs = f"launcher pid {launcher.pid} runs this config already"
            print(f"{runs}; see `{see}`, stop: `{stop}`")
            return 0
        for change in changed:
            print(change, flush=True)
    request = changes.ask(cluster.folder, cluster.path)
    processes.send_signal(launcher, CHANGE_SIGNAL)
    try:
        return _watch(cluster, launcher, request)
    except KeyboardInterrupt:
        see = cluster.command("status")
        print(
            f"interrupted: launcher pid {launcher.pid} goes on with the change; see `{see}`",
            file=sys.stderr,
        )
        raise


def _has_begun(status: ClusterStatus | None, launcher: ProcessId) -> bool:
    """Before that nothing follows the config that is kept: an earlier launcher may have left it."""
    return status is not None and status.launcher_pid == launcher.pid


def _is_ready(cluster: Cluster) -> bool:
    """Else there is something to wait for, or to try again after somebody has seen to it."""
    status = recorded(cluster)
    return status is not None and status.is_ready


def differences(cluster: Cluster) -> Iterator[changes.Change]:
    """From what the running launcher follows to what is written now. Raises what refuses it."""
    try:
        before = load_cluster_config(cluster.folder.config_copy)
    except ConfigError as exc:
        raise OperatorError(
            f"the running config cannot be read any more: {exc}; `{cluster.command('down')}` and "
            f"`{cluster.command('up')}` start anew"
        ) from exc
    running = replace(cluster, config=before)
    changes.require_possible(running, cluster)
    handles = asyncio.run(owned(running))
    wanted = ask(desired, cluster.config, handles)
    yield from changes.replica_changes(_now(running, handles), wanted)
    yield from changes.runtime_changes(before, cluster.config)
    yield from changes.router_changes(before, cluster.config)


def _now(running: Cluster, handles: list[Handle]) -> list[ReplicaSpec]:
    try:
        return ask(desired, running.config, handles)
    except PlacementError:  # its GPUs have changed since: what is wanted now says it better
        return []


def _launcher(cluster: Cluster) -> ProcessId:
    holder = cluster.folder.holder()
    if holder is None:
        raise OperatorError(f"the launcher has just ended; run `{cluster.command('up')}` again")
    return holder


def _watch(cluster: Cluster, launcher: ProcessId, request: ChangeRequest) -> int:
    """Until all is as written, or why it will not be. Says how it goes on."""
    from launcher import view

    last: ClusterStatus | None = None
    asked_s = said_s = time.monotonic()
    while True:
        status = recorded(cluster)
        if status is not None and status.change_id == request.id:
            if status.change_error:
                raise StartError(status.change_error)
            for line in view.transitions(last, status, command=cluster.command):
                print(line, flush=True)
                said_s = time.monotonic()
            last = status
            if status.is_ready:
                return 0
            if trouble := trouble_of(cluster, status):
                raise StartError(f"{trouble}\n{_left(cluster, status)}")
        elif (latest := changes.read(cluster.folder)) is not None and latest.id != request.id:
            raise StartError(_superseded(cluster, latest))
        elif not _has_begun(status, launcher):
            asked_s = time.monotonic()
        elif time.monotonic() > asked_s + _ANSWER_S:
            raise StartError(
                f"launcher pid {launcher.pid} did not take the change within {_ANSWER_S:g} s; "
                f"see `{cluster.command('logs', 'launcher')}`"
            )
        if not processes.is_running(launcher):
            raise StartError(f"launcher pid {launcher.pid} ended meanwhile; what runs serves on")
        if time.monotonic() >= said_s + _SAY_EVERY_S:
            taking = f"launcher pid {launcher.pid} to take the change"
            print(f"waiting for: {view.waiting_for(last) if last else taking}", flush=True)
            said_s = time.monotonic()
        time.sleep(_LOOK_S)


def _superseded(cluster: Cluster, latest: ChangeRequest) -> str:
    return (
        f"superseded by a later change: `launcher up` was run again, with {latest.path}, and that "
        f"is what is followed; see `{cluster.command('status')}`"
    )


def _left(cluster: Cluster, status: ClusterStatus) -> str:
    outdated = [replica.id for replica in status.replicas if replica.is_outdated]
    serve = f"{', '.join(outdated)} serve on with the older config; " if outdated else ""
    up = cluster.command("up")
    return f"{serve}edit the config and run `{up}` again: it goes on trying meanwhile"
