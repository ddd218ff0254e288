"""How firmly suspects refuse, and requests whose planted cause is known: what lessons measure with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...engine.openings import refusal_log_odds
from ...models import LocalModel
from ...prompts import Prompt
from ..scores import first_refused, located
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
    refused = first_refused(one_each, n_requests, lambda some: log_odds(lm, some))
    spans = (request.difference if cause == "intent" else request.cues[cause] for request in refused)
    return [located(lm, request.text, span) for request, span in zip(refused, spans, strict=True)]
