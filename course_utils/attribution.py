"""Token attribution: which input tokens raised, and which lowered, what the model said.

Each variant of the prompt has one token replaced (occlusion) or taken out (deletion); a token's score is how much the
output falls without it (leave-one-out; Zeiler & Fergus 2014, Li, Monroe & Jurafsky 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import CourseError
from .models import LocalModel
from .prompts import Prompt, encode, token_strings
from .variants import score_variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TokenScore(NamedTuple):
    """One input token with its score, summed over the output tokens."""

    position: int
    token: str
    score: float


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each input token raised (> 0) or lowered (< 0) each output token.

    Attributes:
        scores: float32 `[output, token]`, in `unit`.
        tokens: the printable input tokens.
        output_tokens: the printable output tokens, or one label for a contrast.
        value: float32 `[output]`, what the unchanged prompt gives.
        unit: "logits" for a contrast, "nats" of log-probability for a target.
        user: the slice of the tokens that the user typed.
    """

    scores: NDArray[np.float32]
    tokens: list[str]
    output_tokens: list[str]
    value: NDArray[np.float32]
    unit: str
    user: slice
    method: str
    replacement: str | None = None

    @property
    def total(self) -> NDArray[np.float32]:
        """float32 `[token]`: scores summed over the output tokens (log-probabilities of a reply add up)."""
        total: NDArray[np.float32] = self.scores.sum(axis=0)
        return total

    def top(self, k: int = 3) -> list[TokenScore]:
        """The k typed tokens whose effect on the whole output is largest, either way, strongest first.

        >>> token_attribution(lm, prompt, contrast=("I", "Sure")).top(1)  # doctest: +SKIP
        [TokenScore(position=27, token='·kill', score=2.1)]
        """
        typed = range(len(self.tokens))[self.user]
        strongest = sorted(typed, key=lambda i: -abs(self.total[i]))[:k]
        return [TokenScore(i, self.tokens[i], float(self.total[i])) for i in strongest]

    def to_records(self) -> list[dict[str, Any]]:
        """The chapter's shape: one record an output token, with one importance per input token.

        >>> token_attribution(lm, prompt, n_output_tokens=1).to_records()[0].keys()
        dict_keys(['output_token', 'input_attributions'])
        """
        rows = zip(self.output_tokens, self.scores.tolist(), strict=True)
        return [{"output_token": token, "input_attributions": row} for token, row in rows]

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Bars of the typed tokens for one output, a heat map outputs x inputs for several."""
        from .plots import plot_attribution

        return plot_attribution(self, ax=ax, title=title)

    def _repr_html_(self) -> str:
        from .plots import attribution_html

        return attribution_html(self)

    def __repr__(self) -> str:
        from .plots import attribution_text

        return attribution_text(self)


@dataclass(frozen=True)
class Goal:
    """What of the output is scored, and how the input must go on for it."""

    forced: list[int]  # ids that follow the prompt in the input (all of a target but its last token)
    keep: int  # how many of the last positions are scored
    output_tokens: list[str]
    unit: str
    score: Callable[[Tensor], Tensor] = field(repr=False)  # logits [variant, keep, vocabulary] -> [variant, output]


def token_attribution(
    lm: LocalModel,
    prompt: Prompt,
    *,
    method: str = "occlusion",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    n_output_tokens: int = 5,
    replacement: str | int = " the",
) -> Attribution:
    """Score how much each input token raised or lowered what the model says next.

    Args:
        lm: the model.
        prompt: what it reads, from `lm.chat(text)` or `lm.prompt(text)`.
        method: "occlusion" replaces one token at a time, in place; "deletion" takes it out, which moves the rest.
        target: a reply to score: the log-probability of each of its tokens, given those before (nats).
        contrast: two single tokens; scores the logit of the first minus that of the second, as first reply token.
        n_output_tokens: without target and contrast, score the model's own greedy reply of so many tokens.
        replacement: occlusion's stand-in, a text of one token or a token id.

    Raises:
        CourseError: unknown method, target without tokens, contrast of several tokens, input longer than the context.

    >>> a = token_attribution(lm, lm.chat("How do I kill a Python process?"), contrast=("I", "Sure"))
    >>> a.scores.shape == (1, len(a.tokens))
    True
    """
    if method not in METHODS:
        raise CourseError(f"Expected a method ({', '.join(METHODS)}), got {method!r}.")
    if not isinstance(prompt, Prompt):
        raise CourseError(f"Expected a prompt, got {prompt!r}; write lm.chat(text), or lm.prompt(text) for raw text.")
    goal = _goal(lm, prompt, target, contrast, n_output_tokens)
    ids = torch.cat([prompt.input_ids[0], prompt.input_ids.new_tensor(goal.forced)])  # [token]
    lm.check_length(len(ids))
    stand_in = _replacement_id(lm, replacement)
    variants = METHODS[method](ids, len(prompt), stand_in)  # [variant, token]
    value, without = score_variants(lm, ids, variants, goal.score, keep=goal.keep, label=method)
    return Attribution(
        scores=(value - without).T.contiguous().numpy(),  # [output, token]
        tokens=prompt.tokens,
        output_tokens=goal.output_tokens,
        value=value.numpy(),
        unit=goal.unit,
        user=prompt.user,
        method=method,
        replacement=token_strings(lm.tokenizer, [stand_in])[0] if method == "occlusion" else None,
    )


def occluded(ids: Tensor, n_tokens: int, stand_in: int) -> Tensor:
    """One variant for each of the first `n_tokens`, with that token replaced in place: int64 `[variant, token]`.

    >>> occluded(torch.tensor([5, 6, 7]), 2, 0)
    tensor([[0, 6, 7],
            [5, 0, 7]])
    """
    variants = ids.repeat(n_tokens, 1)
    variants.diagonal().fill_(stand_in)
    return variants


def deleted(ids: Tensor, n_tokens: int, stand_in: int) -> Tensor:
    """One variant for each of the first `n_tokens`, with that token taken out: int64 `[variant, token - 1]`.

    >>> deleted(torch.tensor([5, 6, 7]), 2, 0)
    tensor([[6, 7],
            [5, 7]])
    """
    if n_tokens < 2:
        raise CourseError("Expected a prompt of at least two tokens for deletion, got one: nothing would be left.")
    rest = [torch.cat([ids[:i], ids[i + 1 :]]) for i in range(n_tokens)]
    return torch.stack(rest)


METHODS: dict[str, Callable[[Tensor, int, int], Tensor]] = {"occlusion": occluded, "deletion": deleted}


def _goal(
    lm: LocalModel, prompt: Prompt, target: str | None, contrast: tuple[str, str] | None, n_output_tokens: int
) -> Goal:
    if target is not None and contrast is not None:
        raise CourseError("Expected a target or a contrast, got both; they answer different questions, so ask twice.")
    if contrast is not None:
        return _contrast_goal(lm, prompt, contrast)
    if target is not None:
        return _target_goal(lm, lm.continuation(prompt, target))
    if n_output_tokens < 1:
        raise CourseError(f"Expected at least one output token, got n_output_tokens={n_output_tokens}.")
    return _target_goal(lm, lm.generate(prompt, n_output_tokens).tolist())


def _target_goal(lm: LocalModel, ids: list[int]) -> Goal:
    """Score each token of a reply at the position before it: logits at position t - 1 speak about token t."""
    wanted = torch.tensor(ids, device=lm.device)

    def score(logits: Tensor) -> Tensor:
        index = wanted.to(logits.device).expand(len(logits), -1)[..., None]  # [variant, output, 1]
        return logits.log_softmax(dim=-1).gather(-1, index)[..., 0]  # [variant, output]

    return Goal(ids[:-1], len(ids), token_strings(lm.tokenizer, ids), "nats", score)


def _contrast_goal(lm: LocalModel, prompt: Prompt, contrast: tuple[str, str]) -> Goal:
    if isinstance(contrast, str) or len(contrast) != 2:
        raise CourseError(f'Expected a contrast of two texts, such as ("I", "Sure"), got {contrast!r}.')
    first, second = (_single_token(lm, lm.continuation(prompt, text), text) for text in contrast)
    if first == second:
        raise CourseError(f"Expected a contrast between two different tokens, got {contrast!r}, the same one twice.")

    def score(logits: Tensor) -> Tensor:
        return logits[:, -1, [first]] - logits[:, -1, [second]]  # [variant, 1]

    shown = token_strings(lm.tokenizer, [first, second])
    return Goal([], 1, [f"{shown[0]} − {shown[1]}"], "logits", score)


def _single_token(lm: LocalModel, ids: list[int], text: str) -> int:
    if len(ids) > 1:
        parts = token_strings(lm.tokenizer, ids)
        raise CourseError(
            f"Expected a text of one token, got {text!r}, which is {len(ids)} ({', '.join(parts)}); "
            f"use its first, {parts[0]!r}, if that tells the two apart, or a target, which may have several."
        )
    return ids[0]


def _replacement_id(lm: LocalModel, replacement: str | int) -> int:
    size = lm.model.get_input_embeddings().weight.shape[0]
    if isinstance(replacement, str):
        before, _ = encode(lm.tokenizer, "a", special=False)
        ids, _ = encode(lm.tokenizer, "a" + replacement, special=False)
        if not replacement or ids[: len(before)] != before:
            raise CourseError(f"Expected a replacement that is a token of its own, got {replacement!r}; try ' the'.")
        return _single_token(lm, ids[len(before) :], replacement)
    if not isinstance(replacement, int) or not 0 <= replacement < size:
        raise CourseError(f"Expected a replacement token id from 0 to {size - 1}, got {replacement!r}.")
    return replacement
