"""The driver asked through the real pynvml; below it our fake library, or a real driver."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import gpu_host, gpus
from launcher.gpu import DriverState, GpuProcess, Inventory
from launcher.gpu_losses import LOOKS
from launcher.gpus import GpuMonitor, read_inventory
from tests.fakes.nvml import DOUBLE_BIT_ECC, GIB, RESET_REQUIRED, FakeNvml

NO_PERMISSION, NOT_SUPPORTED, NO_FUNCTION, UNKNOWN = 4, 3, 13, 999
WAIT_S = 10.0


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[FakeNvml]:
    with FakeNvml(tmp_path).loaded() as fake:
        yield fake


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc and /sys of our own."""
    monkeypatch.setattr(gpu_host, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(gpu_host, "_PCI", tmp_path / "pci")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def uuids(*gpus_or_slices) -> list[str]:
    return [gpu.uuid for gpu in gpus_or_slices]


def test_a_gpu_is_read_with_all_that_identifies_it(nvml: FakeNvml, proc: Path) -> None:
    write(proc / "pci/0000:1a:00.0/numa_node", "1\n")
    fake = nvml.add_gpu()
    found = read_inventory()
    (gpu,) = found.gpus
    assert (found.state, found.trouble) == (DriverState.OK, "")
    assert (found.driver_version, found.cuda_version) == ("560.35.03", "12.6")
    assert (gpu.uuid, gpu.index, gpu.name) == (fake.uuid, 0, "NVIDIA H100 80GB HBM3")
    assert (gpu.memory_bytes, gpu.compute_capability) == (80 * GIB, (9, 0))
    assert (gpu.pci_bus_id, gpu.numa_node) == ("00000000:1A:00.0", 1)
    assert (gpu.parent, gpu.mig_enabled) == (None, False)


def test_a_driver_without_gpus_is_fine(nvml: FakeNvml) -> None:
    found = read_inventory()
    assert (found.state, found.gpus, found.trouble) == (DriverState.OK, (), "")


def test_gpus_are_numbered_in_bus_order(nvml: FakeNvml) -> None:
    late = nvml.add_gpu("GPU-late", pci="00000000:C1:00.0")
    early = nvml.add_gpu("GPU-early", pci="00000000:0A:00.0")
    found = read_inventory()
    assert uuids(*found.gpus) == uuids(early, late)
    assert [gpu.index for gpu in found.gpus] == [0, 1]
    assert found.find("cuda:1").uuid == late.uuid


def test_a_lost_gpu_does_not_rename_the_others(nvml: FakeNvml, proc: Path) -> None:
    first, second, third = (nvml.add_gpu() for _ in range(3))
    nvml.lose(second)
    found = read_inventory()
    assert found.state is DriverState.OK
    assert [(gpu.uuid, gpu.index) for gpu in found.gpus] == [(first.uuid, 0), (third.uuid, 2)]
    assert found.find("cuda:1") is None
    assert found.trouble.startswith("cuda:1: GPU is lost: it has fallen off the bus")
    for name in ("0000:1a:00.0", "0000:1b:00.0", "0000:1c:00.0"):
        (proc / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    assert read_inventory().trouble.startswith("cuda:1 at 0000:1b:00.0: GPU is lost")


def test_a_gpu_of_another_cgroup_is_not_there_for_us(nvml: FakeNvml) -> None:
    theirs, ours = nvml.add_gpu(), nvml.add_gpu()
    nvml.fail(theirs, "nvmlDeviceGetHandleByIndex_v2", NO_PERMISSION)
    found = read_inventory()
    assert [(gpu.uuid, gpu.index) for gpu in found.gpus] == [(ours.uuid, 0)]
    assert found.trouble == ""


def test_slices_follow_their_gpu(nvml: FakeNvml) -> None:
    nvml.add_gpu()
    cut = nvml.add_gpu(name="NVIDIA A100-SXM4-40GB", cc=(8, 0))
    parts = [nvml.add_slice(cut, "3g.20gb", total=20 * GIB), nvml.add_slice(cut, "1g.5gb")]
    found = read_inventory()
    assert [gpu.mig_enabled for gpu in found.gpus] == [False, True]
    assert uuids(*found.slices) == uuids(*parts)
    first = found.slices[0]
    assert (first.parent, first.index, first.compute_capability) == (cut.uuid, 1, (8, 0))
    assert (first.memory_bytes, first.mig_enabled) == (20 * GIB, False)
    assert first.name == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert found.find(parts[1].uuid) == found.slices[1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (4, "/dev/nvidia"),
        (9, "Driver Not Loaded; the driver's library is there but its kernel module"),
        (18, "reboot"),
        (UNKNOWN, "Unknown Error"),
        (4711, "an error of the fake library; does `nvidia-smi` work?"),
    ],
)
def test_a_driver_that_refuses_is_broken_and_says_why(
    nvml: FakeNvml, code: int, expected: str
) -> None:
    nvml.add_gpu()
    nvml.fail_init(code)
    found = read_inventory()
    assert (found.state, found.gpus) == (DriverState.BROKEN, ())
    assert found.trouble.startswith("the NVIDIA driver cannot be used: ")
    assert expected in found.trouble


def test_it_opens_again_once_the_driver_works(nvml: FakeNvml) -> None:
    nvml.add_gpu()
    nvml.fail_init(9)
    assert read_inventory().state is DriverState.BROKEN
    nvml.fail_init(0)
    assert len(read_inventory().gpus) == 1


def test_a_reading_has_every_sensor(nvml: FakeNvml, proc: Path) -> None:
    fake = nvml.add_gpu(used=10 * GIB, reserved=GIB, util=97, temp=64, power=512_300, throttle=0x5)
    nvml.change(fake, ecc=2, limit=700_000)
    nvml.add_process(fake, 4711, 3 * GIB)
    write(proc / "proc/4711/cmdline", "/usr/bin/python3\0-m\0vllm.server\0--token\0secret\0")
    with GpuMonitor() as monitor:
        reading = monitor.readings()[fake.uuid]
    assert (reading.used_bytes, reading.free_bytes) == (14 * GIB, 66 * GIB)
    assert (reading.utilisation_percent, reading.temperature_c) == (97, 64)
    assert (reading.power_w, reading.power_limit_w) == (512.3, 700.0)
    assert (reading.throttle_reasons, reading.ecc_uncorrected) == (("power cap",), 2)
    assert reading.processes == (GpuProcess(4711, 3 * GIB, "python3 -m vllm.server"),)
    assert reading.trouble == ""


def test_readings_are_of_now(nvml: FakeNvml) -> None:
    fake = nvml.add_gpu(reserved=0)
    with GpuMonitor() as monitor:
        assert monitor.readings()[fake.uuid].used_bytes == 0
        nvml.change(fake, used=7 * GIB)
        assert monitor.readings()[fake.uuid].used_bytes == 7 * GIB


def test_a_consumer_card_has_fewer_sensors_and_no_trouble(nvml: FakeNvml) -> None:
    absent = dict.fromkeys(("util", "temp", "power", "limit", "throttle", "ecc", "mig", "remap"))
    fake = nvml.add_gpu(cc=None, **absent)
    with GpuMonitor() as monitor:
        (gpu,) = monitor.inventory.gpus
        reading = monitor.readings()[fake.uuid]
    assert (gpu.compute_capability, gpu.mig_enabled) == (None, False)
    assert (reading.utilisation_percent, reading.temperature_c) == (None, None)
    assert (reading.power_w, reading.power_limit_w, reading.ecc_uncorrected) == (None, None, None)
    assert (reading.throttle_reasons, reading.trouble) == ((), "")


@pytest.mark.parametrize("code", [NO_FUNCTION, NOT_SUPPORTED])
def test_an_old_driver_tells_memory_the_old_way(nvml: FakeNvml, code: int) -> None:
    fake = nvml.add_gpu(used=GIB, reserved=0)
    nvml.fail(fake, "nvmlDeviceGetMemoryInfo_v2", code)
    with GpuMonitor() as monitor:
        assert monitor.inventory.gpus[0].memory_bytes == 80 * GIB
        assert monitor.readings()[fake.uuid].free_bytes == 79 * GIB


def test_a_gpu_without_memory_of_its_own_has_the_machines(nvml: FakeNvml, proc: Path) -> None:
    write(proc / "proc/meminfo", "MemTotal: 1024 kB\nMemFree: 1 kB\nMemAvailable: 256 kB\n")
    fake = nvml.add_gpu(name="NVIDIA GB10", total=None)
    with GpuMonitor() as monitor:
        assert monitor.inventory.gpus[0].memory_bytes == 1024 * 1024
        reading = monitor.readings()[fake.uuid]
    assert (reading.free_bytes, reading.used_bytes) == (256 * 1024, 768 * 1024)


def test_memory_that_may_not_be_read_is_unknown(nvml: FakeNvml) -> None:
    fake = nvml.add_gpu()
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        nvml.fail(fake, function, NO_PERMISSION)
    with GpuMonitor() as monitor:
        assert monitor.inventory.gpus[0].memory_bytes == 0
        assert monitor.readings()[fake.uuid].trouble == ""


def test_a_slice_has_its_own_memory_and_processes(nvml: FakeNvml) -> None:
    cut = nvml.add_gpu()
    part = nvml.add_slice(cut)
    nvml.add_process(part, os.getpid(), 4 * GIB)
    with GpuMonitor() as monitor:
        reading = monitor.readings()[part.uuid]
    assert (reading.used_bytes, reading.free_bytes) == (4 * GIB, 6 * GIB)
    assert [process.pid for process in reading.processes] == [os.getpid()]
    assert (reading.temperature_c, reading.trouble) == (None, "")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (15, "GPU is lost: it has fallen off the bus"),
        (RESET_REQUIRED, "GPU requires restart: stop what runs on it"),
        (6, "Not Found: it is not there any more"),
        (UNKNOWN, "Unknown Error: in a container"),
    ],
)
def test_a_gpu_that_fails_is_in_trouble_and_the_others_are_not(
    nvml: FakeNvml, code: int, expected: str
) -> None:
    bad, good = nvml.add_gpu(), nvml.add_gpu()
    with GpuMonitor() as monitor:
        nvml.fail(bad, "*", code)
        readings = monitor.readings()
    assert readings[bad.uuid].trouble.startswith(expected)
    assert (readings[bad.uuid].used_bytes, readings[bad.uuid].processes) == (0, ())
    assert readings[good.uuid].trouble == ""


