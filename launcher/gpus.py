"""The NVIDIA driver, asked through NVML: which GPUs there are, how they are, what happens to them.

The only file that imports pynvml. Used by placement and the supervisor, and by `launcher devices`.
Nothing here raises for what a driver or a GPU does: it becomes a `DriverState`, a `trouble` or an
event. Calls take up to milliseconds, but the first to a sleeping GPU a second or two, and one to a
dying GPU may hang: ask from a thread, never from the event loop.
"""

import ctypes
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from launcher import gpu_host
from launcher.gpu import DriverState, Gpu, GpuEvent, GpuProcess, Inventory, Reading
from launcher.gpu_faults import (
    FUNCTION_NOT_FOUND,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    NOT_SUPPORTED,
    TIMEOUT,
    blind_trouble,
    driver_advice,
    ecc_event,
    gpu_advice,
    lost_event,
    remap_trouble,
    slowdowns,
    xid_event,
)
from launcher.gpu_losses import Losses

_LIBRARY = "libnvidia-ml.so.1"
_DOUBLE_BIT_ECC, _XID = 0x2, 0x8
_MEMORY_V2 = 0x0200_0028
_WAIT_S = 0.5  # a wait for events is cut into these, so that GPUs are looked at and closing is fast
_CLOSE_S = 5.0
_MOST_EVENTS = 100  # at a time: a storm of them must not keep the caller waiting


def read_inventory() -> Inventory:
    """What GPUs this machine has, or why that cannot be told. Never raises."""
    with GpuMonitor() as monitor:
        return monitor.inventory


class GpuMonitor:
    """An open driver. Its GPUs are those of the moment it was opened.

    Use it in a `with`. One thread may wait for events while another takes readings; the `with` may
    be left meanwhile. Where there is no usable driver it has no GPUs and no events to tell.
    """

    inventory: Inventory
    trouble: str = ""  # why no GPU could be asked when events were last waited for

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._events: _EventSet | None = None
        self._losses = Losses()
        self._waiting = threading.Lock()
        self._is_closed = threading.Event()

    def __enter__(self) -> "GpuMonitor":
        try:
            _call("nvmlInit")
        except _Refused as exc:
            self.inventory = _without_driver(exc)
            return self
        found = _look()
        self.inventory, self._handles = found.inventory(), found.handles
        self._events = _EventSet(self.inventory, self._handles)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        if not self._waiting.acquire(timeout=_CLOSE_S):
            return  # a call hangs in the driver, which would take this thread with it
        if self._events is not None:
            self._events.close()
            self._events = None
            _ask("nvmlShutdown")
        self._waiting.release()

    def readings(self) -> dict[str, Reading]:
        """How each GPU and slice is now, by UUID. One that fails tells so in its `trouble`."""
        gpus = (*self.inventory.gpus, *self.inventory.slices)
        return {gpu.uuid: _reading(gpu, self._handles[gpu.uuid]) for gpu in gpus}

    def wait_events(self, timeout_s: float) -> list[GpuEvent]:
        """What happened since the last call, or happens within `timeout_s`; empty if nothing.

        A lost GPU is told once, and again only if it came back in between; where no GPU answers
        any more that is no event, but `trouble`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            with self._waiting:
                if self._is_closed.is_set():
                    return []
                lost = self._newly_lost()
                events = lost + self._reported(0.0 if lost else min(left_s, _WAIT_S))
            if events or left_s == 0:
                return events

    def _reported(self, wait_s: float) -> list[GpuEvent]:
        try:
            if self._events is not None and self._events.can_tell:
                return self._events.wait(wait_s)
        except _Refused:  # a GPU went while it was waited for: seen by the next look at each one
            pass
        self._is_closed.wait(wait_s)
        return []

    def _newly_lost(self) -> list[GpuEvent]:
        refused: dict[str, _Refused] = {}
        for gpu in self.inventory.gpus:
            try:
                _memory(self._handles[gpu.uuid])
            except _Refused as exc:
                refused[gpu.uuid] = exc
        uuids = [gpu.uuid for gpu in self.inventory.gpus]
        lost = self._losses.newly_lost(uuids, {uuid: refused[uuid].code for uuid in refused})
        one = next(iter(refused.values()), None)
        self.trouble = blind_trouble(str(one), one.code) if one and self._losses.is_blind else ""
        return [lost_event(uuid, refused[uuid].trouble) for uuid in lost]


class _Refused(Exception):
    """The driver's answer is an error code."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words.rstrip("."))
        self.code = code

    @property
    def trouble(self) -> str:
        return f"{self}: {gpu_advice(self.code)}"


def _call(name: str, *args: Any) -> Any:
    import pynvml

    function = getattr(pynvml, name, None)
    if function is None:
        raise _Refused(FUNCTION_NOT_FOUND, f"this pynvml has no {name}")
    try:
        return function(*args)
    except pynvml.NVMLError as exc:
        raise _Refused(exc.value, str(exc)) from exc
    except pynvml.NVMLLibraryMismatchError as exc:  # no NVMLError
        raise _Refused(FUNCTION_NOT_FOUND, str(exc)) from exc


