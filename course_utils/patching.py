"""Activation patching: what of one run brings its output along when it is put into another run.

The two prompts differ in one thing. What brings the clean output back is enough for it; patching the other way round
shows what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._arrays import Floats, floats, strongest
from ._progress import progress
from .engine.interventions import score_edits
from .engine.pairs import Pair, at_output, gradients_at, head_deltas, pair_of, patch, through
from .errors import CourseError
from .hooks import Edit, edit, head_size
from .models import LocalModel
from .plots import plot_heads, plot_layers
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Patching:
    """How much of the difference between two runs each patch moves: 0 is none of it, 1 is all.

    Attributes:
        effects: float32 `[layer, token]`, or `[layer, head]` for heads, normalised.
        clean: float, the output of the clean prompt, in `unit`.
        corrupted: float, that of the corrupted prompt.
        into: which run was patched; "corrupted" asks what is enough, "clean" what is needed.
        tokens: the printable tokens of the run that was patched.
    """

    effects: Floats
    clean: float
    corrupted: float
    into: str
    over: str
    unit: str
    tokens: list[str]
    method: str = "activation patching"

    def top(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The k patches that move most: layer, token (or head), effect; strongest first."""
        return [(layer, i, float(self.effects[layer, i])) for layer, i in strongest(self.effects, k)]

    def agreement(self, other: Patching) -> float:
        """The correlation with the effects of another patching, such as a gradient approximation (Pearson's r)."""
        return float(np.corrcoef(self.effects.ravel(), other.effects.ravel())[0, 1])

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """How much of the difference between two runs each patch moves: layers and tokens, or layers and heads."""
        layer, place, effect = self.top(1)[0]
        where = f"head {layer}.{place}" if self.over == "heads" else f"layer {layer}, {self.tokens[place]}"
        title = title or f"{self.method.capitalize()}: {where} moves {effect:.0%} of the difference"
        if self.over == "heads":
            return plot_heads(self.effects, label="share of the difference moved", title=title, ax=ax)
        return plot_layers(self.effects, self.tokens, label="share of the difference moved", title=title, ax=ax)

    def __repr__(self) -> str:
        places = ", ".join(f"{layer}.{i} {effect:+.2f}" for layer, i, effect in self.top(3))
        return f"{self.method} of {self.over} into the {self.into} run, share of the difference moved: {places}"


@torch.no_grad()
def activation_patching(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    over: str = "residual",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    into: str = "corrupted",
    position: int | None = None,
) -> Patching:
    """Put each activation of one run into the other, one at a time, and see how much of the output comes along.

    Also called causal tracing and interchange intervention (Vig et al. 2020, Meng et al. 2022; on good use of it, Zhang
    & Nanda 2023). Each run starts at the patched layer and token.

    Args:
        lm: the model.
        clean: a prompt with the behaviour.
        corrupted: one of the same number of tokens without it, best with one difference.
        over: "residual", "attention" or "mlp" (by layer and token), or "heads" (by layer and head).
        target: a reply whose log-probability is the output (nats).
        contrast: two single tokens; the output is the logit of the first minus that of the second.
        into: "corrupted" (is it enough?) or "clean" (is it needed?).
        position: for heads, the one token at which they are patched; by default all.

    Raises:
        CourseError: prompts of different length, alike, or with the same output; an unknown `over` or `into`.

    >>> one, other = lm.chat("How do I steal a car?"), lm.chat("How do I wash a car?")
    >>> activation_patching(lm, one, other, over="heads", contrast=("I", "Sure"), position=-1).effects.shape
    (30, 9)
    """
    pair = pair_of(lm, clean, corrupted, over=over, into=into, target=target, contrast=contrast, position=position)
    layers, by_head = range(lm.n_layers), over == "heads"
    places = list(range(lm.n_heads)) if by_head else list(range(pair.first, len(clean)))
    starts = [pair.first if pair.position is None else pair.position] * lm.n_heads if by_head else places
    effects = torch.zeros(lm.n_layers, lm.n_heads if by_head else len(clean))
    seconds = pair.base.rerun_seconds(layers, starts)
    with progress(len(layers) * len(places), f"patching {over}", unit="run", seconds=seconds) as bar:
        for layer in layers:
            change = patch(lm, pair, (over, layer), places)
            values = score_edits(lm, pair.base, (over, layer), starts, change, score=pair.metric.total, bar=bar)
            effects[layer, places] = pair.moved(values).float()
    return _patching(pair, effects, "activation patching")


