"""The public configs of well-known models, for plans made before anything is downloaded.

In config.json's own words, and read by the same code: sizes come from the families' formulas, none
stands here. Only what the arithmetic needs is kept. A model that is not here is no error; its
folder says the same and more (`model_files`).
"""

from collections.abc import Iterator, Mapping

from launcher.model_config import Config, architecture_of
from launcher.model_shape import ModelShape, parameters_of


def known_shape(model_id: str) -> ModelShape | None:
    """The shape of a hub model, whatever the case its id is written in; None if it is not known."""
    entry = _BY_ID.get(model_id.strip("/").lower())
    if entry is None:
        return None
    name, config = entry
    arch = architecture_of(config)
    return ModelShape(
        name=name,
        architecture=arch,
        parameters=parameters_of(arch),
        sources=(
            ("dimensions", f"public config of {name}"),
            ("parameters", f"formula of the {arch.family} family"),
        ),
    )


def known_ids() -> list[str]:
    """As the hub spells them."""
    return [name for name, _ in _BY_ID.values()]


def _sized(
    base: Config, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, **more: object
) -> Config:
    """One size of a series."""
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
    }
    return {**base, **sizes, **more}


def _gpt(base: Config, hidden: int, layers: int, heads: int, **more: object) -> Config:
    """One size of a series whose MLP is four times as wide as the rest."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**base, **sizes, **more}


def _series(model_type: str, vocab: int, positions: int, dtype: str, **more: object) -> Config:
    """What all sizes of a series share."""
    shared = {"vocab_size": vocab, "max_position_embeddings": positions, "torch_dtype": dtype}
    return {"model_type": model_type, **shared, **more}


_LLAMA = _series("llama", 32000, 2048, "float16")
_TINY = _series("llama", 32000, 2048, "bfloat16")
_LLAMA_2 = _series("llama", 32000, 4096, "float16")
_LLAMA_3 = _series("llama", 128256, 8192, "bfloat16")
_LLAMA_3_1 = _series("llama", 128256, 131072, "bfloat16")
_LLAMA_3_2 = _series("llama", 128256, 131072, "bfloat16", tie_word_embeddings=True)
_CODE_LLAMA = _series("llama", 32016, 16384, "bfloat16")
_MISTRAL = _series("mistral", 32000, 32768, "bfloat16")
_MIXTRAL = _series("mixtral", 32000, 32768, "bfloat16", num_local_experts=8)
_QWEN_2 = _series("qwen2", 152064, 32768, "bfloat16")
_QWEN_2_TIED = _series("qwen2", 151936, 32768, "bfloat16", tie_word_embeddings=True)
_QWEN_R1 = _series("qwen2", 152064, 131072, "bfloat16")
_QWEN_3 = _series("qwen3", 151936, 40960, "bfloat16", head_dim=128)
_QWEN_3_TIED = {**_QWEN_3, "tie_word_embeddings": True}
_QWEN_3_MOE = {**_QWEN_3, "model_type": "qwen3_moe", "num_experts": 128}
_PHI_3 = _series("phi3", 32064, 4096, "bfloat16")
_GEMMA = _series("gemma", 256000, 8192, "bfloat16", head_dim=256)
_GEMMA_2 = _series("gemma2", 256000, 8192, "bfloat16", head_dim=256)
_GPT_2 = _series("gpt2", 50257, 1024, "float32")
_OPT = _series("opt", 50272, 2048, "float16")
_BLOOM = _series("bloom", 250880, 2048, "bfloat16")
_FALCON = _series("falcon", 65024, 2048, "bfloat16")
_PYTHIA = _series("gpt_neox", 50688, 2048, "float16")
_SMOL_2 = _series("llama", 49152, 8192, "bfloat16", tie_word_embeddings=True)

_LLAMA_7B = _sized(_LLAMA, 4096, 32, 32, 32, 11008)
_LLAMA_13B = _sized(_LLAMA, 5120, 40, 40, 40, 13824)
_LLAMA_2_7B = _sized(_LLAMA_2, 4096, 32, 32, 32, 11008)
_LLAMA_2_13B = _sized(_LLAMA_2, 5120, 40, 40, 40, 13824)
_LLAMA_2_70B = _sized(_LLAMA_2, 8192, 80, 64, 8, 28672)
_LLAMA_3_8B = _sized(_LLAMA_3, 4096, 32, 32, 8, 14336)
_LLAMA_3_70B = _sized(_LLAMA_3, 8192, 80, 64, 8, 28672)
_LLAMA_3_1_8B = _sized(_LLAMA_3_1, 4096, 32, 32, 8, 14336)
_LLAMA_3_1_70B = _sized(_LLAMA_3_1, 8192, 80, 64, 8, 28672)
_LLAMA_3_1_405B = _sized(_LLAMA_3_1, 16384, 126, 128, 8, 53248)
_LLAMA_3_2_1B = _sized(_LLAMA_3_2, 2048, 16, 32, 8, 8192, head_dim=64)
_LLAMA_3_2_3B = _sized(_LLAMA_3_2, 3072, 28, 24, 8, 8192, head_dim=128)
_MISTRAL_7B = _sized(_MISTRAL, 4096, 32, 32, 8, 14336)
_MISTRAL_7B_V3 = {**_MISTRAL_7B, "vocab_size": 32768}
_MISTRAL_NEMO = _sized(
    _MISTRAL,
    5120,
    40,
    32,
    8,
    14336,
    head_dim=128,
    vocab_size=131072,
    max_position_embeddings=131072,
)
_MISTRAL_SMALL = _sized(_MISTRAL, 5120, 40, 32, 8, 32768, head_dim=128, vocab_size=131072)
_QWEN_2_0_5B = _sized(_QWEN_2_TIED, 896, 24, 14, 2, 4864)
_QWEN_2_1_5B = _sized(_QWEN_2_TIED, 1536, 28, 12, 2, 8960)
_QWEN_2_7B = _sized(_QWEN_2, 3584, 28, 28, 4, 18944)
_QWEN_2_72B = _sized(_QWEN_2, 8192, 80, 64, 8, 29568)
_QWEN_2_5_3B = _sized(_QWEN_2_TIED, 2048, 36, 16, 2, 11008)
_QWEN_2_5_14B = _sized(_QWEN_2, 5120, 48, 40, 8, 13824)
_QWEN_2_5_32B = _sized(_QWEN_2, 5120, 64, 40, 8, 27648)
_PHI_3_MINI = _sized(_PHI_3, 3072, 32, 32, 32, 8192)
_PHI_3_MEDIUM = _sized(_PHI_3, 5120, 40, 40, 10, 17920)
_GEMMA_2_2B = _sized(_GEMMA_2, 2304, 26, 8, 4, 9216)
_GEMMA_2_9B = _sized(_GEMMA_2, 3584, 42, 16, 8, 14336)
_GEMMA_2_27B = _sized(_GEMMA_2, 4608, 46, 32, 16, 36864, head_dim=128)

_LONG = {"max_position_embeddings": 131072}


def _both(name: str, suffix: str = "-Instruct") -> tuple[str, str]:
    """A base model and the one tuned to follow instructions, which has its shape."""
    return name, name + suffix


_MODELS: tuple[tuple[tuple[str, ...], Config], ...] = (
    (("huggyllama/llama-7b", "lmsys/vicuna-7b-v1.3"), _LLAMA_7B),
    (("huggyllama/llama-13b", "lmsys/vicuna-13b-v1.3"), _LLAMA_13B),
    (("meta-llama/Llama-2-7b-hf",), _LLAMA_2_7B),
    (("meta-llama/Llama-2-7b-chat-hf", "lmsys/vicuna-7b-v1.5"), _LLAMA_2_7B),
    (("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"), _LLAMA_2_13B),
    (("lmsys/vicuna-13b-v1.5",), _LLAMA_2_13B),
    (("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"), _LLAMA_2_70B),
    (_both("meta-llama/Meta-Llama-3-8B"), _LLAMA_3_8B),
    (_both("meta-llama/Meta-Llama-3-70B"), _LLAMA_3_70B),
    (_both("meta-llama/Llama-3.1-8B"), _LLAMA_3_1_8B),
    (_both("meta-llama/Meta-Llama-3.1-8B"), _LLAMA_3_1_8B),
    (("deepseek-ai/DeepSeek-R1-Distill-Llama-8B",), _LLAMA_3_1_8B),
    (_both("meta-llama/Llama-3.1-70B"), _LLAMA_3_1_70B),
    (_both("meta-llama/Meta-Llama-3.1-70B"), _LLAMA_3_1_70B),
    (("meta-llama/Llama-3.3-70B-Instruct",), _LLAMA_3_1_70B),
    (("deepseek-ai/DeepSeek-R1-Distill-Llama-70B",), _LLAMA_3_1_70B),
    (_both("meta-llama/Llama-3.1-405B"), _LLAMA_3_1_405B),
    (_both("meta-llama/Llama-3.2-1B"), _LLAMA_3_2_1B),
    (_both("meta-llama/Llama-3.2-3B"), _LLAMA_3_2_3B),
    (("codellama/CodeLlama-7b-hf",), _sized(_CODE_LLAMA, 4096, 32, 32, 32, 11008)),
    (("codellama/CodeLlama-7b-Instruct-hf",), _sized(_CODE_LLAMA, 4096, 32, 32, 32, 11008)),
    (("codellama/CodeLlama-13b-Instruct-hf",), _sized(_CODE_LLAMA, 5120, 40, 40, 40, 13824)),
    (("TinyLlama/TinyLlama-1.1B-Chat-v1.0",), _sized(_TINY, 2048, 22, 32, 4, 5632)),
    (_both("HuggingFaceTB/SmolLM2-135M"), _sized(_SMOL_2, 576, 30, 9, 3, 1536)),
    (_both("HuggingFaceTB/SmolLM2-360M"), _sized(_SMOL_2, 960, 32, 15, 5, 2560)),
    (_both("HuggingFaceTB/SmolLM2-1.7B"), _sized(_SMOL_2, 2048, 24, 32, 32, 8192)),
    (("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"), _MISTRAL_7B),
    (("mistralai/Mistral-7B-Instruct-v0.2", "HuggingFaceH4/zephyr-7b-beta"), _MISTRAL_7B),
    (("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"), _MISTRAL_7B_V3),
    (("mistralai/Mistral-Nemo-Base-2407",), _MISTRAL_NEMO),
    (("mistralai/Mistral-Nemo-Instruct-2407",), _MISTRAL_NEMO),
    (("mistralai/Mistral-Small-24B-Instruct-2501",), _MISTRAL_SMALL),
    (
        ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        _sized(_MIXTRAL, 4096, 32, 32, 8, 14336),
    ),
    (
        ("mistralai/Mixtral-8x22B-v0.1",),
        _sized(_MIXTRAL, 6144, 56, 48, 8, 16384, max_position_embeddings=65536),
    ),
    (
        ("mistralai/Mixtral-8x22B-Instruct-v0.1",),
        _sized(_MIXTRAL, 6144, 56, 48, 8, 16384, max_position_embeddings=65536, vocab_size=32768),
    ),
    (("Qwen/Qwen2-0.5B",), {**_QWEN_2_0_5B, **_LONG}),
    (("Qwen/Qwen2-1.5B",), {**_QWEN_2_1_5B, **_LONG}),
    (("Qwen/Qwen2-7B",), {**_QWEN_2_7B, **_LONG, "vocab_size": 152064}),
    (("Qwen/Qwen2-72B",), {**_QWEN_2_72B, **_LONG}),
    (("Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"), _QWEN_2_0_5B),
    (("Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"), _QWEN_2_1_5B),
    (("Qwen/Qwen2.5-0.5B",), _QWEN_2_0_5B),
    (("Qwen/Qwen2.5-3B-Instruct",), _QWEN_2_5_3B),
    (("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"), _QWEN_2_7B),
    (("Qwen/Qwen2.5-7B",), {**_QWEN_2_7B, **_LONG}),
    (("Qwen/Qwen2.5-14B-Instruct",), _QWEN_2_5_14B),
    (("Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-Coder-32B-Instruct"), _QWEN_2_5_32B),
    (("Qwen/Qwen2-72B-Instruct", "Qwen/Qwen2.5-72B-Instruct"), _QWEN_2_72B),
    (("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",), _sized(_QWEN_R1, 3584, 28, 28, 4, 18944)),
    (("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",), _sized(_QWEN_R1, 5120, 48, 40, 8, 13824)),
    (("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",), _sized(_QWEN_R1, 5120, 64, 40, 8, 27648)),
    (("Qwen/Qwen3-0.6B",), _sized(_QWEN_3_TIED, 1024, 28, 16, 8, 3072)),
    (("Qwen/Qwen3-1.7B",), _sized(_QWEN_3_TIED, 2048, 28, 16, 8, 6144)),
    (("Qwen/Qwen3-4B",), _sized(_QWEN_3_TIED, 2560, 36, 32, 8, 9728)),
    (("Qwen/Qwen3-8B",), _sized(_QWEN_3, 4096, 36, 32, 8, 12288)),
    (("Qwen/Qwen3-14B",), _sized(_QWEN_3, 5120, 40, 40, 8, 17408)),
    (("Qwen/Qwen3-32B",), _sized(_QWEN_3, 5120, 64, 64, 8, 25600)),
    (
        ("Qwen/Qwen3-30B-A3B",),
        _sized(_QWEN_3_MOE, 2048, 48, 32, 4, 6144, moe_intermediate_size=768),
    ),
    (("microsoft/Phi-3-mini-4k-instruct",), _PHI_3_MINI),
    (("microsoft/Phi-3-mini-128k-instruct",), {**_PHI_3_MINI, **_LONG}),
    (("microsoft/Phi-3.5-mini-instruct",), {**_PHI_3_MINI, **_LONG}),
    (("microsoft/Phi-3-medium-4k-instruct",), _PHI_3_MEDIUM),
    (("microsoft/Phi-3-medium-128k-instruct",), {**_PHI_3_MEDIUM, **_LONG}),
    (
        ("microsoft/phi-4",),
        {**_PHI_3_MEDIUM, "vocab_size": 100352, "max_position_embeddings": 16384},
    ),
    (_both("google/gemma-2b", "-it"), _sized(_GEMMA, 2048, 18, 8, 1, 16384)),
    (_both("google/gemma-7b", "-it"), _sized(_GEMMA, 3072, 28, 16, 16, 24576)),
    (_both("google/gemma-2-2b", "-it"), _GEMMA_2_2B),
    (_both("google/gemma-2-9b", "-it"), _GEMMA_2_9B),
    (_both("google/gemma-2-27b", "-it"), _GEMMA_2_27B),
    (("openai-community/gpt2", "gpt2"), _gpt(_GPT_2, 768, 12, 12)),
    (("openai-community/gpt2-medium", "gpt2-medium"), _gpt(_GPT_2, 1024, 24, 16)),
    (("openai-community/gpt2-large", "gpt2-large"), _gpt(_GPT_2, 1280, 36, 20)),
    (("openai-community/gpt2-xl", "gpt2-xl"), _gpt(_GPT_2, 1600, 48, 25)),
    (("distilbert/distilgpt2", "distilgpt2"), _gpt(_GPT_2, 768, 6, 12)),
    (("facebook/opt-125m",), _gpt(_OPT, 768, 12, 12)),
    (("facebook/opt-1.3b",), _gpt(_OPT, 2048, 24, 32)),
    (("facebook/opt-6.7b",), _gpt(_OPT, 4096, 32, 32)),
    (("facebook/opt-13b",), _gpt(_OPT, 5120, 40, 40)),
    (("facebook/opt-30b",), _gpt(_OPT, 7168, 48, 56)),
    (("bigscience/bloom-560m", "bigscience/bloomz-560m"), _gpt(_BLOOM, 1024, 24, 16)),
    (("bigscience/bloom-1b1", "bigscience/bloomz-1b1"), _gpt(_BLOOM, 1536, 24, 16)),
    (("bigscience/bloom-1b7", "bigscience/bloomz-1b7"), _gpt(_BLOOM, 2048, 24, 16)),
    (("bigscience/bloom-3b", "bigscience/bloomz-3b"), _gpt(_BLOOM, 2560, 30, 32)),
    (("bigscience/bloom-7b1", "bigscience/bloomz-7b1"), _gpt(_BLOOM, 4096, 30, 32)),
    (("bigscience/bloom", "bigscience/bloomz"), _gpt(_BLOOM, 14336, 70, 112)),
    (
        ("tiiuae/falcon-7b", "tiiuae/falcon-7b-instruct"),
        _gpt(_FALCON, 4544, 32, 71, multi_query=True),
    ),
    (
        ("tiiuae/falcon-40b", "tiiuae/falcon-40b-instruct"),
        _gpt(_FALCON, 8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8),
    ),
    (
        ("EleutherAI/gpt-neox-20b",),
        _gpt(_PYTHIA, 6144, 44, 64, intermediate_size=24576, vocab_size=50432),
    ),
    (("EleutherAI/pythia-12b",), _gpt(_PYTHIA, 5120, 36, 40, intermediate_size=20480)),
    (
        ("EleutherAI/pythia-6.9b",),
        _gpt(_PYTHIA, 4096, 32, 32, intermediate_size=16384, vocab_size=50432),
    ),
    (
        ("bigcode/starcoder",),
        {
            **_series("gpt_bigcode", 49152, 8192, "float32", multi_query=True),
            **{"hidden_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 48},
        },
    ),
)


def _entries() -> Iterator[tuple[str, tuple[str, Config]]]:
    for names, config in _MODELS:
        for name in names:
            yield name.lower(), (name, config)


_BY_ID: Mapping[str, tuple[str, Config]] = dict(_entries())
