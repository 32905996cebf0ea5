"""How GPUs are shown: in a terminal of any width, on a pipe, to scripts."""

import pytest

from launcher import gpu_view
from launcher.gpu import DriverState, Gpu, GpuProcess, Inventory, Reading
from launcher.gpu_view import GIB, Look

BIG = Gpu(
    "GPU-6d1f0c5e-7f3b-4c1a-9e0d-2b8f6a4c1d3e",
    0,
    "NVIDIA H100 80GB HBM3",
    80 * GIB,
    (9, 0),
    "00000000:1A:00.0",
    1,
    None,
    False,
)
CUT = Gpu("GPU-cut", 1, "NVIDIA A100", 40 * GIB, (8, 0), "00000000:1B:00.0", None, None, True)
SLICE = Gpu(
    *("MIG-1", 1, "NVIDIA A100 MIG 1g.5gb", 5 * GIB, (8, 0), CUT.pci_bus_id, None, CUT.uuid, False)
)
BUSY = Reading(
    BIG.uuid,
    used_bytes=60 * GIB,
    free_bytes=20 * GIB,
    utilisation_percent=97,
    temperature_c=64,
    power_w=512.3,
    power_limit_w=700.0,
    throttle_reasons=("power cap", "heat (hardware)"),
    ecc_uncorrected=0,
    processes=(GpuProcess(4711, 59 * GIB, "python3 [red]serve.py"), GpuProcess(4712, None, "")),
)
LOST = "GPU is lost: it has fallen off the bus; look at `dmesg | grep -i xid`, then reset it"


def look(*devices: tuple[Gpu, Reading], trouble: str = "") -> Look:
    inventory = Inventory(
        DriverState.OK,
        tuple(gpu for gpu, _ in devices if gpu.parent is None),
        tuple(gpu for gpu, _ in devices if gpu.parent),
        "560.35.03",
        "12.6",
        trouble,
    )
    return Look(inventory, {gpu.uuid: reading for gpu, reading in devices})


def idle(gpu: Gpu) -> tuple[Gpu, Reading]:
    return gpu, Reading(gpu.uuid, 0, gpu.memory_bytes)


def text(shown: Look, width: int = 80) -> str:
    return "\n".join(line.text for line in gpu_view.blocks(shown, width))


def test_a_block_tells_all_of_a_gpu_in_80_columns() -> None:
    assert text(look((BIG, BUSY))).splitlines() == [
        "NVIDIA driver 560.35.03, CUDA up to 12.6: 1 GPU",
        "DEVICE  NAME             MEMORY GiB  UTIL  TEMP    POWER W  CC",
        "cuda:0  H100 80GB HBM3  60.0 / 80.0   97%   64C  512 / 700  9.0",
        "        GPU-6d1f0c5e-7f3b-4c1a-9e0d-2b8f6a4c1d3e  PCI 0000:1A:00.0  NUMA 1",
        "        4711 python3 [red]serve.py, 59.0 GiB",
        "        4712 (unknown)",
        "        slowed down by: power cap, heat (hardware)",
    ]


def test_slices_stand_below_their_gpu_with_their_own_uuid() -> None:
    lines = text(look(idle(CUT), idle(SLICE), idle(BIG))).splitlines()
    assert lines[0].endswith(": 2 GPUs, 1 MIG slice")
    assert [line.split()[0] for line in lines[2:]] == [
        *("cuda:1", "GPU-cut", "MIG", "MIG-1", "cuda:0", BIG.uuid)
    ]
    assert "  MIG   1g.5gb" in lines[4]


def test_a_process_in_a_slice_is_named_there_only() -> None:
    process = (GpuProcess(7, GIB, "serve"),)
    shown = look(
        (CUT, Reading(CUT.uuid, GIB, GIB, processes=process)),
        (SLICE, Reading(SLICE.uuid, GIB, GIB, processes=process)),
    )
    assert text(shown).count("7 serve") == 1


def test_a_gpu_in_mig_mode_without_slices_says_that_nothing_runs_there() -> None:
    assert "there are no slices" in text(look(idle(CUT)))
    assert "there are no slices" not in text(look(idle(CUT), idle(SLICE)))


@pytest.mark.parametrize("width", [40, 60, 72, 80, 132])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    in_trouble = (BIG, Reading(BIG.uuid, 0, 0, trouble=LOST))
    for shown in (look((BIG, BUSY)), look(in_trouble, trouble=f"cuda:2: {LOST}")):
        lines = [line.text for line in gpu_view.blocks(shown, width)]
        free = [line for line in lines if not line.lstrip().startswith("GPU-")]
        assert max(map(len, free)) <= width


def test_a_long_name_gives_way_to_the_numbers() -> None:
    long = Gpu(BIG.uuid, 0, "NVIDIA " + "x" * 60, GIB, None, BIG.pci_bus_id, None, None, False)
    row = text(look((long, BUSY)), 80).splitlines()[2]
    assert len(row) <= 80
    assert "x…" in row
    assert "97%" in row


