"""What the router is told of GPUs: faults until somebody has seen to them, heat while it lasts."""

import pytest

from launcher.gpu import DriverState, Gpu, GpuEvent, Inventory, Reading
from launcher.gpu_faults import slowdowns, xid_event
from launcher.gpu_troubles import GpuTroubles, Trouble


def gpu(uuid, parent=None):
    return Gpu(uuid, 0, "GPU", 1, (9, 0), "0", None, parent, mig_enabled=False)


INVENTORY = Inventory(
    DriverState.OK, (gpu("GPU-a"), gpu("GPU-b")), (gpu("MIG-1", "GPU-b"), gpu("MIG-2", "GPU-b"))
)


def readings(**masks):
    """Of GPUs a and b, with why the driver lowers their clocks."""
    found = {f"GPU-{name}": mask for name, mask in masks.items()}
    return {
        uuid: Reading(uuid, 0, 1, throttle_reasons=slowdowns(mask)) for uuid, mask in found.items()
    }


def test_a_fault_is_known_until_somebody_has_seen_to_it():
    troubles = GpuTroubles()
    troubles.happened(xid_event("GPU-a", 48))
    assert "XID 48" in troubles.of(["GPU-a"]).fault
    assert troubles.of(["GPU-b"]) == Trouble()
    troubles.seen_to()
    assert troubles.of(["GPU-a"]) == Trouble()


@pytest.mark.parametrize("code", [13, 31, 43, 63])
def test_what_a_program_brought_upon_itself_is_no_fault_of_the_gpu(code):
    troubles = GpuTroubles()
    troubles.happened(xid_event("GPU-a", code))
    assert troubles.of(["GPU-a"]) == Trouble()


def test_slices_share_their_gpu_s_fate():
    troubles = GpuTroubles()
    troubles.happened(GpuEvent("GPU-b", "ecc", None, True, "memory error", ("MIG-1", "MIG-2")))
    assert troubles.of(["MIG-2"]).fault == "GPU MIG-2: memory error"
    troubles.read(readings(b=0x40), INVENTORY)
    assert troubles.of(["MIG-1"]).slowed == "GPU MIG-1 throttled: heat (hardware)"


@pytest.mark.parametrize(
    ("mask", "is_slowed"),
    [(0x0, False), (0x1, False), (0x4, False), (0x80, False), (0x20, True), (0x48, True)],
)
def test_heat_slows_and_a_power_cap_is_part_of_full_load(mask, is_slowed):
    troubles = GpuTroubles()
    assert troubles.read(readings(a=mask, b=0), INVENTORY) is is_slowed
    assert bool(troubles.of(["GPU-a"]).slowed) is is_slowed
    assert troubles.of(["GPU-b"]) == Trouble()


def test_heat_is_news_when_it_comes_and_when_it_goes():
    troubles = GpuTroubles()
    found = [troubles.read(readings(a=mask), INVENTORY) for mask in (0, 0x40, 0x40, 0, 0)]
    assert found == [False, True, False, True, False]


def test_a_replica_on_several_gpus_has_the_troubles_of_all():
    troubles = GpuTroubles()
    troubles.happened(xid_event("GPU-b", 79))
    troubles.read(readings(a=0x40), INVENTORY)
    found = troubles.of(["GPU-a", "GPU-b"])
    assert found.fault.startswith("GPU GPU-b: XID 79")
    assert "GPU-a" in found.slowed
