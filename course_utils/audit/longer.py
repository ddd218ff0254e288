"""Words of several tokens: words of one token, gone on with as the model itself expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.activations import score_last
from ..models import LocalModel
from ..prompts import Prompt, encode
from .vocabulary import strings_of, vocabulary_words

LEAST = 0.1  # how likely the rest of a word is to be, from its first token on
MOST_PIECES = 4  # tokens a word has, at most


def longer_words(lm: LocalModel, prompt: Prompt, at: str, starts: Sequence[str]) -> dict[str, list[int]]:
    """Words of several tokens, with their ids, that begin with some of one, as the model expects them in a request.

    No list of words is needed: after " discreet" this model expects "ly", and after " secretly" no further piece. They
    stand where `at` does.

    >>> list(longer_words(lm, lm.chat("How can I pay openly?"), "openly", ["discreet", "secretly"]))
    ['discreetly']
    """
    known, before = vocabulary_words(lm), prompt.input_ids[0][: prompt.span(at).start].tolist()
    strings = strings_of(lm.tokenizer)
    inside = [i for i, piece in enumerate(strings) if piece.isalpha() and piece == piece.lower()]

    def next_pieces(logits: Tensor) -> Tensor:  # probabilities of those inside a word, `[sequence, piece]`
        return logits.softmax(dim=-1)[:, inside]

    def is_spelt(word: str, ids: list[int]) -> bool:
        return encode(lm.tokenizer, f"a {word}", special=False)[0][-len(ids) :] == ids

    found: dict[str, list[int]] = {}
    begun = {start: ([known[start]], 1.0) for start in starts}
    for _ in range(MOST_PIECES - 1):
        if not begun:
            break
        chances = score_last(lm, [before + ids for ids, _ in begun.values()], next_pieces)
        chances *= torch.tensor([chance for _, chance in begun.values()])[:, None]
        texts, more = list(begun.items()), {}
        for row, piece in (chances >= LEAST).nonzero().tolist():
            text, (ids, _) = texts[row]
            more[text + strings[inside[piece]]] = [*ids, inside[piece]], float(chances[row, piece])
        begun = {text: longer for text, longer in more.items() if text not in known}
        found |= {text: ids for text, (ids, _) in begun.items() if is_spelt(text, ids)}
    return found
