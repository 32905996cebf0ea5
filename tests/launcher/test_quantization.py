"""Which scheme an engine, a card and weights allow, and which one `auto` takes."""

from functools import partial

import pytest

from launcher.known_models import known_shape
from launcher.memory import fit
from launcher.model_shape import ModelShape, Quantization
from launcher.quantization import (
    SCHEMES,
    flag_of,
    linear_bytes_of,
    loaded_dtype,
    on_load,
    scheme_named,
    why_not,
)
from launcher.quantization_choice import choose
from launcher.sizes import GIB

VICUNA = known_shape("lmsys/vicuna-7b-v1.5")
LLAMA_3 = known_shape("meta-llama/Meta-Llama-3-8B")


def quantised(scheme, bits=4, stored_bytes=4 * 10**9):
    return ModelShape(
        name="/models/it",
        architecture=VICUNA.architecture,
        parameters=VICUNA.parameters,
        quantization=Quantization(scheme, bits, 128),
        stored_bytes=stored_bytes,
    )


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("eetq", 1.0),
        ("fp8", 1.0),
        ("int8", 1.0),
        ("nf4", 0.516),
        ("fp4", 0.516),
        ("gptq", 0.5195),
        ("awq", 0.5195),
        ("marlin", 0.52),
    ],
)
def test_a_linear_parameter_takes(scheme, expected):
    assert SCHEMES[scheme].linear_bytes == pytest.approx(expected, abs=0.0005)


@pytest.mark.parametrize(
    ("bits", "group", "expected"),
    [(4, 128, 0.51953), (4, 32, 0.57813), (8, 128, 1.02344), (4, -1, 0.5), (3, 64, 0.41211)],
)
def test_gptq_takes_what_its_bits_and_groups_say(bits, group, expected):
    found = linear_bytes_of(SCHEMES["gptq"], Quantization("gptq", bits, group))
    assert found == pytest.approx(expected, abs=0.00001)


@pytest.mark.parametrize(
    ("name", "engine", "expected"),
    [
        (None, "tgi", None),
        ("none", "tgi", None),
        ("eetq", "tgi", "eetq"),
        ("bitsandbytes", "tgi", "int8"),
        ("int8", "tgi", "int8"),
        ("bitsandbytes-nf4", "tgi", "nf4"),
        ("bitsandbytes-fp4", "tgi", "fp4"),
        ("bitsandbytes", "vllm", "nf4"),
        ("bitsandbytes", "aphrodite", "nf4"),
        ("gptq", "vllm", "gptq"),
    ],
)
def test_schemes_have_our_name_and_the_engines(name, engine, expected):
    found = scheme_named(name, engine)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("name", "engine"), [("bitsandbytes-nf4", "vllm"), ("int9", "tgi"), ("", "tgi")]
)
def test_a_name_nobody_knows_is_refused(name, engine):
    with pytest.raises(ValueError, match="one of: none, eetq"):
        scheme_named(name, engine)


@pytest.mark.parametrize(
    ("scheme", "shape", "engine", "expected"),
    [
        (None, VICUNA, "tgi", None),
        ("int8", VICUNA, "tgi", "bitsandbytes"),
        ("nf4", VICUNA, "tgi", "bitsandbytes-nf4"),
        ("fp8", VICUNA, "vllm", "fp8"),
        ("nf4", VICUNA, "vllm", "bitsandbytes"),
        ("gptq", quantised("gptq"), "tgi", "gptq"),
        ("gptq", quantised("gptq"), "vllm", None),
    ],
)
def test_the_engine_is_told_in_its_own_word(scheme, shape, engine, expected):
    assert flag_of(SCHEMES.get(scheme), shape, engine) == expected


def test_every_scheme_made_on_load_has_a_flag():
    for engine in ("tgi", "vllm", "aphrodite", "llamacpp"):
        for scheme in on_load(engine):
            assert flag_of(scheme, VICUNA, engine)
            assert scheme_named(flag_of(scheme, VICUNA, engine), engine) == scheme


@pytest.mark.parametrize(
    ("scheme", "shape", "engine", "capability", "expected"),
    [
        (None, VICUNA, "tgi", (6, 0), None),
        ("eetq", VICUNA, "tgi", (8, 6), None),
        ("eetq", VICUNA, "tgi", (6, 1), "needs compute capability 7.0, the card has 6.1"),
        ("eetq", VICUNA, "tgi", (9, 0), "stated for 7.0 to 8.9, the card has 9.0"),
        ("eetq", VICUNA, "vllm", (8, 6), "vllm does not have it"),
        ("fp8", VICUNA, "tgi", (8, 0), None),
        ("fp8", VICUNA, "tgi", (7, 5), "needs compute capability 8.0"),
        ("int8", VICUNA, "tgi", (7, 0), "needs compute capability 7.5"),
        ("nf4", VICUNA, "tgi", (6, 0), None),
        ("nf4", VICUNA, "tgi", (5, 2), "needs compute capability 6.0"),
        ("gptq", VICUNA, "tgi", (9, 0), "needs weights that are gptq already"),
        ("awq", VICUNA, "vllm", (9, 0), "needs weights that are awq already"),
        ("gptq", quantised("gptq"), "tgi", (9, 0), None),
        ("awq", quantised("gptq"), "tgi", (9, 0), "the weights are gptq already"),
        (None, quantised("gptq"), "tgi", (9, 0), "the weights are gptq already"),
        ("gptq", quantised("gptq"), "llamacpp", (9, 0), "llamacpp cannot load gptq weights"),
        ("nf4", quantised("nf4"), "tgi", (9, 0), "tgi cannot load nf4 weights"),
        ("marlin", quantised("marlin"), "tgi", (7, 5), "needs compute capability 8.0"),
        ("fp8", VICUNA, "tgi", None, None),
    ],
)
def test_why_a_scheme_cannot_be_had(scheme, shape, engine, capability, expected):
    found = why_not(SCHEMES.get(scheme), shape, engine, capability)
    assert found is None if expected is None else expected in found


