"""Who gets which GPU of a machine, as a table; and what an operator reads when it cannot be."""

import pytest

from launcher.assignment import assign
from launcher.config import ClusterConfig
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.gpu_wishes import wanted_models
from router.errors import PlacementError

GIB = 2**30


def gpu(number, *, mig=False, uuid=None):
    uuid = uuid or f"GPU-{number}{number}"
    bus = f"00000000:0{number}:00.0"
    return Gpu(uuid, number, "H100", 80 * GIB, (9, 0), bus, None, None, mig)


def mig_slice(parent, number):
    uuid, bus = f"MIG-{parent.index}{number}", parent.pci_bus_id
    return Gpu(uuid, parent.index, "1g", 10 * GIB, (9, 0), bus, None, parent.uuid, False)


def machine(*gpus, slices=(), trouble=""):
    return Inventory(DriverState.OK, gpus, tuple(slices), trouble=trouble)


G0, G1, G2, G3 = (gpu(number) for number in range(4))
FOUR = machine(G0, G1, G2, G3)


def given(models, inventory=FOUR, running=None, engine="tgi"):
    """What each model's replicas get, in one list per model."""
    named = [{"id": f"m{index}", **model} for index, model in enumerate(models)]
    config = ClusterConfig.model_validate({"models": named, "engine": engine})
    found = assign(wanted_models(config), inventory, running or [[] for _ in models])
    return [[one.devices for one in model] for model in found]


def refused(models, inventory=FOUR, **more):
    with pytest.raises(PlacementError) as caught:
        given(models, inventory, **more)
    return str(caught.value).splitlines()


def names(groups):
    return [
        [device.removeprefix("GPU-") for group in model for device in group] for model in groups
    ]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([{}], [["00"]]),
        ([{"replicas": 3}], [["00", "11", "22"]]),
        ([{"devices": 2}], [["00", "11"]]),
        ([{"devices": "all"}], [["00", "11", "22", "33"]]),
        ([{"devices": "cuda:2"}], [["22"]]),
        ([{"devices": ["GPU-33", 1]}], [["33", "11"]]),
        ([{"devices": ["GPU-3"]}], [["33"]]),  # shortened, fits one
        ([{"devices": [1]}, {"replicas": 2}], [["11"], ["00", "22"]]),
        ([{"replicas": 2}, {"devices": [0]}], [["11", "22"], ["00"]]),
        ([{"devices": 2}, {"replicas": 2}], [["00", "11"], ["22", "33"]]),
    ],
)  # fmt: skip
def test_who_gets_which_gpu(models, expected):
    assert names(given(models)) == expected


def test_replicas_over_several_gpus_get_neighbours_in_bus_order():
    assert given([{"devices": 4, "gpus_per_replica": 2}]) == [
        [("GPU-00", "GPU-11"), ("GPU-22", "GPU-33")]
    ]
    assert given([{"devices": "all", "gpus_per_replica": 4}]) == [
        [("GPU-00", "GPU-11", "GPU-22", "GPU-33")]
    ]
    assert given([{"devices": [[3, "GPU-00"]]}, {"gpus_per_replica": 2}]) == [
        [("GPU-33", "GPU-00")], [("GPU-11", "GPU-22")],
    ]  # fmt: skip


@pytest.mark.parametrize("devices", ["auto", 3, ["cuda:0", 7, "GPU-f00"], None])
def test_engines_without_gpus_get_none_however_many_are_asked_for(devices):
    replicas = {} if devices not in ("auto", None) else {"replicas": 3}
    groups = given([{"devices": devices, **replicas}], engine="simulator")
    assert groups == [[(), (), ()]]


