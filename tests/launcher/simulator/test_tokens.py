"""The token models: seam rules of ``text``, the traps of ``bpe``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.simulator.tokens import EOS
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel
from launcher.simulator.vocabulary import WORDS

PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
SEEDS = st.none() | st.integers(0, 2**64 - 1)


def generated(model, text, seed, count):
    cursor = model.cursor(text, seed)
    return [cursor.advance() for _ in range(count)]


def text_of(tokens):
    return "".join(token.text for token in tokens if not token.special)


@pytest.mark.parametrize("model", [TextModel(), BpeModel()])
def test_equal_text_and_seed_give_equal_tokens(model):
    assert generated(model, "Hello", 7, 50) == generated(model, "Hello", 7, 50)
    assert generated(model, "Hello", None, 50) == generated(model, "Hello", None, 50)


@pytest.mark.parametrize("model", [TextModel(), BpeModel()])
def test_seeds_and_prompts_make_a_difference(model):
    texts = {text_of(generated(model, "Hello", seed, 30)) for seed in (None, 0, 1, 2**63)}
    texts.add(text_of(generated(model, "Good bye", None, 30)))
    assert len(texts) == 5


@settings(deadline=None)
@given(PROMPTS, SEEDS, st.integers(0, 40))
def test_text_continues_alike_from_any_cut(prompt, seed, cut):
    model = TextModel()
    whole = generated(model, prompt, seed, 60)
    again = generated(model, prompt + text_of(whole[:cut]), seed, 60 - cut)
    assert again == whole[cut:]


@settings(deadline=None)
@given(PROMPTS, SEEDS, st.integers(1, 40))
def test_text_tokens_are_stable_across_the_seam(prompt, seed, cut):
    model = TextModel()
    tokens = generated(model, prompt, seed, cut)
    pieces = model.pieces(prompt + text_of(tokens))
    assert [piece.text for piece in pieces[-cut:]] == [token.text for token in tokens]
    assert [piece.id for piece in pieces[-cut:]] == [token.id for token in tokens]
    assert pieces[:-cut] == model.pieces(prompt)
    assert model.count(prompt) == len(model.pieces(prompt))


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 20))
@pytest.mark.parametrize("model", [TextModel(), BpeModel()])
def test_pieces_cover_the_text_and_truncation_keeps_its_end(model, prompt, room):
    pieces = model.pieces(prompt)
    assert all(prompt[piece.start : piece.stop] == piece.text for piece in pieces if piece.stop)
    assert pieces[-1].stop == len(prompt)
    assert model.count(prompt) == len(pieces)
    kept = model.keep_last(prompt, room)
    assert prompt.endswith(kept)
    assert model.count(kept) <= max(room, 1) + 3


def test_text_reads_like_english():
    text = text_of(generated(TextModel(), "Tell me a story.", None, 400))
    words = text.replace(".", " ").replace(",", " ").split()
    known = {word for members in WORDS.values() for word in members}
    assert set(words) <= known
    assert len(set(words)) > 60
    assert text.count(".") > 10


def test_text_keeps_to_its_grammar():
    text = text_of(generated(TextModel(), "Tell me a story.", None, 400))
    after_comma = {clause.split()[0] for clause in text.split(",")[1:] if clause.strip()}
    after_stop = {sentence.split()[0] for sentence in text.split(".")[1:] if sentence.strip()}
    assert after_comma <= set(WORDS["conjunction"])
    assert after_stop <= set(WORDS["opener"])


def test_text_long_output_does_not_run_in_circles():
    tokens = generated(TextModel(), "Go on", None, 4000)
    windows = {tuple(t.id for t in tokens[i : i + 12]) for i in range(len(tokens) - 12)}
    assert len(windows) > 3900


def test_ranked_starts_with_the_chosen_and_has_no_twins():
    for model in (TextModel(), BpeModel()):
        cursor = model.cursor("Hello", None)
        chosen = cursor.advance()
        ranked = cursor.ranked(5)
        assert ranked[0] == chosen
        assert len({token.id for token in ranked}) == 5
        assert [t.logprob for t in ranked] == sorted((t.logprob for t in ranked), reverse=True)


def test_eos_rate_ends_texts():
    for model in (TextModel(eos_rate=0.2), BpeModel(eos_rate=0.2)):
        assert EOS in generated(model, "Hello", None, 200)
    for model in (TextModel(), BpeModel()):
        assert EOS not in generated(model, "Hello", None, 2000)


def test_bpe_shows_a_wide_character_only_when_complete():
    tokens = generated(BpeModel(), "Hello", None, 2000)
    text = text_of(tokens)
    assert "\ufffd" not in text
    assert {"🙂", "漢", "é"} <= set(text)
    assert any(token.text == "" and not token.special for token in tokens)


def test_bpe_special_tokens_have_a_text_that_is_not_generated_text():
    tokens = generated(BpeModel(), "Hello", None, 500)
    special = [token for token in tokens if token.special]
    assert special
    assert all(token.text == "<|sep|>" for token in special)
    assert "<|sep|>" not in text_of(tokens)


def test_bpe_merges_what_it_wrote_in_halves():
    model = BpeModel()
    tokens = generated(model, "Hello", None, 300)
    visible = [token for token in tokens if not token.special]
    assert model.count(text_of(tokens)) - 1 < len(visible)


def test_bpe_can_continue_differently_after_the_seam():
    model = BpeModel()
    whole = generated(model, "Hello", None, 120)
    continued = [
        text_of(generated(model, "Hello" + text_of(whole[:cut]), None, 120 - cut))
        for cut in range(10, 60)
    ]
    same = [
        text == text_of(whole[cut:]) for cut, text in zip(range(10, 60), continued, strict=True)
    ]
    assert not all(same)


def test_bpe_counts_its_bos():
    model = BpeModel()
    assert model.pieces("a")[0] == (1, "<s>", 0, 0)
    assert (model.count(""), model.count("a")) == (1, 2)
