"""Parameter counts are exact: by family, by known model, and from the words of any config.json."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.known_models import known_ids, known_shape
from launcher.model_config import architecture_of, quantization_from, quantization_of
from launcher.model_shape import ModelError, Quantization, parameters_of, rough_parameters

# Counted on real models (made without memory, tied heads once), or published by their makers.
TOTALS = {
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "codellama/CodeLlama-13b-Instruct-hf": 13_016_028_160,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "bigscience/bloom-560m": 559_214_592,
    "bigscience/bloom-1b1": 1_065_314_304,
    "bigscience/bloom-1b7": 1_722_408_960,
    "bigscience/bloom-3b": 3_002_557_440,
    "bigscience/bloom-7b1": 7_069_016_064,
    "bigscience/bloom": 176_247_271_424,
    "tiiuae/falcon-7b": 6_921_720_704,
    "tiiuae/falcon-40b": 41_303_293_952,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-30b": 29_974_540_288,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "bigcode/starcoder": 15_517_456_384,
}


@pytest.mark.parametrize(("model_id", "total"), TOTALS.items())
def test_a_known_model_has_its_exact_size(model_id, total):
    assert known_shape(model_id).parameters.total == total


# (model, linear with its biases, embedding, head, norms): by kind of module on the real models.
SPLITS = [
    ("lmsys/vicuna-7b-v1.5", 6_476_005_376, 131_072_000, 131_072_000, 266_240),
    ("meta-llama/Llama-2-13b-hf", 12_687_769_600, 163_840_000, 163_840_000, 414_720),
    ("meta-llama/Llama-2-70b-hf", 68_451_041_280, 262_144_000, 262_144_000, 1_318_912),
    ("meta-llama/Meta-Llama-3-8B", 6_979_321_856, 525_336_576, 525_336_576, 266_240),
    ("mistralai/Mistral-7B-v0.1", 6_979_321_856, 131_072_000, 131_072_000, 266_240),
    ("mistralai/Mixtral-8x7B-v0.1", 46_440_382_464, 131_072_000, 131_072_000, 266_240),
    ("Qwen/Qwen2.5-7B-Instruct", 6_525_417_472, 544_997_376, 544_997_376, 204_288),
    ("bigscience/bloom-3b", 2_359_987_200, 642_252_800, 0, 317_440),
]


@pytest.mark.parametrize(("model_id", "linear", "embedding", "head", "norms"), SPLITS)
def test_parameters_are_split_by_what_shrinks(model_id, linear, embedding, head, norms):
    found = known_shape(model_id).parameters
    assert found.linear + found.biases == linear
    assert (found.embedding, found.head, found.other) == (embedding, head, norms)


KV_BYTES = {
    "lmsys/vicuna-7b-v1.5": 524_288,
    "meta-llama/Llama-2-13b-hf": 819_200,
    "meta-llama/Llama-2-70b-hf": 327_680,
    "meta-llama/Meta-Llama-3-8B": 131_072,
    "mistralai/Mistral-7B-v0.1": 131_072,
    "mistralai/Mixtral-8x7B-v0.1": 131_072,
    "Qwen/Qwen2.5-7B-Instruct": 57_344,
    "bigscience/bloom-3b": 307_200,
    "bigscience/bloom-7b1": 491_520,
    "bigscience/bloom": 4_014_080,
    "tiiuae/falcon-7b": 8_192,
    "tiiuae/falcon-40b": 122_880,
    "gpt2": 36_864,
    "gpt2-xl": 307_200,
    "Qwen/Qwen3-8B": 147_456,
    "Qwen/Qwen3-30B-A3B": 98_304,
}


@pytest.mark.parametrize(("model_id", "kv_bytes"), KV_BYTES.items())
def test_a_cached_token_takes_its_keys_and_values(model_id, kv_bytes):
    assert known_shape(model_id).architecture.kv_values_per_token * 2 == kv_bytes


def test_every_known_model_has_a_shape_that_says_where_it_is_from():
    ids = known_ids()
    assert len({name.lower() for name in ids}) == len(ids)
    for name in ids:
        shape = known_shape(name)
        assert shape.name == name
        assert shape.parameters.linear > shape.parameters.wide / 10
        assert shape.architecture.heads % shape.architecture.kv_heads == 0
        assert ("dimensions", f"public config of {name}") in shape.sources


def test_hub_ids_match_in_any_case():
    assert known_shape("META-LLAMA/llama-2-70B-HF").name == "meta-llama/Llama-2-70b-hf"


@pytest.mark.parametrize("model_id", ["org/unheard-of", "", "/", "../gpt3"])
def test_an_unknown_id_is_nothing(model_id):
    assert known_shape(model_id) is None


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def test_what_a_config_leaves_out_follows_from_the_rest():
    arch = architecture_of(LLAMA)
    assert (arch.kv_heads, arch.head_dim, arch.intermediate) == (4, 16, 256)
    assert (arch.max_position, arch.tied, arch.dtype, arch.experts) == (None, False, None, 0)


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        ({"n_embd": 64}, "hidden", 64),
        ({"d_model": 64}, "hidden", 64),
        ({"n_layer": 3}, "layers", 3),
        ({"num_layers": 3}, "layers", 3),
        ({"n_head": 8}, "heads", 8),
        ({"num_key_value_heads": 2}, "kv_heads", 2),
        ({"num_kv_heads": 2}, "kv_heads", 2),
        ({"multi_query": True}, "kv_heads", 1),
        ({"head_dim": 32}, "head_dim", 32),
        ({"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}, "head_dim", 192),
        ({"n_inner": 99}, "intermediate", 99),
        ({"n_inner": None}, "intermediate", 256),
        ({"ffn_dim": 99}, "intermediate", 99),
        ({"num_local_experts": 8}, "experts", 8),
        ({"n_routed_experts": 8, "moe_intermediate_size": 32}, "intermediate", 32),
        ({"num_experts": 0}, "experts", 0),
        ({"n_positions": 512}, "max_position", 512),
        ({"seq_length": 512}, "max_position", 512),
        ({"torch_dtype": "bfloat16"}, "dtype", "bfloat16"),
        ({"dtype": "torch.float16"}, "dtype", "float16"),
        ({"torch_dtype": "auto"}, "dtype", None),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"model_type": "gemma2"}, "tied", True),
        ({"model_type": "RefinedWebModel"}, "family", "falcon"),
    ],
)
def test_families_words_for_the_same(words, field, expected):
    aliases = {"n_embd": "hidden_size", "d_model": "hidden_size", "n_layer": "num_hidden_layers"}
    aliases |= {"num_layers": "num_hidden_layers", "n_head": "num_attention_heads"}
    replaced = {aliases.get(word) for word in words}
    config = {key: value for key, value in LLAMA.items() if key not in replaced} | words
    assert getattr(architecture_of(config), field) == expected


def test_a_multimodal_model_is_its_language_model():
    whole = {
        "model_type": "llava",
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vision_config": {"hidden_size": 1},
        "text_config": LLAMA,
    }
    arch = architecture_of(whole)
    assert (arch.family, arch.hidden, arch.tied, arch.dtype) == ("llama", 64, True, "float16")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": None}, "hidden_size or n_embd or n_embed or d_model"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"num_attention_heads": 5}, "num_attention_heads: found 5, expected a divisor"),
        ({"model_type": None}, "model_type"),
        ({"model_type": 7}, "model_type"),
    ],
)
def test_an_unusable_config_names_the_field(change, field):
    with pytest.raises(ModelError) as caught:
        architecture_of({**LLAMA, **change})
    assert field in str(caught.value)


def test_a_family_without_a_formula_lists_those_with_one():
    with pytest.raises(ModelError, match=r"'mamba'.*llama, mistral"):
        parameters_of(architecture_of({**LLAMA, "model_type": "mamba"}))


def test_a_known_total_is_split_roughly_for_any_family():
    arch = architecture_of(LLAMA)
    exact = parameters_of(arch)
    assert rough_parameters(arch, exact.total) == exact
    assert rough_parameters(arch, 10).linear == 0


def test_biases_count_where_the_config_has_them():
    plain = parameters_of(architecture_of(LLAMA))
    attention = parameters_of(architecture_of({**LLAMA, "attention_bias": True}))
    mlp = parameters_of(architecture_of({**LLAMA, "mlp_bias": True}))
    assert attention.biases - plain.biases == 2 * 4 * 64
    assert mlp.biases - plain.biases == 2 * (2 * 256 + 64)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, Quantization("gptq", 4, 128)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Quantization("gptq", 8, -1)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Quantization("awq", 4, 64)),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
         Quantization("marlin", 4)),
        ({"quant_method": "fbgemm_fp8"}, Quantization("fp8", 8)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization("int8", 8)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Quantization("fp4", 4, 64)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
         Quantization("nf4", 4, 64)),
        ({"quant_method": "compressed-tensors"}, Quantization("compressed-tensors")),
        ({"quant_method": "hqq"}, Quantization("hqq")),
    ],
)  # fmt: skip
def test_weights_that_are_quantised_say_how(section, expected):
    assert quantization_of({**LLAMA, "quantization_config": section}) == expected
    assert quantization_of({"text_config": {**LLAMA, "quantization_config": section}}) == expected


def test_older_configs_of_quantisation_are_known_by_their_file():
    assert quantization_from({"bits": 4, "group_size": 128}, "gptq") == Quantization("gptq", 4, 128)
    assert quantization_from({"w_bit": 4}, "awq") == Quantization("awq", 4)


@pytest.mark.parametrize("section", [{"bits": 4}, "gptq", 4])
def test_a_quantisation_without_a_method_is_refused(section):
    with pytest.raises(ModelError, match="quantization_config"):
        quantization_of({**LLAMA, "quantization_config": section})


@pytest.mark.parametrize("section", [{}, None])
def test_an_empty_quantisation_is_none(section):
    assert quantization_of({**LLAMA, "quantization_config": section}) is None


KEYS = [*LLAMA, "head_dim", "num_key_value_heads", "num_experts", "text_config", "torch_dtype"]
KEYS += ["quantization_config", "tie_word_embeddings", "multi_query", "max_position_embeddings"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=6,
)
FAMILIES = st.sampled_from(["llama", "gpt2", "falcon", "opt", "qwen3_moe", "bloom", "unknown"])


@given(FAMILIES, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_config_has_a_size_or_is_refused(family, change):
    try:
        config = {**LLAMA, "model_type": family, **change}
        quantization_of(config)
        count = parameters_of(architecture_of(config))
    except ModelError:
        return
    assert count.total == count.linear + count.wide > 0