def test_an_engine_on_the_cpu_leaves_the_gpus_to_others():
    models = [{"devices": "cpu", "replicas": 2, "engine": "llamacpp"}, {"devices": "all"}]
    config = [{"id": "/a.gguf", **models[0]}, {"id": "b", **models[1]}]
    wanted = wanted_models(ClusterConfig.model_validate({"models": config, "engine": "tgi"}))
    found = assign(wanted, FOUR, [[], []])
    assert names([[one.devices for one in model] for model in found]) == [
        [],
        ["00", "11", "22", "33"],
    ]


# ---- what runs


@pytest.mark.parametrize(
    ("models", "running", "expected"),
    [
        # 1. It stays, wherever it is.
        ([{"replicas": 2}], [[("GPU-33",), ("GPU-11",)]], [["33", "11"]]),
        # 2. A newcomer takes what is left, also between and before.
        ([{"replicas": 3}], [[("GPU-22",), ("GPU-00",)]], [["22", "00", "11"]]),
        ([{"replicas": 2}], [[None, ("GPU-00",)]], [["11", "00"]]),
        # 3. A model that comes first in the file takes nothing from one that runs.
        ([{"replicas": 2}, {"replicas": 2}], [[], [("GPU-00",), ("GPU-11",)]],
         [["22", "33"], ["00", "11"]]),
        ([{"devices": 2}, {}], [[None, None], [("GPU-00",)]], [["11", "22"], ["00"]]),
        # 4. What is named goes to who names it.
        ([{}, {"devices": [0]}], [[("GPU-00",)], []], [["11"], ["00"]]),
        # 5. All: what runs stays, the rest is added.
        ([{"devices": "all"}], [[("GPU-22",)]], [["22", "00", "11", "33"]]),
        # 6. Fewer replicas: the last ones go.
        ([{"replicas": 1}], [[("GPU-11",), ("GPU-00",)]], [["11"]]),
        # 7. A GPU that is gone, another number of shards, one GPU for two: chosen anew.
        ([{}], [[("GPU-99",)]], [["00"]]),
        ([{"gpus_per_replica": 2}], [[("GPU-11",)]], [["00", "11"]]),
        ([{"replicas": 2}], [[("GPU-11",), ("GPU-11",)]], [["11", "00"]]),
        # 8. Started when the machine told no GPUs.
        ([{}], [[("cuda:1",)]], [["00"]]),
    ],
)  # fmt: skip
def test_what_runs_stays_where_it_is(models, running, expected):
    assert names(given(models, running=running)) == expected


# ---- slices


def test_slices_are_used_and_not_the_gpu_they_are_of():
    cut = gpu(1, mig=True)
    parts = [mig_slice(cut, number) for number in range(2)]
    inventory = machine(G0, cut, G2, slices=parts)
    assert given([{"devices": "all"}], inventory) == [
        [("GPU-00",), ("MIG-10",), ("MIG-11",), ("GPU-22",)]
    ]
    assert given([{"devices": ["MIG-11"]}, {"replicas": 3}], inventory) == [
        [("MIG-11",)], [("GPU-00",), ("MIG-10",), ("GPU-22",)],
    ]  # fmt: skip
    assert refused([{"devices": ["cuda:1"]}], inventory) == [
        "models[0].devices: found cuda:1, a GPU for MIG slices only, "
        "expected one of them: MIG-10, MIG-11"
    ]


def test_a_gpu_for_slices_without_any_is_used_by_nobody():
    inventory = machine(gpu(0, mig=True), G1)
    assert names(given([{"devices": "all"}], inventory)) == [["11"]]
    assert refused([{"devices": [1, 0]}], inventory) == [
        "models[0].devices[1]: found cuda:0, a GPU for MIG slices only, "
        "expected it to have some, or MIG off"
    ]


# ---- what cannot be


