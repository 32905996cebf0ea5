"""What the router should know of the GPUs: which one is faulty, and which one runs slower than it
could. Pure; owned by the supervisor.

A fault that ends an engine ends it at once (`GpuEvent`), but what is started there again is on the
same GPU: it stays faulty until somebody has seen to it (`launcher up`). A throttled GPU is so for
as long as the driver says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.gpu import GpuEvent, Inventory, Reading
from launcher.gpu_faults import HEAT


@dataclass(frozen=True, slots=True)
class Trouble:
    """Of a replica's GPUs; empty where there is none. The names are those of the pushed list."""

    fault: str = ""
    slowed: str = ""


class GpuTroubles:
    """By UUID; a MIG slice has its GPU's."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}
        self._slowed: dict[str, str] = {}

    def happened(self, event: GpuEvent) -> None:
        if event.is_fatal_for_gpu:
            for uuid in (event.uuid, *event.slices):
                self._faults[uuid] = event.message

    def read(self, readings: Mapping[str, Reading], inventory: Inventory) -> bool:
        """Whether anything is new."""
        before, self._slowed = self._slowed, {}
        for uuid, reading in readings.items():
            heat = ", ".join(reason for reason in reading.throttle_reasons if reason in HEAT)
            for one in (uuid, *inventory.slices_at(uuid)) if heat else ():
                self._slowed[one] = f"throttled: {heat}"
        return self._slowed != before

    @property
    def heat(self) -> str:
        return "; ".join(f"{uuid} {why}" for uuid, why in self._slowed.items())

    def seen_to(self) -> None:
        """A person says so: from here on only what happens anew counts."""
        self._faults.clear()

    def of(self, devices: Iterable[str]) -> Trouble:
        found = list(devices)
        faults = (f"GPU {uuid}: {self._faults[uuid]}" for uuid in found if uuid in self._faults)
        slowed = (f"GPU {uuid} {self._slowed[uuid]}" for uuid in found if uuid in self._slowed)
        return Trouble("; ".join(faults), "; ".join(slowed))
