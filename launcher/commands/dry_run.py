"""`launcher up --dry-run`: what `up` would do, down to each command, and nothing is done.

Where a launcher runs, the difference to what it runs comes first. Replicas in containers are shown
as the `docker run` that would make the same container, processes as a command with its environment.
Ports are those that are taken when all are free; secrets are named, never shown.
"""

import asyncio
import shlex
import sys
from collections.abc import Iterable, Iterator

from launcher.asking import ask
from launcher.changes import Change
from launcher.cluster import Cluster
from launcher.commands.detached import owned
from launcher.desired import desired, gpu_notes
from launcher.docker.dry_run import planned_container
from launcher.docker.run_words import docker_run_words, is_secret
from launcher.engines import ENGINES
from launcher.placement import ReplicaSpec
from launcher.plan import make_plan
from launcher.runtimes import Handle
from router.errors import RuntimeAway

_COLUMNS = 90


def run(cluster: Cluster) -> int:
    """Raises whatever would refuse the start."""
    handles, away = _running(cluster)
    specs = ask(desired, cluster.config, handles, is_rehearsal=True)
    print(f"# cluster {cluster.config.cluster}: dry run, nothing is started")
    for change in _changes(cluster, specs, handles):
        print(f"# {change}")
    for position, spec in enumerate(specs):
        port = cluster.config.runtime.first_port + position
        words = _words(cluster, spec, port, _generation(spec, handles))
        print(f"\n# {spec.id}\n{words}")
    for note in [*away, *ask(gpu_notes, cluster.config, specs, handles)]:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _running(cluster: Cluster) -> tuple[list[Handle], list[str]]:
    try:
        return asyncio.run(owned(cluster)), []
    except RuntimeAway as exc:
        return [], [f"{exc}; shown as if nothing ran"]


def _changes(cluster: Cluster, specs: list[ReplicaSpec], handles: list[Handle]) -> Iterator[Change]:
    if cluster.folder.holder() is not None:
        from launcher.commands.follow import differences

        yield from differences(cluster)
        return
    plan = make_plan(specs, handles)
    for spec in plan.start:
        where = f" on {' + '.join(spec.devices)}" if spec.devices else ""
        yield Change("+", spec.id, f"{spec.engine_name} serving {spec.model}{where}")
    for spec, handle in plan.replace:
        yield Change("~", spec.id, f"its config changed: replaced in its turn ({handle.shown})")
    for spec, handle in plan.adopt:
        yield Change("=", spec.id, f"runs as {handle.shown}: adopted")
    for handle in plan.strays:
        yield Change("-", handle.replica_id, f"not wanted: {handle.shown} is stopped")


def _generation(spec: ReplicaSpec, handles: list[Handle]) -> int:
    mine = (handle.generation for handle in handles if handle.replica_id == spec.id)
    return max(mine, default=0) + 1


def _words(cluster: Cluster, spec: ReplicaSpec, port: int, generation: int) -> str:
    if cluster.config.runtime.name == "docker":
        container = planned_container(spec, cluster.config, port, generation)
        return folded(docker_run_words(container))
    command = ENGINES[spec.engine_name].command(spec, port, cluster.config.runtime.host)
    env = [
        f'{name}="${name}"' if is_secret(name, value) else f"{name}={shlex.quote(value)}"
        for name, value in command.env.items()
    ]
    return " ".join([*env, shlex.join(command.argv)])


def folded(words: Iterable[str]) -> str:
    """One command over several lines, each option beside its value, that can be pasted."""
    lines = [""]
    for word in map(shlex.quote, words):
        is_option = word.startswith("-")
        is_long = len(lines[-1]) + len(word) > _COLUMNS
        if lines[-1] and (is_long or (is_option and len(lines[-1]) > _COLUMNS // 2)):
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n    ".join(lines)