TWO = machine(G0, G1)
KNOWN = "cuda:0 (GPU-00), cuda:1 (GPU-11)"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([{"devices": ["cuda:7"]}],
         [f"models[0].devices: found cuda:7, expected one of: {KNOWN}"]),
        ([{"devices": [[0, "GPU-5"], [1, "MIG-1"]]}],
         [f"models[0].devices[0]: found GPU-5, expected one of: {KNOWN}",
          f"models[0].devices[1]: found MIG-1, expected one of: {KNOWN}"]),
        ([{"devices": [0, "GPU-00"]}],
         ["models[0].devices[1]: found GPU-00 a second time, expected each GPU once"]),
        ([{"devices": ["GPU-00", 0]}],
         ["models[0].devices[1]: found cuda:0, which is GPU-00, a second time, "
          "expected each GPU once"]),
        ([{"devices": ["GPU-0", "cuda:1"]}, {"devices": ["cuda:0"]}],
         ["models[1].devices: found cuda:0, which is GPU-00, which models[0] has, "
          "expected each GPU once, or max_memory for both models"]),
        ([{"devices": [0], "max_memory": "1GB"}, {"devices": ["GPU-00"]}],
         ["models[1].devices: found GPU-00 which models[0] has, "
          "expected each GPU once, or max_memory for both models"]),
        ([{"replicas": 3}],
         ["models[0].replicas: found 2 free GPUs (2 GPUs on this machine), expected 3 for "
          "3 replicas; ask for fewer, or name devices and share them with max_memory"]),
        ([{"devices": [0]}, {"devices": 4, "gpus_per_replica": 2}],
         ["models[1].devices: found 1 free GPU (2 GPUs on this machine), expected 4 for "
          "2 replicas of 2 each; ask for fewer, or name devices and share them with max_memory"]),
        ([{"replicas": 2}, {}],
         ["models[1].devices: found 0 free GPUs (2 GPUs on this machine), expected 1 for "
          "1 replica; ask for fewer, or name devices and share them with max_memory"]),
        ([{"devices": "all", "gpus_per_replica": 3}],
         ["models[0].devices: found all, 2 free GPUs, "
          "expected a multiple of gpus_per_replica (3)"]),
    ],
)  # fmt: skip
def test_what_the_machine_cannot_give_is_refused(models, expected):
    assert refused(models, TWO) == expected


def test_a_shortened_uuid_that_fits_several_is_refused():
    inventory = machine(gpu(0, uuid="GPU-6a"), gpu(1, uuid="GPU-6b"), gpu(2, uuid="GPU-7"))
    assert refused([{"devices": ["GPU-6"]}], inventory) == [
        "models[0].devices: found GPU-6, which fits several GPUs, "
        "expected more of one's UUID: GPU-6a, GPU-6b"
    ]


def test_a_lost_gpu_is_named_where_one_is_missing():
    lost = "cuda:1 at 0000:01:00.0: GPU is lost: it has fallen off the bus"
    inventory = machine(G0, trouble=lost)
    for models in ([{"devices": [1]}], [{"replicas": 2}], [{"devices": "all", "replicas": None,
                                                          "gpus_per_replica": 2}]):  # fmt: skip
        (line,) = refused(models, inventory)
        assert line.endswith(f"; {lost}")


def test_a_machine_without_gpus_says_so():
    assert refused([{"devices": ["cuda:0"]}], machine()) == [
        "models[0].devices: found cuda:0, expected one of: none: no GPU is here"
    ]
    assert refused([{"devices": "all"}], machine()) == [
        "models[0].devices: found all, 0 free GPUs, expected at least one"
    ]


def test_all_problems_of_all_models_are_told_at_once():
    lines = refused([{"devices": [5]}, {"devices": [6]}, {"replicas": 5}])
    assert [line.partition(": ")[0] for line in lines] == [
        "models[0].devices", "models[1].devices", "models[2].replicas",
    ]  # fmt: skip


def test_long_lists_are_cut():
    many = machine(*(gpu(number) for number in range(12)))
    (line,) = refused([{"devices": ["cuda:99"]}], many)
    assert line.endswith("cuda:7 (GPU-77) and 4 more")


# ---- sharing


