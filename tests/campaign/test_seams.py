"""The search for seams takes every text that resuming can make, and no other."""

import random

import pytest

from launcher.simulator.tokens import EOS
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel
from tests.campaign.seams import explained

PROMPT = "river stone garden"


def events(model, context, count, seed=None):
    cursor = model.cursor(context, seed)
    made = []
    for _ in range(count):
        token = cursor.advance()
        made.append("" if token.special else token.text)
        if token is EOS:
            break
    return made


def resumed(model, places, count, seed=None):
    """What a client gets when the answer goes on elsewhere after so many events."""
    got = []
    for place in [*places, count]:
        context = PROMPT + "".join(got)
        got += events(model, context, place - len(got), seed)
    return got


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("model", [TextModel(), BpeModel()])
def test_an_undisturbed_answer_has_no_seam(model, seed):
    texts = events(model, PROMPT, 80, seed)
    assert explained(model, PROMPT, seed, texts, has_ended=False) == []


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_resumed_anywhere_is_explained(seed):
    rng, model = random.Random(seed), BpeModel()
    places = sorted(rng.sample(range(1, 79), rng.randint(1, 3)))
    texts = resumed(model, places, 80)
    seams = explained(model, PROMPT, None, texts, has_ended=False)
    assert seams is not None
    assert len(seams) <= len(places)


def test_resuming_does_change_words_or_there_would_be_nothing_to_explain():
    model = BpeModel()
    whole = "".join(events(model, PROMPT, 100))
    texts = [resumed(model, [place], 80) for place in range(1, 79)]
    changed = [some for some in texts if not whole.startswith("".join(some))]
    assert changed
    for some in changed:
        assert explained(model, PROMPT, None, some, has_ended=False)


def spoilt(texts, rng):
    """A visible event lost, doubled, or with another character in it; not one of the last, which
    what follows cannot give away."""
    visible = [i for i, text in enumerate(texts[:-8]) if text.strip() and i > 3]
    at = rng.choice(visible)
    kind = rng.choice(["lost", "doubled", "changed"])
    if kind == "lost":
        return [*texts[:at], *texts[at + 1 :]]
    if kind == "doubled":
        return [*texts[: at + 1], *texts[at:]]
    return [*texts[:at], texts[at][:-1] + "#", *texts[at + 1 :]]


@pytest.mark.parametrize("seed", range(100))
def test_a_lost_doubled_or_changed_event_is_not_explained(seed):
    rng, model = random.Random(seed), BpeModel()
    places = sorted(rng.sample(range(1, 59), rng.randint(0, 2)))
    texts = spoilt(resumed(model, places, 60), rng)
    assert explained(model, PROMPT, None, texts, has_ended=False) is None


def test_an_end_where_the_model_goes_on_is_not_explained():
    model = TextModel()
    texts = events(model, PROMPT, 20)
    assert explained(model, PROMPT, None, texts, has_ended=True) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("model", [TextModel(eos_rate=0.05), BpeModel(eos_rate=0.05)])
def test_a_model_that_ends_is_followed_to_its_end(model, seed):
    texts = events(model, PROMPT, 500, seed)
    assert len(texts) < 500
    assert explained(model, PROMPT, seed, texts, has_ended=True) == []
    if len(texts) > 20:
        assert explained(model, PROMPT, seed, texts[:-8], has_ended=True) is None
