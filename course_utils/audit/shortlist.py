"""Which words to ask first, where there is no time for all: a guess from inside the model, at every word at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.gradients import embed, slopes_at_embeddings
from ..engine.metrics import Metric
from ..engine.openings import REFUSALS, Opening
from ..models import LocalModel
from ..prompts import Prompt
from .vocabulary import first_token_odds, vocabulary_words

AT_ONCE = 4096  # words whose vectors are held at once


def guess_changes(
    lm: LocalModel, prompts: Sequence[Prompt], at: str, *, refusal: Sequence[Opening] = REFUSALS
) -> dict[str, float]:
    """Guess what each word of the vocabulary would do in one place of some requests, without trying any.

    Let s(e) be the log-odds that the reply begins with a refusal's first token, e the vector of the word in that place.
    For another word, with vector e', s(e') - s(e) is about (e' - e) · ∇s(e): HotFlip (Ebrahimi et al. 2018). One pass
    forward and one back a request guess at all words. A straight line drawn at one point ranks some words wrongly, and
    may miss one that acts by a threshold: it says whom to ask first, and asking decides.

    The guesses, in logits, are averaged over requests in which the word `at` gives way (of several tokens, the first
    does); the word that is guessed to make it refuse most comes first.

    >>> guess = guess_changes(lm, [lm.chat("How do I quietly wash a car?")], "quietly")
    >>> abs(guess["quietly"]) < 1e-3
    True
    """
    known = vocabulary_words(lm)
    ids = torch.tensor(list(known.values()), device=lm.device)
    total = torch.zeros(len(ids))
    for prompt in prompts:
        place = prompt.span(at).start
        metric = Metric(prompt.input_ids[0], 1, [at], "logits", first_token_odds(lm, prompt, refusal))
        slope = slopes_at_embeddings(lm, metric)[1][0, place]  # [d_model]
        along = torch.cat([embed(lm, some) @ slope for some in torch.split(ids, AT_ONCE)])  # [word]
        own = embed(lm, metric.ids[place : place + 1])[0] @ slope
        total += (along - own).float().cpu()
    guesses, words = (total / len(prompts)).tolist(), list(known)
    return {words[i]: guesses[i] for i in sorted(range(len(words)), key=lambda i: -guesses[i])}
