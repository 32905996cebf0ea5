"""Whether a text can have come about by an answer that was continued elsewhere, once or more. Pure.

Where the tokeniser merges what was generated apart, an engine that is given prompt and part of an
answer may go on with other words than the one that died. Such a text is right when it is the
undisturbed answer up to a seam, then what a healthy engine gives for the prompt with all text
before the seam, up to the next one. Nothing is missing, doubled or cut inside a character.

Found by search: from a seam on, a text is explained as far as the engine's continuation agrees; any
place between two events up to there may be the next seam.
"""

from collections.abc import Sequence

from launcher.simulator.tokens import EOS, TokenModel

MAX_SEAMS = 8


def explained(
    model: TokenModel, prompt: str, seed: int | None, texts: Sequence[str], *, has_ended: bool
) -> list[int] | None:
    """The fewest seams, as counts of characters before each; None when there is no explanation.

    `texts` are those of the events, empty for special tokens and for unfinished characters.
    `has_ended`: the model itself ended the text, as its last event.
    """
    text = "".join(texts)
    between = _boundaries(texts)
    ways: dict[int, list[int]] = {0: []}
    for _ in range(MAX_SEAMS + 1):
        further: dict[int, list[int]] = {}
        for start, seams in ways.items():
            agreed, is_end = _agreed(model, prompt + text[:start], seed, text[start:], len(texts))
            if agreed == len(text) - start and (is_end or not has_ended):
                return seams
            for place in between:
                if start < place <= start + agreed and place not in further:
                    further[place] = [*seams, place]
        seen = set(ways)
        ways = {place: seams for place, seams in further.items() if place not in seen}
        if not ways:
            return None
    return None


def _boundaries(texts: Sequence[str]) -> list[int]:
    """Characters before each event, without doubles; a seam before the first is none."""
    places, at = [], 0
    for text in texts:
        if text:
            at += len(text)
            places.append(at)
    return places


def _agreed(
    model: TokenModel, context: str, seed: int | None, wanted: str, most_tokens: int
) -> tuple[int, bool]:
    """How many characters of `wanted` the engine would give, and whether it ends right there."""
    cursor, at = model.cursor(context, seed), 0
    for _ in range(2 * most_tokens + 8):
        token = cursor.advance()
        if token is EOS or (at == len(wanted) and token.text and not token.special):
            return at, token is EOS and at == len(wanted)
        if token.special:
            continue
        if not wanted.startswith(token.text, at):
            return at, False
        at += len(token.text)
    return at, False