def test_trouble_is_told_whole_and_in_red() -> None:
    shown = look((BIG, Reading(BIG.uuid, 0, 0, trouble=LOST)), trouble=f"cuda:1: {LOST}")
    lines = list(gpu_view.blocks(shown, 80))
    said = " ".join(" ".join(line.text for line in lines if "red" in line.style).split())
    assert said.count(LOST) == 2
    assert "? / 80.0" in text(shown)


def test_dozens_of_processes_are_cut_in_a_terminal_only() -> None:
    many = tuple(GpuProcess(pid, None, f"p{pid}") for pid in range(100, 130))
    shown = look((BIG, Reading(BIG.uuid, 0, GIB, processes=many)))
    assert "and 22 more processes" in text(shown)
    assert "129 p129" in "\n".join(gpu_view.plain(shown))


def test_a_low_terminal_shows_every_gpu_and_every_trouble() -> None:
    shown = look((BIG, BUSY), (CUT, Reading(CUT.uuid, 0, 0, trouble="GPU is lost")))
    high = gpu_view.fitting(shown, 80, 50)
    low = [line.text for line in gpu_view.fitting(shown, 80, len(high))]
    assert high == list(gpu_view.blocks(shown, 80))
    assert [line.split()[0] for line in low[2:]] == ["cuda:0", "cuda:1", "GPU"]


def test_a_pipe_gets_one_whole_line_for_each_device() -> None:
    lines = list(gpu_view.plain(look((BIG, BUSY), trouble="cuda:1: GPU is lost")))
    assert lines[1].split()[:3] == ["DEVICE", "UUID", "NAME"]
    (row,) = (line for line in lines if line.startswith("cuda:0"))
    for part in (
        BIG.uuid,
        BIG.name,
        BIG.pci_bus_id,
        "4711 python3 [red]serve.py, 4712",
        "power cap",
    ):
        assert part in row
    assert lines[-1] == "cuda:1: GPU is lost"


def test_a_machine_without_gpus_has_no_table() -> None:
    assert list(gpu_view.plain(look())) == ["NVIDIA driver 560.35.03, CUDA up to 12.6: no GPUs"]
    none = Look(Inventory(DriverState.NONE, trouble="no NVIDIA driver: not found"), {})
    assert list(gpu_view.plain(none)) == ["no NVIDIA driver: not found"]
    assert text(none) == "no NVIDIA driver: not found"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (look((BIG, BUSY)), True),  # slow and busy is no trouble
        (look(), True),
        (Look(Inventory(DriverState.NONE, trouble="not found"), {}), True),
        (Look(Inventory(DriverState.BROKEN, trouble="not loaded"), {}), False),
        (look((BIG, BUSY), trouble="cuda:1: lost"), False),
        (look((BIG, Reading(BIG.uuid, 0, 0, trouble="lost"))), False),
    ],
)
def test_all_is_well_unless_somebody_has_to_come(shown: Look, expected: bool) -> None:
    assert shown.is_well is expected


def test_scripts_get_every_field_and_null_for_what_is_not_told() -> None:
    unknown = Gpu("GPU-2", 1, "NVIDIA X", 0, None, "00000000:1B:00.0", None, None, False)
    first, second = gpu_view.as_json(
        look((BIG, BUSY), (unknown, Reading("GPU-2", 0, 0, trouble=LOST)))
    )["devices"]
    assert first == {
        "device": "cuda:0",
        "uuid": BIG.uuid,
        "parent": None,
        "index": 0,
        "name": BIG.name,
        "compute_capability": "9.0",
        "pci_bus_id": "00000000:1A:00.0",
        "numa_node": 1,
        "mig_enabled": False,
        "memory_bytes": 80 * GIB,
        "memory_used_bytes": 60 * GIB,
        "memory_free_bytes": 20 * GIB,
        "utilisation_percent": 97,
        "temperature_c": 64,
        "power_w": 512.3,
        "power_limit_w": 700.0,
        "throttle_reasons": ["power cap", "heat (hardware)"],
        "ecc_uncorrected": 0,
        "processes": [
            {"pid": 4711, "name": "python3 [red]serve.py", "used_bytes": 59 * GIB},
            {"pid": 4712, "name": None, "used_bytes": None},
        ],
        "trouble": "",
    }
    assert second.keys() == first.keys()
    told = {"device", "uuid", "index", "name", "pci_bus_id", "mig_enabled", "trouble"}
    empty = {"throttle_reasons", "processes"}
    assert {key for key, value in second.items() if value is not None} == told | empty


def test_scripts_name_a_slice_by_its_uuid() -> None:
    _, part = gpu_view.as_json(look(idle(CUT), idle(SLICE)))["devices"]
    assert (part["device"], part["parent"], part["index"]) == ("MIG-1", CUT.uuid, 1)
