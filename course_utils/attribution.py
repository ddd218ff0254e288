"""Token attribution: which input tokens raised, and which lowered, what the model said.

Occlusion and deletion replace one token or take it out; its score is how much the output falls without it
(leave-one-out; Zeiler & Fergus 2014, Li, Monroe & Jurafsky 2016). The others are in `engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ._arrays import Floats, floats
from .engine.gradients import gradient_x_input, integrated_gradients
from .engine.metrics import Metric, Scored, make_metric
from .engine.prefix_sharing import score_variants
from .engine.replacements import deleted, occluded, replacement_id
from .engine.shapley import shapley_values
from .engine.units import By, unit_slices, unit_texts, units_occluded
from .errors import CourseError, is_count
from .models import LocalModel
from .plots import LOWERED, RAISED, plot_bars, plot_heatmap, tint, tokens_html
from .prompts import Prompt, joined, token_strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text


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
        method: how they were scored.
        replacement: the printable token that stood in for one left out, if there is one.
        standard_error: float32 `[output, token]`, of sampled Shapley values (NaN of one order alone), else None.
        gap: float32 `[output]`, for integrated gradients: how far the scores miss adding up to what the output gains
            from the baseline, as a share of that.
    """

    scores: Floats
    tokens: list[str]
    output_tokens: list[str]
    value: Floats
    unit: str
    user: slice
    method: str
    replacement: str | None = None
    standard_error: Floats | None = None
    gap: Floats | None = None

    @property
    def total(self) -> Floats:
        """float32 `[token]`: scores summed over the output tokens (log-probabilities of a reply add up)."""
        return self.scores.sum(axis=0)

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
        """Bars of the typed tokens for one output, a heat map outputs x typed tokens for several."""
        a = self
        typed = a.tokens[a.user]
        if len(a.output_tokens) == 1:
            title = title or f"{a.output_tokens[0]}: {top_words(a, 1)} {a.unit}"
            errors = None if a.standard_error is None else a.standard_error[0, a.user].tolist()
            return plot_bars(typed, a.total[a.user].tolist(), unit=a.unit, title=title, errors=errors, ax=ax)
        title = title or f"What raised each output token ({a.method})"
        return plot_heatmap(a.scores[:, a.user], a.output_tokens, typed, unit=a.unit, title=title, ax=ax)

    def _repr_html_(self) -> str:
        return attribution_html(self)

    def __repr__(self) -> str:
        return attribution_text(self)


def token_attribution(
    lm: LocalModel,
    prompt: Prompt,
    *,
    method: str = "occlusion",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    n_output_tokens: int = 5,
    replacement: str | int | None = " the",
    steps: int = 50,
    permutations: int = 25,
    seed: int = 0,
    typed_only: bool = False,
    by: By = "token",
) -> Attribution:
    """Score how much each input token raised or lowered what the model says next.

    Args:
        lm: the model.
        prompt: what it reads, from `lm.chat(text)` or `lm.prompt(text)`.
        method: "occlusion" replaces one token at a time, in place; "deletion" takes it out, which moves the rest;
            "gradient_x_input" and "integrated_gradients" go by the slope at the embeddings; "shapley" averages over
            which of the other typed tokens are there (template tokens score 0).
        target: a reply to score: the log-probability of each of its tokens, given those before (nats).
        contrast: two single tokens; scores the logit of the first minus that of the second, as first reply token.
        n_output_tokens: without target and contrast, score the model's own greedy reply of so many tokens.
        replacement: what stands in for a token that is left out, a text of one token or a token id; for integrated
            gradients also None, the zero vector.
        steps: points on the path of integrated gradients.
        permutations: random orders of joining for Shapley values, each taken both ways.
        seed: decides these.
        typed_only: occlusion and deletion leave out only what the user typed, several times faster where a template
            or a system prompt stands before it; the other tokens then score 0.
        by: what occlusion replaces at once: each "token"; or of what was typed, each "word", "sentence" or "message",
            or each of several spans (start, end) in characters of `prompt.text`. The units then stand for the tokens.

    Raises:
        CourseError: unknown method, target without tokens, contrast of several tokens, input longer than the context.

    >>> a = token_attribution(lm, lm.chat("How do I kill a Python process?"), contrast=("I", "Sure"))
    >>> a.scores.shape == (1, len(a.tokens))
    True
    """
    if method not in list(METHODS):
        raise CourseError(f"Expected a method ({', '.join(METHODS)}), got {method!r}.")
    if not is_count(steps):
        raise CourseError(f"Expected at least one step, a whole number, got steps={steps!r}.")
    metric = make_metric(lm, prompt, target=target, contrast=contrast, n_output_tokens=n_output_tokens)
    if by != "token" and method != "occlusion":
        raise CourseError(f"Expected occlusion where more than a token is left out, got {method} by={by!r:.40}.")
    token = None if replacement is None or method in UNREPLACED else replacement_id(lm, replacement)
    if token is None and method not in (*UNREPLACED, "integrated_gradients"):
        raise CourseError(f"Expected a replacement for {method}, a text or a token id, got None.")
    task = _Task(lm, metric, prompt, token, steps, permutations, seed, typed_only)
    if by != "token":
        return _by_unit(task, unit_slices(prompt, by))
    return _attribution(task, METHODS[method](task), prompt.tokens, prompt.user, method)


