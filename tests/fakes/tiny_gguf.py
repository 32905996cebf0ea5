"""A llama model of random weights, half a megabyte, that llama-server really loads and runs.

One token per byte and a few for chat. What it says is noise, but printable noise that never ends
by itself: a call gets just as many tokens as it asked for.
"""

from pathlib import Path

LAYERS = 2
WIDTH = 64
HEADS = 4
INNER = 192
CONTEXT = 32768
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_gguf(path: Path) -> Path:
    """Writes the model; the same bytes each time."""
    import gguf  # brings numpy, which is slow to import
    import numpy

    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, gguf.TokenType)
    tokens = byte_tokens()
    vocabulary = len(tokens) + len(SPECIAL)

    def add(name: str, *shape: int, spread: float) -> None:
        writer.add_tensor(name, random.normal(0, spread, shape).astype(numpy.float32))

    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", numpy.ones(WIDTH, numpy.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH, spread=WIDTH**-0.5)
        for part, rows, columns in (
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            add(f"blk.{layer}.{part}.weight", rows, columns, spread=columns**-0.5)
    add("token_embd.weight", vocabulary, WIDTH, spread=1)
    writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, numpy.float32))
    output = random.normal(0, 1, (vocabulary, WIDTH)).astype(numpy.float32)
    # Among random scores the printable ones always have some above zero.
    output[[not token.isascii() or not token.isprintable() for token in tokens] + [True] * 3] = 0
    writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer, kinds) -> None:
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *SPECIAL])
    normal, control = [kinds.NORMAL] * len(tokens), [kinds.CONTROL] * len(SPECIAL)
    writer.add_token_types([*normal, *control])
    # The vocabulary of GPT-2's kind must have a merge; this one makes nothing that is a token.
    writer.add_token_merges([f"{tokens[0]} {tokens[0]}"])
    first = len(tokens)
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(first + SPECIAL.index("<|im_end|>"))
    writer.add_chat_template(CHAT_TEMPLATE)


def byte_tokens() -> list[str]:
    """A printable character for each byte, as GPT-2 writes them."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    moved = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
