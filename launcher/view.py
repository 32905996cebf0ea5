"""How a cluster is shown to people: the table, the endpoint lines, one line per transition.

Used by `up` (live, or plain lines where there is no terminal) and by `status`. Pure rendering. On a
terminal each replica keeps to one line and what is long stands below the table; plain text is as
wide as it has to be, for grep.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from functools import partial

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.cluster import DEFAULT_CONFIG, command_line
from launcher.instance import Phase
from launcher.status import ClusterStatus, ReplicaStatus, uptime_s

Command = Callable[..., str]
"""Words to a `launcher` command that can be pasted: `Cluster.command`."""

_DEFAULT: Command = partial(command_line, DEFAULT_CONFIG)
_NUMBERS = frozenset({"PID", "UPTIME", "RESTARTS"})
_MOST_NAMED = 5
_WIDTH = 80  # of a terminal that nobody has made wider
_NEXT_KEY = ",\n" + " " * 9
_STYLES = {
    Phase.PENDING: "yellow",
    Phase.STARTING: "cyan",
    Phase.LOADING: "cyan",
    Phase.READY: "green",
    Phase.DRAINING: "magenta",
    Phase.STOPPED: "dim",
    Phase.FAILED: "bold red",
}
_SHUNNED_STYLE = "bold red"
_NO_CALLS = "no calls"  # fits beside an address on 80 columns


def render(
    status: ClusterStatus, *, with_example: bool = False, command: Command = _DEFAULT
) -> RenderableType:
    """The whole picture, for a terminal."""
    parts: list[RenderableType] = [Text(line) for line in heading(status, command)]
    parts.append(_table(status, command))
    parts += [Text(line) for line in _below(status, command)]
    if with_example:
        parts += [Text(line) for line in status.notes]
        if status.is_ready and status.endpoint and not status.is_stopping:
            parts += [Text(line) for line in example(status)]
    return Group(*parts)


def plain(status: ClusterStatus, *, command: Command = _DEFAULT) -> Iterator[str]:
    """The same as lines of text, whole however long, with nothing after their last word."""
    yield from heading(status, command)
    columns = _columns(status)
    rows = [columns, *(_row(replica, command) for replica in status.replicas)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    for row in rows:
        cells = (
            cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        )
        yield " ".join(cells).rstrip()
    if status.router.reason and status.router.phase is not Phase.READY:
        yield f"router: {status.router.reason}"


def heading(status: ClusterStatus, command: Command = _DEFAULT) -> Iterator[str]:
    """Cluster, endpoint, and who looks after it."""
    endpoint = status.endpoint or "none"
    if status.endpoint and status.router.phase is Phase.STOPPED:
        endpoint += " (nothing answers there)"
    yield f"cluster {status.cluster}   endpoint {endpoint}"
    launcher = f"pid {status.launcher_pid}" if status.launcher_pid else "not running"
    if status.is_stopping:
        launcher += ", stopping"
    router = _router_word(status)
    if status.router.pid:
        router += f", pid {status.router.pid}"
    if status.router.restarts:
        router += f", restarts {status.router.restarts}"
    yield f"launcher: {launcher}   router: {router}"
    yield status.summary
    if status.trouble:
        yield f"warning: {status.trouble}"
    if status.launcher_pid is None and any(replica.is_running for replica in status.replicas):
        yield f"No launcher restarts what fails; `{command('up')}` adopts what runs."


def waiting_for(status: ClusterStatus) -> str:
    """What keeps the cluster from being ready; empty when nothing does."""
    late = [replica for replica in status.replicas if not replica.is_up]
    names = []
    for replica in late[:_MOST_NAMED]:
        said = replica.progress or replica.reason
        names.append(f"{replica.id} ({replica.phase}{f': {said}' if said else ''})")
    if len(late) > _MOST_NAMED:
        names.append(f"{len(late) - _MOST_NAMED} more")
    if status.router.phase is not Phase.READY:
        names.append(f"the router ({_router_word(status)})")
    return ", ".join(names)


def example(status: ClusterStatus) -> list[str]:
    """A first request that can be pasted as it is, on a route that the first replica has."""
    endpoint = status.endpoint
    body: dict[str, object] = {
        "inputs": "What is Deep Learning?",
        "parameters": {"max_new_tokens": 20},
    }
    path = "/generate"
    if status.replicas and (first := status.replicas[0]).dialect == "openai":
        path = "/v1/completions"
        body = {"model": first.model, "prompt": "What is Deep Learning?", "max_tokens": 20}
    elif len({replica.model for replica in status.replicas}) > 1:
        body = {"model": status.replicas[0].model, **body}
    return [
        f"ready: {endpoint}",
        f"  curl {endpoint}{path} \\",
        *(f"    {option} \\" for option in status.curl_options),
        "    -H 'Content-Type: application/json' \\",
        *_data(body),
    ]


def _data(body: dict[str, object]) -> list[str]:
    """On one line, or one for each key where a terminal would break it in the middle of a text."""
    whole = f"    -d {shlex.quote(json.dumps(body, separators=(',', ':')))}"
    if len(whole) <= _WIDTH:
        return [whole]
    parts = (json.dumps({key: value}, separators=(",", ":"))[1:-1] for key, value in body.items())
    return f"    -d {shlex.quote(f'{{{_NEXT_KEY.join(parts)}}}')}".splitlines()


def transitions(
    before: ClusterStatus | None, after: ClusterStatus, *, command: Command = _DEFAULT
) -> Iterator[str]:
    """One plain line for each thing that changed, for logs and pipes."""
    yield from (note for note in after.notes if before is None or note not in before.notes)
    known = {replica.id: replica for replica in before.replicas} if before else {}
    for replica in after.replicas:
        earlier = known.get(replica.id)
        if earlier is None or earlier.word != replica.word:
            yield _line(replica, command)
        elif replica.progress and earlier.progress != replica.progress:
            yield f"{replica.id}: {replica.phase}: {replica.progress}"
    if before and before.router.phase is not after.router.phase:
        reason = f" ({after.router.reason})" if after.router.reason else ""
        yield f"router: {_router_word(after)}{reason}"
    if before and before.summary != after.summary:
        yield after.summary
    if after.is_ready and after.endpoint and not (before and before.is_ready):
        yield from example(after)


def _line(replica: ReplicaStatus, command: Command) -> str:
    where = f" at {replica.url}" if replica.serves else ""
    said = _drained(replica, command) if replica.drained else replica.reason
    if replica.is_shunned:
        said = _shunned(replica)
    return f"{replica.id}: {replica.word}{where}" + (f" ({said})" if said else "")


def _table(status: ClusterStatus, command: Command) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for name in _columns(status):
        justify = "right" if name in _NUMBERS else "left"
        # Only the last column gives way on a narrow terminal; ids and URLs must stay whole.
        table.add_column(name, justify=justify, no_wrap=name != "DETAIL")  # type: ignore[arg-type]
    for replica in status.replicas:
        name, phase, *cells, detail = _row(replica, command)
        # Text, not str: a log line may hold what rich would take for markup.
        short = _NO_CALLS if replica.is_shunned else detail  # all of it stands below the table
        last = Text(short, no_wrap=True, overflow="ellipsis")
        style = _SHUNNED_STYLE if replica.is_shunned else _STYLES[replica.phase]
        table.add_row(name, Text(phase, style=style), *cells, last)
    return table


def _columns(status: ClusterStatus) -> tuple[str, ...]:
    in_containers = any(replica.container for replica in status.replicas)
    runs_as = "CONTAINER" if in_containers else "PID"
    return ("REPLICA", "PHASE", runs_as, "UPTIME", "RESTARTS", "URL", "DETAIL")


def _row(replica: ReplicaStatus, command: Command) -> tuple[str, ...]:
    return (
        replica.id,
        replica.word,
        (replica.container or "")[:12] or str(replica.pid or "-"),
        _duration(uptime_s(replica)),
        str(replica.restarts),
        replica.url or "-",
        _detail(replica, command),
    )


def _below(status: ClusterStatus, command: Command) -> Iterator[str]:
    """What a cell of the table has no room for: why a replica is not there, and what to do."""
    if status.router.reason and status.router.phase is not Phase.READY:
        yield f"router: {status.router.reason}"
    for replica in status.replicas:
        is_away = replica.phase in (Phase.PENDING, Phase.FAILED, Phase.STOPPED)
        if (
            replica.drained
            or replica.is_shunned
            or replica.gpu_trouble
            or _is_held_up(replica)
            or (is_away and replica.reason and not status.is_stopping)
        ):
            yield f"{replica.id}: {_detail(replica, command)}"


def _detail(replica: ReplicaStatus, command: Command) -> str:
    calls = replica.in_flight
    if replica.drained:
        return _drained(replica, command)
    if replica.is_shunned:
        return _shunned(replica)
    if _is_held_up(replica):  # rather than the calls it has
        return replica.reason
    if replica.phase is Phase.READY:
        busy = f"{_calls(calls)} in flight" if calls else ""
        trouble = replica.gpu_trouble
        older = "runs with an older config, to be replaced" if replica.is_outdated else ""
        return ", ".join(part for part in (older, trouble, busy) if part)
    if replica.phase is Phase.DRAINING and calls is not None:
        return f"{_calls(calls)} left"
    return replica.progress or replica.reason


def _is_held_up(replica: ReplicaStatus) -> bool:
    """It runs, and should not any more: what would replace it fails, or it cannot be stopped."""
    return replica.phase in (Phase.READY, Phase.DRAINING) and replica.is_in_trouble


def _shunned(replica: ReplicaStatus) -> str:
    return f"gets no calls: the router finds it {replica.shunned}"


def _drained(replica: ReplicaStatus, command: Command) -> str:
    left = f", {_calls(replica.in_flight)} left" if replica.in_flight else ""
    return f"drained by you{left}: `{command('undrain', replica.id)}`"


def _calls(count: int) -> str:
    return f"{count or 'no'} call{'' if count == 1 else 's'}"


def _router_word(status: ClusterStatus) -> str:
    return "serving" if status.router.phase is Phase.READY else str(status.router.phase)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest_s:02}s" if minutes else f"{rest_s}s"
