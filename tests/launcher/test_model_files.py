"""Model folders are read from real files: exact counts, and clear words for broken ones."""

import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.known_models import known_shape
from launcher.model_config import architecture_of
from launcher.model_files import cached_snapshot, find_shape, read_model_folder
from launcher.model_shape import ModelError, Quantization, parameters_of
from launcher.safetensors_header import MAX_HEADER_BYTES, read_header

WIDTHS = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}
H, L, HEADS, KV, D, MLP, V = 32, 2, 4, 2, 8, 64, 50
LLAMA = {
    "model_type": "llama",
    "hidden_size": H,
    "num_hidden_layers": L,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "intermediate_size": MLP,
    "vocab_size": V,
    "max_position_embeddings": 128,
}


def llama_tensors(dtype="F16", layers=range(L)):
    tensors = {"model.embed_tokens.weight": (dtype, [V, H]), "lm_head.weight": (dtype, [V, H])}
    tensors["model.norm.weight"] = (dtype, [H])
    for n in layers:
        at = f"model.layers.{n}"
        for name, rows in (("q_proj", HEADS * D), ("k_proj", KV * D), ("v_proj", KV * D)):
            tensors[f"{at}.self_attn.{name}.weight"] = (dtype, [rows, H])
        tensors[f"{at}.self_attn.o_proj.weight"] = (dtype, [H, HEADS * D])
        tensors[f"{at}.mlp.gate_proj.weight"] = (dtype, [MLP, H])
        tensors[f"{at}.mlp.up_proj.weight"] = (dtype, [MLP, H])
        tensors[f"{at}.mlp.down_proj.weight"] = (dtype, [H, MLP])
        tensors[f"{at}.input_layernorm.weight"] = (dtype, [H])
        tensors[f"{at}.post_attention_layernorm.weight"] = (dtype, [H])
    return tensors


def elements(shape):
    count = 1
    for n in shape:
        count *= n
    return count


def write_safetensors(path, tensors, *, cut_bytes=0):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS[dtype] * elements(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes((struct.pack("<Q", len(text)) + text + bytes(at))[: -cut_bytes or None])
    return at


def write_json(path, content):
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", LLAMA)
    return folder


def expected_parameters(**change):
    return parameters_of(architecture_of({**LLAMA, **change}))


def test_one_file_is_counted_exactly(folder):
    stored_bytes = write_safetensors(folder / "model.safetensors", llama_tensors("BF16"))
    shape = read_model_folder(folder)
    assert shape.parameters == expected_parameters()
    assert shape.stored_bytes == stored_bytes == 2 * shape.parameters.total
    assert shape.architecture.dtype == "bfloat16"
    assert (shape.quantization, shape.notes) == (None, ())
    assert shape.sources[1] == ("parameters", "headers of model.safetensors")


def write_shards(folder):
    """Two shards and their index, as the hub's models have them."""
    tensors = llama_tensors()
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:9]}
    halves["model-00002-of-00002.safetensors"] = names[9:]
    for shard, own in halves.items():
        write_safetensors(folder / shard, {name: tensors[name] for name in own})
    weight_map = {name: shard for shard, own in halves.items() for name in own}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return list(halves)


def test_shards_are_counted_together(folder):
    write_shards(folder)
    write_safetensors(folder / "consolidated.safetensors", llama_tensors())  # the same once more
    shape = read_model_folder(folder)
    assert shape.parameters == expected_parameters()
    assert shape.stored_bytes == 2 * shape.parameters.total
    assert shape.sources[1] == ("parameters", "headers of 2 safetensors files")


def test_a_missing_shard_is_named(folder):
    _, second = write_shards(folder)
    (folder / second).unlink()
    with pytest.raises(ModelError, match=rf"1 of 2 shards are missing \({second}\)"):
        read_model_folder(folder)


