"""Who gets which GPU: the devices of a config, and the GPUs of this machine. Pure.

Asked by `placement.py`. What runs stays where it is; what is named is looked up; the rest is given
free GPUs in PCI bus order. Every refusal names the place in the config, what was found there and
what could stand there instead. A machine that has lost a GPU, or its driver, moves nothing that
runs: a replica that cannot have its GPUs for that is given none, and told why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_up

from launcher.device_request import Group, index_of
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.gpu_wishes import Assigned, Running, Wanted, few, may_be, running_at, without_gpus
from launcher.unseen_gpus import as_it_runs, as_written, were_known
from router.config.words import count, dotted
from router.errors import PlacementError


def assign(
    models: Sequence[Wanted],
    inventory: Inventory | None,
    running: Sequence[Running],
    *,
    is_lenient: bool = False,
) -> list[list[Assigned]]:
    """For each model, its replicas and their devices.

    Raises PlacementError with everything that cannot be; `is_lenient`: for what is the machine's
    fault only those have trouble that it hits. Without an inventory devices stay as written.
    """
    problems: list[str] = []
    if inventory is None:
        given = as_written(models, inventory, problems)
    elif inventory.state is DriverState.OK:
        given = _resolved(models, inventory, running, problems)
    elif inventory.state is DriverState.BROKEN or were_known(running):
        given = [as_it_runs(*both, inventory) for both in zip(models, running, strict=True)]
    else:
        given = as_written(models, inventory, problems)
    if not is_lenient:
        problems += dict.fromkeys(one.trouble for model in given for one in model if one.trouble)
    if problems:
        raise PlacementError("\n".join(problems))
    return given


def _resolved(
    models: Sequence[Wanted],
    inventory: Inventory,
    running: Sequence[Running],
    problems: list[str],
) -> list[list[Assigned]]:
    named = [
        _named(wanted, inventory, theirs, problems)
        for wanted, theirs in zip(models, running, strict=True)
    ]
    free = _Free(inventory, _owners(models, named, problems))
    # What runs is kept, for all models, before anything is given to one that comes first.
    kept = [_kept(w, free, theirs) for w, theirs in zip(models, running, strict=True)]
    given: list[list[Assigned]] = []
    for index, wanted in enumerate(models):
        if not wanted.uses_gpus:
            given.append(without_gpus(wanted))
        elif wanted.model.wanted_devices.kind == "named":
            given.append([one.assigned(at) for at, one in enumerate(named[index])])
        elif wanted.model.replica_count is None:
            given.append(_all(wanted, free, kept[index], running[index], problems))
        else:
            given.append(_chosen(wanted, free, kept[index], wanted.model.replica_count, problems))
        _refuse_ends(given[-1], running[index], problems)
    return given


def _refuse_ends(given: list[Assigned], running: Running, problems: list[str]) -> None:
    """Nothing that runs is given up for what then cannot start."""
    lost = {one.trouble for one in given if not one.devices and running_at(running, one.position)}
    problems += sorted(lost - {""})


@dataclass(frozen=True, slots=True)
class _Named:
    """A GPU that the config names, as it is written and as it is."""

    place: str
    written: str
    uuid: str

    def __str__(self) -> str:
        same = self.written == self.uuid
        return self.written if same else f"{self.written}, which is {self.uuid},"


@dataclass(frozen=True, slots=True)
class _NamedGroup:
    """One replica's, looked up; with `trouble` not all could be, and `devices` are not known."""

    gpus: tuple[_Named, ...]
    devices: Group
    trouble: str = ""

    def assigned(self, position: int) -> Assigned:
        if self.trouble:
            return Assigned(position, self.devices, self.trouble)
        return Assigned(position, tuple(one.uuid for one in self.gpus))


def _named(
    wanted: Wanted, inventory: Inventory, running: Running, problems: list[str]
) -> list[_NamedGroup]:
    """The named groups, looked up."""
    request = wanted.model.wanted_devices
    groups: list[_NamedGroup] = []
    for position, group in enumerate(request.groups if wanted.uses_gpus else ()):
        place = wanted.place + "." + dotted(request.place(position))
        theirs = running_at(running, position)
        if _stays_unreached(group, theirs, inventory):
            found = tuple(map(_Named, [place] * len(group), group, theirs))
            groups.append(_NamedGroup(found, group))
            continue
        unknown: list[str] = []
        looked_up = [_looked_up(place, device, inventory, unknown, problems) for device in group]
        if not inventory.trouble:
            problems += unknown
            unknown = []
        found = tuple(one for one in looked_up if one)
        if unknown and theirs:  # wanted elsewhere, which cannot be now
            group, found = theirs, tuple(_Named(place, uuid, uuid) for uuid in theirs)
        groups.append(_NamedGroup(found, group, "; ".join(unknown)))
    return groups


def _stays_unreached(group: Group, running: Group, inventory: Inventory) -> bool:
    """Whether it runs where it is wanted, as far as its GPUs can be reached; some cannot."""
    if len(group) != len(running) or all(map(inventory.find, running)):
        return False
    for written, uuid in zip(group, running, strict=True):
        gpu = inventory.find(written)
        is_it = gpu.uuid == uuid if gpu else may_be(written, uuid) and not inventory.find(uuid)
        if not is_it:
            return False
    return True


