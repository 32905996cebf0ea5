"""`launcher plan`: what would run where, what it would take there, and why every number is what it
is. Starts nothing; looks at this machine's GPUs, or at imagined ones (`--gpu 4xL4`).

With --json, for scripts:

    {"cluster": ..., "fits": true | false | null, "replicas": [{"id", "model", "model_id", "engine",
     "devices": [...], "gpu": name | null, "gpu_bytes", "quantize", "dtype", "memory_fraction",
     "fits", "weights_bytes", "kv_bytes_per_token", "kv_tokens", "activations_bytes",
     "context_bytes", "headroom_bytes", "budget_bytes", "reasons": [{"what", "number", "unit",
     "reason"}], "rejected": [{"what", "why"}], "warnings": [...], "unknown": ""}], "notes": [...]}

`fits` is null where it is not known. Exit code 0, or 1 when a replica cannot work.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.asking import ask
from launcher.cluster import Cluster
from launcher.commands.detached import owned
from launcher.desired import gpu_notes, known_names, machine_inventory
from launcher.gpu import Inventory
from launcher.gpus import GpuMonitor
from launcher.imagined import imagined
from launcher.memory import Fit, Line
from launcher.placement import ReplicaSpec, replica_specs
from launcher.runtimes import Handle
from launcher.sizes import show_bytes
from launcher.sizing import Assessment, Shapes, assess, require_room
from router.config.words import count
from router.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Row:
    """One replica of the plan."""

    spec: ReplicaSpec
    assessment: Assessment

    @property
    def fit(self) -> Fit | None:
        return self.assessment.fit

    @property
    def alike(self) -> tuple[object, ...]:
        """Rows with the same key differ only in which GPU it is."""
        card = [(gpu.name, gpu.memory_bytes) for gpu in self.assessment.gpus]
        return (self.spec.model, self.spec.quantize, tuple(card), self.fit, self.assessment.unknown)


def run(path: Path, *, gpu: str | None = None, as_json: bool = False) -> int:
    """Raises ConfigError, PlacementError, DeviceError: nothing can be planned then."""
    cluster = Cluster.load(path)
    config = cluster.config
    inventory = imagined(gpu) if gpu else ask(machine_inventory, config)
    running = [] if gpu else _running(cluster)
    where = {one.replica_id: one.devices for one in running}
    specs = replica_specs(config, inventory, where, names=known_names(config))
    free_bytes = None if gpu else ask(_free_bytes, inventory, running)
    rows = list(_rows(cluster, inventory, specs, free_bytes))
    require_room((row.spec.model, row.spec.devices, row.assessment.fraction) for row in rows)
    notes = [] if gpu else ask(gpu_notes, config, specs, running)
    if as_json:
        print(json.dumps(_as_json(cluster, rows, notes), indent=2))
    else:
        for line in _lines(cluster, rows, inventory):
            print(line)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return 1 if any(row.fit is not None and not row.fit.fits for row in rows) else 0


def _running(cluster: Cluster) -> list[Handle]:
    """What runs of the cluster; it keeps its GPUs, and what it holds there is no stranger's."""
    with suppress(OperatorError):
        return asyncio.run(owned(cluster))
    return []


def _free_bytes(inventory: Inventory | None, running: Iterable[Handle]) -> dict[str, int] | None:
    """What is free now on each GPU that none of our replicas is on."""
    if inventory is None:
        return None
    with GpuMonitor() as monitor:
        readings = monitor.readings().values()
    ours = {device for handle in running for device in handle.devices}
    return {
        one.uuid: one.free_bytes for one in readings if not one.trouble and one.uuid not in ours
    }


def _rows(
    cluster: Cluster,
    inventory: Inventory | None,
    specs: Iterable[ReplicaSpec],
    free_bytes: dict[str, int] | None,
) -> Iterator[Row]:
    config = cluster.config
    shapes = Shapes(config)
    by_name = {model.served_name: model for model in config.models}
    for spec in specs:
        model = by_name[spec.model]
        engine = config.engine_of(model)
        yield Row(spec, assess(model, engine, spec.devices, inventory, shapes, free_bytes))


# ---- for people