def zoomed_attribution(
    lm: LocalModel,
    prompt: Prompt,
    *,
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    n_output_tokens: int = 5,
    replacement: str | int = " the",
    keep: int = 3,
) -> Attribution:
    """Occlusion of the words of the strongest sentences of the strongest messages: for conversations of any length.

    Messages come first, then the sentences of the `keep` strongest of them, then the words of the strongest of those:
    the cost grows with the units that are asked for, not with the square of the tokens. A word is overlooked that
    stands in a sentence whose loss changes little: where two sentences say the same, neither is looked into.

    Args:
        lm: the model.
        prompt: what it reads, best from `lm.chat(messages)`.
        target: a reply to score, in nats.
        contrast: two single tokens to score, in logits.
        n_output_tokens: without target and contrast, score so many tokens of the greedy reply.
        replacement: what stands in for each token of what is left out.
        keep: how many messages, and how many sentences, are looked into.

    Raises:
        CourseError: as `token_attribution`.

    >>> zoomed_attribution(lm, lm.chat("Hello. How do I kill a process?"), contrast=("I", "Sure")).method
    'occlusion, zoomed'
    """
    if not is_count(keep):
        raise CourseError(f"Expected at least one message to look into, a whole number, got keep={keep!r}.")
    metric = make_metric(lm, prompt, target=target, contrast=contrast, n_output_tokens=n_output_tokens)
    task = _Task(lm, metric, prompt, replacement_id(lm, replacement))
    slices = unit_slices(prompt, "message")
    for smaller in ("sentence", "word"):
        if len(slices) > keep:
            slices = [slices[unit.position] for unit in _by_unit(task, slices).top(keep)]
        slices = unit_slices(prompt, smaller, sorted(slices, key=lambda one: one.start))
    return _by_unit(task, slices, "occlusion, zoomed")


class _Task(NamedTuple):
    """What a method is given."""

    lm: LocalModel
    metric: Metric
    prompt: Prompt
    replacement: int | None
    steps: int = 50
    permutations: int = 25
    seed: int = 0
    typed_only: bool = False


def _attribution(task: _Task, scored: Scored, tokens: list[str], user: slice, method: str) -> Attribution:
    kept = slice(len(tokens))  # what comes after them is a forced reply's
    return Attribution(
        scores=floats(scored.scores[:, kept]),  # [output, token]
        tokens=tokens,
        output_tokens=task.metric.output_tokens,
        value=floats(scored.value),
        unit=task.metric.unit,
        user=user,
        method=method,
        replacement=None if task.replacement is None else token_strings(task.lm.tokenizer, [task.replacement])[0],
        standard_error=None if scored.standard_error is None else floats(scored.standard_error[:, kept]),
        gap=None if scored.gap is None else floats(scored.gap),
    )


def _by_unit(task: _Task, slices: list[slice], method: str = "occlusion") -> Attribution:
    """Occlusion of units of several tokens, which stand for the tokens in what comes back."""
    value, without = _score_without(task, units_occluded(task.metric.ids, slices, int(task.replacement or 0)))
    scored = Scored((value - without).T, value)
    return _attribution(task, scored, unit_texts(task.prompt, slices), slice(0, len(slices)), method)


def _score_without(task: _Task, variants: Tensor) -> tuple[Tensor, Tensor]:
    """The output `[output]`, and that of each variant, which leaves something out, `[variant, output]`."""
    lm, metric = task.lm, task.metric
    return score_variants(lm, metric.ids, variants, metric.score, keep=metric.keep, label="leaving one out")


def _by_occlusion(task: _Task) -> Scored:
    return _left_out(task, occluded(task.metric.ids, len(task.prompt), int(task.replacement or 0)))