def test_a_shard_whose_download_is_gone_is_missing(folder):
    first, _ = write_shards(folder)
    (folder / first).unlink()
    (folder / first).symlink_to(folder / "blobs" / "gone")
    with pytest.raises(ModelError, match="1 of 2 shards are missing"):
        read_model_folder(folder)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"weight_map": {"a": "../../etc/passwd"}}, "expected files beside it"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ([], "expected a mapping"),
        ("{", "no JSON"),
    ],
)
def test_a_broken_index_is_named(folder, index, expected):
    path = folder / "model.safetensors.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(ModelError, match=expected) as caught:
        read_model_folder(folder)
    assert str(path) in str(caught.value)


def test_both_formats_are_told_and_counted_once(folder):
    write_safetensors(folder / "model.safetensors", llama_tensors())
    (folder / "pytorch_model.bin").write_bytes(bytes(99))
    shape = read_model_folder(folder)
    assert shape.parameters == expected_parameters()
    assert shape.notes == (
        "*.bin files lie beside the *.safetensors: engines load the latter",
    )  # fmt: skip


def test_training_left_overs_are_no_second_format(folder):
    write_safetensors(folder / "model.safetensors", llama_tensors())
    (folder / "training_args.bin").write_bytes(bytes(99))
    assert read_model_folder(folder).notes == ()


def test_a_tied_head_that_is_stored_counts_once(folder):
    write_json(folder / "config.json", {**LLAMA, "tie_word_embeddings": True})
    write_safetensors(folder / "model.safetensors", llama_tensors())
    assert read_model_folder(folder).parameters == expected_parameters(tie_word_embeddings=True)


# One layer of each family, named and shaped as its files are: h hidden, q queries, k keys of all
# heads, m MLP, v vocabulary, p positions.
GPT_2 = """wte v,h; wpe p,h; h.0.ln_1 h +; h.0.attn.c_attn h,q+2k +q+2k; h.0.attn.c_proj q,h +h
    h.0.ln_2 h +; h.0.mlp.c_fc h,m +m; h.0.mlp.c_proj m,h +h; ln_f h +"""
BLOOM = """word_embeddings v,h; word_embeddings_layernorm h +; h.0.input_layernorm h +
    h.0.self_attention.query_key_value q+2k,h +q+2k; h.0.self_attention.dense h,q +h
    h.0.post_attention_layernorm h +; h.0.mlp.dense_h_to_4h m,h +m; h.0.mlp.dense_4h_to_h h,m +h
    ln_f h +"""
FALCON_7B = """transformer.word_embeddings v,h; transformer.h.0.input_layernorm h +
    transformer.h.0.self_attention.query_key_value q+2k,h; transformer.h.0.self_attention.dense h,q
    transformer.h.0.mlp.dense_h_to_4h m,h; transformer.h.0.mlp.dense_4h_to_h h,m
    transformer.ln_f h +; lm_head v,h"""
FALCON_40B = FALCON_7B.replace("input_layernorm", "ln_attn") + "; transformer.h.0.ln_mlp h +"
NEOX = """gpt_neox.embed_in v,h; gpt_neox.layers.0.input_layernorm h +
    gpt_neox.layers.0.post_attention_layernorm h +
    gpt_neox.layers.0.attention.query_key_value q+2k,h +q+2k
    gpt_neox.layers.0.attention.dense h,q +h; gpt_neox.layers.0.mlp.dense_h_to_4h m,h +m
    gpt_neox.layers.0.mlp.dense_4h_to_h h,m +h; gpt_neox.final_layer_norm h +; embed_out v,h"""
OPT = """model.decoder.embed_tokens v,h; model.decoder.embed_positions p+2,h
    model.decoder.layers.0.self_attn.q_proj q,h +q; model.decoder.layers.0.self_attn.k_proj k,h +k
    model.decoder.layers.0.self_attn.v_proj k,h +k
    model.decoder.layers.0.self_attn.out_proj h,q +h
    model.decoder.layers.0.self_attn_layer_norm h +; model.decoder.layers.0.fc1 m,h +m
    model.decoder.layers.0.fc2 h,m +h; model.decoder.layers.0.final_layer_norm h +
    model.decoder.final_layer_norm h +; lm_head v,h"""
