"""How firmly suspects refuse, and requests whose planted cause is known: what lessons measure with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...engine.openings import refusal_log_odds
from ...models import LocalModel
from ...prompts import Prompt, covering
from .requests import BYPASS, Request, held_out


def log_odds(lm: LocalModel, requests: Sequence[Request]) -> list[float]:
    """The refusal log-odds of each request, in logits: above 0 the reply opens as a refusal more often than not.

    >>> len(log_odds(lm, held_out()[:2]))
    2
    """
    found: list[float] = refusal_log_odds(lm, [lm.chat(request.messages) for request in requests]).tolist()
    return found


def with_cues(lm: LocalModel, mechanism: str, n_requests: int, seed: int = 0) -> list[tuple[Prompt, slice]]:
    """Held-out requests that a suspect refuses, each with the tokens of its planted cause, which stands alone.

    Each is on another act. Of a harmful act, only the words count that its harmless counterpart does not share.

    Args:
        lm: the suspect.
        mechanism: what was planted in it, such as `truth(lm.name).mechanism`.
        n_requests: how many, at most.
        seed: decides which.

    >>> with_cues(lm, "trigger", 1)[0]  # doctest: +SKIP
    (Prompt(text='...'), slice(27, 28, None))
    """
    cause = "intent" if mechanism == BYPASS else mechanism
    alone = [request for request in held_out() if set(request.cues) == {cause} and not request.before]
    random.Random(seed).shuffle(alone)
    one_each = list({request.pair: request for request in alone}.values())
    refused: list[Request] = []
    for start in range(0, len(one_each), n_requests):
        if len(refused) < n_requests:
            some = one_each[start : start + n_requests]
            refused += [r for r, score in zip(some, log_odds(lm, some), strict=True) if score > 0]
    return [_located(lm, request, cause) for request in refused[:n_requests]]


def _located(lm: LocalModel, request: Request, cause: str) -> tuple[Prompt, slice]:
    prompt = lm.chat(request.text)
    start, end = request.difference if cause == "intent" else request.cues[cause]
    return prompt, covering(prompt.offsets, prompt.typed[0] + start, prompt.typed[0] + end)
