"""`launcher drain` and `undrain`: take a replica out of service without stopping it, and back.

The router owns this and remembers it; calls in flight finish. `--wait` returns once none is left.
"""

import asyncio
from pathlib import Path

from launcher.cluster import Cluster
from launcher.placement import replica_specs
from launcher.router_client import RouterAway, RouterClient, replica_states
from router.errors import OperatorError

_LOOK_S = 0.1


def run(path: Path, replica_id: str, *, undo: bool = False, wait: bool = False) -> int:
    return asyncio.run(_run(Cluster.load(path), replica_id, undo=undo, wait=wait))


async def _run(cluster: Cluster, replica_id: str, *, undo: bool, wait: bool) -> int:
    known = [spec.id for spec in replica_specs(cluster.config)]
    try:
        async with RouterClient(cluster.folder.admin_socket) as client:
            reply = await client.drain(replica_id, undo=undo)
            if reply is None:
                expected = ", ".join(known)
                raise OperatorError(f"found replica {replica_id!r}, expected one of: {expected}")
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
        raise OperatorError(f"{exc}; is the cluster up? see `launcher status`") from exc


async def _calls_left(client: RouterClient, replica_id: str) -> int:
    replica = replica_states(await client.state()).get(replica_id, {})
    return int(replica.get("requests", 0))
