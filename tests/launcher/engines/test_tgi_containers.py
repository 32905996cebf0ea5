"""text-generation-inference in containers, as its documentation starts them by hand."""

import os
from dataclasses import replace

import pytest

from launcher.engines.base import Mount
from launcher.engines.tgi import TgiEngine

IMAGE = "ghcr.io/huggingface/text-generation-inference"
GPU = "GPU-3f2a8c6e-0001-4d4d-9e9e-0123456789ab"
OTHER_GPU = "GPU-3f2a8c6e-0002-4d4d-9e9e-0123456789ab"


@pytest.fixture
def container(spec):
    def container(model=(), engine=(), environ=(), cache_dir="/cache"):
        one = spec({"devices": [GPU], **dict(model)}, {"name": "tgi", **dict(engine)})
        return TgiEngine(dict(environ)).container(one, cache_dir)

    return container


def flags(argv):
    return dict(zip(argv[::2], argv[1::2], strict=True))


def test_a_fine_tuned_model_of_this_machine_with_1_4_4(container):
    found = container(
        {
            "id": "/path/to/fine_tuned_v1",
            "dtype": "float16",
            "max_input_tokens": 3600,
            "max_total_tokens": 4000,
        },
        {"version": "1.4.4", "args": {"speculate": 2}},
    )
    assert found.image == "ghcr.io/huggingface/text-generation-inference:1.4.4"
    assert found.entrypoint is None
    assert " ".join(found.argv) == (
        "--model-id /model --dtype float16 --num-shard 1 "
        "--max-input-length 3600 --max-total-tokens 4000 --speculate 2"
    )
    assert found.mounts == (Mount("/path/to/fine_tuned_v1", "/model", is_read_only=False),)
    assert found.shm_bytes == 1024**3
    assert found.port == 80
    assert found.env == {}


def test_its_only_variables_are_tokens_that_exist(container):
    model = {"id": "/path/to/fine_tuned_v1"}
    found = container(model, {"version": "1.4.4"}, environ={"HF_TOKEN": "t", "HOME": "/root"})
    assert found.env == {"HF_TOKEN": "t", "HUGGING_FACE_HUB_TOKEN": "t"}


def test_a_model_of_the_hub_is_kept_in_one_folder_by_all_versions(container):
    for version in ("1.4.4", "2.0.4", "2.2.0", "2.3.0", "3.3.5", None):
        found = container({}, {"version": version} if version else {})
        assert found.mounts == (Mount("/cache", "/data"),)
        assert found.env == {"HUGGINGFACE_HUB_CACHE": "/data"}
        assert flags(found.argv[:2]) == {"--model-id": "org/m"}


@pytest.mark.parametrize(
    ("engine", "image"),
    [
        ({}, f"{IMAGE}:3.3.5"),
        ({"version": "2.4"}, f"{IMAGE}:2.4"),
        ({"version": "2.4.1-rocm"}, f"{IMAGE}:2.4.1-rocm"),
        ({"image": "mirror.example/tgi:1"}, "mirror.example/tgi:1"),
        ({"image": "mirror.example/tgi:1", "version": "1.4.4"}, "mirror.example/tgi:1"),
    ],
)
def test_the_image_is_the_version_s_or_the_operator_s(container, engine, image):
    assert container({}, engine).image == image


@pytest.mark.parametrize(
    ("image", "has_old_names"),
    [
        (f"{IMAGE}:1.4.4", True),
        (f"{IMAGE}:1.4.4@sha256:{'0' * 64}", True),
        (f"{IMAGE}:3.3.5", False),
        (f"{IMAGE}:latest", False),
        ("mirror.example:5000/hub/text-generation-inference:1.4.4", True),
        (f"mirror.example:5000/text-generation-inference:1.4.4@sha256:{'0' * 64}", True),
        ("text-generation-inference:1.4.4", True),
        ("mirror.example:5000/text-generation-inference", False),
        (f"mirror.example:5000/text-generation-inference@sha256:{'0' * 64}", False),
        ("mirror.example/text-generation-inference-own:1.4.4", False),
        ("mirror.example/tgi:1.4.4", False),
    ],
)
def test_flags_follow_the_tag_of_an_image_whose_tags_are_versions(container, image, has_old_names):
    found = container({"max_total_tokens": 4000}, {"image": image})
    assert ("--max-input-length" in found.argv) is has_old_names
    assert ("--usage-stats" in found.argv) is not has_old_names


