"""How GPUs are shown: blocks that fit a terminal, one wide line per GPU for grep, JSON for scripts.

Used by `launcher devices`. Pure rendering; what JSON promises is told in `commands/devices.py`.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.gpu import DriverState, Gpu, Inventory, Reading

GIB = 2**30
_GAP = "  "
_INDENT = " " * 8
_LEAST_NAME = 8
_MOST_PROCESSES = 8  # in a block; a desktop has dozens
_BLOCK_COLUMNS = ("DEVICE", "NAME", "MEMORY GiB", "UTIL", "TEMP", "POWER W", "CC")
_LINE_COLUMNS = (
    *("DEVICE", "UUID", "NAME", "MEMORY GiB", "UTIL", "TEMP", "POWER W", "CC", "PCI", "NUMA"),
    *("PROCESSES", "DETAIL"),
)
_LEFT = frozenset({"DEVICE", "UUID", "NAME", "CC", "PCI", "PROCESSES", "DETAIL"})


@dataclass(frozen=True, slots=True)
class Look:
    """What the driver said at one time."""

    inventory: Inventory
    readings: Mapping[str, Reading]

    @property
    def is_well(self) -> bool:
        """Whether nothing asks for a person; no driver at all is well, too."""
        if self.inventory.state is DriverState.BROKEN:
            return False
        troubles = [reading.trouble for reading in self.readings.values()]
        return self.inventory.state is DriverState.NONE or not any(
            (self.inventory.trouble, *troubles)
        )

    def devices(self) -> Iterator[tuple[Gpu, Reading]]:
        """Every GPU, each followed by its slices."""
        for gpu in self.inventory.gpus:
            yield gpu, self.readings[gpu.uuid]
            for part in self.inventory.slices_of(gpu):
                yield part, self.readings[part.uuid]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text and rich's word for how it looks."""

    text: str
    style: str = ""


def heading(inventory: Inventory) -> str:
    """What was found, in one sentence."""
    if inventory.state is not DriverState.OK:
        return inventory.trouble
    version = f"NVIDIA driver {inventory.driver_version or 'of unknown version'}"
    if inventory.cuda_version:
        version += f", CUDA up to {inventory.cuda_version}"
    found = _count(len(inventory.gpus), "GPU")
    if inventory.slices:
        found += f", {_count(len(inventory.slices), 'MIG slice')}"
    return f"{version}: {found}"


def fitting(look: Look, width: int, height: int) -> list[Line]:
    """For a terminal that cannot be scrolled: who uses a GPU, and what is not urgent, may go."""
    lines = list(blocks(look, width))
    return lines if len(lines) < height else list(blocks(look, width, is_short=True))


def blocks(look: Look, width: int, *, is_short: bool = False) -> Iterator[Line]:
    """For people: a row for each device, below it what has no room there."""
    yield from _wrapped(heading(look.inventory), width, indent="")
    if look.inventory.state is not DriverState.OK:
        return
    devices = list(look.devices())
    rows = [_BLOCK_COLUMNS, *(_row(gpu, reading, look) for gpu, reading in devices)]
    head, *lines = _aligned(rows, _BLOCK_COLUMNS, width)
    if devices:
        yield Line(head, "bold")
    for (gpu, reading), line in zip(devices, lines, strict=True):
        yield Line(line, "red" if reading.trouble else "")
        if not is_short:
            yield from _details(gpu, reading, look, width)
        elif reading.trouble:
            yield from _wrapped(reading.trouble, width, style="red")
    for trouble in look.inventory.trouble.splitlines():
        yield from _wrapped(trouble, width, indent="", style="bold red")


def plain(look: Look) -> Iterator[str]:
    """For pipes: one line for each device, whole however long."""
    yield heading(look.inventory)
    yield from table(look)
    if look.inventory.state is DriverState.OK:
        yield from look.inventory.trouble.splitlines()


def table(look: Look) -> Iterator[str]:
    """The lines of devices, headed by the names of their columns; none without devices."""
    devices = list(look.devices())
    if not devices:
        return
    rows: list[tuple[str, ...]] = [_LINE_COLUMNS]
    for gpu, reading in devices:
        device, _, *middle = _row(gpu, reading, look)
        numa = "-" if gpu.numa_node is None else str(gpu.numa_node)
        said = "; ".join(_remarks(gpu, reading, look))
        processes = ", ".join(f"{one.pid} {one.name}".strip() for one in reading.processes)
        names = (device.strip(), gpu.uuid, gpu.name)
        rows.append((*names, *middle, gpu.pci_bus_id, numa, processes or "-", said or "-"))
    yield from _aligned(rows, _LINE_COLUMNS)


def as_json(look: Look) -> dict[str, Any]:
    """The shape that `launcher devices --json` promises to scripts."""
    inventory = look.inventory
    return {
        "state": str(inventory.state),
        "driver_version": inventory.driver_version or None,
        "cuda_version": inventory.cuda_version or None,
        "trouble": inventory.trouble,
        "devices": [_device_json(gpu, reading) for gpu, reading in look.devices()],
    }