@pytest.mark.parametrize("bound", [{"max_memory": "20GiB"}, {"max_memory": {0: "20GiB"}}])
def test_models_that_are_both_bounded_share_a_gpu(bound):
    models = [{"devices": [0], **bound}, {"devices": ["GPU-00"], **bound}, {}]
    assert names(given(models)) == [["00"], ["00"], ["11"]]


def test_a_fraction_for_the_engine_is_a_bound_too():
    engine = {"name": "vllm", "args": {"gpu-memory-utilization": 0.4}}
    assert names(given([{"devices": [0]}, {"devices": [0]}], engine=engine)) == [["00"], ["00"]]


def test_one_model_cannot_share_a_gpu_with_itself():
    (line,) = refused([{"devices": [0, "GPU-00"], "max_memory": "1GB"}])
    assert line.endswith("a second time, expected each GPU once")


# ---- nobody tells the GPUs


NO_DRIVER = Inventory(DriverState.NONE, trouble="no NVIDIA driver is installed here")


@pytest.mark.parametrize("inventory", [None, NO_DRIVER])
def test_without_a_driver_devices_are_as_written(inventory):
    models = [{"devices": [2, "cuda:0"]}, {"replicas": 2, "gpus_per_replica": 2}]
    assert given(models, inventory) == [
        [("cuda:2",), ("cuda:0",)], [("cuda:1", "cuda:3"), ("cuda:4", "cuda:5")],
    ]  # fmt: skip
    assert given([{"devices": ["GPU-1"]}, {"devices": [0]}], inventory) == [
        [("GPU-1",)], [("cuda:0",)],
    ]  # fmt: skip


def test_without_a_driver_all_is_not_known():
    assert refused([{"devices": "all"}], NO_DRIVER) == [
        "models[0].devices: found all, expected GPUs by name or a number of them: "
        "no NVIDIA driver is installed here"
    ]
    assert refused([{"devices": "all"}], None) == [
        "models[0].devices: found all, expected GPUs by name or a number of them: "
        "that machine's are not known"
    ]


def test_without_a_driver_nobody_is_given_a_gpu_that_another_may_name_by_uuid():
    assert refused([{"devices": ["GPU-1"]}, {"replicas": 2}], NO_DRIVER) == [
        "models[1].devices: found none, which is auto, expected names, as other models name "
        "theirs by UUID (GPU-1) and might get the same GPUs: no NVIDIA driver is installed here"
    ]


# ---- a GPU, or the driver, is lost while replicas run


LOST_2 = machine(G0, G1, G3, trouble="cuda:2: GPU is lost")
BROKEN = Inventory(DriverState.BROKEN, trouble="driver/library version mismatch")
U0, U1, U2, U3 = (("GPU-00",), ("GPU-11",), ("GPU-22",), ("GPU-33",))


def forgiven(models, inventory, running):
    """By replica of each model, its devices, and "!" for one in trouble."""
    named = [{"id": f"m{index}", **model} for index, model in enumerate(models)]
    config = ClusterConfig.model_validate({"models": named, "engine": "tgi"})
    found = assign(wanted_models(config), inventory, running, is_lenient=True)
    return [
        {one.position: (*one.devices, "!") if one.trouble else one.devices for one in model}
        for model in found
    ]


