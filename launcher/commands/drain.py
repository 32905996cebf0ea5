"""`launcher drain` and `undrain`: take a replica out of service without stopping it, and back.

The router owns this and remembers it; calls in flight finish. `--wait` returns once none is left.
Only what runs can be drained: a drain that waited for a replica's next start would surprise.
"""

import asyncio
from pathlib import Path

from launcher import desired, status
from launcher.cluster import Cluster
from launcher.router_client import RouterAway, RouterClient, replica_states
from router.errors import OperatorError

_LOOK_S = 0.1


def run(path: Path, replica_id: str, *, undo: bool = False, wait: bool = False) -> int:
    return asyncio.run(_run(Cluster.load_leniently(path), replica_id, undo=undo, wait=wait))


async def _run(cluster: Cluster, replica_id: str, *, undo: bool, wait: bool) -> int:
    known = [spec.id for spec in desired.expected(cluster.config)]
    try:
        async with RouterClient(cluster.folder.admin_socket) as client:
            if not undo and replica_id in known:
                await _require_running(cluster, replica_id)
            reply = await client.drain(replica_id, undo=undo)
            if reply is None:
                names = ", ".join(known)
                raise OperatorError(f"found replica {replica_id!r}, expected one of: {names}")
            if undo:
                print(f"{replica_id}: takes calls again")
                return 0
            left = int(reply.get("requests", 0))
            print(f"{replica_id}: takes no more calls; {left} in flight", flush=True)
            while wait and left:
                await asyncio.sleep(_LOOK_S)
                left = await _calls_left(client, replica_id)
            if wait:
                print(f"{replica_id}: drained")
            return 0
    except RouterAway as exc:
        hint = cluster.command("status")
        raise OperatorError(f"{exc}; is the cluster up? see `{hint}`") from exc


async def _require_running(cluster: Cluster, replica_id: str) -> None:
    current = await status.read(cluster)
    if current.router.pid is None:
        hint = cluster.command("up")
        raise OperatorError(f"no router runs, so there is nothing to drain; `{hint}` starts it")
    found = next((r for r in current.replicas if r.id == replica_id), None)
    if found is None or not found.is_running:
        phase = f" (it is {found.phase})" if found else ""
        raise OperatorError(f"{replica_id} is not running{phase}; nothing was changed")


async def _calls_left(client: RouterClient, replica_id: str) -> int:
    replica = replica_states(await client.state()).get(replica_id, {})
    return int(replica.get("requests", 0))
