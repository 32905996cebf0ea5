"""`launcher logs`: the end of a log (replica, router, launcher) and, with `-f`, what comes.

Reads files, so it works whatever has died. Following survives a restart of what it follows. While
no launcher runs nobody copies what containers write: then that is done here, as far as it can be.
"""

import asyncio
import sys
import time
from pathlib import Path

from launcher import log_files
from launcher.cluster import Cluster
from launcher.desired import expected
from router.errors import OperatorError

_LOOK_S = 0.2


def run(path: Path, name: str, *, lines: int = 100, follow: bool = False) -> int:
    cluster = Cluster.load_leniently(path)
    log = cluster.folder.log(name)
    known = [*(spec.id for spec in expected(cluster.config)), "router", "launcher"]
    if name not in known and (Path(name).name != name or not log.exists()):
        raise OperatorError(f"found {name!r}, expected one of: {', '.join(known)}")
    if name in known[:-2] and cluster.folder.holder() is None:
        asyncio.run(_catch_up(cluster, name))
    if not log.exists() and not follow:
        raise OperatorError(f"{name} has written no log yet ({log})")
    if name not in known:
        print(
            f"note: {path} has no replica {name} (any more); it wrote this before", file=sys.stderr
        )
    reader = log_files.LogReader(log, from_end=True)
    for line in log_files.tail(log, lines):
        print(line, flush=follow)  # a pipe behind `-f` must not wait for a full buffer
    while follow:
        for line in reader.read_new():
            print(line, flush=True)
        time.sleep(_LOOK_S)
    return 0


async def _catch_up(cluster: Cluster, replica_id: str) -> None:
    from launcher.supervisor import make_runtime

    runtime = make_runtime(cluster)
    try:
        await runtime.catch_up_log(replica_id)
    except OperatorError as exc:  # what was copied before is shown all the same
        print(f"note: the log may go on: {exc}", file=sys.stderr)
    finally:
        await runtime.aclose()
