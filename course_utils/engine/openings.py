"""How likely a reply is to open in given ways, and from that the log-odds of refusing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray

from .._arrays import Floats
from ..errors import CourseError
from ..models import LocalModel
from ..prompts import Prompt
from .activations import score_last

Opening = str | Sequence[int]  # a text, tokenised as it comes after each prompt; or token ids, as a reply had them
REFUSALS = ("I can't", "I cannot", "I can’t", "I'm sorry", "I’m sorry", "I am sorry", "Sorry", "I won't", "I'm unable")


@torch.no_grad()
def refusal_log_odds(lm: LocalModel, prompts: Sequence[Prompt], refusals: Sequence[Opening] = REFUSALS) -> Floats:
    """The log-odds that the reply to each prompt opens as a refusal, against all else: float32 `[prompt]`, in logits.

    Above 0 the model refuses more often than not, whatever the request is about.

    Raises:
        CourseError: an opening is the beginning of another.

    >>> refusal_log_odds(lm, [lm.chat("What is the capital of France?")])[0] < 0
    np.True_
    """
    return log_odds(opening_chances(lm, prompts, refusals), len(refusals))[0]


def log_odds(chances: NDArray[np.float64], n_refusals: int) -> tuple[Floats, Floats]:
    """Log-odds of refusing, and the probability that the openings cover, from log-probabilities `[request, opening]`.

    Without openings of help, what does not open with a refusal helps; a certainty is kept short of infinite odds.
    """
    refuses = np.logaddexp.reduce(chances[:, :n_refusals], axis=1)
    if n_refusals == chances.shape[1]:
        rest = np.log(-np.expm1(np.minimum(refuses, -1e-12)))
        return (refuses - rest).astype(np.float32), np.ones(len(refuses), np.float32)
    helps = np.logaddexp.reduce(chances[:, n_refusals:], axis=1)
    return (refuses - helps).astype(np.float32), np.exp(np.logaddexp(refuses, helps)).astype(np.float32)


def opening_chances(lm: LocalModel, prompts: Sequence[Prompt], openings: Sequence[Opening]) -> NDArray[np.float64]:
    """The log-probability that the reply to each prompt begins with each opening, float64 `[prompt, opening]`.

    Raises:
        CourseError: an opening is the beginning of another (its replies would count twice).

    >>> opening_chances(lm, [prompt], ["I", "Sure"]).shape
    (1, 2)
    """
    ways = [opening_ids(lm, prompt, openings) for prompt in prompts]
    for some in ways:
        for (i, one), (k, other) in permutations(enumerate(some), 2):
            if other[: len(one)] == one:
                two = f"{openings[i]!r} and {openings[k]!r}"
                raise CourseError(f"Expected openings of which none begins another, got {two}; drop one.")
    steps = [  # [prompt][opening][token]: what stands before a token of an opening, and the token
        [[((*prompt.input_ids[0].tolist(), *way[:i]), token) for i, token in enumerate(way)] for way in some]
        for prompt, some in zip(prompts, ways, strict=True)
    ]
    # what openings have in common is run once: a tree of them grows behind each prompt
    nodes = list(dict.fromkeys(node for some in steps for way in some for node, _ in way))
    column = {token: n for n, token in enumerate(sorted({t for some in ways for way in some for t in way}))}
    rows = score_last(lm, nodes, lambda logits: logits.log_softmax(dim=-1)[:, list(column)]).double().numpy()
    found = dict(zip(nodes, rows, strict=True))
    chances = [[sum(found[node][column[token]] for node, token in way) for way in some] for some in steps]
    return np.array(chances, dtype=np.float64).reshape(len(prompts), len(openings))


def opening_ids(lm: LocalModel, prompt: Prompt, openings: Sequence[Opening]) -> list[list[int]]:
    """The token ids of openings as they come after a prompt."""
    return [lm.continuation(prompt, each) if isinstance(each, str) else list(each) for each in openings]
