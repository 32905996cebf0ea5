"""Which flags and values each version of text-generation-inference knows."""

import pytest

from launcher.engines.tgi_flags import FLAGS, RESERVED
from launcher.engines.versions import parse_version

VERSIONS = ["1.4.0", "1.4.4", "2.0.0", "2.0.1", "2.1.0", "2.2.0", "2.3.0", "2.4.0", "2.4.1"]
VERSIONS += ["3.0.0", "3.2.2", "3.3.0", "3.3.5", "3.3.7"]
ALWAYS = [
    *("validation-workers", "speculate", "trust-remote-code", "max-concurrent-requests"),
    *("max-best-of", "max-stop-sequences", "max-top-n-tokens", "waiting-served-ratio"),
    *("max-batch-prefill-tokens", "max-batch-total-tokens", "max-waiting-tokens"),
    *("max-batch-size", "huggingface-hub-cache", "weights-cache-override"),
    *("disable-custom-kernels", "cuda-memory-fraction", "rope-scaling", "rope-factor"),
    *("json-output", "otlp-endpoint", "cors-allow-origin", "watermark-gamma", "watermark-delta"),
    *("tokenizer-config-path", "disable-grammar-support"),
]
FROM = {
    "cuda-graphs": "2.0.0",
    "max-client-batch-size": "2.0.1",
    "lora-adapters": "2.1.0",
    "otlp-service-name": "2.1.0",
    "disable-usage-stats": "2.2.0",
    "usage-stats": "2.3.0",
    "kv-cache-dtype": "2.4.0",
    "payload-limit": "2.4.1",
    "enable-prefill-logprobs": "3.0.0",
    "graceful-termination-timeout": "3.2.2",
}
BEFORE = {"enable-cuda-graphs": "2.0.0", "disable-usage-stats": "2.3.0"}
LAUNCHERS_OWN = [
    *("model-id", "revision", "dtype", "quantize", "sharded", "num-shard", "max-input-length"),
    *("max-input-tokens", "max-total-tokens", "hostname", "port", "prometheus-port"),
    *("shard-uds-path", "master-addr", "master-port", "api-key", "ngrok", "ngrok-authtoken"),
    *("ngrok-edge", "env"),
]


def test_every_flag_of_the_program_is_the_operator_s_or_the_launcher_s():
    assert set(FLAGS) == {*ALWAYS, *FROM, *BEFORE}
    assert set(RESERVED) == set(LAUNCHERS_OWN)


@pytest.mark.parametrize("text", VERSIONS)
def test_each_version_has_its_flags(text):
    version = parse_version(text)
    came = {name for name, first in FROM.items() if parse_version(first) <= version}
    gone = {name for name, last in BEFORE.items() if parse_version(last) <= version}
    expected = {*ALWAYS, *came, *BEFORE} - gone
    if "disable-usage-stats" not in came:
        expected -= {"disable-usage-stats"}
    assert {name for name, flag in FLAGS.items() if flag.is_in(version)} == expected


VALUES = {
    "kv-cache-dtype": ("fp8_e5m2", "fp16"),
    "usage-stats": ("no-stack", "never"),
    "rope-scaling": ("dynamic", "yarn"),
    "speculate": (2, "two"),
    "waiting-served-ratio": (0.3, "much"),
    "cuda-graphs": ("1,2,4", True),
    "json-output": (True, "yes"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_judged(name, refused):
    good, bad = VALUES[name]
    assert refused({}, {"name": "tgi", "args": {name: good}}) == ""
    assert "expected" in refused({}, {"name": "tgi", "args": {name: bad}})


@pytest.mark.parametrize(
    ("quantize", "first"),
    [
        ("bitsandbytes", "1.4.4"),
        ("bitsandbytes-nf4", "1.4.4"),
        ("bitsandbytes-fp4", "1.4.4"),
        ("gptq", "1.4.4"),
        ("awq", "1.4.4"),
        ("eetq", "1.4.4"),
        ("auto", "1.4.4"),
        ("fp8", "2.0.0"),
        ("exl2", "2.1.0"),
        ("marlin", "2.1.0"),
        ("compressed-tensors", "2.4.0"),
    ],
)
def test_ways_to_quantize_by_version(quantize, first, refused):
    for text in VERSIONS:
        found = refused({"quantize": quantize}, {"name": "tgi", "version": text})
        assert (found == "") is (parse_version(text) >= parse_version(first) or first == "1.4.4")


@pytest.mark.parametrize(
    ("quantize", "is_refused"),
    [("gptq", True), ("fp8", True), ("bitsandbytes-nf4", False), ("auto", False), (None, False)],
)
def test_dtype_goes_beside_few_ways_to_quantize(quantize, is_refused, refused):
    found = refused({"dtype": "float16", "quantize": quantize}, "tgi")
    assert ("dtype beside quantize" in found) is is_refused


@pytest.mark.parametrize("version", ["1.3.4", "0.9.4"])
def test_versions_that_nobody_has_looked_at_are_refused(version, refused):
    assert "expected 1.4.0 or later" in refused({}, {"name": "tgi", "version": version})


@pytest.mark.parametrize("variable", ["PORT", "NUM_SHARD", "CUDA_VISIBLE_DEVICES"])
def test_variables_that_are_the_launcher_s_are_refused(variable, refused):
    assert variable not in refused({}, {"name": "tgi", "env": {"LOG_LEVEL": "debug"}})
    found = refused({}, {"name": "tgi", "env": {variable: "1"}})
    assert "a variable that the launcher sets itself" in found


@pytest.mark.parametrize(
    ("version", "model", "args", "expected"),
    [
        ("1.4.4", {"max_input_tokens": 1500}, {"max-batch-prefill-tokens": 1000}, "(1000)"),
        ("2.4.1", {"max_input_tokens": 1500}, {"max-batch-prefill-tokens": 1000}, "(1000)"),
        ("1.4.4", {"max_total_tokens": 6000}, {"max-batch-prefill-tokens": "5000"}, "(5000)"),
        ("3.3.5", {"max_input_tokens": 1500}, {"max-batch-prefill-tokens": 1000}, ""),
        ("1.4.4", {"max_input_tokens": 1000}, {"max-batch-prefill-tokens": 1000}, ""),
        ("1.4.4", {}, {"max-batch-total-tokens": 2047}, "(2047)"),
        ("3.3.5", {}, {"max-batch-total-tokens": 2047}, ""),
        ("3.3.5", {"max_total_tokens": 9000}, {"max-batch-total-tokens": 8000}, "(8000)"),
        (
            "3.3.5",
            {},
            {"max-batch-prefill-tokens": 9000, "max-batch-total-tokens": 8000},
            "at most max-batch-total-tokens (8000)",
        ),
        ("3.3.5", {}, {"validation-workers": 0}, "1 or more"),
    ],
)
def test_batches_that_the_server_would_end_over(version, model, args, expected, refused):
    found = refused(model, {"name": "tgi", "version": version, "args": args})
    assert expected in found if expected else found == ""


def test_a_replica_s_own_batches_are_judged_too(refused):
    engine = {"name": "tgi", "per_replica": [{}, {"max-batch-total-tokens": 100}]}
    found = refused({"replicas": 2, "max_total_tokens": 200}, engine)
    assert "expected at most engine.per_replica[1].max-batch-total-tokens (100)" in found


def test_a_way_to_quantize_that_cannot_be_divided(refused):
    assert refused({"quantize": "exl2"}, "tgi") == ""
    assert "exl2 on 2 GPUs" in refused({"quantize": "exl2", "gpus_per_replica": 2}, "tgi")