def test_spare_rows_that_wait_for_a_reset_are_trouble(nvml: FakeNvml) -> None:
    fake = nvml.add_gpu(remap=(1, 0))
    with GpuMonitor() as monitor:
        reading = monitor.readings()[fake.uuid]
    assert "reset" in reading.trouble
    assert reading.free_bytes > 0


def test_faults_are_told_once_with_the_gpu_they_befell(nvml: FakeNvml) -> None:
    first, second = nvml.add_gpu(), nvml.add_gpu()
    nvml.inject_xid(first, 48)  # before we listened
    with GpuMonitor() as monitor:
        assert monitor.wait_events(0) == []
        nvml.inject_xid(second, 79)
        nvml.inject_xid(first, 13)
        nvml.inject_event(first, DOUBLE_BIT_ECC)
        events = monitor.wait_events(WAIT_S)
        assert monitor.wait_events(0) == []
    assert [(event.uuid, event.kind, event.code) for event in events] == [
        (second.uuid, "xid", 79),
        (first.uuid, "xid", 13),
        (first.uuid, "ecc", None),
    ]
    assert [event.is_fatal_for_gpu for event in events] == [True, False, True]


def test_a_waiting_thread_hears_of_a_fault(nvml: FakeNvml) -> None:
    fake = nvml.add_gpu()
    told = []
    with GpuMonitor() as monitor:
        waiting = threading.Thread(target=lambda: told.extend(monitor.wait_events(WAIT_S)))
        waiting.start()
        nvml.inject_xid(fake, 119)
        waiting.join(WAIT_S)
    assert [event.code for event in told] == [119]