def _looked_up(
    place: str, device: str, inventory: Inventory, unknown: list[str], problems: list[str]
) -> _Named | None:
    gpu = inventory.find(device)
    if gpu is None:
        unknown.append(f"{place}: {_unknown(device, inventory)}")
        return None
    if gpu.mig_enabled and gpu.parent is None:
        slices = [one.uuid for one in inventory.slices_of(gpu)]
        expected = f"one of them: {few(slices)}" if slices else "it to have some, or MIG off"
        problems.append(f"{place}: found {device}, a GPU for MIG slices only, expected {expected}")
        return None
    return _Named(place, device, gpu.uuid)


def _unknown(device: str, inventory: Inventory) -> str:
    known = (*inventory.gpus, *inventory.slices)
    fits = [one.uuid for one in known if index_of(device) is None and one.uuid.startswith(device)]
    if len(fits) > 1:
        return f"found {device}, which fits several GPUs, expected more of one's UUID: {few(fits)}"
    trouble = f"; {inventory.trouble}" if inventory.trouble else ""
    return f"found {device}, expected one of: {_known(inventory)}{trouble}"


def _owners(
    models: Sequence[Wanted], named: Sequence[Sequence[_NamedGroup]], problems: list[str]
) -> set[str]:
    """Every named GPU; two spellings of one GPU are found here."""
    owners: dict[str, int] = {}
    for index, (wanted, groups) in enumerate(zip(models, named, strict=True)):
        seen: set[str] = set()
        for one in (one for group in groups for one in group.gpus):
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
        self._taken = set(named)

    def may_stay(self, device: str) -> bool:
        """It is free, or it cannot be reached and nobody else has it."""
        if self.inventory.find(device) is not None or index_of(device) is not None:
            return device in self.uuids
        return bool(self.inventory.trouble) and device not in self._taken

    def take(self, group: Group) -> None:
        self._taken.update(group)
        self.uuids = [uuid for uuid in self.uuids if uuid not in group]

    def next(self, shards: int) -> Group:
        group = tuple(self.uuids[:shards])
        self.take(group)
        return group


def _kept(wanted: Wanted, free: _Free, running: Running) -> dict[int, Group]:
    """By replica number, what runs where it may go on running."""
    shards, replicas = wanted.model.shards, wanted.model.replica_count
    if not wanted.uses_gpus or wanted.model.wanted_devices.kind == "named":
        return {}
    kept: dict[int, Group] = {}
    for position, group in enumerate(running[:replicas]):
        if group and len(group) == shards and all(map(free.may_stay, group)):
            kept[position] = group
            free.take(group)
    return kept


def _chosen(
    wanted: Wanted, free: _Free, kept: dict[int, Group], replicas: int, problems: list[str]
) -> list[Assigned]:
    """GPUs for `auto` and counts: what runs stays, the others get free ones."""
    shards, trouble = wanted.model.shards, ""
    had = len(free.uuids) + len(kept) * shards
    if had < replicas * shards:
        trouble = _toofew(wanted, replicas, had, free)
        if not free.inventory.trouble:
            problems.append(trouble)
            return []
    return [_next(free, shards, kept, position, trouble) for position in range(replicas)]


def _next(free: _Free, shards: int, kept: dict[int, Group], at: int, trouble: str) -> Assigned:
    if at not in kept and len(free.uuids) < shards:
        return Assigned(at, (), trouble)
    return Assigned(at, kept.get(at) or free.next(shards))


def _all(
    wanted: Wanted, free: _Free, kept: dict[int, Group], running: Running, problems: list[str]
) -> list[Assigned]:
    """A replica on every GPU: where one runs it stays, and keeps its number."""
    shards, lost = wanted.model.shards, free.inventory.trouble
    had = len(free.uuids) + len(kept) * shards
    trouble = _uneven(wanted, had, free.inventory)
    if not had or (had % shards and not (lost and kept)):
        problems.append(trouble)
        return []
    trouble = f"{wanted.place}.devices: found all, {count(had, 'GPU')}, but one is lost: {lost}"
    known = (at for at, theirs in enumerate(running) if theirs is not None and lost)
    last = max((*kept, *known), default=-1)
    given: list[Assigned] = []
    for position in count_up():
        has_room = position in kept or len(free.uuids) >= shards
        if position > last and not has_room:
            return given
        # One whose GPU was taken out of the machine is no more; of one that is lost it is told.
        if has_room or lost:
            given.append(_next(free, shards, kept, position, trouble))
    return given


def _uneven(wanted: Wanted, found: int, inventory: Inventory) -> str:
    expected = "at least one"
    if wanted.model.shards > 1:
        expected = f"a multiple of gpus_per_replica ({wanted.model.shards})"
    trouble = f"; {inventory.trouble}" if inventory.trouble else ""
    free = count(found, "free GPU")
    return f"{wanted.place}.devices: found all, {free}, expected {expected}{trouble}"


def _toofew(wanted: Wanted, replicas: int, found: int, free: _Free) -> str:
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
    return few(devices + [one.uuid for one in inventory.slices]) or "none: no GPU is here"