def _lines(cluster: Cluster, rows: list[Row], inventory: Inventory | None) -> Iterator[str]:
    gpus = {device for row in rows for device in row.spec.devices}
    yield f"cluster {cluster.config.cluster}: {count(len(rows), 'replica')} on {_gpus(len(gpus))}"
    if inventory is not None and inventory.trouble:
        yield f"  {inventory.trouble}"
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.alike, []).append(row)
    for group in groups.values():
        yield ""
        yield from _group_lines(group)


def _group_lines(group: list[Row]) -> Iterator[str]:
    spec, assessed = group[0].spec, group[0].assessment
    named = spec.model if spec.model == spec.model_id else f"{spec.model} ({spec.model_id})"
    yield f"{', '.join(row.spec.id for row in group)}: {named}, {spec.engine_name}"
    for row in group:
        if row.spec.devices:
            where = " + ".join(row.spec.devices)
            card = f"  {_card(row.assessment)}" if row.assessment.gpus else ""
            prefix = f"{row.spec.id} " if len(group) > 1 else ""
            yield f"  {prefix}on {where}{card}"
    if assessed.choice is not None:
        chosen = assessed.choice.scheme or assessed.choice.dtype or "16 bits"
        yield f"  quantize auto: {chosen}, {assessed.choice.reason}"
        yield from (f"    not {what}: {why}" for what, why in assessed.choice.rejected)
    if assessed.fit is None:
        yield f"  not computed: {assessed.unknown}"
        return
    yield from map(_line, assessed.fit.lines)
    yield f"  {_verdict(assessed.fit)}"
    yield from (f"  warning: {warning}" for warning in assessed.fit.warnings)


def _line(line: Line) -> str:
    number = show_bytes(line.number) if line.unit == "bytes" else f"{line.number:,} {line.unit}"
    return f"  {line.what:<16}{number:>18}  {line.reason}"


def _verdict(fit: Fit) -> str:
    if not fit.fits:
        return "does NOT fit"
    text = f"fits, with room for {fit.kv_tokens:,} tokens at a time"
    if fit.needed_tokens > 1:
        calls = fit.kv_tokens // fit.needed_tokens
        text += f": {count(calls, 'call')} of {fit.needed_tokens:,}"
    return text


def _card(assessed: Assessment) -> str:
    names = dict.fromkeys(f"{gpu.name}, {show_bytes(gpu.memory_bytes)}" for gpu in assessed.gpus)
    return "; ".join(names)


def _gpus(number: int) -> str:
    return count(number, "GPU") if number else "no GPU"


# ---- for scripts

_NUMBERS = (
    "weights_bytes",
    "kv_bytes_per_token",
    "kv_tokens",
    "activations_bytes",
    "context_bytes",
    "headroom_bytes",
    "budget_bytes",
)


def _as_json(cluster: Cluster, rows: list[Row], notes: list[str]) -> dict[str, Any]:
    known = [row.fit.fits for row in rows if row.fit is not None]
    fits = False if not all(known) else (True if len(known) == len(rows) else None)
    return {
        "cluster": cluster.config.cluster,
        "fits": fits,
        "replicas": [_row_json(row) for row in rows],
        "notes": notes,
    }


def _row_json(row: Row) -> dict[str, Any]:
    spec, assessed, fit = row.spec, row.assessment, row.fit
    choice = assessed.choice
    return {
        "id": spec.id,
        "model": spec.model,
        "model_id": spec.model_id,
        "engine": spec.engine_name,
        "devices": list(spec.devices),
        "gpu": assessed.gpus[0].name if assessed.gpus else None,
        "gpu_bytes": min((gpu.memory_bytes for gpu in assessed.gpus), default=None),
        "quantize": choice.flag if choice else spec.quantize,
        "dtype": choice.dtype if choice else spec.dtype,
        "memory_fraction": assessed.fraction,
        "fits": fit.fits if fit else None,
        **{name: getattr(fit, name) if fit else None for name in _NUMBERS},
        "reasons": [
            {"what": one.what, "number": one.number, "unit": one.unit, "reason": one.reason}
            for one in (fit.lines if fit else ())
        ],
        "rejected": [{"what": w, "why": why} for w, why in (choice.rejected if choice else ())],
        "warnings": list(fit.warnings if fit else ()),
        "unknown": assessed.unknown,
    }
