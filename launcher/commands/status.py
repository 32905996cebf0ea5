"""`launcher status`: what runs right now, for people or (`--json`) for scripts. Changes nothing.

The exit code is the answer in short: 0 when all that the config wants is up (drained replicas
count), 1 when something runs but not all of it, or a replica gets no calls because of its health,
3 when nothing runs.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cluster import Cluster
from launcher.desired import expected

if TYPE_CHECKING:
    from launcher.status import ClusterStatus

READY, NOT_READY, NOTHING_RUNS = 0, 1, 3


def run(path: Path, *, as_json: bool = False) -> int:
    from launcher import status

    cluster = Cluster.load_leniently(path, is_quiet=as_json)
    current = asyncio.run(status.read(cluster))
    if as_json:
        print(json.dumps(current.as_json(), indent=2))
    else:
        _show(current, cluster)
    return exit_code(current, {spec.id for spec in expected(cluster.config)})


def exit_code(current: "ClusterStatus", wanted: set[str]) -> int:
    """What scripts go by; replicas that the config no longer wants do not count.

    Where nobody can tell what is wanted (`devices: all`, no record), it is not all up.
    """
    if not current.runs:
        return NOTHING_RUNS
    up = {one.id for one in current.replicas if one.is_up and not one.is_shunned}
    is_all_up = bool(wanted) and wanted <= up
    return READY if is_all_up and current.router_serves else NOT_READY


def _show(current: "ClusterStatus", cluster: Cluster) -> None:
    from launcher import view

    if not sys.stdout.isatty():
        for line in view.plain(current, command=cluster.command):
            print(line)
        return
    from rich.console import Console

    Console(highlight=False).print(view.render(current, command=cluster.command))
