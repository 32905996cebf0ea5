"""Who gets which GPU: the devices of a config, and the GPUs of this machine. Pure.

Asked by `placement.py`. What runs stays where it is; what is named is looked up; the rest is given
free GPUs in PCI bus order. Every refusal names the place in the config, what was found there and
what could stand there instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.config import ClusterConfig, ModelConfig, leaves_room
from launcher.device_request import Group, index_of
from launcher.gpu import DriverState, Gpu, Inventory
from router.config.words import count, dotted
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
    why = inventory.trouble if inventory and inventory.trouble else "that machine's are not known"
    named = {device for wanted in models for device in _named_devices(wanted)}
    by_uuid = sorted(device for device in named if index_of(device) is None)
    free = (f"cuda:{index}" for index in range(4096) if f"cuda:{index}" not in named)
    given: list[list[Group]] = []
    for wanted in models:
        request, replicas = wanted.model.wanted_devices, wanted.model.replica_count
        if not wanted.uses_gpus:
            given.append([()] * (replicas or 1))
        elif request.kind == "named":
            given.append(list(request.groups))
        elif replicas is None or by_uuid:
            problems.append(_needs_the_machine(wanted, by_uuid, why))
            given.append([])
        else:
            shards = range(wanted.model.shards)
            given.append([tuple(next(free) for _ in shards) for _ in range(replicas)])
    return given


def _needs_the_machine(wanted: Wanted, by_uuid: Sequence[str], why: str) -> str:
    kind = wanted.model.wanted_devices.kind
    found = f"found {kind if wanted.model.devices else 'none, which is auto'}"
    if kind == "all":
        return f"{wanted.place}.devices: {found}, expected GPUs by name or a number of them: {why}"
    return (
        f"{wanted.place}.devices: {found}, expected names, as other models name theirs by UUID "
        f"({_few(by_uuid)}) and might get the same GPUs: {why}"
    )


def _named_devices(wanted: Wanted) -> tuple[str, ...]:
    return wanted.model.wanted_devices.named if wanted.uses_gpus else ()


# ---- it does


def _resolved(
    models: Sequence[Wanted],
    inventory: Inventory,
    running: Sequence[Sequence[Group | None]],
    problems: list[str],
) -> list[list[Group]]:
    named = [_named(wanted, inventory, problems) for wanted in models]
    free = _Free(inventory, _owners(models, named, problems))
    # What runs is kept, for all models, before anything is given to one that comes first.
    kept = [_kept(w, free, theirs) for w, theirs in zip(models, running, strict=True)]
    given: list[list[Group]] = []
    for wanted, groups, theirs in zip(models, named, kept, strict=True):
        if not wanted.uses_gpus:
            given.append([()] * (wanted.model.replica_count or 1))
        elif wanted.model.wanted_devices.kind == "named":
            given.append([tuple(one.uuid for one in group) for group in groups])
        else:
            given.append(_chosen(wanted, free, theirs, problems))
    return given


@dataclass(frozen=True, slots=True)
class _Named:
    """A GPU that the config names, as it is written and as it is."""

    place: str
    written: str
    uuid: str

    def __str__(self) -> str:
        same = self.written == self.uuid
        return self.written if same else f"{self.written}, which is {self.uuid},"


def _named(wanted: Wanted, inventory: Inventory, problems: list[str]) -> list[list[_Named]]:
    """The named groups, looked up."""
    request = wanted.model.wanted_devices
    groups = []
    for position, group in enumerate(request.groups if wanted.uses_gpus else ()):
        place = wanted.place + "." + dotted(request.place(position))
        found = [_looked_up(place, device, inventory, problems) for device in group]
        groups.append([one for one in found if one])
    return groups


def _looked_up(place: str, device: str, inventory: Inventory, problems: list[str]) -> _Named | None:
    gpu = inventory.find(device)
    if gpu is None:
        problems.append(f"{place}: {_unknown(device, inventory)}")
        return None
    if gpu.mig_enabled and gpu.parent is None:
        slices = [one.uuid for one in inventory.slices_of(gpu)]
        expected = f"one of them: {_few(slices)}" if slices else "it to have some, or MIG off"
        problems.append(f"{place}: found {device}, a GPU for MIG slices only, expected {expected}")
        return None
    return _Named(place, device, gpu.uuid)


def _unknown(device: str, inventory: Inventory) -> str:
    known = (*inventory.gpus, *inventory.slices)
    fits = [one.uuid for one in known if index_of(device) is None and one.uuid.startswith(device)]
    if len(fits) > 1:
        return f"found {device}, which fits several GPUs, expected more of one's UUID: {_few(fits)}"
    trouble = f"; {inventory.trouble}" if inventory.trouble else ""
    return f"found {device}, expected one of: {_known(inventory)}{trouble}"


def _owners(
    models: Sequence[Wanted], named: Sequence[Sequence[Sequence[_Named]]], problems: list[str]
) -> set[str]:
    """Every named GPU; two spellings of one GPU are found here."""
    owners: dict[str, int] = {}
    for index, (wanted, groups) in enumerate(zip(models, named, strict=True)):
        seen: set[str] = set()
        for one in (one for group in groups for one in group):
            owner = owners.setdefault(one.uuid, index)
            if one.uuid in seen:
                problems.append(f"{one.place}: found {one} a second time, expected each GPU once")
            elif owner != index and not (wanted.may_share and models[owner].may_share):
                problems.append(
                    f"{one.place}: found {one} which {models[owner].place} has, expected each GPU "
                    "once, or max_memory for both models"
                )
            seen.add(one.uuid)
    return set(owners)


class _Free:
    """The GPUs, and slices of divided ones, that no model has yet, in bus order."""

    def __init__(self, inventory: Inventory, named: set[str]) -> None:
        self.inventory = inventory
        self.usable = [gpu.uuid for gpu in _usable(inventory)]
        self.uuids = [uuid for uuid in self.usable if uuid not in named]

    def take(self, group: Group) -> None:
        self.uuids = [uuid for uuid in self.uuids if uuid not in group]

    def next(self, shards: int) -> Group:
        group = tuple(self.uuids[:shards])
        self.take(group)
        return group


def _kept(wanted: Wanted, free: _Free, running: Sequence[Group | None]) -> dict[int, Group]:
    """By replica number, what runs where it may go on running."""
    shards, replicas = wanted.model.shards, wanted.model.replica_count
    if not wanted.uses_gpus or wanted.model.wanted_devices.kind == "named":
        return {}
    if replicas is None:
        replicas = len(free.uuids) // shards
    kept: dict[int, Group] = {}
    for position, group in enumerate(running[:replicas]):
        if group and len(group) == shards and set(group) <= set(free.uuids):
            kept[position] = group
            free.take(group)
    return kept


def _chosen(
    wanted: Wanted, free: _Free, kept: dict[int, Group], problems: list[str]
) -> list[Group]:
    """GPUs for `auto`, `all` and counts: what runs stays, the others get free ones."""
    shards, replicas = wanted.model.shards, wanted.model.replica_count
    had = len(free.uuids) + len(kept) * shards
    if replicas is None:  # `all`
        replicas = had // shards
        if not replicas or had % shards:
            problems.append(_uneven(wanted, had, free.inventory))
            return []
    if had < replicas * shards:
        problems.append(_too_few(wanted, replicas, had, free))
        return []
    return [kept.get(position) or free.next(shards) for position in range(replicas)]


def _uneven(wanted: Wanted, found: int, inventory: Inventory) -> str:
    expected = "at least one"
    if wanted.model.shards > 1:
        expected = f"a multiple of gpus_per_replica ({wanted.model.shards})"
    trouble = f"; {inventory.trouble}" if inventory.trouble else ""
    free = count(found, "free GPU")
    return f"{wanted.place}.devices: found all, {free}, expected {expected}{trouble}"


def _too_few(wanted: Wanted, replicas: int, found: int, free: _Free) -> str:
    shards, trouble = wanted.model.shards, free.inventory.trouble
    key = "replicas" if wanted.model.replicas else "devices"
    each = f" of {shards} each" if shards > 1 else ""
    here = count(len(free.usable), "GPU")
    return (
        f"{wanted.place}.{key}: found {count(found, 'free GPU')} ({here} on this machine), "
        f"expected {replicas * shards} for {count(replicas, 'replica')}{each}; ask for fewer, or "
        f"name devices and share them with max_memory{f'; {trouble}' if trouble else ''}"
    )


def _usable(inventory: Inventory) -> Iterator[Gpu]:
    for gpu in inventory.gpus:
        yield from inventory.slices_of(gpu) if gpu.mig_enabled else (gpu,)


def _known(inventory: Inventory) -> str:
    devices = [f"cuda:{gpu.index} ({gpu.uuid})" for gpu in inventory.gpus]
    return _few(devices + [one.uuid for one in inventory.slices]) or "none: no GPU is here"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
