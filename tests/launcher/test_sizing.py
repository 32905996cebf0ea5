"""How models, budgets and cards become what a replica is started with, and what is refused."""

from pathlib import Path

import pytest
import yaml

from launcher.config import load_cluster_config
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.imagined import imagined
from launcher.placement import replica_specs
from launcher.sizing import Shapes, assess, require_room, sizer
from router.errors import PlacementError

VICUNA = "lmsys/vicuna-7b-v1.5"
NONE = Inventory(DriverState.NONE, trouble="no NVIDIA driver: it was not found")


@pytest.fixture
def specs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def specs(model, gpus, engine="tgi", **args):
        config = {"models": [model], "engine": {"name": engine, "args": args}}
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(config))
        loaded = load_cluster_config(path)
        inventory = imagined(gpus) if isinstance(gpus, str) else gpus
        return replica_specs(loaded, inventory, {}, sizer(loaded, inventory))

    return specs


@pytest.mark.parametrize(
    ("engine", "gpu", "quantize"),
    [
        ("tgi", "A100-80", None),
        ("tgi", "T4", "eetq"),
        ("vllm", "8GiB", "bitsandbytes"),
    ],
)
def test_auto_becomes_the_engines_own_word_in_the_spec(specs, engine, gpu, quantize):
    model = {"id": VICUNA, "quantize": "auto", "max_total_tokens": 2048}
    assert specs(model, gpu, engine)[0].quantize == quantize


def test_what_is_chosen_is_part_of_the_fingerprint(specs):
    model = {"id": VICUNA, "quantize": "auto", "max_total_tokens": 2048}
    assert specs(model, "T4")[0].fingerprint != specs(model, "A100-80")[0].fingerprint


@pytest.mark.parametrize("budget", ["20GiB", {0: "20GiB"}, {0: "20GiB", 1: "1GiB"}])
def test_a_budget_becomes_a_share_of_the_card_it_is_for(specs, budget):
    [spec] = specs({"id": VICUNA, "devices": "cuda:0", "max_memory": budget}, "2x24GiB")
    assert spec.memory_fraction == 0.833


def test_shards_get_the_least_of_their_shares(specs):
    model = {"id": VICUNA, "devices": [[0, 1]], "max_memory": {0: "20GiB", 1: "12GiB"}}
    assert specs(model, "2x24GiB")[0].memory_fraction == 0.5


def test_a_budget_for_other_gpus_only_is_refused(specs):
    model = {"id": VICUNA, "devices": "cuda:1", "max_memory": {0: "20GiB"}}
    found = r"found budgets for GPU 0 only, expected one for 1, which a replica of it is on"
    with pytest.raises(PlacementError, match=rf"max_memory of {VICUNA}: {found}"):
        specs(model, "2x24GiB")
    assert specs(model, "2x24GiB", **{"cuda-memory-fraction": 0.4})


def test_shares_of_one_gpu_are_at_most_all_of_it():
    require_room([("a", ("G",), 0.5), ("b", ("G", "H"), 0.5), ("c", ("I",), 1.0)])
    require_room([("a", (f"G{n}",), 0.9) for n in range(3)])
    require_room([("a", ("G",), 0.7), ("b", ("G",), 0.2), ("c", ("G",), 0.1)])  # not 1.0 in binary
    require_room([("a", ("G",), None), ("b", ("G",), 1.0)])
    with pytest.raises(PlacementError) as caught:
        require_room([("a", ("G", "H"), 0.9), ("b", ("H",), 0.833)])
    assert str(caught.value) == (
        "GPU H: found shares of 0.9 for a and 0.833 for b, expected at most 1 together; lower "
        "their max_memory (or cuda-memory-fraction, gpu-memory-utilization)"
    )


def test_the_engines_own_flag_goes_before_a_budget(specs):
    model = {"id": VICUNA, "max_memory": "20GiB"}
    [spec] = specs(model, "24GiB", **{"cuda-memory-fraction": 0.4})
    assert spec.memory_fraction == 0.4


def test_a_model_that_is_larger_than_the_card_is_refused_with_what_would_do(specs):
    with pytest.raises(PlacementError, match=r"models\[0\]: .*Llama-2-70b-hf cannot fit on L4"):
        specs({"id": "meta-llama/Llama-2-70b-hf"}, "L4")