def test_a_fault_inside_a_slice_is_the_slices(nvml: FakeNvml) -> None:
    cut = nvml.add_gpu()
    _, part = nvml.add_slice(cut), nvml.add_slice(cut)
    with GpuMonitor() as monitor:
        nvml.inject_xid(part, 31)
        nvml.inject_xid(cut, 79)
        events = monitor.wait_events(WAIT_S)
    assert [(event.uuid, event.code) for event in events] == [(part.uuid, 31), (cut.uuid, 79)]


def test_a_lost_gpu_is_told_once_and_again_after_it_came_back(nvml: FakeNvml) -> None:
    fake, _ = nvml.add_gpu(), nvml.add_gpu()
    with GpuMonitor() as monitor:
        nvml.lose(fake)
        (event,) = monitor.wait_events(WAIT_S)
        assert (event.uuid, event.kind, event.is_fatal_for_gpu) == (fake.uuid, "lost", True)
        assert event.message.startswith("GPU is lost")
        assert monitor.wait_events(0) == []
        nvml.bring_back(fake)
        assert monitor.wait_events(0) == []
        nvml.lose(fake)
        assert [event.kind for event in monitor.wait_events(WAIT_S)] == ["lost"]


def fail_memory(nvml: FakeNvml, gpu, code: int) -> None:
    for function in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        nvml.fail(gpu, function, code)


