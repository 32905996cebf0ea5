"""Who gets which GPU: the devices of a config, and the GPUs of this machine. Pure.

Asked by `placement.py`. What runs stays where it is; what is named is looked up; the rest is given
free GPUs in PCI bus order. Every refusal names the place in the config, what was found there and
what could stand there instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.config import ClusterConfig, ModelConfig, leaves_room
from launcher.device_request import Group
from launcher.gpu import DriverState, Gpu, Inventory
from router.config.words import count
from router.errors import PlacementError

_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model as it asks for GPUs. `place` is where in the config, for messages."""

    place: str
    model: ModelConfig
    uses_gpus: bool
    may_share: bool


def wanted_models(config: ClusterConfig) -> list[Wanted]:
    """The config's models, in its order."""
    return [
        Wanted(
            f"models[{index}]",
            model,
            config.uses_gpus(model),
            leaves_room(model, config.engine_of(model)),
        )
        for index, model in enumerate(config.models)
    ]


def assign(
    models: Sequence[Wanted], inventory: Inventory | None, running: Sequence[Sequence[Group | None]]
) -> list[list[Group]]:
    """For each model, the devices of each of its replicas; () for those that need none.

    `running`: for each model, by replica number, the devices of what runs. Raises PlacementError
    with everything that cannot be. Without an inventory devices stay as written.
    """
    problems: list[str] = []
    if inventory is None or inventory.state is not DriverState.OK:
        given = _unresolved(models, inventory, problems)
    else:
        given = _resolved(models, inventory, running, problems)
    if problems:
        raise PlacementError("\n".join(problems))
    return given


# ---- this machine tells no GPUs


def _unresolved(
    models: Sequence[Wanted], inventory: Inventory | None, problems: list[str]
) -> list[list[Group]]:
    """Devices as they are written; the others are counted from 0 on, past the named ones."""
    named = {device for wanted in models for device in wanted.model.wanted_devices.named}
    free = (f"cuda:{index}" for index in range(4096) if f"cuda:{index}" not in named)
    given: list[list[Group]] = []
    for wanted in models:
        request, replicas = wanted.model.wanted_devices, wanted.model.replica_count
        if not wanted.uses_gpus:
            given.append([()] * (replicas or 1))
        elif request.kind == "named":
            given.append(list(request.groups))
        elif replicas is None:
            why = inventory.trouble if inventory else "the machine's GPUs are not known"
            problems.append(f"{wanted.place}.devices: found all, but {why}")
            given.append([])
        else:
            shards = range(wanted.model.shards)
            given.append([tuple(next(free) for _ in shards) for _ in range(replicas)])
    return given


# ---- it does


def _resolved(
    models: Sequence[Wanted],
    inventory: Inventory,
    running: Sequence[Sequence[Group | None]],
    problems: list[str],
) -> list[list[Group]]:
    named = [_named(wanted, inventory, problems) for wanted in models]
    taken = _owners(models, named, problems)
    given: list[list[Group]] = []
    for wanted, groups, theirs in zip(models, named, running, strict=True):
        if not wanted.uses_gpus:
            given.append([()] * (wanted.model.replica_count or 1))
        elif wanted.model.wanted_devices.kind == "named":
            given.append(groups)
        else:
            given.append(_chosen(wanted, inventory, theirs, taken, problems))
    return given


def _named(wanted: Wanted, inventory: Inventory, problems: list[str]) -> list[Group]:
    """The named groups as UUIDs."""
    if not wanted.uses_gpus:
        return []
    groups = []
    for group in wanted.model.wanted_devices.groups:
        found = [_looked_up(wanted.place, device, inventory, problems) for device in group]
        groups.append(tuple(uuid for uuid in found if uuid))
    return groups


def _looked_up(place: str, device: str, inventory: Inventory, problems: list[str]) -> str | None:
    gpu = inventory.find(device)
    if gpu is None:
        problems.append(f"{place}.devices: found {device}, expected one of: {_known(inventory)}")
        return None
    if gpu.mig_enabled and gpu.parent is None:
        slices = [one.uuid for one in inventory.slices if one.parent == gpu.uuid]
        expected = f"one of its slices: {_few(slices)}" if slices else "slices made by nvidia-smi"
        problems.append(f"{place}.devices: found {device}, which is divided (MIG), not {expected}")
        return None
    return gpu.uuid


def _owners(
    models: Sequence[Wanted], named: Sequence[Sequence[Group]], problems: list[str]
) -> dict[str, int]:
    """Who has each named GPU; two spellings of one GPU are found here."""
    owners: dict[str, int] = {}
    for index, (wanted, groups) in enumerate(zip(models, named, strict=True)):
        seen: set[str] = set()
        for uuid in (uuid for group in groups for uuid in group):
            owner = owners.setdefault(uuid, index)
            shared = owner != index and not (wanted.may_share and models[owner].may_share)
            if uuid in seen or shared:
                where = "" if owner == index else f", which {models[owner].place} has"
                again = " a second time" if owner == index else ""
                problems.append(
                    f"{wanted.place}.devices: found {uuid}{again}{where}; expected each GPU once, "
                    "or max_memory for all that share it"
                )
            seen.add(uuid)
    return owners


def _chosen(
    wanted: Wanted,
    inventory: Inventory,
    running: Sequence[Group | None],
    taken: dict[str, int],
    problems: list[str],
) -> list[Group]:
    """GPUs for `auto`, `all` and counts: what runs stays, the others get free ones in bus order."""
    usable = [gpu.uuid for gpu in _usable(inventory)]
    free = [uuid for uuid in usable if uuid not in taken]
    shards = wanted.model.shards
    replicas = wanted.model.replica_count
    if replicas is None:  # `all`
        replicas = len(free) // shards
        if not replicas or len(free) % shards:
            problems.append(
                f"{wanted.place}.devices: found all, {count(len(free), 'GPU')}; expected a "
                f"multiple of gpus_per_replica ({shards})"
            )
            return []
    kept = [_kept(running, position, shards, free) for position in range(replicas)]
    for group in kept:
        free = [uuid for uuid in free if group is None or uuid not in group]
    short = sum(group is None for group in kept) * shards - len(free)
    if short > 0:
        needed = replicas * shards
        problems.append(
            f"{wanted.place}: found {count(needed - short, 'free GPU')} "
            f"({count(len(usable), 'GPU')} on this machine), expected {needed} for "
            f"{count(replicas, 'replica')}; lower replicas, or name devices to share"
        )
        return []
    fresh = iter(free)
    given = [group or tuple(next(fresh) for _ in range(shards)) for group in kept]
    taken |= {uuid: -1 for group in given for uuid in group}
    return given


def _kept(
    running: Sequence[Group | None], position: int, shards: int, free: Sequence[str]
) -> Group | None:
    group = running[position] if position < len(running) else None
    if group and len(group) == shards and all(uuid in free for uuid in group):
        return group
    return None


def _usable(inventory: Inventory) -> Iterator[Gpu]:
    """Whole GPUs, and the slices of those that are divided, in bus order."""
    for gpu in inventory.gpus:
        if gpu.mig_enabled:
            yield from (one for one in inventory.slices if one.parent == gpu.uuid)
        else:
            yield gpu


def _known(inventory: Inventory) -> str:
    devices = [f"cuda:{gpu.index} ({gpu.uuid})" for gpu in inventory.gpus]
    return _few(devices + [one.uuid for one in inventory.slices]) or "none: no GPU is here"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
