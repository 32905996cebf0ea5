"""What is to run on this machine: the config, its GPUs and what fits on them, as replica specs.

Called by whoever starts something: the supervisor, `launcher up` and `launcher plan`. It reads the
machine (driver, model folders) and may take a moment, so the event loop calls it on a thread.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.config import ClusterConfig
from launcher.device_request import Group
from launcher.engines import ENGINES
from launcher.gpu import DriverState, GpuProcess, Inventory, strangers
from launcher.gpus import GpuMonitor, read_inventory
from launcher.placement import ReplicaSpec, replica_specs
from launcher.replica_ids import names_given
from launcher.runtimes.base import Handle
from launcher.sizes import show_bytes
from launcher.sizing import model_caches, require_room, sizer
from launcher.state import STATUS_RECORD, StateFolder
from router.errors import DeviceError, OperatorError

_MOST_NAMED = 3


def desired(
    config: ClusterConfig, owned: Iterable[Handle] = (), *, is_rehearsal: bool = False
) -> list[ReplicaSpec]:
    """The replicas that are to run, with their GPUs by UUID; what runs stays where it is.

    Raises PlacementError (GPUs missing or too few, a model that cannot fit) and DeviceError (a
    driver that is there but broken). Where something of the cluster runs, a lost GPU or driver is
    told in the specs of the replicas that it hits instead, unless this `is_rehearsal`.
    """
    handles = list(owned)
    is_lenient = bool(handles) and not is_rehearsal
    inventory = _inventory(config) if is_lenient else machine_inventory(config)
    record = _recorded(config)
    known: dict[str, Group] = {one["id"]: () for one in record if not _is_leaving(one)}
    known |= {handle.replica_id: handle.devices for handle in handles}
    specs = replica_specs(
        config,
        inventory,
        known if is_lenient else {name: devices for name, devices in known.items() if devices},
        sizer(config, inventory),
        _names(record),
        {handle.replica_id: handle.fingerprint for handle in handles} if is_lenient else None,
    )
    require_room((spec.model, spec.devices, spec.memory_fraction) for spec in specs)
    return specs


def expected(config: ClusterConfig) -> list[ReplicaSpec]:
    """The same for verbs that start nothing: as far as it can be told, and never an error.

    The driver, which may hang, is not asked; how many `devices: all` are, the record knows.
    """
    record = _recorded(config)
    names = _names(record)
    try:
        return replica_specs(config, names=names)
    except OperatorError:
        known = {str(one["id"]): tuple(one["devices"]) for one in record if not _is_leaving(one)}
        if not known:
            return []
    unasked = Inventory(DriverState.BROKEN, trouble="the driver was not asked")
    with suppress(OperatorError):
        return replica_specs(config, unasked, known, names=names, fingerprints={})
    return []


def known_names(config: ClusterConfig) -> dict[str, str]:
    """What the ids of each model's replicas begin with, where the cluster is up already."""
    return _names(_recorded(config))


def _names(record: list[dict[str, Any]]) -> dict[str, str]:
    return names_given((one["id"], one["model"]) for one in record)


def _recorded(config: ClusterConfig) -> list[dict[str, Any]]:
    """The replicas as the launcher last wrote them down; a broken record is none."""
    record = StateFolder(config.state_dir).read_record(STATUS_RECORD) or {}
    with suppress(KeyError, TypeError, AttributeError):
        return [
            {
                **one,
                "id": str(one["id"]),
                "model": str(one["model"]),
                "devices": list(one.get("devices", ())),
            }
            for one in record["replicas"]
        ]
    return []


def _is_leaving(replica: dict[str, Any]) -> bool:
    """Its last: neither an operator drained it, nor does another take its place."""
    kept = replica.get("drained") or replica.get("is_outdated")
    return replica.get("phase") == "draining" and not kept


def machine_inventory(config: ClusterConfig) -> Inventory | None:
    """The GPUs of the machine the replicas run on; None where nobody here can tell them."""
    inventory = _inventory(config)
    if inventory is not None and inventory.state is DriverState.BROKEN:
        users = [f"models[{i}]" for i, one in enumerate(config.models) if config.uses_gpus(one)]
        found = "found a driver that cannot be used, expected GPUs"
        raise DeviceError(f"{users[0]}.devices: {found}: {inventory.trouble}")
    return inventory


def _inventory(config: ClusterConfig) -> Inventory | None:
    if not config.runs_here or not any(map(config.uses_gpus, config.models)):
        return None
    return read_inventory()


def gpu_notes(
    config: ClusterConfig, specs: Iterable[ReplicaSpec], owned: Iterable[Handle]
) -> list[str]:
    """What an operator should know of the GPUs before replicas are put there."""
    specs, owned = list(specs), list(owned)
    running = {handle.replica_id for handle in owned}
    notes = [
        f"{spec.id}: {'runs on as it is' if spec.id in running else 'not started'}: {spec.trouble}"
        for spec in specs
        if spec.trouble
    ]
    wanted = {device: spec.id for spec in specs for device in spec.devices}
    if not wanted or not config.runs_here:
        return notes
    with GpuMonitor() as monitor:
        readings = monitor.readings()
    used = {uuid: reading for uuid, reading in readings.items() if uuid in wanted}
    notes += [
        f"{wanted[uuid]}: its GPU {uuid} is in trouble: {reading.trouble}"
        for uuid, reading in used.items()
        if reading.trouble
    ]
    ours = {device for handle in owned for device in handle.devices}
    unclaimed = {uuid: reading for uuid, reading in used.items() if uuid not in ours}
    for uuid, others in strangers(unclaimed, own_pids=()).items():
        named = ", ".join(map(name_process, others[:_MOST_NAMED]))
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        notes.append(f"{wanted[uuid]}: not alone on GPU {uuid}: memory held by {named}{more}")
    return notes


def name_process(process: GpuProcess) -> str:
    """For a message: `pid 4711 (python train.py, 3 GiB)`."""
    held = f", {show_bytes(process.used_bytes)}" if process.used_bytes else ""
    return f"pid {process.pid} ({process.name or 'another user or container'}{held})"


def files_are_here(spec: ReplicaSpec, config: ClusterConfig) -> bool:
    """Whether a model can be loaded without a download: then all replicas may do so at once."""
    if not ENGINES[spec.engine_name].downloads or spec.model_id.startswith(("/", "~", ".")):
        return True
    return any(_is_cached(spec.model_id, folder) for folder in model_caches(config))


def _is_cached(model_id: str, cache: Path) -> bool:
    """As the hub's client keeps it; an unfinished download counts as none."""
    folder = cache / ("models--" + model_id.replace("/", "--"))
    has_snapshot = any(True for _ in folder.glob("snapshots/*/*"))
    return has_snapshot and not any(True for _ in folder.glob("blobs/*.incomplete"))