def _ask(name: str, *args: Any) -> Any:
    """For what a GPU or a driver may lack: None then."""
    try:
        return _call(name, *args)
    except _Refused:
        return None


def _without_driver(refused: _Refused) -> Inventory:
    advice = driver_advice(refused.code)
    if refused.code != LIBRARY_NOT_FOUND:
        trouble = f"the NVIDIA driver cannot be used: {refused}; {advice}"
        return Inventory(DriverState.BROKEN, trouble=trouble)
    reason = _why_not_loaded()
    if not reason.startswith(f"{_LIBRARY}: cannot open shared object file"):
        trouble = f"the NVIDIA driver's library cannot be loaded: {reason}; {advice}"
        return Inventory(DriverState.BROKEN, trouble=trouble)
    trouble = f"no NVIDIA driver: {_LIBRARY} was not found"
    if count := gpu_host.gpus_on_bus():
        trouble += f", but NVIDIA GPUs on this machine's PCI bus: {count}; {advice}"
    return Inventory(DriverState.NONE, trouble=trouble)


def _why_not_loaded() -> str:
    """pynvml says the same of a library that is missing and of one that is damaged."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as exc:
        return str(exc)
    return "it could not be read a moment ago"


@dataclass(slots=True)
class _Found:
    gpus: list[Gpu] = field(default_factory=list)
    slices: list[Gpu] = field(default_factory=list)
    handles: dict[str, Any] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def add(self, gpu: Gpu, handle: Any) -> None:
        (self.slices if gpu.parent else self.gpus).append(gpu)
        self.handles[gpu.uuid] = handle

    def inventory(self) -> Inventory:
        cuda = _ask("nvmlSystemGetCudaDriverVersion")
        return Inventory(
            DriverState.OK,
            tuple(self.gpus),
            tuple(self.slices),
            driver_version=_ask("nvmlSystemGetDriverVersion") or "",
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
            trouble="\n".join(self.troubles),
        )


def _look() -> _Found:
    """Every GPU that answers, numbered in PCI bus order, which NVML keeps but does not promise.

    One that is there but does not answer keeps its number; one that this process may not use, as in
    another's cgroup, has none.
    """
    found = _Found()
    reached: list[tuple[Gpu, Any]] = []
    numbers: list[int] = []
    count, number = _ask("nvmlDeviceGetCount") or 0, 0
    for position in range(count):
        try:
            handle = _call("nvmlDeviceGetHandleByIndex", position)
            reached.append((_gpu(handle), handle))
            numbers.append(number)
        except _Refused as exc:
            if exc.code == NO_PERMISSION:
                continue
            found.troubles.append(f"cuda:{number}{_address(position, count)}: {exc.trouble}")
        number += 1
    reached.sort(key=lambda gpu_and_handle: gpu_and_handle[0].pci_bus_id)
    for index, (gpu, handle) in zip(numbers, reached, strict=True):
        numbered = replace(gpu, index=index)
        found.add(numbered, handle)
        for part, part_handle in _slices(numbered, handle):
            found.add(part, part_handle)
    return found


def _address(position: int, count: int) -> str:
    """Where a GPU is that cannot tell; NVML keeps the order of the bus."""
    addresses = gpu_host.driver_addresses()
    return f" at {addresses[position]}" if len(addresses) == count else ""


def _gpu(handle: Any) -> Gpu:
    pci_bus_id = _text(_call("nvmlDeviceGetPciInfo", handle).busId).upper()
    mode = _ask("nvmlDeviceGetMigMode", handle)
    return Gpu(
        uuid=_call("nvmlDeviceGetUUID", handle),
        index=0,  # known once all are
        name=_ask("nvmlDeviceGetName", handle) or "NVIDIA GPU",
        memory_bytes=_memory(handle)[0],
        compute_capability=_ask("nvmlDeviceGetCudaComputeCapability", handle),
        pci_bus_id=pci_bus_id,
        numa_node=gpu_host.numa_node(pci_bus_id),
        parent=None,
        mig_enabled=bool(mode and mode[0]),
    )


def _slices(gpu: Gpu, handle: Any) -> Iterator[tuple[Gpu, Any]]:
    """The MIG slices it is cut into; their places may have holes."""
    places = _ask("nvmlDeviceGetMaxMigDeviceCount", handle) if gpu.mig_enabled else 0
    for place in range(places or 0):
        part = _ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        uuid = _ask("nvmlDeviceGetUUID", part) if part else None
        if uuid:
            yield (
                replace(
                    gpu,
                    uuid=uuid,
                    name=_ask("nvmlDeviceGetName", part) or f"{gpu.name} MIG",
                    memory_bytes=_memory(part, is_slice=True)[0],
                    parent=gpu.uuid,
                    mig_enabled=False,
                ),
                part,
            )


def _memory(handle: Any, *, is_slice: bool = False) -> tuple[int, int]:
    """Total and free bytes; `used` is not asked for, as drivers disagree on what it includes."""
    memory = _ask("nvmlDeviceGetMemoryInfo", handle, _MEMORY_V2)
    try:
        memory = memory or _call("nvmlDeviceGetMemoryInfo", handle)
    except _Refused as exc:
        if exc.code == NO_PERMISSION:
            return 0, 0
        if exc.code != NOT_SUPPORTED:
            raise
    if memory is not None and memory.total:
        return memory.total, memory.free
    return (0, 0) if is_slice else gpu_host.shared_memory()  # GB10, Jetson: none of its own


def _reading(gpu: Gpu, handle: Any) -> Reading:
    try:
        total, free = _memory(handle, is_slice=gpu.parent is not None)
    except _Refused as exc:
        return Reading(gpu.uuid, 0, 0, trouble=exc.trouble)
    use = _ask("nvmlDeviceGetUtilizationRates", handle)
    reasons = _ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    rows = _ask("nvmlDeviceGetRemappedRows", handle)
    return Reading(
        gpu.uuid,
        used_bytes=total - free,
        free_bytes=free,
        utilisation_percent=use.gpu if use else None,
        temperature_c=_temperature_c(handle),
        power_w=_watts(_ask("nvmlDeviceGetPowerUsage", handle)),
        power_limit_w=_watts(_ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
        throttle_reasons=slowdowns(reasons or 0),
        ecc_uncorrected=_ask("nvmlDeviceGetTotalEccErrors", handle, 1, 0),
        is_persistent=_flag(_ask("nvmlDeviceGetPersistenceMode", handle)),
        processes=tuple(_processes(handle)),
        trouble=remap_trouble(is_pending=rows[2] != 0, has_failed=rows[3] != 0) if rows else "",
    )


def _temperature_c(handle: Any) -> int | None:
    new: int | None = _ask("nvmlDeviceGetTemperatureV", handle, 0)
    return _ask("nvmlDeviceGetTemperature", handle, 0) if new is None else new


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _flag(value: int | None) -> bool | None:
    return None if value is None else value != 0


def _processes(handle: Any) -> Iterable[GpuProcess]:
    """By pid, once each: a program may compute and draw."""
    computing = _ask("nvmlDeviceGetComputeRunningProcesses_v3", handle) or []
    drawing = _ask("nvmlDeviceGetGraphicsRunningProcesses_v3", handle) or []
    found = {process.pid: process for process in (*drawing, *computing)}
    for pid, process in sorted(found.items()):
        yield GpuProcess(pid, process.usedGpuMemory, gpu_host.process_name(pid))


class _EventSet:
    """The driver's own queue of faults, for every GPU that can report them."""

    def __init__(self, inventory: Inventory, handles: dict[str, Any]) -> None:
        self._gpu_at = {_pointer(handles[gpu.uuid]): gpu.uuid for gpu in inventory.gpus}
        self._slice_at = {
            (part.parent, *_instances(handles[part.uuid])): part.uuid for part in inventory.slices
        }
        self._set = _ask("nvmlEventSetCreate")
        # Not on WSL and with some virtual GPUs; a set without GPUs would not wait.
        registered = [self._register(handles[gpu.uuid]) for gpu in inventory.gpus]
        self.can_tell = any(registered)

    def _register(self, handle: Any) -> bool:
        wanted = (_XID | _DOUBLE_BIT_ECC) & (_ask("nvmlDeviceGetSupportedEventTypes", handle) or 0)
        if self._set is None or not wanted:
            return False
        try:
            _call("nvmlDeviceRegisterEvents", handle, wanted, self._set)
        except _Refused:
            return False
        return True

    def wait(self, wait_s: float) -> list[GpuEvent]:
        """_Refused when the driver cannot even wait."""
        events: list[GpuEvent] = []
        while len(events) < _MOST_EVENTS:
            wait_ms = 0 if events else int(wait_s * 1000)
            try:
                event = _call("nvmlEventSetWait_v2", self._set, wait_ms)
            except _Refused as exc:
                if events or exc.code == TIMEOUT:
                    break
                raise
            events.append(self._translated(event))
        return events

    def _translated(self, event: Any) -> GpuEvent:
        gpu = self._gpu_at.get(_pointer(event.device)) or _ask("nvmlDeviceGetUUID", event.device)
        place = (gpu, event.gpuInstanceId, event.computeInstanceId)
        uuid = self._slice_at.get(place, gpu or "")
        return xid_event(uuid, event.eventData) if event.eventType == _XID else ecc_event(uuid)

    def close(self) -> None:
        if self._set is not None:
            _ask("nvmlEventSetFree", self._set)


def _instances(slice_handle: Any) -> tuple[Any, Any]:
    gpu_instance = _ask("nvmlDeviceGetGpuInstanceId", slice_handle)
    return gpu_instance, _ask("nvmlDeviceGetComputeInstanceId", slice_handle)


def _pointer(handle: Any) -> int | None:
    """Two handles of one GPU are not equal to Python; where they point is."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _text(raw: str | bytes) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw
