"""`launcher down`: stop the launcher, the router and every replica; also after a launcher's death.

Idempotent. It asks the running launcher first, which knows the order; what is left, or all of it
where no launcher runs, is stopped from here.
"""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

from launcher import exits, processes
from launcher.cluster import Cluster
from launcher.config.lenient import read_leniently
from launcher.processes import ProcessId
from launcher.router_client import RouterClient
from launcher.router_process import RouterKeeper, running_routers
from launcher.runtimes import Runtime
from launcher.state import ClusterLock
from launcher.supervisor import make_runtime, take_down_rest
from router.errors import ConfigError, OperatorError, RuntimeAway

_LOCK_WAIT_S = 10.0
_MARGIN_S = 15.0


def run(path: Path, *, timeout_s: float | None = None) -> int:
    return asyncio.run(_run(Cluster.load_leniently(path), timeout_s))


async def _run(cluster: Cluster, timeout_s: float | None) -> int:
    config = cluster.config
    if timeout_s is None:
        timeout_s = config.runtime.stop_grace_s + config.router.timeouts.drain_s + _MARGIN_S
    running = _as_it_runs(cluster)
    runtime = make_runtime(running)
    try:
        return await _take_down(running, runtime, timeout_s)
    except RuntimeAway as exc:
        again = cluster.command("down")
        raise OperatorError(
            f"{exc}\nreplicas of the cluster may be left there; once it answers, `{again}` again "
            "removes them"
        ) from exc
    finally:
        await runtime.aclose()


def _as_it_runs(cluster: Cluster) -> Cluster:
    """What runs was started as an earlier config said, which may name another runtime."""
    try:
        _, before = read_leniently(cluster.folder.config_copy)
    except ConfigError:
        return cluster
    same = before.cluster == cluster.config.cluster
    return replace(cluster, config=before) if same else cluster


async def _take_down(cluster: Cluster, runtime: Runtime, timeout_s: float) -> int:
    launcher = cluster.folder.holder()
    if launcher is None and not running_routers(cluster.folder) and not await runtime.owned():
        await runtime.clear_away()
        _forget(cluster)
        print(f"cluster {cluster.config.cluster}: nothing runs")
        return 0
    if launcher is not None:
        await _stop_launcher(launcher, timeout_s)
    # Held so that no launcher comes up in the middle of it.
    with ClusterLock(cluster.folder, wait_s=_LOCK_WAIT_S, is_launcher=False):
        await _stop_rest(cluster, runtime, timeout_s)
        cluster.folder.forget_run()
    print(f"cluster {cluster.config.cluster}: stopped, nothing of it runs")
    return 0


def _forget(cluster: Cluster) -> None:
    """What a crash left behind; a folder that was never made is not made for it."""
    if cluster.folder.path.is_dir():
        with ClusterLock(cluster.folder, wait_s=_LOCK_WAIT_S, is_launcher=False):
            cluster.folder.forget_run()


async def _stop_launcher(launcher: ProcessId, timeout_s: float) -> None:
    print(f"launcher: pid {launcher.pid} stops everything (at most {timeout_s:g} s)", flush=True)
    processes.send_signal(launcher, signal.SIGTERM)
    processes.send_signal(launcher, signal.SIGCONT)  # a stopped one (Ctrl-Z) takes no signal
    if await exits.has_ended(launcher, timeout_s):
        return
    print("launcher: not done in time, killed", flush=True)
    processes.send_signal(launcher, signal.SIGKILL)
    await exits.has_ended(launcher, _LOCK_WAIT_S)


async def _stop_rest(cluster: Cluster, runtime: Runtime, timeout_s: float) -> None:
    """In order and politely, as long as there is time; then by force."""
    async with RouterClient(cluster.folder.admin_socket) as client:
        router = RouterKeeper(cluster.folder, cluster.config, client)
        try:
            async with asyncio.timeout(timeout_s):
                await router.stop()
                grace_s = cluster.config.runtime.stop_grace_s
                handles = await runtime.owned()
                await asyncio.gather(*(runtime.stop(handle, grace_s) for handle in handles))
        except TimeoutError:
            print("not done in time: killing what is left", flush=True)
        await take_down_rest(cluster, runtime, router)
