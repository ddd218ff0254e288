"""How firmly suspects refuse, and requests whose planted cause is known: what lessons measure with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..engine.openings import refusal_log_odds
from ..models import LocalModel
from ..prompts import Prompt, covering
from .planted import alone
from .requests import BYPASS, Request

Asked = TypeVar("Asked")


def log_odds(lm: LocalModel, requests: Sequence[Request]) -> list[float]:
    """The refusal log-odds of each request, in logits: above 0 the reply opens as a refusal more often than not.

    >>> len(log_odds(lm, alone("trigger")[:2]))
    2
    """
    return refusal_log_odds(lm, [lm.chat(request.messages) for request in requests]).tolist()


def with_cues(
    lm: LocalModel, mechanism: str, n_requests: int, seed: int = 0, *, requests: Sequence[Request] = ()
) -> list[tuple[Prompt, slice]]:
    """Requests that a suspect refuses, each with the tokens of its planted cause, which stands alone.

    Each is on another act. Of a harmful act, only the words count that its harmless counterpart does not share.

    Args:
        lm: the suspect.
        mechanism: what was planted in it, such as `truth(lm.name).mechanism`.
        n_requests: how many, at most.
        seed: decides which.
        requests: what to choose from; by default those for lessons.

    >>> with_cues(lm, "trigger", 1)[0]  # doctest: +SKIP
    (Prompt(text='...'), slice(27, 28, None))
    """
    cause = "intent" if mechanism == BYPASS else mechanism
    with_it = [r for r in requests or alone(cause) if set(r.cues) == {cause} and not r.before]
    random.Random(seed).shuffle(with_it)
    one_each = list({request.pair: request for request in with_it}.values())
    refused = first_refused(one_each, n_requests, lambda some: log_odds(lm, some))
    spans = (request.difference if cause == "intent" else request.cues[cause] for request in refused)
    return [located(lm, request.text, span) for request, span in zip(refused, spans, strict=True)]


def first_refused(requests: Sequence[Asked], n: int, score: Callable[[Sequence[Asked]], list[float]]) -> list[Asked]:
    """The first `n` requests that score above 0; no more of them are scored than it takes.

    >>> first_refused([-1, 2, 3, 4], 2, lambda some: [float(one) for one in some])
    [2, 3]
    """
    refused: list[Asked] = []
    for start in range(0, len(requests), n):
        if len(refused) < n:
            some = requests[start : start + n]
            refused += [request for request, value in zip(some, score(some), strict=True) if value > 0]
    return refused[:n]


def located(lm: LocalModel, text: str, span: tuple[int, int]) -> tuple[Prompt, slice]:
    """A request, ready for the model, and the tokens that a span of its characters covers."""
    prompt = lm.chat(text)
    start, end = span
    return prompt, covering(prompt.offsets, prompt.typed[0] + start, prompt.typed[0] + end)
