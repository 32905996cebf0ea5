"""What is to run on this machine: its GPUs through the real pynvml, below it our fake library."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.desired import desired, expected, files_are_here, gpu_notes, machine_inventory
from launcher.gpu import DriverState
from launcher.placement import replica_specs
from launcher.state import STATUS_RECORD, StateFolder
from launcher.status import ReplicaStatus
from router.errors import DeviceError, PlacementError
from tests.fakes.nvml import GIB, FakeNvml


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[FakeNvml]:
    with FakeNvml(tmp_path).loaded() as fake:
        yield fake


@pytest.fixture(autouse=True)
def no_cache_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for name in (
        "XDG_CACHE_HOME",
        "XDG_STATE_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)


def config(models, engine="tgi", **sections) -> ClusterConfig:
    return ClusterConfig.model_validate({"models": models, "engine": engine, **sections})


def devices(specs) -> dict[str, tuple[str, ...]]:
    return {spec.id: spec.devices for spec in specs}


# ---- the replicas


def test_replicas_have_their_gpus_by_uuid(nvml: FakeNvml) -> None:
    first, second = nvml.add_gpu(), nvml.add_gpu()
    found = desired(config([{"id": "m", "devices": ["cuda:1", 0]}]))
    assert devices(found) == {"replica-0": (second.uuid,), "replica-1": (first.uuid,)}


def test_all_is_every_gpu_that_is_not_lost(nvml: FakeNvml) -> None:
    gpus = [nvml.add_gpu() for _ in range(3)]
    nvml.lose(gpus[1])
    found = desired(config([{"id": "m", "devices": "all"}]))
    assert [spec.devices for spec in found] == [(gpus[0].uuid,), (gpus[2].uuid,)]


def test_what_runs_stays_where_it_is(nvml: FakeNvml, make_handle) -> None:
    gpus = [nvml.add_gpu() for _ in range(3)]
    running = [
        replace(make_handle("replica-0"), devices=(gpus[2].uuid,)),
        replace(make_handle("replica-1"), devices=()),  # an older record
    ]
    found = desired(config([{"id": "m", "replicas": 2}]), running)
    assert devices(found) == {"replica-0": (gpus[2].uuid,), "replica-1": (gpus[0].uuid,)}


def record(one: ClusterConfig, *replicas: dict[str, object]) -> None:
    """What a launcher has written last."""
    one.state_dir.mkdir(parents=True, exist_ok=True)
    folder = StateFolder(one.state_dir)
    known = (asdict(ReplicaStatus(**replica)) for replica in replicas)
    folder.write_record(STATUS_RECORD, {"replicas": list(known)})


def test_models_keep_the_names_of_their_replicas_while_the_cluster_is_up() -> None:
    one = config([{"id": "org/a", "replicas": 2}], "simulator")
    two = config([{"id": "org/b"}, {"id": "org/a", "replicas": 2}], "simulator")
    assert [spec.id for spec in desired(two)] == ["b-0", "a-0", "a-1"]
    record(one, *({"id": spec.id, "model": spec.model} for spec in desired(one)))
    assert [spec.id for spec in desired(two)] == ["b-0", "replica-0", "replica-1"]
    assert [spec.id for spec in expected(two)] == ["b-0", "replica-0", "replica-1"]
    StateFolder(one.state_dir).forget_run()  # down
    assert [spec.id for spec in desired(two)] == ["b-0", "a-0", "a-1"]


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', '{"version": 1, "replicas": [3]}'])
def test_a_broken_record_names_nothing(text: str) -> None:
    one = config([{"id": "org/a"}], "simulator")
    record(one)
    (one.state_dir / STATUS_RECORD).write_text(text)
    assert [spec.id for spec in desired(one)] == ["replica-0"]


def test_a_lost_gpu_is_named_when_one_is_missing(nvml: FakeNvml) -> None:
    nvml.add_gpu()
    nvml.lose(nvml.add_gpu())
    with pytest.raises(PlacementError, match=r"expected 2 for 2 replicas.*cuda:1: GPU is lost"):
        desired(config([{"id": "m", "replicas": 2}]))


@pytest.mark.parametrize(
    "engine", ["tgi", {"name": "vllm", "args": {"gpu-memory-utilization": 0.6}}]
)
def test_models_that_together_may_fill_more_than_a_gpu_are_refused(nvml: FakeNvml, engine) -> None:
    gpu = nvml.add_gpu()
    budget = {"max_memory": "50GiB"} if engine == "tgi" else {}
    models = [{"id": name, "devices": [0], **budget} for name in ("a", "b")]
    with pytest.raises(PlacementError, match=rf"GPU {gpu.uuid}: .* for a and 0.*for b, expected"):
        desired(config(models, engine))


def test_a_broken_driver_is_refused_where_gpus_are_wanted(nvml: FakeNvml) -> None:
    nvml.fail_init(9)
    with pytest.raises(DeviceError) as caught:
        desired(config([{"id": "n", "engine": "simulator"}, "m"]))
    place = "models[1].devices: found a driver that cannot be used, expected GPUs: "
    assert str(caught.value).startswith(place)
    assert "kernel module" in str(caught.value)
    assert len(desired(config(["m"], engine="simulator"))) == 1
    (spec,) = desired(config([{"id": "/m.gguf", "devices": "cpu"}], engine="llamacpp"))
    assert spec.devices == ()


def test_replicas_on_another_machine_have_their_gpus_as_written(nvml: FakeNvml) -> None:
    nvml.fail_init(9)  # here, where nobody asks
    there = {"name": "docker", "docker": {"url": "ssh://gpu-box"}}
    found = desired(config([{"id": "m", "replicas": 2}], runtime=there))
    assert devices(found) == {"replica-0": ("cuda:0",), "replica-1": ("cuda:1",)}


def test_where_there_is_no_driver_devices_stay_as_written() -> None:
    """A process of its own, as the library is looked for once."""
    code = (
        "from launcher.config import ClusterConfig as C\n"
        "from launcher import desired as d\n"
        "from router.errors import OperatorError\n"
        "one = C.model_validate({'models': [{'id': 'm', 'devices': [3]}], 'engine': 'tgi'})\n"
        "print(d.machine_inventory(one).state, [spec.devices for spec in d.desired(one)])\n"
        "try:\n"
        "    d.desired(C.model_validate({'models': [{'id': 'm', 'devices': 'all'}],"
        " 'engine': 'tgi'}))\n"
        "except OperatorError as exc:\n"
        "    print(exc)\n"
    )
    env = {**os.environ, "LD_LIBRARY_PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    state, refusal = done.stdout.splitlines()
    if not state.startswith(DriverState.NONE):
        pytest.skip("this machine has an NVIDIA driver")
    assert state == "none [('cuda:3',)]"
    assert refusal.startswith("models[0].devices: found all, expected GPUs by name or a number")


EVERY = [{"id": "m", "devices": "all"}]


def test_verbs_that_start_nothing_are_never_refused(nvml: FakeNvml) -> None:
    nvml.fail_init(9)
    assert devices(expected(config([{"id": "m", "devices": [7]}]))) == {"replica-0": ("cuda:7",)}
    assert expected(config(EVERY)) == []


def test_how_many_all_are_the_record_knows_and_no_driver_is_asked(nvml: FakeNvml, monkeypatch):
    def hangs():
        pytest.fail("the driver was asked")

    monkeypatch.setattr("launcher.desired.read_inventory", hangs)
    every = config(EVERY)
    record(
        every,
        {"id": "replica-0", "model": "m", "devices": ("GPU-2",), "phase": "ready"},
        {"id": "replica-1", "model": "m", "devices": (), "phase": "failed"},
        {"id": "replica-2", "model": "m", "devices": ("GPU-0",), "phase": "draining",
         "is_outdated": True},
        {"id": "replica-3", "model": "m", "devices": ("GPU-1",), "phase": "draining",
         "drained": True},
        {"id": "replica-5", "model": "m", "devices": ("GPU-5",), "phase": "draining"},
    )  # fmt: skip
    assert [spec.id for spec in expected(every)] == [f"replica-{n}" for n in range(4)]


# ---- GPUs and drivers that are lost while replicas run


def at(make_handle, specs):
    """What runs, as its specs were."""
    return [
        replace(make_handle(spec.id), devices=spec.devices, fingerprint=spec.fingerprint)
        for spec in specs
    ]


FORMS = [
    {"devices": ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]},
    {"devices": 4},
    {"replicas": 4},
    {"devices": "all"},
    {"devices": 4, "quantize": "auto", "id": "lmsys/vicuna-7b-v1.5"},
    {"devices": 4, "max_memory": "60GiB"},
    {"devices": "all", "max_memory": {n: "60GiB" for n in range(4)}},
]


@pytest.mark.parametrize("model", FORMS)
def test_a_lost_gpu_is_trouble_of_the_replica_on_it_only(nvml: FakeNvml, make_handle, model):
    gpus = [nvml.add_gpu() for _ in range(4)]
    one = config([{"id": "m", **model}])
    before = desired(one)
    nvml.lose(gpus[2])
    after = desired(one, at(make_handle, before[:2] + before[3:]))
    assert [spec.id for spec in after] == [spec.id for spec in before]
    for old, new in zip(before, after, strict=True):
        assert (old == new) is (old.id != "replica-2")
    assert "cuda:2: GPU is lost" in after[2].trouble
    assert after[2].trouble.endswith("; see to that, then run `launcher up` again")
    assert after[2].fingerprint != before[2].fingerprint
    (note, *_) = gpu_notes(one, after, at(make_handle, before[:2] + before[3:]))
    assert note.startswith("replica-2: not started: models[0].")


@pytest.mark.parametrize("model", FORMS)
def test_a_replica_that_runs_on_a_gpu_that_cannot_be_reached_stays_there(
    nvml: FakeNvml, make_handle, model
):
    gpus = [nvml.add_gpu() for _ in range(4)]
    one = config([{"id": "m", **model}])
    before = desired(one)
    nvml.lose(gpus[2])
    after = desired(one, at(make_handle, before))
    assert devices(after) == devices(before)
    assert [s.fingerprint for s in after] == [s.fingerprint for s in before]


@pytest.mark.parametrize("model", FORMS)
def test_a_driver_that_breaks_moves_nothing_that_runs(nvml: FakeNvml, make_handle, model):
    for _ in range(4):
        nvml.add_gpu()
    one = config([{"id": "m", **model}])
    before = desired(one)
    record(one, *({"id": s.id, "model": s.model, "devices": s.devices} for s in before))
    nvml.fail_init(18)  # driver and library are of two versions, after an update
    after = desired(one, at(make_handle, before[:1] + before[2:]))
    assert [spec.id for spec in after] == [spec.id for spec in before]
    for old, new in zip(before, after, strict=True):
        if old.id != "replica-1":
            assert (new.devices, new.fingerprint) == (old.devices, old.fingerprint)
    assert "driver cannot be used" in after[1].trouble


def test_replicas_without_a_gpu_are_adopted_whatever_the_driver_says(
    nvml: FakeNvml, make_handle
) -> None:
    nvml.fail_init(18)
    mixed = config([{"id": "a", "engine": "simulator"}, {"id": "b", "devices": [0]}])
    (plain, troubled) = desired(mixed, [make_handle("a-0")])
    assert (plain.trouble, troubled.id) == ("", "b-0")
    assert "driver cannot be used" in troubled.trouble


@pytest.mark.parametrize("model", FORMS[:3])
def test_first_starts_and_rehearsals_are_refused_what_the_machine_has_lost(
    nvml: FakeNvml, make_handle, model
) -> None:
    gpus = [nvml.add_gpu() for _ in range(4)]
    one = config([{"id": "m", **model}])
    running = at(make_handle, desired(one)[:1])
    nvml.lose(gpus[2])
    with pytest.raises(PlacementError, match="GPU is lost"):
        desired(one)
    with pytest.raises(PlacementError, match="GPU is lost"):
        desired(one, running, is_rehearsal=True)
    nvml.fail_init(9)
    with pytest.raises(DeviceError):
        desired(one, running, is_rehearsal=True)


@pytest.mark.parametrize(
    "model", [{"devices": [0, 7]}, {"devices": [0, "GPU-f"]}, {"replicas": 5}, {"devices": 5}]
)
def test_mistakes_in_the_config_are_refused_beside_what_runs(
    nvml: FakeNvml, make_handle, model
) -> None:
    for _ in range(4):
        nvml.add_gpu()
    running = at(make_handle, desired(config([{"id": "m", "devices": [0]}])))
    with pytest.raises(PlacementError, match=r"models\[0\]"):
        desired(config([{"id": "m", **model}]), running)


@pytest.mark.parametrize(
    ("models", "sections", "is_read"),
    [
        (["m"], {}, True),
        (["m"], {"engine": "simulator"}, False),
        ([{"id": "/m.gguf", "devices": "cpu"}], {"engine": "llamacpp"}, False),
        (["m", {"id": "n", "engine": "simulator"}], {}, True),
        (["m"], {"runtime": "docker"}, True),
        (["m"], {"runtime": {"name": "docker", "docker": {"url": "unix:///x.sock"}}}, True),
        (["m"], {"runtime": {"name": "docker", "docker": {"url": "tcp://h:2375"}}}, False),
    ],
)
def test_the_driver_is_asked_only_where_it_can_know(
    nvml: FakeNvml, models, sections, is_read: bool
) -> None:
    nvml.add_gpu()
    inventory = machine_inventory(config(models, **sections))
    assert (inventory is not None) is is_read


# ---- what an operator should know of the GPUs


@pytest.fixture
def notes(nvml: FakeNvml):
    def notes(owned=()) -> list[str]:
        two = config([{"id": "m", "replicas": 2}])
        return gpu_notes(two, desired(two, owned), owned)

    return notes


def test_nothing_to_say_of_free_gpus(nvml: FakeNvml, notes) -> None:
    nvml.add_gpu(), nvml.add_gpu()
    assert notes() == []


def test_strangers_on_a_gpu_are_named(nvml: FakeNvml, notes) -> None:
    first, second, other = (nvml.add_gpu() for _ in range(3))
    nvml.add_process(second, os.getpid(), 3 * GIB)
    nvml.add_process(second, 2**22 + 1, 0)  # nobody's: of another container
    nvml.add_process(other, os.getpid())  # not a GPU of ours
    (note,) = notes()
    assert note.startswith(f"replica-1: not alone on GPU {second.uuid}: memory held by pid ")
    assert f"pid {os.getpid()} (" in note
    assert ", 3.0 GiB)" in note
    assert f"pid {2**22 + 1} (another user or container)" in note
    assert first.uuid not in note


def test_many_strangers_are_counted(nvml: FakeNvml, notes) -> None:
    gpu, _ = nvml.add_gpu(), nvml.add_gpu()
    for pid in range(2**22 + 1, 2**22 + 6):
        nvml.add_process(gpu, pid)
    (note,) = notes()
    assert note.count("pid ") == 3
    assert note.endswith(" and 2 more")


def test_what_runs_already_is_no_stranger_to_itself(nvml: FakeNvml, notes, make_handle) -> None:
    gpu, _ = nvml.add_gpu(), nvml.add_gpu()
    nvml.add_process(gpu, os.getpid())
    assert notes([replace(make_handle("replica-0"), devices=(gpu.uuid,))]) == []


def test_a_gpu_in_trouble_is_told_with_whose_it_is(nvml: FakeNvml, notes) -> None:
    _, second = nvml.add_gpu(), nvml.add_gpu()
    nvml.change(second, remap=(1, 1))
    said = notes()
    assert [note.partition(" is in trouble: ")[0] for note in said] == [
        f"replica-1: its GPU {second.uuid}"
    ]


def test_without_gpus_the_driver_is_not_asked(nvml: FakeNvml) -> None:
    nvml.fail_init(9)
    plain = config(["m"], engine="simulator")
    assert gpu_notes(plain, replica_specs(plain), []) == []
    away = config(["m"], runtime={"name": "docker", "docker": {"url": "tcp://h:1"}})
    assert gpu_notes(away, replica_specs(away), []) == []


# ---- files


def cached(cache: Path, model: str, *, finished: bool = True) -> None:
    folder = cache / f"models--{model.replace('/', '--')}"
    for path in ("snapshots/abc/config.json", "blobs/1" if finished else "blobs/1.incomplete"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


@pytest.mark.parametrize("cache", [".cache/huggingface/hub", ".cache/huggingface"])
def test_a_model_in_the_hubs_cache_is_here(tmp_path: Path, cache: str) -> None:
    one = config(["org/m"])
    (spec,) = replica_specs(one)
    assert not files_are_here(spec, one)
    cached(tmp_path / "home" / cache, "org/m", finished=False)
    assert not files_are_here(spec, one)
    (tmp_path / "home" / cache / "models--org--m/blobs/1.incomplete").unlink()
    assert files_are_here(spec, one)


def test_an_empty_snapshot_is_not_here(tmp_path: Path) -> None:
    one = config(["org/m"])
    (tmp_path / "home/.cache/huggingface/hub/models--org--m/snapshots/abc").mkdir(parents=True)
    assert not files_are_here(replica_specs(one)[0], one)


def test_containers_have_a_cache_of_their_own(tmp_path: Path) -> None:
    runtime = {"name": "docker", "docker": {"model_cache": str(tmp_path / "models")}}
    one = config(["org/m"], runtime=runtime)
    (spec,) = replica_specs(one)
    cached(tmp_path / "home/.cache/huggingface/hub", "org/m")
    assert not files_are_here(spec, one)
    cached(tmp_path / "models", "org/m")
    assert files_are_here(spec, one)


@pytest.mark.parametrize(
    ("model", "engine"), [("/models/m", "tgi"), ("~/m", "vllm"), ("./m", "tgi"), ("m", "simulator")]
)
def test_what_needs_no_download_is_here(model: str, engine: str) -> None:
    one = config([model], engine=engine)
    assert files_are_here(replica_specs(one)[0], one)
