"""What of the output is scored: a contrast of two logits, or the log-probability of a reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .._arrays import precise
from ..errors import CourseError, is_count
from ..models import LocalModel
from ..prompts import Prompt, sequence_strings, token_strings


@dataclass(frozen=True)
class Metric:
    """What of the output is scored, and how the input must go on for it."""

    ids: Tensor = field(repr=False)  # int64 [token], the prompt and all of a target but its last token
    keep: int  # how many of the last positions are scored
    output_tokens: list[str]  # the printable output tokens, or one label for a contrast
    unit: str  # "logits" for a contrast, "nats" of log-probability for a target
    # maps logits [variant, keep, vocabulary] to scores [variant, output]; gradients flow through it
    score: Callable[[Tensor], Tensor] = field(repr=False)

    def total(self, logits: Tensor) -> Tensor:
        """Scores summed over the outputs, `[variant]`, in float32 at least."""
        return self.score(precise(logits)).sum(dim=-1)


class Scored(NamedTuple):
    """What an attribution finds, as far as its method tells; the outputs are `[output]`."""

    scores: Tensor  # [output, token]
    value: Tensor  # the output
    without: Tensor | None = None  # the output with nothing left
    standard_error: Tensor | None = None  # [output, token]
    gap: Tensor | None = None  # [output], by how much scores miss what the output gains, as a share of that


def make_metric(
    lm: LocalModel,
    prompt: Prompt,
    *,
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    n_output_tokens: int = 5,
) -> Metric:
    """What to score after a prompt: a contrast, a target, or (with neither) the model's own greedy reply.

    >>> make_metric(lm, prompt, contrast=("I", "Sure")).unit
    'logits'
    """
    lm.check_prompt(prompt)
    if target is not None and contrast is not None:
        raise CourseError("Expected a target or a contrast, got both; they answer different questions, so ask twice.")
    if contrast is not None:
        metric = _contrast_metric(lm, prompt, contrast)
    elif target is not None:
        metric = _target_metric(lm, prompt, lm.continuation(prompt, target))
    elif not is_count(n_output_tokens):
        raise CourseError(
            f"Expected at least one output token, a whole number, got n_output_tokens={n_output_tokens!r}."
        )
    else:
        metric = _target_metric(lm, prompt, lm.generate(prompt, n_output_tokens).tolist())
    lm.check_length(len(metric.ids))
    return metric


def _target_metric(lm: LocalModel, prompt: Prompt, reply: list[int]) -> Metric:
    """Score each token of a reply at the position before it: logits at position t - 1 speak about token t."""
    wanted = torch.tensor(reply, device=lm.device)

    def score(logits: Tensor) -> Tensor:
        index = wanted.to(logits.device).expand(len(logits), -1)[..., None]  # [variant, output, 1]
        return logits.log_softmax(dim=-1).gather(-1, index)[..., 0]  # [variant, output]

    ids = torch.cat([prompt.input_ids[0], prompt.input_ids.new_tensor(reply[:-1])])  # [token]
    return Metric(ids, len(reply), sequence_strings(lm.tokenizer, reply), "nats", score)


def _contrast_metric(lm: LocalModel, prompt: Prompt, contrast: tuple[str, str]) -> Metric:
    first, second = contrast_ids(lm, prompt, contrast)

    def score(logits: Tensor) -> Tensor:
        return logits[:, -1, [first]] - logits[:, -1, [second]]  # [variant, 1]

    shown = token_strings(lm.tokenizer, [first, second])
    return Metric(prompt.input_ids[0], 1, [f"{shown[0]} − {shown[1]}"], "logits", score)


def contrast_ids(lm: LocalModel, prompt: Prompt, contrast: tuple[str, str]) -> tuple[int, int]:
    """The ids of the two tokens of a contrast, as they come right after a prompt.

    >>> len(contrast_ids(lm, prompt, ("I", "Sure")))
    2
    """
    texts = isinstance(contrast, (list, tuple)) and all(isinstance(text, str) for text in contrast)
    if not texts or len(contrast) != 2:
        raise CourseError(f'Expected a contrast of two texts, such as ("I", "Sure"), got {contrast!r}.')
    first, second = (single_token(lm, lm.continuation(prompt, text), text) for text in contrast)
    if first == second:
        raise CourseError(f"Expected a contrast between two different tokens, got {contrast!r}, the same one twice.")
    return first, second


def single_token(lm: LocalModel, ids: list[int], text: str) -> int:
    """The only one of some ids that a text was encoded to; CourseError where it is several."""
    if len(ids) > 1:
        parts = token_strings(lm.tokenizer, ids)
        raise CourseError(
            f"Expected a text of one token, got {text!r}, which is {len(ids)} ({', '.join(parts)}); "
            f"use its first, {parts[0]!r}, if that tells the two apart, or a target, which may have several."
        )
    return ids[0]
