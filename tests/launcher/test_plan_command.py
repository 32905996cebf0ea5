"""`launcher plan`: the worked examples by the command itself, reasons, exit codes, inventories.

The figures are those of the arithmetic written out: 0.90 of the card, less 0.6 GiB for CUDA, less
the weights, less 1.0 GiB of activations, over the bytes of a token in the KV cache.
"""

import json

import pytest
import yaml

from launcher.commands import plan
from launcher.gpu import DriverState, Gpu, Inventory
from launcher.imagined import CARDS, imagined
from launcher.sizes import GIB
from router.errors import DeviceError, PlacementError

VICUNA, BLOOM, LLAMA = "lmsys/vicuna-7b-v1.5", "bigscience/bloom-3b", "meta-llama/Llama-2-70b-hf"
CARD_GIB = (15, 22.5, 24, 45, 48, 80)
WORKED = [
    (VICUNA, None, (None, 12_500, 15_300, 54_000, 59_000, 118_000)),
    (VICUNA, "bitsandbytes", (11_000, 24_800, 27_600, 66_000, 72_000, 131_000)),
    (VICUNA, "bitsandbytes-nf4", (17_000, 30_800, 33_600, 72_000, 78_000, 137_000)),
    (BLOOM, None, (22_000, 46_000, 50_000, 116_000, 126_000, 227_000)),
    (BLOOM, "bitsandbytes-nf4", (33_000, 57_000, 62_000, 128_000, 137_000, 238_000)),
    (LLAMA, None, (None, None, None, None, None, None)),
    (LLAMA, "bitsandbytes", (None, None, None, None, None, 18_600)),
    (LLAMA, "bitsandbytes-nf4", (None, None, None, 16_482, 25_000, 119_000)),
]
CELLS = [
    pytest.param(model, scheme, size, tokens, id=f"{model.split('/')[1]} {scheme} {size}")
    for model, scheme, row in WORKED
    for size, tokens in zip(CARD_GIB, row, strict=True)
]
WEIGHTS_GIB = [
    (VICUNA, None, 12.55),
    (VICUNA, "eetq", 6.52),
    (VICUNA, "fp8", 6.52),
    (VICUNA, "bitsandbytes-nf4", 3.60),
    (BLOOM, None, 5.59),
    (BLOOM, "bitsandbytes-nf4", 2.33),
    ("mistralai/Mistral-7B-v0.1", "eetq", 6.99),
    ("meta-llama/Llama-2-13b-hf", "bitsandbytes-nf4", 6.71),
    ("mistralai/Mixtral-8x7B-v0.1", None, 86.99),
]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write({...})`: a config of one model, away from this machine's caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def write(model, **sections):
        config = {
            "models": [model],
            "engine": {"name": "tgi", "version": "3.3.5"},
            "runtime": {"state_dir": str(tmp_path / "state")},
            **sections,
        }
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def planned(write, capsys):
    """The plan as JSON and the exit code."""

    def planned(model, gpu, **sections):
        rc = plan.run(write(model, **sections), gpu=gpu, as_json=True)
        return json.loads(capsys.readouterr().out), rc

    return planned


@pytest.mark.parametrize(("model", "scheme", "size_gib", "tokens"), CELLS)
def test_kv_room_of_the_worked_examples(planned, model, scheme, size_gib, tokens):
    if tokens is None:
        # Written as a plan that fails; weights larger than the card are refused as hopeless later.
        found, rc = planned({"id": model, "quantize": scheme}, f"{size_gib}GiB")
        assert (found["fits"], rc) == (False, 1)
        assert found["replicas"][0]["kv_tokens"] == 0
        assert found["replicas"][0]["warnings"]
        return
    found, rc = planned({"id": model, "quantize": scheme}, f"{size_gib}GiB")
    assert (found["fits"], rc) == (True, 0)
    assert found["replicas"][0]["kv_tokens"] == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize(("model", "scheme", "gib"), WEIGHTS_GIB)
def test_weights_of_the_worked_examples(planned, model, scheme, gib):
    found, _ = planned({"id": model, "quantize": scheme}, "H200")
    assert found["replicas"][0]["weights_bytes"] / GIB == pytest.approx(gib, rel=0.02)


def test_every_number_has_its_reason(planned):
    found, _ = planned({"id": VICUNA, "max_total_tokens": 4096}, "24GiB")
    [replica] = found["replicas"]
    assert {one["what"] for one in replica["reasons"]} >= {"budget", "weights", "KV cache"}
    assert all(one["reason"] for one in replica["reasons"])
    parts = ("weights_bytes", "activations_bytes", "context_bytes")
    room = replica["budget_bytes"] - sum(replica[part] for part in parts)
    assert replica["kv_tokens"] == room // replica["kv_bytes_per_token"]
    assert replica["gpu_bytes"] == replica["budget_bytes"] + replica["headroom_bytes"]


@pytest.mark.parametrize(
    ("gpu", "quantize", "dtype", "rejected"),
    [
        ("A100-80", None, "float16", []),
        ("T4", "eetq", None, ["float16"]),
        ("8GiB", "bitsandbytes-nf4", "float16", ["float16", "eetq"]),
    ],
)
def test_auto_takes_the_least_lossy_way_and_tells_why_not_the_others(
    planned, gpu, quantize, dtype, rejected
):
    found, rc = planned({"id": VICUNA, "quantize": "auto", "max_total_tokens": 2048}, gpu)
    [replica] = found["replicas"]
    assert (rc, replica["quantize"]) == (0, quantize)
    assert replica["dtype"] in (dtype, None)
    names = [one["what"] for one in replica["rejected"]]
    assert names[: len(rejected)] == rejected
    assert all(one["why"] for one in replica["rejected"])


def test_a_budget_becomes_the_engines_share_of_the_card(planned):
    found, _ = planned({"id": VICUNA, "max_memory": {0: "20GiB"}}, "24GiB")
    [replica] = found["replicas"]
    assert replica["memory_fraction"] == 0.833
    assert replica["budget_bytes"] <= 20 * GIB


def test_replicas_that_are_alike_are_shown_together(write, capsys):
    assert plan.run(write({"id": VICUNA, "name": "v", "replicas": 3}), gpu="4xL4") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "cluster default: 3 replicas on 3 GPUs"
    assert text.count("weights") == 1
    assert "replica-0, replica-1, replica-2: v (lmsys/vicuna-7b-v1.5), tgi" in text


def test_an_unknown_model_is_told_and_no_error(write, capsys):
    assert plan.run(write({"id": "nobody/knows-this"}), gpu="L4") == 0
    assert (
        "not computed: the size of nobody/knows-this is not known here" in capsys.readouterr().out
    )


def test_more_replicas_than_gpus_are_refused(write):
    with pytest.raises(
        PlacementError, match=r"models\[0\].replicas: found 2 free GPUs .* expected 3"
    ):
        plan.run(write({"id": VICUNA, "replicas": 3}), gpu="2xL4")


@pytest.mark.parametrize("text", ["", "0xL4", "L5", "24gb", "x", "4x"])
def test_a_card_nobody_knows_is_refused_with_what_is_known(text):
    with pytest.raises(DeviceError, match=r"--gpu: found .* expected"):
        imagined(text)


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_found_whatever_their_case(name):
    gpus = imagined(f"2x{name.lower()}").gpus
    assert len(gpus) == 2
    assert gpus[0].memory_bytes == CARDS[name][0] * 2**20


def test_what_this_machine_has_is_looked_at(write, capsys, monkeypatch):
    gpu = Gpu("GPU-1111", 0, "NVIDIA L4", 23_034 * 2**20, (8, 9), "", None, None, False)
    monkeypatch.setattr(plan, "machine_inventory", lambda _: Inventory(DriverState.OK, (gpu,)))
    assert plan.run(write({"id": VICUNA, "devices": "all"})) == 0
    assert "on GPU-1111  NVIDIA L4, 22.5 GiB" in capsys.readouterr().out