def test_an_odd_answer_or_two_do_not_make_a_gpu_lost(nvml: FakeNvml) -> None:
    fake, _ = nvml.add_gpu(), nvml.add_gpu()
    with GpuMonitor() as monitor:
        fail_memory(nvml, fake, UNKNOWN)
        assert [monitor.wait_events(0) for _ in range(LOOKS - 1)] == [[]] * (LOOKS - 1)
        nvml.bring_back(fake)
        assert monitor.wait_events(0) == []
        fail_memory(nvml, fake, UNKNOWN)
        (event,) = monitor.wait_events(WAIT_S)
        assert (event.uuid, event.kind) == (fake.uuid, "lost")
        assert monitor.trouble == ""


def test_gpus_that_all_answer_oddly_are_out_of_sight_and_not_lost(nvml: FakeNvml) -> None:
    fakes = [nvml.add_gpu(), nvml.add_gpu()]
    with GpuMonitor() as monitor:
        for fake in fakes:
            fail_memory(nvml, fake, UNKNOWN)
        assert [monitor.wait_events(0) for _ in range(LOOKS + 1)] == [[]] * (LOOKS + 1)
        assert "no GPU answers any more (Unknown Error)" in monitor.trouble
        assert "daemon-reload" in monitor.trouble
        for fake in fakes:
            nvml.bring_back(fake)
        assert monitor.wait_events(0) == []
        assert monitor.trouble == ""


@pytest.mark.parametrize("broken", ["nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents"])
def test_where_events_cannot_be_told_a_lost_gpu_still_is(nvml: FakeNvml, broken: str) -> None:
    fake = nvml.add_gpu()
    nvml.fail(fake, broken, NOT_SUPPORTED)
    with GpuMonitor() as monitor:
        nvml.inject_xid(fake, 79)
        assert monitor.wait_events(0.01) == []
        nvml.lose(fake)
        assert [event.kind for event in monitor.wait_events(WAIT_S)] == ["lost"]


