"""How a cluster is shown to people: the table, the endpoint lines, one line per transition.

Used by `up` (live, or plain lines where there is no terminal) and by `status`. Pure rendering.
"""

import shlex
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.instance import Phase
from launcher.status import ClusterStatus, ReplicaStatus, uptime_s

_STYLES = {
    Phase.PENDING: "yellow",
    Phase.STARTING: "cyan",
    Phase.LOADING: "cyan",
    Phase.READY: "green",
    Phase.DRAINING: "magenta",
    Phase.STOPPED: "dim",
    Phase.FAILED: "bold red",
}


def render(status: ClusterStatus, *, with_example: bool = False) -> RenderableType:
    """The whole picture, for a terminal."""
    lines = [Text(line) for line in heading(status)]
    parts: list[RenderableType] = [*lines, _table(status)]
    if with_example and status.is_ready and status.endpoint and not status.is_stopping:
        parts += [Text(line) for line in example(status.endpoint)]
    return Group(*parts)


def heading(status: ClusterStatus) -> Iterator[str]:
    """Cluster, endpoint, and who looks after it."""
    yield f"cluster {status.cluster}   endpoint {status.endpoint or 'none'}"
    launcher = f"pid {status.launcher_pid}" if status.launcher_pid else "not running"
    if status.is_stopping:
        launcher += ", stopping"
    router = str(status.router.phase)
    if status.router.pid:
        router += f", pid {status.router.pid}"
    if status.router.restarts:
        router += f", restarts {status.router.restarts}"
    if status.router.reason and status.router.phase is not Phase.READY:
        router += f": {status.router.reason}"
    yield f"launcher: {launcher}   router: {router}"
    if status.launcher_pid is None and any(replica.pid for replica in status.replicas):
        yield "No launcher restarts what fails; `launcher up` adopts what runs."


def example(endpoint: str) -> list[str]:
    """A first request that can be pasted as it is."""
    body = '{"inputs":"What is Deep Learning?","parameters":{"max_new_tokens":20}}'
    return [
        f"ready: {endpoint}",
        f"  curl {endpoint}/generate \\",
        "    -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(body)}",
    ]


def transitions(before: ClusterStatus | None, after: ClusterStatus) -> Iterator[str]:
    """One plain line for each thing that changed, for logs and pipes."""
    known = {replica.id: replica for replica in before.replicas} if before else {}
    for replica in after.replicas:
        earlier = known.get(replica.id)
        if earlier is None or earlier.phase is not replica.phase:
            yield _line(replica)
        elif replica.progress and earlier.progress != replica.progress:
            yield f"{replica.id}: {replica.phase}: {replica.progress}"
    if before and before.router.phase is not after.router.phase:
        reason = f" ({after.router.reason})" if after.router.reason else ""
        yield f"router: {after.router.phase}{reason}"
    if after.is_ready and after.endpoint and not (before and before.is_ready):
        yield from example(after.endpoint)


def _line(replica: ReplicaStatus) -> str:
    where = f" at {replica.url}" if replica.phase is Phase.READY else ""
    reason = f" ({replica.reason})" if replica.reason else ""
    return f"{replica.id}: {replica.phase}{where}{reason}"


def _table(status: ClusterStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("REPLICA", "PHASE", "PID", "UPTIME", "RESTARTS", "URL", "DETAIL"):
        is_number = name in {"PID", "UPTIME", "RESTARTS"}
        justify = "right" if is_number else "left"
        # Only the last column gives way on a narrow terminal; ids and URLs must stay whole.
        table.add_column(name, justify=justify, no_wrap=name != "DETAIL", overflow="fold")  # type: ignore[arg-type]
    for replica in status.replicas:
        table.add_row(
            replica.id,
            Text(replica.phase, style=_STYLES[replica.phase]),
            str(replica.pid or "-"),
            _duration(uptime_s(replica)),
            str(replica.restarts),
            replica.url or "-",
            _detail(replica),
        )
    return table


def _detail(replica: ReplicaStatus) -> Text:
    # Text, not str: a log line may hold what rich would take for markup.
    if replica.phase is Phase.READY:
        calls = replica.in_flight
        return Text("" if not calls else f"{calls} call{'' if calls == 1 else 's'} in flight")
    if replica.phase is Phase.DRAINING and replica.in_flight is not None:
        left = replica.in_flight
        return Text("no calls left" if not left else f"{left} call{'' if left == 1 else 's'} left")
    return Text(replica.progress or replica.reason)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return (
        f"{hours}h {minutes:02}m"
        if hours
        else f"{minutes}m {rest_s:02}s"
        if minutes
        else f"{rest_s}s"
    )