LLAMA_LIKE = """model.embed_tokens v,h; model.layers.0.input_layernorm h
    model.layers.0.self_attn.q_proj q,h; model.layers.0.self_attn.k_proj k,h
    model.layers.0.self_attn.v_proj k,h; model.layers.0.self_attn.o_proj h,q
    model.layers.0.post_attention_layernorm h; model.norm h; """
MLP_LIKE = """model.layers.0.mlp.gate_proj m,h; model.layers.0.mlp.up_proj m,h
    model.layers.0.mlp.down_proj h,m; """
HEAD_NORMS = "model.layers.0.self_attn.q_norm d; model.layers.0.self_attn.k_norm d; "
QWEN_2 = LLAMA_LIKE.replace("q,h", "q,h +q").replace("k,h", "k,h +k") + MLP_LIKE + "lm_head v,h"
QWEN_3 = LLAMA_LIKE + HEAD_NORMS + MLP_LIKE + "lm_head v,h"
QWEN_3_MOE = LLAMA_LIKE + HEAD_NORMS + "model.layers.0.mlp.gate 2,h; lm_head v,h; "
QWEN_3_MOE += MLP_LIKE.replace("mlp.", "mlp.experts.0.") + MLP_LIKE.replace(
    "mlp.", "mlp.experts.1."
)
MIXTRAL = LLAMA_LIKE + "model.layers.0.block_sparse_moe.gate 2,h; lm_head v,h; "
for expert in ("0", "1"):
    for matrix, rows in (("w1", "m,h"), ("w2", "h,m"), ("w3", "m,h")):
        MIXTRAL += f"model.layers.0.block_sparse_moe.experts.{expert}.{matrix} {rows}; "
GEMMA_2 = (
    LLAMA_LIKE
    + MLP_LIKE
    + """model.layers.0.pre_feedforward_layernorm h
    model.layers.0.post_feedforward_layernorm h"""
)
PHI_3 = """model.embed_tokens v,h; model.layers.0.input_layernorm h
    model.layers.0.self_attn.qkv_proj q+2k,h; model.layers.0.self_attn.o_proj h,q
    model.layers.0.mlp.gate_up_proj 2m,h; model.layers.0.mlp.down_proj h,m
    model.layers.0.post_attention_layernorm h; model.norm h; lm_head v,h"""
WIDE_MLP = {"intermediate_size": 4 * H}


def tensors_of(table, config):
    """A table above as a header's entries; `+` is a bias, as wide as the weight unless said."""
    arch = architecture_of(config)
    sizes = {"h": arch.hidden, "q": arch.heads * D, "k": arch.kv_heads * D, "d": D}
    sizes |= {"m": arch.intermediate, "v": arch.vocab, "p": arch.max_position or 0}

    def size(text):
        terms = [(term[:-1], term[-1]) for term in text.split("+")]
        return sum(int(n or 1) * sizes[x] if x in sizes else int(n + x) for n, x in terms)

    tensors = {}
    for line in table.replace("\n", ";").split(";"):
        name, *words = line.split()[:3] if line.strip() else ("",)
        if name:
            tensors[f"{name}.weight"] = ("F16", [size(text) for text in words[0].split(",")])
        for word in words[1:]:
            tensors[f"{name}.bias"] = ("F16", [size(word[1:] or words[0])])
    return tensors


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (GPT_2, {"model_type": "gpt2", **WIDE_MLP, "num_key_value_heads": None}),
        (GPT_2, {"model_type": "gpt_bigcode", **WIDE_MLP, "num_key_value_heads": None}),
        (BLOOM, {"model_type": "bloom", **WIDE_MLP, "num_key_value_heads": None}),
        (FALCON_7B, {"model_type": "falcon", **WIDE_MLP}),
        (FALCON_40B, {"model_type": "falcon", **WIDE_MLP, "new_decoder_architecture": True}),
        (NEOX, {"model_type": "gpt_neox", **WIDE_MLP, "num_key_value_heads": None}),
        (OPT, {"model_type": "opt", **WIDE_MLP, "num_key_value_heads": None}),
        (QWEN_2, {"model_type": "qwen2"}),
        (QWEN_3, {"model_type": "qwen3"}),
        (QWEN_3_MOE, {"model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 16}),
        (MIXTRAL, {"model_type": "mixtral", "num_local_experts": 2}),
        (GEMMA_2, {"model_type": "gemma2"}),
        (PHI_3, {"model_type": "phi3"}),
    ],
)
def test_each_familys_tensors_are_known_by_name(folder, table, words):
    config = {**LLAMA, **words, "num_hidden_layers": 1}
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", tensors_of(table, config))
    assert read_model_folder(folder).parameters == parameters_of(architecture_of(config))