def test_one_that_only_looks_too_large_is_not_refused(specs):
    """Estimates may be off by some percent: the engine judges."""
    assert specs({"id": VICUNA, "max_total_tokens": 4096}, "14GiB")


def test_auto_that_finds_no_way_says_what_was_tried(specs):
    with pytest.raises(PlacementError, match=r"found auto, but .* fits in no way .*float16: .*nf4"):
        specs({"id": "meta-llama/Llama-2-70b-hf", "quantize": "auto"}, "T4")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"id": VICUNA, "quantize": "auto"}, r"models\[0\]\.quantize: found auto, but no NVIDIA"),
        ({"id": VICUNA, "max_memory": "9GiB"}, r"models\[0\]\.max_memory: found a budget, but no"),
    ],
)
def test_what_needs_a_known_card_is_refused_without_one(specs, model, expected):
    with pytest.raises(PlacementError, match=expected):
        specs(model, NONE)


def test_an_unknown_model_starts_all_the_same(specs):
    assert specs({"id": "nobody/knows-this"}, "L4")[0].quantize is None


def test_a_closed_folder_is_told_not_raised(tmp_path, monkeypatch):
    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)
    assert "Permission denied" in _unknown(tmp_path, tmp_path / "closed" / "model")


def test_a_folder_that_is_no_model_is_told_not_raised(tmp_path):
    (tmp_path / "model").mkdir()
    assert "config.json" in _unknown(tmp_path, tmp_path / "model")


def _unknown(tmp_path: Path, folder: Path) -> str:
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump({"models": [str(folder)], "engine": "tgi"}))
    config = load_cluster_config(path)
    inventory = imagined("L4")
    devices = (inventory.gpus[0].uuid,)
    found = assess(config.models[0], config.engine, devices, inventory, Shapes(config))
    assert found.fit is None
    return found.unknown


# ---- weights that are not divided evenly over the GPUs


LARGE = {"id": "meta-llama/Llama-3.1-70B-Instruct", "max_total_tokens": 4096}


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vllm", {"cpu-offload-gb": 130}),
        ("aphrodite", {"cpu-offload-gb": 130}),
        ("llamacpp", {"n-gpu-layers": 10}),
        ("llamacpp", {"n-gpu-layers": "auto"}),
        ("llamacpp", {"cpu-moe": True}),
        ("llamacpp", {"n-cpu-moe": 70}),
        ("llamacpp", {"override-tensor": "exps=CPU"}),
    ],
)
def test_a_model_that_is_only_in_part_on_the_gpu_is_not_refused_for_its_size(specs, engine, args):
    assert specs(LARGE, "A100-80", engine, **args)


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vllm", {}),
        ("vllm", {"cpu-offload-gb": 0}),
        ("llamacpp", {}),
        ("llamacpp", {"n-gpu-layers": 999}),
        ("llamacpp", {"n-gpu-layers": 81}),
        ("llamacpp", {"split-mode": "layer"}),
    ],
)
def test_one_that_is_there_as_a_whole_is(specs, engine, args):
    with pytest.raises(PlacementError, match="cannot fit"):
        specs(LARGE, "A100-80", engine, **args)


def cards(*sizes_gib):
    return Inventory(
        DriverState.OK,
        tuple(
            Gpu(f"GPU-{n}", n, "X", gib * 2**30, (8, 6), f"0:{n}", None, None, False)
            for n, gib in enumerate(sizes_gib)
        ),
    )


@pytest.mark.parametrize("args", [{}, {"tensor-split": "4,1"}])
def test_llama_cpp_puts_more_of_a_model_on_the_larger_card(specs, args):
    model = {
        "id": "Qwen/Qwen2.5-14B-Instruct", "max_total_tokens": 4096, "devices": [["cuda:0", 1]],
    }  # fmt: skip
    assert specs(model, cards(48, 12), "llamacpp", **args)
    with pytest.raises(PlacementError, match="cannot fit"):
        specs(model, cards(12, 12), "llamacpp")
    with pytest.raises(PlacementError, match="cannot fit"):
        specs(model, cards(48, 12), "vllm")


def test_one_replica_of_its_own_flags_is_enough_not_to_refuse_the_model(specs):
    engine = {"name": "vllm", "per_replica": [{"cpu-offload-gb": 130}]}
    assert specs(LARGE | {"engine": engine}, "A100-80")