@pytest.mark.parametrize(
    ("model", "running", "expected"),
    [
        # 1. Its replica is dead: it is told, the others stay.
        ({"devices": [0, 1, 2, 3]}, [U0, U1, (), U3], {0: U0, 1: U1, 2: ("cuda:2", "!"), 3: U3}),
        ({"devices": ["GPU-22", "GPU-33"]}, [None, U3], {0: ("GPU-22", "!"), 1: U3}),
        ({"devices": 4}, [U0, U1, (), U3], {0: U0, 1: U1, 2: ("!",), 3: U3}),
        ({"devices": "all"}, [U0, U1, (), U3], {0: U0, 1: U1, 2: ("!",), 3: U3}),
        ({"devices": "all"}, [U0, U1, None, U3], {0: U0, 1: U1, 2: ("!",), 3: U3}),
        ({"devices": "all"}, [U0, U3, U1, ()], {0: U0, 1: U3, 2: U1, 3: ("!",)}),
        # 2. It runs: it stays, whatever cannot be reached.
        ({"devices": [0, 1, 2]}, [U0, None, U2], {0: U0, 1: U1, 2: U2}),
        ({"devices": ["GPU-2"]}, [U2], {0: U2}),
        ({"devices": [[1, 2]]}, [("GPU-11", "GPU-22")], {0: ("GPU-11", "GPU-22")}),
        ({"devices": 4}, [U0, U2, U1, U3], {0: U0, 1: U2, 2: U1, 3: U3}),
        ({"devices": "all"}, [U0, U1, U2], {0: U0, 1: U1, 2: U2, 3: U3}),
        # 3. Another GPU is free.
        ({"devices": 3}, [U0, U1, ()], {0: U0, 1: U1, 2: U3}),
        ({"devices": [[0, 1]]}, [U0], {0: ("GPU-00", "GPU-11")}),
        ({"devices": [2, 0]}, [None, None], {0: ("cuda:2", "!"), 1: U0}),
        # 4. It is to move to the lost one: it runs on where it is.
        ({"devices": [2]}, [U0], {0: ("GPU-00", "!")}),
        ({"devices": ["GPU-22"]}, [U0], {0: ("GPU-00", "!")}),
    ],
)  # fmt: skip
def test_a_lost_gpu_hits_its_own_replica_only(model, running, expected):
    assert forgiven([model], LOST_2, [running]) == [expected]


def test_a_gpu_that_was_taken_out_leaves_no_replica_of_all_behind():
    three = machine(G0, G1, G3)
    assert forgiven([{"devices": "all"}], three, [[U0, U1, (), U3]]) == [{0: U0, 1: U1, 3: U3}]


@pytest.mark.parametrize(
    "models",
    [
        [{"devices": [0, "GPU-00"]}],
        [{"devices": [0]}, {"devices": ["GPU-00"]}],
        # Two that run would have to go for one that could start, and two that could not.
        [{"replicas": 3, "gpus_per_replica": 2}],
    ],
)
def test_what_the_config_cannot_mean_is_refused_beside_a_lost_gpu(models):
    with pytest.raises(PlacementError, match=r"a second time|which models\[0\] has|replicas: "):
        forgiven(models, LOST_2, [[U0, U1, U3], [None]][: len(models)])


@pytest.mark.parametrize("inventory", [NO_DRIVER, BROKEN])
@pytest.mark.parametrize(
    ("model", "running", "expected"),
    [
        ({"devices": 3}, [U3, (), U1], {0: U3, 1: ("!",), 2: U1}),
        ({}, [U3], {0: U3}),
        ({"devices": "all"}, [U3, (), U1, None], {0: U3, 1: ("!",), 2: U1}),
        ({"devices": [0, 3]}, [U0, U3], {0: U0, 1: U3}),
        ({"devices": ["GPU-3", "GPU-00"]}, [U3, U0], {0: U3, 1: U0}),
        ({"gpus_per_replica": 2}, [U3], {0: ("GPU-33", "!")}),
    ],
)
def test_without_the_driver_what_runs_keeps_its_uuids(inventory, model, running, expected):
    assert forgiven([model], inventory, [running]) == [expected]


def test_named_gpus_are_tried_without_a_driver_but_not_with_a_broken_one():
    model, running = {"devices": ["GPU-00", "GPU-11"]}, [U0, None]
    assert forgiven([model], NO_DRIVER, [running]) == [{0: U0, 1: U1}]
    assert forgiven([model], BROKEN, [running]) == [{0: U0, 1: ("GPU-11", "!")}]
