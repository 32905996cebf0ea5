"""vLLM and Aphrodite: the same server under two names."""

from dataclasses import replace

import pytest

from launcher.engines.aphrodite import AphroditeEngine
from launcher.engines.base import Mount
from launcher.engines.vllm import VllmEngine
from launcher.engines.vllm_flags import FLAGS, RESERVED

KINDS = {"vllm": VllmEngine, "aphrodite": AphroditeEngine}
BOTH = pytest.mark.parametrize("name", list(KINDS))


@pytest.fixture
def container(spec):
    def container(model=(), engine=(), **changes):
        section = {"name": "vllm", **dict(engine)}
        one = replace(spec(dict(model), section), **changes)
        return KINDS[section["name"]]({}).container(one, "/cache")

    return container


@pytest.fixture
def command(spec):
    def command(model=(), engine=(), **changes):
        section = {"name": "vllm", **dict(engine)}
        one = replace(spec(dict(model), section), **changes)
        return KINDS[section["name"]]({}).command(one, 31_000, "127.0.0.1")

    return command


def value(argv, flag):
    return argv[argv.index(flag) + 1] if flag in argv else None


def test_a_whole_container_of_vllm(container):
    found = container(
        {
            "name": "chat",
            "revision": "abc",
            "dtype": "bfloat16",
            "quantize": "awq",
            "max_total_tokens": 8192,
        },
        {"version": "0.10.2", "args": {"max-num-seqs": 64}},
        memory_fraction=0.85,
    )
    assert found.image == "vllm/vllm-openai:v0.10.2"
    assert found.argv == (
        "--model", "org/m",
        "--served-model-name", "chat",
        "--revision", "abc",
        "--dtype", "bfloat16",
        "--quantization", "awq",
        "--max-model-len", "8192",
        "--tensor-parallel-size", "1",
        "--gpu-memory-utilization", "0.85",
        "--max-num-seqs", "64",
    )  # fmt: skip
    assert (found.port, found.shm_bytes, found.entrypoint) == (8000, 2 * 1024**3, None)
    assert found.mounts == (Mount("/cache", "/cache"),)
    assert found.env == {
        "DO_NOT_TRACK": "1",
        "HF_HOME": "/cache",
        "HF_HUB_CACHE": "/cache",
        "VLLM_CACHE_ROOT": "/cache/vllm-compile/replica-0",
    }


def test_a_whole_container_of_aphrodite(container):
    found = container({"max_total_tokens": 4096}, {"name": "aphrodite"})
    assert found.image == "alpindale/aphrodite-openai:latest"
    assert found.argv == (
        "--model", "org/m",
        "--served-model-name", "org/m",
        "--max-model-len", "4096",
        "--tensor-parallel-size", "1",
    )  # fmt: skip
    assert (found.port, found.shm_bytes) == (2242, 2 * 1024**3)
    assert found.env["APHRODITE_CACHE_ROOT"].endswith("/aphrodite-compile/replica-0")


@pytest.mark.parametrize(
    ("name", "start"), [("vllm", ("vllm", "serve")), ("aphrodite", ("aphrodite", "run"))]
)
def test_a_process_is_started_by_the_program_s_own_verb(command, name, start):
    found = command({}, {"name": name})
    assert found.argv == (
        *start, "org/m",
        "--served-model-name", "org/m",
        "--tensor-parallel-size", "1",
        "--host", "127.0.0.1",
        "--port", "31000",
    )  # fmt: skip
    assert found.env["CUDA_VISIBLE_DEVICES"] == "0"


@BOTH
@pytest.mark.parametrize(
    ("devices", "is_looked_up"),
    [(("cuda:1",), False), (("GPU-1",), True), (("cuda:1", "GPU-1"), True)],
)
def test_a_gpu_by_uuid_is_looked_up_when_a_process_starts(command, name, devices, is_looked_up):
    found = command({}, {"name": name}, devices=devices)
    assert ("launcher.by_index" in found.argv) is is_looked_up
    assert found.env["CUDA_VISIBLE_DEVICES"] == ",".join(d.removeprefix("cuda:") for d in devices)


