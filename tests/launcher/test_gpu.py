"""GPUs as values: how they are found by name, whose processes are strange, what faults mean."""

import pytest

from launcher.gpu import DriverState, Gpu, GpuProcess, Inventory, Reading, strangers
from launcher.gpu_faults import (
    driver_advice,
    ecc_event,
    gpu_advice,
    remap_trouble,
    slowdowns,
    xid_event,
)


def gpu(uuid: str, index: int, parent: str | None = None) -> Gpu:
    return Gpu(uuid, index, "NVIDIA H100", 80, (9, 0), "00000000:1A:00.0", None, parent, False)


FIRST, THIRD = gpu("GPU-aaaa-1", 0), gpu("GPU-aabb-3", 2)
SLICE, OTHER_SLICE = gpu("MIG-cccc-1", 2, "GPU-aabb-3"), gpu("MIG-cccc-12", 2, "GPU-aabb-3")
INVENTORY = Inventory(DriverState.OK, (FIRST, THIRD), (SLICE, OTHER_SLICE))


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda:0", FIRST),
        ("0", FIRST),
        ("cuda:2", THIRD),  # the second one is lost and keeps its number
        ("cuda:1", None),
        ("1", None),
        ("cuda:7", None),
        ("GPU-aaaa-1", FIRST),
        ("GPU-aab", THIRD),
        ("GPU-aa", None),  # fits both
        ("GPU-", None),
        ("MIG-cccc-1", SLICE),  # whole, though it begins the other's as well
        ("MIG-cccc-12", OTHER_SLICE),
        ("MIG-cccc", None),
        ("MIG-", None),
        ("cuda:", None),
        ("cuda:-1", None),
        ("cuda:1.0", None),
        ("cuda:²", None),
        ("cuda", None),
        ("cpu", None),
        ("", None),
        ("gpu-aaaa-1", None),
    ],
)
def test_a_device_is_found_by_number_or_uuid(device: str, expected: Gpu | None) -> None:
    assert INVENTORY.find(device) is expected


def test_the_only_gpu_is_not_found_by_half_a_prefix() -> None:
    assert Inventory(DriverState.OK, (FIRST,)).find("GPU-") is None
    assert Inventory(DriverState.OK, (FIRST,)).find("GP") is None


def test_slices_belong_to_their_gpu() -> None:
    assert INVENTORY.slices_of(THIRD) == (SLICE, OTHER_SLICE)
    assert INVENTORY.slices_of(FIRST) == ()


def test_strangers_are_those_that_are_not_ours() -> None:
    ours, theirs = GpuProcess(7, 1, "python3 server.py"), GpuProcess(8, None, "Xorg")
    readings = {
        "GPU-1": Reading("GPU-1", 0, 0, processes=(ours, theirs)),
        "GPU-2": Reading("GPU-2", 0, 0, processes=(ours,)),
        "GPU-3": Reading("GPU-3", 0, 0),
    }
    assert strangers(readings, {7}) == {"GPU-1": (theirs,)}
    assert strangers(readings, {7, 8}) == {}
    assert strangers(readings, ()) == {"GPU-1": (ours, theirs), "GPU-2": (ours,)}


@pytest.mark.parametrize("code", [13, 31, 43, 45, 68, 109])
def test_a_fault_of_the_program_leaves_the_gpu_in_use(code: int) -> None:
    event = xid_event("GPU-1", code)
    assert (event.uuid, event.kind, event.code) == ("GPU-1", "xid", code)
    assert not event.is_fatal_for_gpu
    assert event.message.startswith(f"XID {code}: ")


@pytest.mark.parametrize("code", [48, 64, 74, 79, 94, 95, 119, 120, 12_345])
def test_any_other_fault_takes_the_gpu_out_and_says_what_to_do(code: int) -> None:
    event = xid_event("GPU-1", code)
    assert event.is_fatal_for_gpu
    assert "reset" in event.message


@pytest.mark.parametrize("code", [63, 154])
def test_a_report_of_what_is_to_be_done_some_time_leaves_the_gpu_in_use(code: int) -> None:
    event = xid_event("GPU-1", code)
    assert not event.is_fatal_for_gpu
    assert "; " in event.message


def test_an_uncorrected_memory_error_takes_the_gpu_out() -> None:
    event = ecc_event("GPU-1")
    assert (event.kind, event.code, event.is_fatal_for_gpu) == ("ecc", None, True)
    assert "ECC" in event.message


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x10 | 0x100, ()),  # idle, set clocks, sync boost, display
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "heat (hardware)")),
        (0x20 | 0x80, ("heat (software)", "power brake")),
    ],
)
def test_only_what_slows_a_gpu_against_our_will_is_told(
    mask: int, expected: tuple[str, ...]
) -> None:
    assert slowdowns(mask) == expected


@pytest.mark.parametrize(
    ("is_pending", "has_failed", "expected"),
    [
        (False, False, ""),
        (True, False, "reset"),
        (False, True, "replaced"),
        (True, True, "replaced"),
    ],
)
def test_spare_memory_rows_ask_for_a_person(
    is_pending: bool, has_failed: bool, expected: str
) -> None:
    said = remap_trouble(is_pending=is_pending, has_failed=has_failed)
    assert expected in said
    assert bool(said) == bool(expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(4, "/dev/nvidia"), (9, "modprobe"), (12, "install"), (13, "too old"), (18, "updated")],
)
def test_each_refusal_of_the_driver_comes_with_its_own_advice(code: int, expected: str) -> None:
    assert expected in driver_advice(code)


def test_an_unknown_refusal_comes_with_advice_too() -> None:
    assert "nvidia-smi" in driver_advice(4711)
    assert "nvidia-smi" in gpu_advice(4711)