def test_masks_and_rotary_tables_are_no_parameters(folder):
    more = {
        "model.layers.0.attn.bias": ("F32", [1, 1, 128, 128]),
        "model.layers.0.attn.masked_bias": ("F32", []),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [4]),
    }
    write_safetensors(folder / "model.safetensors", llama_tensors() | more)
    assert read_model_folder(folder).parameters == expected_parameters()


def test_biases_are_told_from_those_of_norms(folder):
    more = {
        "model.layers.0.self_attn.q_proj.bias": ("F16", [H]),
        "model.layers.0.input_layernorm.bias": ("F16", [H]),
    }
    write_safetensors(folder / "model.safetensors", llama_tensors() | more)
    found = read_model_folder(folder).parameters
    assert found.biases == H
    assert found.other == expected_parameters().other + H


def test_eyes_of_a_multimodal_model_stay_wide(folder):
    write_json(folder / "config.json", {"model_type": "llava", "text_config": LLAMA})
    language = {f"language_model.{name}": value for name, value in llama_tensors().items()}
    eyes = {"vision_tower.encoder.layers.0.mlp.fc1.weight": ("F16", [640, 320])}
    write_safetensors(folder / "model.safetensors", language | eyes)
    shape = read_model_folder(folder)
    assert shape.parameters.linear == expected_parameters().linear
    assert shape.parameters.other == expected_parameters().other + 640 * 320
    assert "by config.json" in shape.notes[0]


def test_a_family_without_a_formula_is_counted_by_its_tensors(folder):
    write_json(folder / "config.json", {**LLAMA, "model_type": "brand_new"})
    write_safetensors(folder / "model.safetensors", llama_tensors())
    shape = read_model_folder(folder)
    assert shape.parameters == expected_parameters()
    assert shape.notes == ()


def packed(tensors, make):
    """Linear weights as `make(rows, columns)` packs them; the rest as it is."""
    result = {}
    for name, (dtype, shape) in tensors.items():
        if ".layers." in name and len(shape) == 2:
            rows, columns = shape
            for suffix, value in make(rows, columns).items():
                result[name.removesuffix("weight") + suffix] = value
        else:
            result[name] = (dtype, shape)
    return result