def test_waiting_where_events_cannot_be_told_is_not_asking_all_the_time(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = nvml.add_gpu()
    nvml.fail(fake, "nvmlDeviceGetSupportedEventTypes", NOT_SUPPORTED)
    asked, ask = [], gpus._memory
    with GpuMonitor() as monitor:
        monkeypatch.setattr(gpus, "_memory", lambda handle: (asked.append(handle), ask(handle))[1])
        assert monitor.wait_events(0.2) == []
    assert 1 <= len(asked) <= 3


@pytest.fixture
def in_driver(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once somebody who waits for events asks after a GPU's memory."""
    asked, ask = threading.Event(), gpus._memory
    monkeypatch.setattr(gpus, "_memory", lambda *args, **how: (asked.set(), ask(*args, **how))[1])
    return asked


def test_leaving_ends_the_wait_of_another_thread(
    nvml: FakeNvml, in_driver: threading.Event
) -> None:
    nvml.add_gpu()
    told = []
    with GpuMonitor() as monitor:
        in_driver.clear()
        waiting = threading.Thread(target=lambda: told.append(monitor.wait_events(600)))
        waiting.start()
        assert in_driver.wait(WAIT_S)
    waiting.join(WAIT_S)
    assert told == [[]]


def test_a_call_that_hangs_in_the_driver_does_not_keep_us(
    nvml: FakeNvml, in_driver: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_CLOSE_S", 0.05)
    fake = nvml.add_gpu()
    with GpuMonitor() as monitor:
        in_driver.clear()
        nvml.change(fake, hangs="*")
        waiting = threading.Thread(target=monitor.wait_events, args=(600,))
        waiting.start()
        assert in_driver.wait(WAIT_S)
    assert waiting.is_alive()
    nvml.change(fake, hangs=None)
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_without_a_driver_the_monitor_has_nothing_to_tell(nvml: FakeNvml) -> None:
    nvml.fail_init(9)
    with GpuMonitor() as monitor:
        assert monitor.readings() == {}
        assert monitor.wait_events(0.01) == []


def inventory_of_child(**env: str) -> dict:
    """What a fresh process finds, which looks for the library as any program does."""
    code = (
        "import json; from launcher.gpus import read_inventory as read; found = read();"
        "print(json.dumps([found.state, len(found.gpus), found.trouble]))"
    )
    kept = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | env, capture_output=True, text=True, check=True
    )
    return dict(zip(("state", "gpus", "trouble"), json.loads(done.stdout), strict=True))


def test_a_process_finds_the_library_on_its_path(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    nvml.add_gpu()
    assert inventory_of_child(**nvml.env) == {"state": "ok", "gpus": 1, "trouble": ""}


def test_a_damaged_library_is_a_broken_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # what a container image made on a GPU machine has
    found = inventory_of_child(LD_LIBRARY_PATH=str(tmp_path))
    assert found["state"] == "broken"
    assert "cannot be loaded: " in found["trouble"]
    assert "file too short" in found["trouble"]


def has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_has_none() -> None:
    found = inventory_of_child()
    assert (found["state"], found["gpus"]) == ("none", 0)
    assert found["trouble"].startswith("no NVIDIA driver: libnvidia-ml.so.1 was not found")


def test_gpus_on_the_bus_without_a_driver_are_pointed_out(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    monkeypatch.setattr(gpus, "_LIBRARY", "libnvidia-ml-absent.so.1")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pynvml._nvmlCheckReturn(12))
    assert read_inventory() == Inventory(
        DriverState.NONE, trouble="no NVIDIA driver: libnvidia-ml-absent.so.1 was not found"
    )
    for number, (vendor, kind) in enumerate(
        [("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]
    ):
        write(proc / f"pci/0000:0{number}:00.0/vendor", f"{vendor}\n")
        write(proc / f"pci/0000:0{number}:00.0/class", f"{kind}\n")
    assert (
        "GPUs on this machine's PCI bus: 1; install the NVIDIA driver" in read_inventory().trouble
    )


@pytest.mark.parametrize(
    ("cmdline", "comm", "expected"),
    [
        ("/usr/bin/text-generation-server\0serve\0", "text-generation", "text-generation-server"),
        ("python3\0-u\0/srv/app/serve.py\0--key\0secret\0", "python3", "python3 serve.py"),
        ("/v/bin/python3.11\0-m\0vllm.entry\0secret\0", "python3.11", "python3.11 -m vllm.entry"),
        ("python\0-c\0secret = 1\0", "python", "python"),
        ("python\0", "python", "python"),
        ("", "kworker/0", "kworker/0"),
        (None, None, ""),
    ],
)
def test_a_process_is_named_without_its_arguments(
    proc: Path, cmdline: str | None, comm: str | None, expected: str
) -> None:
    if cmdline is not None:
        write(proc / "proc/7/cmdline", cmdline)
        write(proc / "proc/7/comm", f"{comm}\n")
    assert gpu_host.process_name(7) == expected


@pytest.mark.parametrize(("text", "expected"), [("0\n", 0), ("3\n", 3), ("-1\n", None)])
def test_the_numa_node_is_the_pci_devices(proc: Path, text: str, expected: int | None) -> None:
    write(proc / "pci/000f:c1:00.0/numa_node", text)
    assert gpu_host.numa_node("0000000F:C1:00.0") == expected
    assert gpu_host.numa_node("00000000:C1:00.0") is None
    assert gpu_host.numa_node("") is None


needs_gpu = pytest.mark.skipif(not has_driver(), reason="needs an NVIDIA GPU and its driver")


@pytest.mark.gpu
@needs_gpu
def test_a_real_driver_tells_its_gpus() -> None:
    found = read_inventory()
    assert (found.state, found.trouble) == (DriverState.OK, "")
    assert found.gpus
    for gpu in found.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.memory_bytes > GIB
        assert found.find(f"cuda:{gpu.index}") == found.find(gpu.uuid) == gpu
    assert [gpu.pci_bus_id for gpu in found.gpus] == sorted(gpu.pci_bus_id for gpu in found.gpus)


@pytest.mark.gpu
@needs_gpu
def test_a_real_driver_reads_its_gpus() -> None:
    with GpuMonitor() as monitor:
        readings = monitor.readings()
        by_uuid = {gpu.uuid: gpu for gpu in monitor.inventory.gpus}
    for uuid, gpu in by_uuid.items():
        reading = readings[uuid]
        assert reading.trouble == ""
        assert reading.used_bytes + reading.free_bytes == gpu.memory_bytes
        assert reading.temperature_c is None or 0 < reading.temperature_c < 120


@pytest.mark.gpu
@needs_gpu
def test_a_real_driver_has_no_faults_to_tell() -> None:
    with GpuMonitor() as monitor:
        assert monitor.wait_events(0.1) == []
