"""What fits on a card, checked against worked examples; and that the sum behaves as sums do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.known_models import known_ids, known_shape
from launcher.memory import fit
from launcher.model_shape import ModelShape, Quantization
from launcher.sizes import GIB

VICUNA = "lmsys/vicuna-7b-v1.5"
BLOOM = "bigscience/bloom-3b"
LLAMA_70B = "meta-llama/Llama-2-70b-hf"
CARDS_GIB = (15, 22.5, 24, 45, 48, 80)  # T4, A10 or L4, 3090 or 4090, L40S, A6000, A100


def fitted(model_id, scheme=None, gib=24.0, **more):
    return fit(known_shape(model_id), scheme, more.pop("dtype", None), int(gib * GIB), **more)


WEIGHTS_GIB = {
    VICUNA: (25.10, 12.55, 6.52, 3.60, 3.62),
    BLOOM: (11.19, 5.59, 3.39, 2.33, 2.34),
    "mistralai/Mistral-7B-v0.1": (26.98, 13.49, 6.99, 3.84, 3.87),
    "meta-llama/Llama-2-13b-hf": (48.49, 24.24, 12.43, 6.71, 6.75),
    LLAMA_70B: (256.96, 128.48, 64.73, 33.87, 34.10),
    "mistralai/Mixtral-8x7B-v0.1": (173.98, 86.99, 43.74, 22.81, 22.96),
}
COLUMNS = (
    (None, "float32"),
    (None, "float16"),
    ("eetq", None),
    ("nf4", None),
    ("gptq", None),
)
WEIGHT_CELLS = [
    (model, scheme, dtype, gib)
    for model, row in WEIGHTS_GIB.items()
    for (scheme, dtype), gib in zip(COLUMNS, row, strict=True)
]


@pytest.mark.parametrize(("model", "scheme", "dtype", "expected_gib"), WEIGHT_CELLS)
def test_weights_take_what_was_worked_out(model, scheme, dtype, expected_gib):
    found = fitted(model, scheme, dtype=dtype).weights_bytes / GIB
    assert found == pytest.approx(expected_gib, rel=0.002)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_all_8_bit_schemes_take_the_same(scheme):
    assert fitted(VICUNA, scheme).weights_bytes == fitted(VICUNA, "eetq").weights_bytes


NO = None
KILO_TOKENS = {
    (VICUNA, None): (NO, 12.5, 15.3, 54, 59, 118),
    (VICUNA, "int8"): (11.0, 24.8, 27.6, 66, 72, 131),
    (VICUNA, "nf4"): (17.0, 30.8, 33.6, 72, 78, 137),
    (BLOOM, None): (22, 46, 50, 116, 126, 227),
    (BLOOM, "nf4"): (33, 57, 62, 128, 137, 238),
    (LLAMA_70B, None): (NO, NO, NO, NO, NO, NO),
    (LLAMA_70B, "int8"): (NO, NO, NO, NO, NO, 18.6),
    (LLAMA_70B, "gptq"): (NO, NO, NO, 16, 25, 119),
    (LLAMA_70B, "nf4"): (NO, NO, NO, 16.5, 25, 119),
}
TOKEN_CELLS = [
    (model, scheme, gib, kilo)
    for (model, scheme), row in KILO_TOKENS.items()
    for gib, kilo in zip(CARDS_GIB, row, strict=True)
]


@pytest.mark.parametrize(("model", "scheme", "gib", "kilo"), TOKEN_CELLS)
def test_the_cache_holds_what_was_worked_out(model, scheme, gib, kilo):
    found = fitted(model, scheme, gib, dtype="float16")
    if kilo is NO:
        assert not found.fits
        assert (found.kv_tokens, found.room_bytes < 0) == (0, True)
    else:
        assert found.fits
        assert found.kv_tokens == pytest.approx(kilo * 1000, rel=0.02)


def warned(found, text):
    return any(text in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("gib", "gpus", "kilo", "is_tight"),
    [(80, 2, 40.4, True), (48, 4, 124.2, False), (80, 4, 501.7, False)],
)
def test_a_large_model_is_split_over_cards(gib, gpus, kilo, is_tight):
    found = fitted(LLAMA_70B, gib=gib, dtype="float16", tensor_parallel=gpus)
    assert found.fits
    assert found.kv_tokens == pytest.approx(kilo * 1000, rel=0.02)
    assert found.weights_bytes == pytest.approx(128.48 * GIB / gpus, rel=0.001)
    assert warned(found, "tight: weights take") == is_tight


def test_kv_heads_are_divided_or_copied():
    alone = fitted(LLAMA_70B, gib=141).kv_bytes_per_token
    assert fitted(LLAMA_70B, gib=141, tensor_parallel=8).kv_bytes_per_token == alone // 8
    copied = fitted(LLAMA_70B, gib=141, tensor_parallel=16)
    assert copied.kv_bytes_per_token == alone // 8
    assert warned(copied, "8 KV heads are copied to 16 GPUs")


@pytest.mark.parametrize(
    ("model", "gpus", "expected"),
    [
        ("tiiuae/falcon-7b", 2, "71 attention heads cannot be split over 2 GPUs"),
        ("HuggingFaceTB/SmolLM2-135M", 9, None),
        ("Qwen/Qwen2.5-14B-Instruct", 5, "8 KV heads cannot be split over 5 GPUs"),
    ],
)
def test_heads_must_be_divisible(model, gpus, expected):
    found = fitted(model, gib=80, tensor_parallel=gpus)
    assert found.fits == (expected is None)
    assert expected is None or expected in found.warnings


@pytest.mark.parametrize(
    ("engine", "fraction", "expected"),
    [
        ("tgi", None, 0.90),
        ("tgi", 1.0, 0.90),
        ("tgi", 0.5, 0.45),
        ("vllm", None, 0.92),
        ("vllm", 0.95, 0.95),
        ("aphrodite", None, 0.92),
        ("llamacpp", None, 0.95),
    ],
)
def test_each_engine_fills_its_share(engine, fraction, expected):
    found = fitted(BLOOM, gib=80, engine=engine, fraction=fraction)
    assert found.budget_bytes == int(80 * GIB * expected)
    assert found.headroom_bytes + found.budget_bytes == 80 * GIB


def test_vllm_wants_room_for_the_whole_context():
    model = "meta-llama/Llama-3.1-8B"
    found = fitted(model, engine="vllm")
    assert found.needed_tokens == 131_072
    assert not found.fits
    assert warned(found, f"set max_total_tokens to {found.kv_tokens} or less")
    assert fitted(model, engine="vllm", max_total_tokens=found.kv_tokens).fits
    assert not fitted(model, engine="vllm", max_total_tokens=found.kv_tokens + 1).fits
    assert fitted(model, engine="tgi").fits


def test_less_than_one_longest_call_does_not_fit():
    found = fitted(VICUNA, max_total_tokens=16_000)
    assert not found.fits
    assert warned(found, "the KV cache holds 15254 tokens, max_total_tokens is 16000")
    assert warned(found, "all would fit with quantize: eetq")


def test_a_cache_of_next_to_nothing_is_no_advice():
    found = fitted(BLOOM, gib=8, max_total_tokens=4096)
    assert warned(found, "the KV cache holds 25 tokens, max_total_tokens is 4096; all would fit")


def test_a_longest_call_that_only_just_fits_is_tight():
    found = fitted(VICUNA, max_total_tokens=10_000)
    assert found.fits
    assert warned(found, "one call of 10000 at a time")


def test_calls_longer_than_the_model_can_are_told():
    assert warned(fitted(VICUNA, max_total_tokens=4097), "over the model's context of 4096 tokens")
    assert not warned(fitted(VICUNA, max_total_tokens=4096), "context")


def test_few_cached_tokens_are_told():
    found = fitted(VICUNA, gib=16.5)
    assert found.fits
    assert warned(found, f"holds only {found.kv_tokens} tokens")


def test_what_does_not_fit_says_by_how_much_and_what_would():
    found = fitted(LLAMA_70B, gib=48, dtype="float16")
    (warning,) = found.warnings
    assert warning.startswith("does not fit in float16 on 1 GPU of 48.0 GiB: 86.9 GiB missing")
    assert warning.endswith("all would fit with quantize: nf4 or on 4 such GPUs")


def test_advice_keeps_to_what_the_card_can():
    shape = known_shape(VICUNA)
    old = fit(shape, None, None, 12 * GIB, compute_capability=(6, 1))
    new = fit(shape, None, None, 12 * GIB, compute_capability=(9, 0))
    assert warned(old, "with quantize: nf4")
    assert warned(new, "with quantize: fp8")


def test_where_nothing_helps_it_says_so():
    assert warned(fitted("bigscience/bloom", gib=8), "neither quantising nor 8 such GPUs would do")


def test_a_scheme_the_card_cannot_is_told():
    found = fit(known_shape(VICUNA), "fp8", None, 15 * GIB, compute_capability=(7, 5))
    assert warned(found, "fp8: needs compute capability 8.0, the card has 7.5")


def test_memory_of_others_is_missing_from_tgis_cache():
    alone, crowded = fitted(VICUNA), fitted(VICUNA, free_bytes=20 * GIB)
    assert alone.room_bytes - crowded.room_bytes == 4 * GIB
    assert warned(crowded, "other processes hold 4.0 GiB of the card")


def test_vllm_does_not_start_beside_others_unless_told_to_take_less():
    crowded = fitted(VICUNA, engine="vllm", free_bytes=20 * GIB, max_total_tokens=2048)
    assert not crowded.fits
    assert warned(crowded, "vllm refuses to start unless told to take less: 0.83 or below")
    assert fitted(
        VICUNA, engine="vllm", free_bytes=20 * GIB, max_total_tokens=2048, fraction=0.83
    ).fits


def test_what_an_idle_cards_driver_holds_is_no_other_process():
    assert fitted(VICUNA, free_bytes=24 * GIB - 300 * 2**20) == fitted(VICUNA)


@pytest.mark.parametrize(
    ("kv_dtype", "part"),
    [(None, 2), ("auto", 2), ("fp8", 1), ("fp8_e5m2", 1), ("float16", 2), ("float32", 4)],
)
def test_cached_values_take_their_dtype(kv_dtype, part):
    found = fitted(VICUNA, kv_dtype=kv_dtype)
    assert found.kv_bytes_per_token == 262_144 * part


def test_a_longer_prefill_takes_more_activations():
    assert fitted(VICUNA).activations_bytes == GIB
    by_tokens = fitted(VICUNA, max_batch_prefill_tokens=4096).activations_bytes
    assert by_tokens == pytest.approx(0.93e9, rel=0.01)
    vllm = fitted(BLOOM, max_batch_prefill_tokens=8192, engine="vllm").activations_bytes
    assert vllm < fitted(BLOOM, max_batch_prefill_tokens=8192).activations_bytes / 5


def stored(scheme, size_bytes, bits=4):
    plain = known_shape(VICUNA)
    return ModelShape(
        name="/models/it",
        architecture=plain.architecture,
        parameters=plain.parameters,
        quantization=Quantization(scheme, bits, 128),
        stored_bytes=size_bytes,
    )


def test_quantised_weights_take_what_they_take_on_disk():
    found = fit(stored("gptq", 3_900_000_000), None, None, 24 * GIB)
    assert found.weights_bytes == 3_900_000_000
    assert found.warnings == ()
    two = fit(stored("gptq", 3_900_000_000), None, None, 24 * GIB, tensor_parallel=2)
    assert two.weights_bytes == 1_950_000_000


def test_a_wider_gptq_without_files_is_computed_from_its_bits():
    found = fit(stored("gptq", None, bits=8), None, None, 24 * GIB)
    assert found.weights_bytes == pytest.approx(6.52 * GIB + 6.476e9 * 3 / 128, rel=0.001)


def test_weights_of_an_unnamed_scheme_still_have_their_size():
    found = fit(stored("hqq", 4_000_000_000), None, None, 24 * GIB)
    assert found.weights_bytes == 4_000_000_000
    assert warned(found, "hqq: tgi cannot load hqq weights")


def test_another_scheme_for_quantised_weights_is_told():
    found = fit(stored("gptq", 3_900_000_000), "eetq", None, 24 * GIB)
    assert warned(found, "eetq: the weights are gptq already, and stay so")


def test_exl2_is_not_split():
    found = fit(stored("exl2", 4_000_000_000), None, None, 24 * GIB, tensor_parallel=2)
    assert not found.fits
    assert "exl2 weights cannot be split over GPUs" in found.warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "vlm"}, "did you mean vllm"),
        ({"scheme": "eetk"}, "did you mean eetq"),
        ({"dtype": "float61"}, "did you mean float16"),
        ({"kv_dtype": "fp9"}, "did you mean fp8"),
        ({"gpu_total_bytes": 0}, "a card with memory"),
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"fraction": 1.1}, "above 0 and at most 1"),
        ({"tensor_parallel": 0}, "at least 1 GPU"),
    ],
)
def test_an_impossible_argument_is_refused(change, message):
    asked = {"scheme": None, "dtype": None, "gpu_total_bytes": GIB} | change
    with pytest.raises(ValueError, match=message):
        fit(known_shape(VICUNA), **asked)


def test_the_lines_are_the_sum():
    found = fitted(VICUNA, free_bytes=20 * GIB)
    by_name = {line.what: line for line in found.lines}
    assert list(by_name) == [
        "card", "budget", "others", "weights", "activations", "context", "KV cache"
    ]  # fmt: skip
    parts = ("others", "weights", "activations", "context")
    taken = sum(by_name[name].number for name in parts)
    assert by_name["budget"].number - taken == found.room_bytes
    assert (by_name["KV cache"].number, by_name["KV cache"].unit) == (found.kv_tokens, "tokens")
    assert all(line.reason for line in found.lines)


MODELS = st.sampled_from(known_ids())
SCHEMES = st.sampled_from([None, "eetq", "fp8", "int8", "nf4", "fp4"])
ENGINES = st.sampled_from(["tgi", "vllm", "aphrodite", "llamacpp"])


@given(MODELS, SCHEMES, ENGINES, st.integers(1, 200), st.integers(0, 100))
def test_a_larger_card_never_holds_less(model, scheme, engine, gib, more_gib):
    small = fitted(model, scheme, gib, engine=engine)
    large = fitted(model, scheme, gib + more_gib, engine=engine)
    assert large.kv_tokens >= small.kv_tokens
    assert large.fits or not small.fits


@given(MODELS, SCHEMES, st.integers(1, 200), st.integers(1, 10**6), st.integers(0, 10**6))
def test_asking_for_longer_calls_never_makes_it_fit(model, scheme, gib, tokens, more_tokens):
    short = fitted(model, scheme, gib, max_total_tokens=tokens)
    long = fitted(model, scheme, gib, max_total_tokens=tokens + more_tokens)
    assert short.fits or not long.fits


@given(MODELS, st.integers(1, 200))
def test_more_loss_never_takes_more(model, gib):
    taken = [fitted(model, scheme, gib).weights_bytes for scheme in (None, "fp8", "nf4")]
    assert taken == sorted(taken, reverse=True)


@given(MODELS, SCHEMES, ENGINES, st.integers(1, 200), st.integers(1, 8))
def test_what_does_not_fit_always_says_why(model, scheme, engine, gib, gpus):
    found = fitted(model, scheme, gib, engine=engine, tensor_parallel=gpus)
    assert found.fits or found.warnings
    assert not found.fits or found.kv_tokens >= found.needed_tokens