def gptq(rows, columns):
    return {
        "qweight": ("I32", [columns // 8, rows]),
        "qzeros": ("I32", [1, rows // 8]),
        "scales": ("F16", [1, rows]),
        "g_idx": ("I32", [columns]),
    }


def awq(rows, columns):
    return {
        "qweight": ("I32", [columns, rows // 8]),
        "qzeros": ("I32", [1, rows // 8]),
        "scales": ("F16", [1, rows]),
    }


def nf4(rows, columns):
    return {
        "weight": ("U8", [rows * columns // 2, 1]),
        "weight.absmax": ("U8", [rows * columns // 64]),
        "weight.quant_map": ("F32", [16]),
        "weight.nested_absmax": ("F32", [1]),
        "weight.nested_quant_map": ("F32", [256]),
        "weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
    }


def fp8(rows, columns):
    return {
        "weight": ("F8_E4M3", [rows, columns]),
        "weight_scale": ("F32", [rows, 1]),
        "input_scale": ("F32", [1]),
    }


@pytest.mark.parametrize(
    ("make", "section", "expected"),
    [
        (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}, Quantization("gptq", 4, 32)),
        (awq, {"quant_method": "awq", "bits": 4, "group_size": 32}, Quantization("awq", 4, 32)),
        (fp8, {"quant_method": "fp8"}, Quantization("fp8", 8)),
        (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True,
               "bnb_4bit_quant_type": "nf4"}, Quantization("nf4", 4, 64)),
    ],
)  # fmt: skip
def test_quantised_weights_are_counted_unpacked(folder, make, section, expected):
    write_json(folder / "config.json", {**LLAMA, "quantization_config": section})
    stored_bytes = write_safetensors(folder / "model.safetensors", packed(llama_tensors(), make))
    shape = read_model_folder(folder)
    assert shape.quantization == expected
    assert shape.parameters == expected_parameters()
    assert shape.stored_bytes == stored_bytes


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32}, Quantization("gptq", 4, 32)),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32}, Quantization("awq", 4, 32)),
    ],
)
def test_older_tools_say_it_in_a_file_of_its_own(folder, name, content, expected):
    write_safetensors(folder / "model.safetensors", packed(llama_tensors(), gptq))
    write_json(folder / name, content)
    assert read_model_folder(folder).quantization == expected


def test_config_json_comes_before_the_older_files(folder):
    section = {"quant_method": "awq", "bits": 4}
    write_json(folder / "config.json", {**LLAMA, "quantization_config": section})
    write_json(folder / "quantize_config.json", {"bits": 8})
    write_safetensors(folder / "model.safetensors", packed(llama_tensors(), awq))
    assert read_model_folder(folder).quantization == Quantization("awq", 4)


def test_bin_files_tell_their_size_only(folder):
    total = expected_parameters().total
    write_json(folder / "config.json", {**LLAMA, "torch_dtype": "float16"})
    index = {"metadata": {"total_size": 2 * total}, "weight_map": {"a": "pytorch_model-1.bin"}}
    write_json(folder / "pytorch_model.bin.index.json", index)
    with pytest.raises(ModelError, match="1 of 1 shards are missing"):
        read_model_folder(folder)
    (folder / "pytorch_model-1.bin").write_bytes(bytes(10))
    shape = read_model_folder(folder)
    assert (shape.parameters, shape.stored_bytes) == (expected_parameters(), 2 * total)
    assert [note[:26] for note in shape.notes] == ["weights are *.bin files: e"]


def test_one_bin_file_of_another_size_than_its_config_is_told(folder):
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    shape = read_model_folder(folder)
    assert shape.stored_bytes == 1000
    assert "the files hold 0.00 G parameters" in shape.notes[1]


def test_bin_files_of_a_family_without_a_formula_are_split_roughly(folder):
    write_json(folder / "config.json", {**LLAMA, "model_type": "brand_new"})
    (folder / "pytorch_model.bin").write_bytes(bytes(2 * expected_parameters().total))
    assert read_model_folder(folder).parameters == expected_parameters()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cut off in its header"),
        (b"1234567", "cut off in its header"),
        (struct.pack("<Q", 500) + b"{}", "cut off in its header"),
        (struct.pack("<Q", 8) + b"no json!", "its header is no JSON"),
        (struct.pack("<Q", 4) + b'"\xff\xff"', "its header is no JSON"),
        (struct.pack("<Q", 2) + b"[]", "its header is no mapping"),
        (struct.pack("<Q", 7) + b'{"a":1}', "tensor 'a' in its header is malformed"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "its header is no JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ],
)
def test_a_corrupt_header_is_named(folder, content, expected):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        read_model_folder(folder)
    assert str(path) in str(caught.value)


def test_a_giant_header_is_not_read(folder):
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: takes no disk
    with pytest.raises(ModelError, match="its header would have"):
        read_model_folder(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "F16", "shape": [2], "data_offsets": [-4, 0]},
        {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": ["2"], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0]},
        {"dtype": 16, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_malformed_tensor_is_named(tmp_path, entry):
    text = json.dumps({"layer.weight": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ModelError, match=r"tensor 'layer\.weight' in its header is malformed"):
        read_header(path)


def test_a_file_that_is_cut_off_is_told_by_its_size(folder):
    write_safetensors(folder / "model.safetensors", llama_tensors(), cut_bytes=1)
    with pytest.raises(ModelError, match=r"cut off, .* of tensors are there; download it again"):
        read_model_folder(folder)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        assert isinstance(read_header(path), list)
    except ModelError as exc:
        refusal = str(exc)
    else:
        return
    assert str(path) in refusal


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(ModelError, match="empty, expected a model's config"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: (path / "README.md").write_text("hi"), "no config.json"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "an adapter"),
        (lambda path: (path / "snapshots").mkdir(), "one of the folders in its snapshots"),
        (lambda path: (path / "config.json").write_text("{"), "config.json: no JSON"),
        (lambda path: (path / "config.json").mkdir(), "config.json: cannot be read"),
        (lambda path: write_json(path / "config.json", LLAMA), "no weights, expected"),
        (lambda path: write_json(path / "config.json", {}), "model: model_type: found nothing"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(tmp_path, make, expected):
    path = tmp_path / "model"
    path.mkdir()
    make(path)
    with pytest.raises(ModelError, match=expected) as caught:
        read_model_folder(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_found_before_any_hub(folder):
    write_safetensors(folder / "model.safetensors", llama_tensors())
    assert find_shape(str(folder)).parameters == expected_parameters()
    with pytest.raises(ModelError, match="no such folder"):
        find_shape("./nowhere/at-all")


def test_a_hub_id_is_known_or_not(tmp_path):
    assert find_shape("openai-community/GPT2") == known_shape("openai-community/gpt2")
    assert find_shape("org/unheard-of", cache_folder=tmp_path) is None


def snapshot(cache, model_id, commit, ref="main"):
    home = cache / ("models--" + model_id.replace("/", "--"))
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    write_json(folder / "config.json", LLAMA)
    return folder


def test_what_is_downloaded_comes_before_what_is_known(tmp_path):
    folder = snapshot(tmp_path, "gpt2", "abc")
    write_safetensors(folder / "model.safetensors", llama_tensors())
    shape = find_shape("gpt2", cache_folder=tmp_path)
    assert (shape.name, shape.parameters) == (str(folder), expected_parameters())


def test_a_download_that_is_not_complete_still_has_its_config(tmp_path):
    snapshot(tmp_path, "org/new", "abc")
    shape = find_shape("org/new", cache_folder=tmp_path)
    assert (shape.parameters, shape.stored_bytes) == (expected_parameters(), None)
    assert shape.notes[0].startswith("the download is not complete: ")


def test_a_download_without_a_config_leaves_what_is_known(tmp_path):
    folder = snapshot(tmp_path, "gpt2", "abc")
    (folder / "config.json").unlink()
    assert find_shape("gpt2", cache_folder=tmp_path) == known_shape("gpt2")


def test_a_revision_is_a_branch_or_a_commit(tmp_path):
    main = snapshot(tmp_path, "org/a", "aaa")
    branch = snapshot(tmp_path, "org/a", "bbb", ref="gptq-4bit")
    assert cached_snapshot(tmp_path, "org/a") == main
    assert cached_snapshot(tmp_path, "org/a", "gptq-4bit") == branch
    assert cached_snapshot(tmp_path, "org/a", "bbb") == branch
    assert cached_snapshot(tmp_path, "org/a", "ccc") is None
    assert cached_snapshot(tmp_path, "org/b") is None


def test_without_a_main_branch_the_newest_snapshot_counts(tmp_path):
    old = snapshot(tmp_path, "org/a", "aaa", ref="v1")
    new = snapshot(tmp_path, "org/a", "bbb", ref="v2")
    os.utime(old, (1, 1))
    assert cached_snapshot(tmp_path, "org/a") == new


@pytest.mark.parametrize("revision", ["../../x", "refs/../..", "..", "/", "/etc/passwd"])
def test_a_revision_cannot_leave_the_cache(tmp_path, revision):
    snapshot(tmp_path / "cache", "org/a", "aaa")
    assert cached_snapshot(tmp_path / "cache", "org/a", revision) is None


def text_of(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(metadata, tensors, data_bytes=64):
    front = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        front += text_of(key)
        if isinstance(value, str):
            front += struct.pack("<I", 8) + text_of(value)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            front += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text_of, value))
        elif isinstance(value, list):
            front += struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
        else:
            front += struct.pack("<II", 4, value)
    for name, shape in tensors.items():
        front += text_of(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 12, 0)
    return front + bytes(data_bytes)


GGUF_METADATA = {
    "general.architecture": "llama",
    "llama.block_count": L,
    "llama.embedding_length": H,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": [KV] * L,
    "llama.feed_forward_length": MLP,
    "llama.context_length": 128,
    "tokenizer.ggml.tokens": [f"t{n}" for n in range(V)],
}
GGUF_TENSORS = {
    "token_embd.weight": [H, V],
    "output.weight": [H, V],
    "output_norm.weight": [H],
    "blk.0.attn_q.weight": [H, H],
    "blk.0.attn_norm.weight": [H],
    "blk.0.attn_q.bias": [H],
}


def test_a_gguf_file_is_as_large_as_it_is(tmp_path):
    path = tmp_path / "model-q4.gguf"
    path.write_bytes(gguf(GGUF_METADATA, GGUF_TENSORS))
    shape = find_shape(str(path))
    assert shape.stored_bytes == path.stat().st_size
    assert shape.quantization == Quantization("gguf")
    arch, count = shape.architecture, shape.parameters
    assert (arch.layers, arch.heads, arch.kv_heads, arch.head_dim) == (L, HEADS, KV, D)
    assert (arch.hidden, arch.intermediate, arch.vocab, arch.max_position) == (H, MLP, V, 128)
    assert (count.linear, count.biases, count.other) == (H * H, H, 2 * H)
    assert (count.embedding, count.head, arch.tied) == (H * V, H * V, False)
    assert read_model_folder(tmp_path) == shape


def test_a_gguf_model_in_parts_is_all_of_them(tmp_path):
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_bytes(gguf(GGUF_METADATA, GGUF_TENSORS))
    with pytest.raises(ModelError, match=r"1 parts are missing \(m-00002-of-00002\.gguf"):
        find_shape(str(first))
    second.write_bytes(gguf({}, {"blk.1.attn_q.weight": [H, H]}))
    shape = read_model_folder(tmp_path)
    assert shape.parameters.linear == 2 * H * H
    assert shape.stored_bytes == first.stat().st_size + second.stat().st_size


def test_of_several_gguf_files_one_must_be_named(tmp_path):
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / name).write_bytes(gguf(GGUF_METADATA, GGUF_TENSORS))
    with pytest.raises(ModelError, match=r"2 \*\.gguf files \(q4\.gguf, q8\.gguf"):
        read_model_folder(tmp_path)


def without(key):
    return {name: value for name, value in GGUF_METADATA.items() if name != key}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no GGUF file"),
        (b"GGML" + bytes(100), "no GGUF file"),
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**50), "a text of"),
        (gguf(GGUF_METADATA, GGUF_TENSORS)[:200], "cut off in its front"),
        (gguf(GGUF_METADATA, GGUF_TENSORS, data_bytes=0), "cut off in its tensors"),
        (gguf(GGUF_METADATA, {}), "holds no tensors"),
        (gguf(without("llama.block_count"), GGUF_TENSORS), "llama.block_count: found None"),
        (gguf(without("tokenizer.ggml.tokens"), GGUF_TENSORS), "llama.vocab_size: found None"),
    ],
)
def test_a_broken_gguf_file_is_named(tmp_path, content, expected):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        find_shape(str(path))
    assert str(path) in str(caught.value)


@given(st.binary(max_size=100), st.integers(0, 300))
def test_any_bytes_are_a_gguf_file_or_refused(tmp_path_factory, noise, at):
    whole = bytearray(gguf(GGUF_METADATA, GGUF_TENSORS))
    whole[at : at + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(whole)
    try:
        shape = find_shape(str(path))
    except ModelError as exc:
        refusal = str(exc)
    else:
        assert shape.stored_bytes == len(whole)
        return
    assert str(path) in refusal
