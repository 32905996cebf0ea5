"""What is to run on this machine: the config, its GPUs and what fits on them, as replica specs.

Called by whoever starts something: the supervisor, `launcher up` and `launcher plan`. It reads the
machine (driver, model folders) and may take a moment, so the event loop calls it on a thread.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from launcher.config import ClusterConfig
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


def desired(config: ClusterConfig, owned: Iterable[Handle] = ()) -> list[ReplicaSpec]:
    """The replicas that are to run, with their GPUs by UUID; what runs stays where it is.

    Raises PlacementError (GPUs missing or too few, a model that cannot fit) and DeviceError (a
    driver that is there but broken).
    """
    inventory = machine_inventory(config)
    running = {handle.replica_id: handle.devices for handle in owned if handle.devices}
    size, names = sizer(config, inventory), known_names(config)
    specs = replica_specs(config, inventory, running, size, names)
    require_room((spec.model, spec.devices, spec.memory_fraction) for spec in specs)
    return specs


def expected(config: ClusterConfig) -> list[ReplicaSpec]:
    """The same for verbs that start nothing: as far as it can be told, and never an error."""
    try:
        return replica_specs(config, names=known_names(config))
    except OperatorError:  # `devices: all`, which takes the machine to count
        with suppress(OperatorError):
            return desired(config)
    return []


def known_names(config: ClusterConfig) -> dict[str, str]:
    """What the ids of each model's replicas begin with, where the cluster is up already."""
    record = StateFolder(config.state_dir).read_record(STATUS_RECORD) or {}
    with suppress(KeyError, TypeError):
        return names_given((str(one["id"]), str(one["model"])) for one in record["replicas"])
    return {}


def machine_inventory(config: ClusterConfig) -> Inventory | None:
    """The GPUs of the machine the replicas run on; None where nobody here can tell them."""
    users = [f"models[{i}]" for i, model in enumerate(config.models) if config.uses_gpus(model)]
    if not users or not config.runs_here:
        return None
    inventory = read_inventory()
    if inventory.state is DriverState.BROKEN:
        found = "found a driver that cannot be used, expected GPUs"
        raise DeviceError(f"{users[0]}.devices: {found}: {inventory.trouble}")
    return inventory


def gpu_notes(
    config: ClusterConfig, specs: Iterable[ReplicaSpec], owned: Iterable[Handle]
) -> list[str]:
    """What an operator should know of the GPUs before replicas are put there."""
    wanted = {device: spec.id for spec in specs for device in spec.devices}
    if not wanted or not config.runs_here:
        return []
    with GpuMonitor() as monitor:
        readings = monitor.readings()
    used = {uuid: reading for uuid, reading in readings.items() if uuid in wanted}
    notes = [
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