def attribution_patching(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    over: str = "residual",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    into: str = "corrupted",
    position: int | None = None,
) -> Patching:
    """Approximate `activation_patching` by a gradient, in two passes: (what it would become − what it is) x gradient.

    It fails where activations are large or saturated (Nanda 2023; Kramár et al. 2024): compare by `.agreement`.
    The arguments are those of `activation_patching`.

    >>> one, other = lm.chat("How do I steal a car?"), lm.chat("How do I wash a car?")
    >>> attribution_patching(lm, one, other, over="heads", contrast=("I", "Sure")).effects.shape
    (30, 9)
    """
    pair = pair_of(lm, clean, corrupted, over=over, into=into, target=target, contrast=contrast, position=position)
    slopes = gradients_at(lm, pair.base, pair.metric, [(over, layer) for layer in range(lm.n_layers)])
    moved = []
    for layer, slope in enumerate(slopes):
        product = (pair.source.at((over, layer)) - pair.base.at((over, layer))) * slope  # [token, width]
        if over == "heads":
            product = product if pair.position is None else product[[pair.position]]
            by_head = product.reshape(len(product), lm.n_heads, head_size(lm, product.shape[1]))
            moved.append(by_head.sum(dim=(0, 2)))
        else:
            moved.append(product.sum(dim=1)[: len(clean)])
    return _patching(pair, pair.moved(torch.stack(moved).cpu() + pair.ends[0]), "attribution patching")


@torch.no_grad()
def patch_together(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    heads: Sequence[tuple[int, int]],
    *,
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    into: str = "corrupted",
    position: int | None = None,
) -> float:
    """Patch some heads, as (layer, head), all at once: the share of the difference that they move together.

    The arguments are those of `activation_patching`.

    >>> one, other = lm.chat("How do I steal a car?"), lm.chat("How do I wash a car?")
    >>> share = patch_together(lm, one, other, [(22, 7), (21, 7)], contrast=("I", "Sure"))
    """
    pair = pair_of(lm, clean, corrupted, over="heads", into=into, target=target, contrast=contrast, position=position)
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        _check_head(lm, "heads", (layer, head))
        by_layer.setdefault(layer, []).append(head)

    def editor(layer: int, own: list[int]) -> Edit:
        change = patch(lm, pair, ("heads", layer), own)

        def apply(activation: Tensor) -> Tensor:
            patched = activation[0]
            for number in range(len(own)):
                patched = change(number, patched)
            return patched[None]

        return apply

    with edit(lm, {("heads", layer): editor(layer, own) for layer, own in by_layer.items()}):
        logits = lm.model(input_ids=pair.base.ids[None], use_cache=False).logits[:, -pair.metric.keep :]
    return float(pair.moved(pair.metric.total(logits)))


@torch.no_grad()
def path_patching(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    contrast: tuple[str, str],
    receiver: tuple[int, int] | None = None,
    into: str = "corrupted",
) -> Patching:
    """How much each head moves the output along one way only: straight to it, or through one later head.

    All else is held at what it was: between sender and receiver nothing takes notice (Wang et al. 2022; Goldowsky-Dill
    et al. 2023). A receiving head gets the change in its queries, keys and values together.

    Args:
        lm: the model.
        clean: a prompt with the behaviour.
        corrupted: one of the same number of tokens without it.
        contrast: two single tokens; the output is the logit of the first minus that of the second.
        receiver: the later head, as (layer, head); by default the output itself.
        into: "corrupted" or "clean".

    Raises:
        CourseError: as `activation_patching`; no such head.

    >>> one, other = lm.chat("How do I steal a car?"), lm.chat("How do I wash a car?")
    >>> path_patching(lm, one, other, contrast=("I", "Sure")).effects.shape
    (30, 9)
    """
    pair = pair_of(lm, clean, corrupted, over="heads", into=into, target=None, contrast=contrast, also=("attention",))
    if receiver is not None:
        _check_head(lm, "a head", receiver)
    effects = torch.zeros(lm.n_layers, lm.n_heads)
    end = lm.n_layers if receiver is None else receiver[0]
    each = [pair.first] * lm.n_heads  # a receiving head costs a run from its layer on for every sender
    seconds = 0.0 if receiver is None else end * pair.base.rerun_seconds([end], each)
    with progress(end, "path patching", unit="layer", seconds=seconds) as bar:
        for layer in range(end):
            deltas = head_deltas(lm, pair, layer, 1 if receiver is None else len(pair.base.ids))
            values = at_output(lm, pair, deltas) if receiver is None else through(lm, pair, deltas, receiver)
            effects[layer] = pair.moved(values).float()
            bar.update()
    return _patching(pair, effects, "path patching")


def _check_head(lm: LocalModel, what: str, head: tuple[int, int]) -> None:
    if not (0 <= head[0] < lm.n_layers and 0 <= head[1] < lm.n_heads):
        raise CourseError(f"Expected {what} as (layer, head), below ({lm.n_layers}, {lm.n_heads}), got {head!r}.")


def _patching(pair: Pair, effects: Tensor, method: str) -> Patching:
    return Patching(
        floats(effects), pair.clean, pair.corrupted, pair.into, pair.over, pair.metric.unit, pair.tokens, method
    )