def _by_deletion(task: _Task) -> Scored:
    return _left_out(task, deleted(task.metric.ids, len(task.prompt)))


def _left_out(task: _Task, variants: Tensor) -> Scored:
    """How much the output falls in each variant, which leaves out one token: int64 `[token, ...]`."""
    chosen = task.prompt.user if task.typed_only else slice(len(task.prompt))
    value, without = _score_without(task, variants[chosen])
    scores = without.new_zeros(len(value), len(variants))
    scores[:, chosen] = (value - without).T
    return Scored(scores, value)


def _by_path(task: _Task) -> Scored:
    n_tokens = len(task.prompt)
    return integrated_gradients(task.lm, task.metric, n_tokens, replacement=task.replacement, steps=task.steps)


def _by_game(task: _Task) -> Scored:
    players, replacement = range(len(task.prompt))[task.prompt.user], int(task.replacement or 0)
    return shapley_values(
        task.lm, task.metric, players, replacement=replacement, permutations=task.permutations, seed=task.seed
    )


METHODS: dict[str, Callable[[_Task], Scored]] = {
    "occlusion": _by_occlusion,
    "deletion": _by_deletion,
    "gradient_x_input": lambda task: gradient_x_input(task.lm, task.metric),
    "integrated_gradients": _by_path,
    "shapley": _by_game,
}
UNREPLACED = ("deletion", "gradient_x_input")  # these put nothing in a token's place


def attribution_html(attribution: Attribution) -> str:
    """An attribution's tokens, coloured by the total over its output tokens, under a line that says what is scored."""
    a = attribution
    colours = "".join(
        f' <span style="background:{tint(sign)};padding:0 .4em;border-radius:.25em">{word}</span>'
        for sign, word in ((1, "raised"), (-1, "lowered"))
    )
    header = f"{escape(describe(a))}. The token{colours} it."
    summary = escape(f"{describe(a)}. Strongest typed tokens: {top_words(a)}", quote=True)
    return (
        f'<div role="figure" aria-label="{summary}"><div style="font-size:.9em">{header}</div>'
        f"{tokens_html(a.tokens, a.total.tolist(), user=a.user, unit=a.unit)}</div>"
    )


def describe(attribution: Attribution) -> str:
    """One line: what was scored, how, and what the unchanged prompt gives.

    >>> describe(token_attribution(lm, prompt, contrast=("I", "Sure")))  # doctest: +SKIP
    'I − Sure = -1.19 logits, occlusion with ·the'
    """
    a = attribution
    how = a.method.replace("_", " ") + (f" with {a.replacement}" if a.replacement else "")
    how += f", completeness gap {a.gap.max():.1%}" if a.gap is not None else ""
    if a.unit == "logits":
        return f"{a.output_tokens[0]} = {a.value[0]:+.2f} logits, {how}"
    return f"log-probability of “{joined(a.output_tokens)}” = {a.value.sum():.2f} nats, {how}"


def top_words(attribution: Attribution, k: int = 3) -> str:
    """The strongest typed tokens in words: "·kill +2.10, ·Python -0.31"."""
    return ", ".join(f"{t.token} {t.score:+.2f}" for t in attribution.top(k))


def attribution_text(attribution: Attribution, k: int = 8) -> str:
    """An attribution as plain text: the line that says what is scored, and a bar for each of the k strongest tokens."""
    top = attribution.top(k)
    width, limit = max(len(t.token) for t in top), max(abs(t.score) for t in top) or 1.0
    bars = [f"  {t.token:<{width}} {t.score:+8.2f} {'█' * round(16 * abs(t.score) / limit)}".rstrip() for t in top]
    return "\n".join([describe(attribution), *bars])


def tokens_text(attribution: Attribution) -> Text:
    """The typed tokens with a background by score, as rich Text for a terminal (plain where there is no colour)."""
    from rich.text import Text

    a = attribution
    scores = a.total[a.user]
    limit = float(np.abs(scores).max()) or 1.0
    text = Text()
    for token, score in zip(a.tokens[a.user], scores, strict=True):
        strength = min(abs(float(score)) / limit, 1.0)
        colour = [round(255 + (c - 255) * strength) for c in (RAISED if score > 0 else LOWERED)]  # white to full
        ink = "white" if np.dot(colour, (0.299, 0.587, 0.114)) < 140 else "black"
        text.append(token, style=f"{ink} on rgb({','.join(map(str, colour))})")
    return text