@BOTH
def test_a_user_who_has_no_home_in_the_image_writes_into_the_cache_too(container, name):
    user_env = container({}, {"name": name}).user_env
    assert user_env.pop("USER") == "gpu-fleet"  # PyTorch fails for one without a name
    assert set(user_env) == {"HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert all(path.startswith(f"/cache/{name}-compile/replica-0/") for path in user_env.values())


@BOTH
def test_a_local_model_is_mounted_where_nobody_can_change_it(container, name):
    found = container({"id": "/srv/models/mine"}, {"name": name})
    assert value(found.argv, "--model") == "/model"
    assert value(found.argv, "--served-model-name") == "/srv/models/mine"
    assert found.mounts[0] == Mount("/srv/models/mine", "/model", is_read_only=True)


@pytest.mark.parametrize(
    ("quantize", "flag", "load_format"),
    [
        (None, None, None),
        ("auto", None, None),
        ("gptq", "gptq", None),
        ("fp8", "fp8", None),
        ("awq_marlin", "awq_marlin", None),
        ("bitsandbytes-nf4", "bitsandbytes", "bitsandbytes"),
        ("bitsandbytes", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_ways_to_quantize_have_the_engine_s_names(container, quantize, flag, load_format):
    argv = container({"quantize": quantize}).argv
    assert (value(argv, "--quantization"), value(argv, "--load-format")) == (flag, load_format)


@BOTH
@pytest.mark.parametrize(
    "model",
    [{"quantize": "eetq"}, {"quantize": "bitsandbytes-fp4"}, {"dtype": "int8"}],
)
def test_what_they_cannot_do_is_refused_with_what_they_can(name, model, refused):
    assert "expected one of: auto" in refused(model, name)


@BOTH
def test_a_limit_of_the_prompt_alone_is_refused_as_they_have_none(name, refused):
    found = refused({"max_input_tokens": 100}, name)
    assert f"max_total_tokens: {name} limits prompt and answer together" in found


@BOTH
@pytest.mark.parametrize("version", ["0.5.3", "0.4.0"])
def test_versions_that_start_in_other_ways_are_refused(name, version, refused):
    assert "expected 0.6.0 or later" in refused({}, {"name": name, "version": version})
    assert refused({}, {"name": name, "version": "0.6.3.post1"}) == ""


@pytest.mark.parametrize(
    ("name", "version", "is_known"),
    [
        ("max-num-queued-reqs", "0.28.1", False),
        ("max-num-queued-reqs", "0.29.0", True),
        ("max-num-partial-prefills", "0.26.0", True),
        ("max-num-partial-prefills", "0.27.0", False),
        ("speculative-config", "0.7.3", False),
        ("speculative-model", "0.7.3", True),
        ("speculative-model", "0.29.0", False),
        ("disable-log-requests", "0.9.2", True),
        ("disable-log-requests", None, False),
        ("swap-space", None, False),
    ],
)
def test_flags_by_version(name, version, is_known, refused):
    value_of = {"switch": True, "json": "{}", "text": "x"}.get(FLAGS[name].kind, 1)
    section = {"name": "vllm", "args": {name: value_of}}
    found = refused({}, section | ({"version": version} if version else {}))
    assert ("does not have" not in found) is is_known


@BOTH
def test_a_misspelled_flag_is_answered_with_those_that_look_like_it(name, refused):
    found = refused({}, {"name": name, "args": {"max-num-seq": 3}})
    assert "(did you mean max-num-seqs" in found


@BOTH
@pytest.mark.parametrize("flag", ["disable-log-stats", "data-parallel-size", "ssl-keyfile"])
def test_flags_that_would_break_the_fleet_say_why(name, flag, refused):
    found = refused({}, {"name": name, "args": {flag: 1}})
    assert "found a flag that replicas cannot have, expected nothing here: " in found
    assert RESERVED[flag].removeprefix("nothing here: ") in found


@BOTH
def test_its_key_is_asked_for_where_the_router_knows_it_too(name, refused):
    for flag in ("api-key", "api-keys"):
        found = refused({}, {"name": name, "args": {flag: "x"}})
        assert f"{name.upper()}_API_KEY in engine.env" in found
        assert "router.engine_api_key" in found


@pytest.mark.parametrize(
    ("version", "value_of", "words"),
    [
        ("0.9.0", False, ["--no-enable-prefix-caching"]),
        (None, False, ["--no-enable-prefix-caching"]),
        ("0.29.0", True, ["--enable-prefix-caching"]),
        ("0.8.5", False, []),
        ("0.29.0", None, []),
    ],
)
def test_what_is_on_by_itself_can_be_switched_off(container, version, value_of, words):
    engine = {"args": {"enable-prefix-caching": value_of}}
    argv = container({}, engine | ({"version": version} if version else {})).argv
    assert [word for word in argv if "prefix" in word] == words


@pytest.mark.parametrize(("version", "says"), [("0.9.2", True), ("0.10.0", False), (None, False)])
def test_prompts_are_not_logged_by_old_versions_either(container, version, says):
    argv = container({}, {"version": version} if version else {}).argv
    assert ("--disable-log-requests" in argv) is says


@pytest.mark.parametrize(
    ("value_of", "is_fine"),
    [('{"method": "ngram"}', True), ("{method: ngram}", False), (3, False)],
)
def test_json_is_read_before_the_engine_reads_it(value_of, is_fine, refused):
    found = refused({}, {"name": "vllm", "args": {"speculative-config": value_of}})
    assert (found == "") is is_fine


def test_keys_of_json_may_be_flags_of_their_own(container, refused):
    args = {"speculative-config.method": "ngram", "speculative-config.num_speculative_tokens": 3}
    assert value(container({}, {"args": args}).argv, "--speculative-config.method") == "ngram"
    assert "does not have" in refused({}, {"name": "vllm", "args": {"seed.method": 1}})


def test_several_gpus_are_one_tensor_parallel_replica(container):
    found = container({"gpus_per_replica": 2})
    assert value(found.argv, "--tensor-parallel-size") == "2"
    assert found.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