def test_flags_of_another_version_than_the_image_s_are_refused(refused):
    engine = {"name": "tgi", "image": f"{IMAGE}:1.4.4", "args": {"payload-limit": 1000}}
    assert "version 1.4.4 does not have: it came with 2.4.1" in refused({}, engine)


@pytest.mark.parametrize(
    ("version", "entrypoint"),
    [
        ("1.4.4", None),
        ("1.4.5", None),
        ("2.0.0", ("text-generation-launcher",)),
        ("2.2.0", ("text-generation-launcher",)),
        ("2.3.1", ("text-generation-launcher",)),
        ("2.4.0", None),
        ("3.3.5", None),
        (None, None),
    ],
)
def test_an_entrypoint_that_hears_no_signals_is_not_used(container, version, entrypoint):
    assert container({}, {"version": version} if version else {}).entrypoint == entrypoint


AWKWARD = {"tokenizer-config-path": "/mnt/my models/*.json", "otlp-endpoint": "http://otel:4317"}


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1", "2.4.0", "3.3.5"])
def test_a_script_that_forgets_its_quotes_is_given_no_value_that_needs_them(container, version):
    found = container({}, {"version": version, "args": AWKWARD})
    assert found.env["TOKENIZER_CONFIG_PATH"] == "/mnt/my models/*.json"
    assert "--tokenizer-config-path" not in found.argv
    assert flags(found.argv)["--otlp-endpoint"] == "http://otel:4317"
    assert not any(set(" *?[") & set(word) for word in found.argv)


def test_where_no_script_is_in_between_all_flags_are_flags(container):
    found = container({}, {"version": "1.4.4", "args": AWKWARD})
    assert flags(found.argv)["--tokenizer-config-path"] == "/mnt/my models/*.json"
    assert "TOKENIZER_CONFIG_PATH" not in found.env


def test_several_gpus_are_shards_in_bus_order_with_room_to_talk(container):
    found = container({"devices": [[GPU, OTHER_GPU]]})
    assert flags(found.argv)["--num-shard"] == "2"
    assert found.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert found.shm_bytes == 2 * 1024**3


def test_a_share_of_the_gpu_is_told_unless_the_operator_tells_another(spec):
    one = replace(spec({}, "tgi"), memory_fraction=0.123456)
    engine = TgiEngine({})
    for argv in (engine.container(one, "/c").argv, engine.command(one, 31_000, "::1").argv[1:]):
        assert flags(argv)["--cuda-memory-fraction"] == "0.1235"
    own = replace(one, args={"cuda-memory-fraction": 0.5})
    assert flags(TgiEngine({}).container(own, "/c").argv)["--cuda-memory-fraction"] == "0.5"


def test_a_quantization_that_auto_chose_has_no_dtype_beside_it(spec):
    one = spec({"dtype": "float16", "quantize": "auto"}, "tgi")
    for chosen, has_dtype in [("eetq", False), ("bitsandbytes-nf4", True), (None, True)]:
        argv = TgiEngine({}).container(replace(one, quantize=chosen), "/c").argv
        assert ("--dtype" in argv) is has_dtype
        assert ("--quantize" in argv) is (chosen is not None)


def test_a_path_is_found_from_home(container):
    found = container({"id": "~/models/mine"})
    assert found.mounts == (Mount(os.path.expanduser("~/models/mine"), "/model"),)


def test_a_path_inside_an_operator_s_volume_is_the_container_s(container):
    found = container({"id": "/data/mine"}, {"volumes": ["/srv/models:/data"]})
    assert flags(found.argv)["--model-id"] == "/data/mine"
    assert found.mounts == (Mount("/srv/models", "/data"),)
    assert found.env == {}


def test_an_operator_s_volume_may_take_the_cache_s_place(container):
    found = container({}, {"volumes": ["/srv/hub:/data"]})
    assert found.mounts == (Mount("/srv/hub", "/data"),)
    assert found.env == {"HUGGINGFACE_HUB_CACHE": "/data"}


def test_but_none_takes_the_model_s(refused):
    found = refused({"id": "/path/to/it"}, {"name": "tgi", "volumes": ["/srv/a:/model/"]})
    assert "where the launcher mounts local models" in found


def test_it_may_write_to_folders_of_people_and_listen_on_its_port(container):
    assert container().capabilities == ("DAC_OVERRIDE", "NET_BIND_SERVICE")


def test_an_image_for_processors_needs_no_gpu(container):
    found = container({"devices": "cpu"}, {"version": "3.3.5-intel-cpu"})
    assert found.image == f"{IMAGE}:3.3.5-intel-cpu"
    assert flags(found.argv)["--num-shard"] == "1"