def _device_json(gpu: Gpu, reading: Reading) -> dict[str, Any]:
    knows_memory = reading.used_bytes or reading.free_bytes
    return {
        "device": gpu.uuid if gpu.parent else f"cuda:{gpu.index}",
        "uuid": gpu.uuid,
        "parent": gpu.parent,
        "index": gpu.index,
        "name": gpu.name,
        "compute_capability": _capability(gpu),
        "pci_bus_id": gpu.pci_bus_id,
        "numa_node": gpu.numa_node,
        "mig_enabled": gpu.mig_enabled,
        "memory_bytes": gpu.memory_bytes or None,
        "memory_used_bytes": reading.used_bytes if knows_memory else None,
        "memory_free_bytes": reading.free_bytes if knows_memory else None,
        "utilisation_percent": reading.utilisation_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "power_limit_w": reading.power_limit_w,
        "throttle_reasons": list(reading.throttle_reasons),
        "ecc_uncorrected": reading.ecc_uncorrected,
        "processes": [
            {"pid": one.pid, "name": one.name or None, "used_bytes": one.used_bytes}
            for one in reading.processes
        ],
        "trouble": reading.trouble,
    }


def _row(gpu: Gpu, reading: Reading, look: Look) -> tuple[str, ...]:
    """The cells of `_BLOCK_COLUMNS`."""
    return (
        "  MIG" if gpu.parent else f"cuda:{gpu.index}",
        _short_name(gpu, look),
        _memory(gpu, reading),
        _with_unit(reading.utilisation_percent, "%"),
        _with_unit(reading.temperature_c, "C"),
        _power(reading),
        _capability(gpu) or "-",
    )


def _short_name(gpu: Gpu, look: Look) -> str:
    """Without what every name begins with, and a slice's without its GPU's."""
    parent = look.inventory.find(gpu.parent) if gpu.parent else None
    name = gpu.name.removeprefix(parent.name).strip() if parent else gpu.name
    return name.removeprefix("NVIDIA ").removeprefix("MIG ")


def _memory(gpu: Gpu, reading: Reading) -> str:
    if not gpu.memory_bytes:
        return "-"
    is_known = reading.used_bytes or reading.free_bytes
    used = f"{reading.used_bytes / GIB:.1f}" if is_known else "?"
    return f"{used} / {gpu.memory_bytes / GIB:.1f}"


def _power(reading: Reading) -> str:
    if reading.power_w is None:
        return "-"
    limit = reading.power_limit_w
    return f"{reading.power_w:.0f}" + (f" / {limit:.0f}" if limit is not None else "")


def _with_unit(number: int | None, unit: str) -> str:
    return "-" if number is None else f"{number}{unit}"


def _capability(gpu: Gpu) -> str | None:
    return ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else None


def _details(gpu: Gpu, reading: Reading, look: Look, width: int) -> Iterator[Line]:
    where = gpu.uuid
    if gpu.parent is None:
        where += f"{_GAP}PCI {gpu.pci_bus_id.removeprefix('0000')}"
        where += f"{_GAP}NUMA {gpu.numa_node}" if gpu.numa_node is not None else ""
    yield from _wrapped(where, width, style="dim")
    # A cut GPU lists its slices' processes again.
    shown = () if look.inventory.slices_of(gpu) else reading.processes
    for process in shown[:_MOST_PROCESSES]:
        used = "" if process.used_bytes is None else f", {process.used_bytes / GIB:.1f} GiB"
        yield from _wrapped(f"{process.pid} {process.name or '(unknown)'}{used}", width)
    if len(shown) > _MOST_PROCESSES:
        yield Line(f"{_INDENT}and {_count(len(shown) - _MOST_PROCESSES, 'more process', 'es')}")
    for remark in _remarks(gpu, reading, look):
        yield from _wrapped(remark, width, style="red" if reading.trouble else "yellow")


def _remarks(gpu: Gpu, reading: Reading, look: Look) -> Iterator[str]:
    """What somebody should know of it, the worst first."""
    if reading.trouble:
        yield reading.trouble
    if reading.ecc_uncorrected:
        yield f"uncorrected memory errors since the driver was loaded: {reading.ecc_uncorrected}"
    if reading.throttle_reasons:
        yield f"slowed down by: {', '.join(reading.throttle_reasons)}"
    if gpu.mig_enabled and not look.inventory.slices_of(gpu):
        yield "MIG is on but there are no slices, so nothing can run here: `nvidia-smi mig -cgi`"


def _aligned(
    rows: Sequence[Sequence[str]], columns: Sequence[str], width: int | None = None
) -> Iterator[str]:
    """Rows as lines; to fit `width`, names are cut."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    name = columns.index("NAME")
    if width is not None:
        over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[name] = max(_LEAST_NAME, widths[name] - max(0, over))
    for row in rows:
        cells = []
        for column, cell, room in zip(columns, row, widths, strict=True):
            short = cell if len(cell) <= room else f"{cell[: room - 1]}…"
            cells.append(short.ljust(room) if column in _LEFT else short.rjust(room))
        yield _GAP.join(cells).rstrip()[:width]


def _wrapped(text: str, width: int, *, indent: str = _INDENT, style: str = "") -> Iterator[Line]:
    """Long words such as UUIDs stay whole as long as they fit on a line of their own."""
    for line in textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    ):
        yield Line(line, style)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else plural}"
