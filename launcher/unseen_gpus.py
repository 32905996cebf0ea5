"""Who gets which GPU where the machine does not tell its GPUs: no driver, or a broken one. Pure.

Asked by `assignment`. Where it never told them, devices are as the config has them. Where it did,
replicas run on GPUs by UUID: they stay there, and whatever would have to be started has trouble.
"""

from collections.abc import Iterable, Sequence

from launcher.device_request import index_of
from launcher.gpu import DriverState, Inventory
from launcher.gpu_wishes import (
    Assigned,
    Running,
    Wanted,
    few,
    may_be,
    numbered,
    running_at,
    without_gpus,
)


def as_written(
    models: Sequence[Wanted], inventory: Inventory | None, problems: list[str]
) -> list[list[Assigned]]:
    """Devices as they are written; the others are counted from 0 on, past the named ones."""
    why = inventory.trouble if inventory and inventory.trouble else "that machine's are not known"
    named = {device for wanted in models for device in _named_devices(wanted)}
    by_uuid = sorted(device for device in named if index_of(device) is None)
    free = (f"cuda:{index}" for index in range(4096) if f"cuda:{index}" not in named)
    given: list[list[Assigned]] = []
    for wanted in models:
        request, replicas = wanted.model.wanted_devices, wanted.model.replica_count
        if not wanted.uses_gpus:
            given.append(without_gpus(wanted))
        elif request.kind == "named":
            given.append(numbered(request.groups))
        elif replicas is None or by_uuid:
            problems.append(_needs_the_machine(wanted, by_uuid, why))
            given.append([])
        else:
            shards = range(wanted.model.shards)
            groups = (tuple(next(free) for _ in shards) for _ in range(replicas))
            given.append(numbered(groups))
    return given


def _needs_the_machine(wanted: Wanted, by_uuid: Sequence[str], why: str) -> str:
    kind = wanted.model.wanted_devices.kind
    found = f"found {kind if wanted.model.devices else 'none, which is auto'}"
    if kind == "all":
        return f"{wanted.place}.devices: {found}, expected GPUs by name or a number of them: {why}"
    return (
        f"{wanted.place}.devices: {found}, expected names, as other models name theirs by UUID "
        f"({few(by_uuid)}) and might get the same GPUs: {why}"
    )


def _named_devices(wanted: Wanted) -> tuple[str, ...]:
    return wanted.model.wanted_devices.named if wanted.uses_gpus else ()


# ---- it told them once


def were_known(running: Sequence[Running]) -> bool:
    """Whether something runs on a GPU by its UUID."""
    groups = (group for theirs in running for group in theirs if group)
    return any(index_of(device) is None for group in groups for device in group)


def as_it_runs(wanted: Wanted, running: Running, inventory: Inventory) -> list[Assigned]:
    """What runs stays; what is named can be tried without a driver, not with a broken one."""
    if not wanted.uses_gpus:
        return without_gpus(wanted)
    model, place = wanted.model, f"{wanted.place}.devices"
    groups = model.wanted_devices.groups
    positions: Iterable[int] = range(model.replica_count or 0)
    if model.replica_count is None:
        positions = [at for at, theirs in enumerate(running) if theirs is not None] or [0]
    given: list[Assigned] = []
    for position in positions:
        theirs, group = running_at(running, position), groups[position] if groups else ()
        trouble = f"{place}: {inventory.trouble}"
        stays = len(theirs) == model.shards
        if groups:
            stays = len(theirs) == len(group) and all(map(may_be, group, theirs))
            trouble = trouble if inventory.state is DriverState.BROKEN else ""
        if stays or not trouble:
            given.append(Assigned(position, theirs if stays else group))
        else:
            given.append(Assigned(position, theirs or group, trouble))
    return given