def auto(shape, gib, capability, engine="tgi", **more):
    fit_of = partial(_fit, shape, gib, engine=engine, compute_capability=capability, **more)
    return choose(shape, engine, capability, fit_of)


def _fit(shape, gib, scheme, **more):
    return fit(shape, scheme, None, int(gib * GIB), **more)


@pytest.mark.parametrize(
    ("gib", "capability", "engine", "scheme", "flag"),
    [
        (24, (8, 6), "tgi", None, None),
        (15, (7, 5), "tgi", "eetq", "eetq"),
        (15, (8, 9), "tgi", "eetq", "eetq"),
        (15, (9, 0), "tgi", "fp8", "fp8"),
        (15, (8, 9), "vllm", "fp8", "fp8"),
        (15, (7, 5), "vllm", "nf4", "bitsandbytes"),
        (15, (6, 0), "tgi", "nf4", "bitsandbytes-nf4"),
        (8, (9, 0), "tgi", "nf4", "bitsandbytes-nf4"),
    ],
)
def test_auto_loses_as_little_as_the_card_allows(gib, capability, engine, scheme, flag):
    choice = auto(VICUNA, gib, capability, engine, max_total_tokens=2048)
    assert (choice.scheme, choice.flag, choice.works) == (scheme, flag, True)


def test_auto_says_why_it_passed_each_over():
    choice = auto(VICUNA, 8, (8, 9))
    assert choice.reason == "the least lossy that fits"
    assert [name for name, _ in choice.rejected] == ["float16", "eetq", "fp8", "int8"]
    assert choice.rejected[0][1].startswith("does not fit: 7.0 GiB missing")
    choice = auto(VICUNA, 15, (6, 0))
    assert choice.rejected[1] == ("eetq", "needs compute capability 7.0, the card has 6.0")


def test_auto_goes_on_until_the_longest_call_fits():
    choice = auto(VICUNA, 24, (8, 9), max_total_tokens=20_000)
    assert choice.scheme == "eetq"
    assert choice.rejected == (
        ("float16", "leaves room for 15254 tokens, 20000 are needed"),
    )  # fmt: skip


def test_auto_keeps_16_bits_where_they_fit():
    choice = auto(VICUNA, 80, (8, 0))
    assert (choice.scheme, choice.rejected, choice.reason) == (None, (), "nothing is lost")


def test_auto_never_takes_what_needs_other_weights():
    choice = auto(VICUNA, 2, (9, 0))
    assert not choice.works
    assert (choice.scheme, choice.reason) == ("nf4", "nothing fits")
    assert {name for name, _ in choice.rejected} & {"gptq", "awq", "marlin", "exl2"} == set()


def test_auto_leaves_quantised_weights_as_they_are():
    choice = auto(quantised("awq"), 15, (8, 6))
    assert (choice.scheme, choice.flag) == ("awq", "awq")
    assert choice.reason == "the weights are so already"
    assert choice.fit.weights_bytes == 4 * 10**9


def test_auto_has_no_way_for_weights_the_card_cannot_use():
    choice = auto(quantised("marlin"), 15, (7, 5))
    assert (choice.works, choice.reason) == (False, "nothing can be used")
    assert choice.rejected == (
        ("marlin", "needs compute capability 8.0, the card has 7.5"),
    )  # fmt: skip


def test_vllm_reads_schemes_we_have_no_name_for():
    choice = auto(quantised("mxfp4"), 15, (9, 0), "vllm", max_total_tokens=2048)
    assert (choice.works, choice.scheme, choice.flag) == (True, "mxfp4", None)


def test_llamacpp_quantises_nothing_itself():
    choice = auto(VICUNA, 12, (8, 6), "llamacpp")
    assert not choice.works
    assert [name for name, _ in choice.rejected] == ["float16"]


@pytest.mark.parametrize(
    ("shape", "gib", "capability", "engine", "dtype"),
    [
        (LLAMA_3, 24, (8, 6), "tgi", None),
        (LLAMA_3, 32, (7, 0), "tgi", "float16"),
        (LLAMA_3, 32, (7, 0), "vllm", "float16"),
        (LLAMA_3, 15, (7, 5), "tgi", None),  # eetq: TGI takes no dtype beside it
        (LLAMA_3, 9, (7, 5), "tgi", "float16"),  # bitsandbytes: it does
        (VICUNA, 32, (7, 0), "tgi", None),
    ],
)
def test_bfloat16_weights_are_loaded_as_float16_on_old_cards(shape, gib, capability, engine, dtype):
    choice = auto(shape, gib, capability, engine, max_total_tokens=1024)
    assert choice.works
    assert choice.dtype == dtype


def test_weights_are_loaded_as_stored_but_never_in_32_bits():
    assert loaded_dtype(known_shape("gpt2")) == "float16"
    assert loaded_dtype(LLAMA_3) == "bfloat16"
    assert loaded_dtype(LLAMA_3, (7, 5)) == "float16"
