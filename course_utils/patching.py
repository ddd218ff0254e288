"""Activation patching: what of one run brings its output along when it is put into another run.

The two prompts differ in one thing. What brings the clean output back is enough for it; patching the other way round
shows what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import Floats, floats
from ._progress import progress
from .engine.interventions import Change, Run, run, score_edits
from .engine.metrics import Goal, make_goal
from .engine.prefix_sharing import BATCH_TOKENS
from .errors import CourseError
from .hooks import Edit, Site, added_by, edit, find_parts, skip_layers, written_by_heads
from .models import LocalModel
from .plots import plot_heads, plot_layers
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVER = ("residual", "attention", "mlp", "heads")
INTO = ("corrupted", "clean")


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
        flat = np.argsort(-self.effects, axis=None)[:k]
        return [(int(layer), int(i), float(self.effects[layer, i])) for layer, i in self._places(flat)]

    def _places(self, flat: NDArray[np.intp]) -> list[tuple[int, int]]:
        return list(zip(*np.unravel_index(flat, self.effects.shape), strict=True))

    def agreement(self, other: Patching) -> float:
        """The correlation with the effects of another patching, such as a gradient approximation (Pearson's r)."""
        return float(np.corrcoef(self.effects.ravel(), other.effects.ravel())[0, 1])

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """A heat map, layers up, tokens (or heads) across."""
        return plot_patching(self, ax=ax, title=title)

    def __repr__(self) -> str:
        places = ", ".join(f"{layer}.{i} {effect:+.2f}" for layer, i, effect in self.top(3))
        return f"{self.method} of {self.over} into the {self.into} run, share of the difference moved: {places}"


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two runs to patch between: `base` is patched, with what `source` has."""

    base: Run
    source: Run
    goal: Goal
    clean: float
    corrupted: float
    first: int  # the first token that differs
    position: int | None  # the one token of the prompt at which heads are patched, if not all

    def moved(self, values: Tensor, into: str) -> Tensor:
        """Scores as shares of the difference between the runs."""
        start, end = (self.corrupted, self.clean) if into == "corrupted" else (self.clean, self.corrupted)
        return (values - start) / (end - start)


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
    pair = _pair(lm, clean, corrupted, over=over, into=into, target=target, contrast=contrast, position=position)
    layers, by_head = range(lm.n_layers), over == "heads"
    places = list(range(lm.n_heads)) if by_head else list(range(pair.first, len(clean)))
    starts = [pair.first if pair.position is None else pair.position] * lm.n_heads if by_head else places
    effects = torch.zeros(lm.n_layers, lm.n_heads if by_head else len(clean))
    seconds = pair.base.rerun_seconds(layers, starts)
    with progress(len(layers) * len(places), f"patching {over}", unit="run", seconds=seconds) as bar:
        for layer in layers:
            change = _patch(lm, pair, (over, layer), places)
            values = score_edits(lm, pair.base, (over, layer), starts, change, score=pair.goal.total, bar=bar)
            effects[layer, places] = pair.moved(values, into).float()
    return _patching(pair, effects, clean if into == "clean" else corrupted, into=into, over=over)


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
    pair = _pair(lm, clean, corrupted, over=over, into=into, target=target, contrast=contrast, position=position)
    slopes = _gradients(lm, pair.base, pair.goal, [(over, layer) for layer in range(lm.n_layers)])
    moved = []
    for layer, slope in enumerate(slopes):
        product = (pair.source.at((over, layer)) - pair.base.at((over, layer))) * slope  # [token, width]
        if over == "heads":
            product = product if pair.position is None else product[[pair.position]]
            moved.append(product.reshape(len(product), lm.n_heads, -1).sum(dim=(0, 2)))
        else:
            moved.append(product.sum(dim=1)[: len(clean)])
    effects = pair.moved(torch.stack(moved).cpu() + _unpatched(pair, into), into)
    patched = clean if into == "clean" else corrupted
    return _patching(pair, effects, patched, into=into, over=over, method="attribution patching")


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
    pair = _pair(lm, clean, corrupted, over="heads", into=into, target=target, contrast=contrast, position=position)
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < lm.n_layers and 0 <= head < lm.n_heads):
            raise CourseError(
                f"Expected heads as (layer, head), below ({lm.n_layers}, {lm.n_heads}), got {(layer, head)}."
            )
        by_layer.setdefault(layer, []).append(head)

    def editor(layer: int, own: list[int]) -> Edit:
        change = _patch(lm, pair, ("heads", layer), own)

        def apply(activation: Tensor) -> Tensor:
            patched = activation[0]
            for number in range(len(own)):
                patched = change(number, patched)
            return patched[None]

        return apply

    with edit(lm, {("heads", layer): editor(layer, own) for layer, own in by_layer.items()}):
        logits = lm.model(input_ids=pair.base.ids[None], use_cache=False).logits[:, -pair.goal.keep :]
    return float(pair.moved(pair.goal.total(logits), into))


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
    pair = _pair(lm, clean, corrupted, over="heads", into=into, target=None, contrast=contrast, also=("attention",))
    if receiver is not None and not (0 <= receiver[0] < lm.n_layers and 0 <= receiver[1] < lm.n_heads):
        raise CourseError(f"Expected a head as (layer, head), below ({lm.n_layers}, {lm.n_heads}), got {receiver!r}.")
    effects = torch.zeros(lm.n_layers, lm.n_heads)
    end = lm.n_layers if receiver is None else receiver[0]
    each = [pair.first] * lm.n_heads  # a receiving head costs a run from its layer on for every sender
    seconds = 0.0 if receiver is None else end * pair.base.rerun_seconds([end], each)
    with progress(end, "path patching", unit="layer", seconds=seconds) as bar:
        for layer in range(end):
            deltas = _head_deltas(lm, pair, layer)  # [head, token, d_model]
            values = _at_output(lm, pair, deltas) if receiver is None else _through(lm, pair, deltas, receiver)
            effects[layer] = pair.moved(values, into).float()
            bar.update()
    patched = clean if into == "clean" else corrupted
    return _patching(pair, effects, patched, into=into, over="heads", method="path patching")


def _pair(
    lm: LocalModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    over: str,
    into: str,
    target: str | None,
    contrast: tuple[str, str] | None,
    position: int | None = None,
    also: tuple[str, ...] = (),
) -> _Pair:
    """Run both prompts, and check that they can be patched into each other."""
    if over not in OVER:
        raise CourseError(f"Expected something to patch ({', '.join(OVER)}), got {over!r}.")
    if into not in INTO:
        raise CourseError(f"Expected the run to patch into ({' or '.join(INTO)}), got {into!r}.")
    if (target is None) == (contrast is None):
        raise CourseError("Expected either a target or a contrast to score; give one of them.")
    if len(clean) != len(corrupted):
        raise CourseError(
            f"Expected prompts of the same number of tokens, got {len(clean)} and {len(corrupted)}; "
            "change one word for another of as many tokens."
        )
    if position is not None and not -len(clean) <= position < len(clean):
        raise CourseError(f"Expected a position from {-len(clean)} to {len(clean) - 1}, got {position}.")
    at = None if position is None else position % len(clean)  # a target's tokens come after the prompt's
    goals = [make_goal(lm, prompt, target=target, contrast=contrast) for prompt in (clean, corrupted)]
    sites: list[Site] = [(kind, layer) for kind in {over, *also} - {"residual"} for layer in range(lm.n_layers)]
    runs = [run(lm, goal.ids, keep=goal.keep, sites=sites) for goal in goals]
    values = [float(goal.total(one.logits[None])) for goal, one in zip(goals, runs, strict=True)]
    differ = runs[0].ids != runs[1].ids
    if not differ.any() or abs(values[0] - values[1]) < 1e-6:
        raise CourseError("Expected prompts with different outputs, got the same one twice; there is nothing to patch.")
    base, source = runs if into == "clean" else runs[::-1]
    return _Pair(base, source, goals[0], values[0], values[1], first=int(differ.int().argmax()), position=at)


def _patch(lm: LocalModel, pair: _Pair, site: Site, places: list[int]) -> Change:
    """The change that patch number i makes: one token of a stream or block, or one head (at one token, or at all)."""
    source, position = pair.source.at(site), pair.position  # [token, width]
    size = source.shape[-1] // lm.n_heads

    def change(number: int, activation: Tensor) -> Tensor:
        new, shift = activation.clone(), len(source) - len(activation)
        own = slice(places[number] * size, (places[number] + 1) * size)
        if site[0] != "heads":
            new[places[number] - shift] = source[places[number]]
        elif position is None:
            new[:, own] = source[shift:, own]
        else:
            new[position - shift, own] = source[position, own]
        return new

    return change


def _unpatched(pair: _Pair, into: str) -> float:
    return pair.corrupted if into == "corrupted" else pair.clean


def _patching(
    pair: _Pair, effects: Tensor, patched: Prompt, *, into: str, over: str, method: str = "activation patching"
) -> Patching:
    return Patching(
        effects=floats(effects),
        clean=pair.clean,
        corrupted=pair.corrupted,
        into=into,
        over=over,
        unit=pair.goal.unit,
        tokens=patched.tokens,
        method=method,
    )


def _gradients(lm: LocalModel, base: Run, goal: Goal, sites: list[Site]) -> list[Tensor]:
    """How the output changes with what flows through each site, `[token, width]`."""
    held: dict[Site, Tensor] = {}

    def hold(site: Site) -> Edit:
        def keep(activation: Tensor) -> Tensor:
            held[site] = activation if activation.requires_grad else activation.requires_grad_()
            return held[site].clone()  # what comes after may add to it in place

        return keep

    begin: Site = ("residual", 0)
    with (
        torch.enable_grad(),
        edit(lm, {begin: lambda stream: stream.detach().requires_grad_()}),
        edit(lm, {site: hold(site) for site in sites}),
    ):
        logits = lm.model(input_ids=base.ids[None], use_cache=False).logits[:, -goal.keep :]
        value = goal.total(logits).sum()
    return [slope[0] for slope in torch.autograd.grad(value, [held[site] for site in sites])]


def _head_deltas(lm: LocalModel, pair: _Pair, layer: int) -> Tensor:
    """How what each head of a layer adds to the stream would change, `[head, token, d_model]`."""
    parts = find_parts(lm)
    mixed = pair.source.seen["heads", layer] - pair.base.seen["heads", layer]
    deltas = written_by_heads(lm, parts.out_projection[layer], mixed).transpose(0, 1)  # [head, token, d_model]
    norm, block = added_by(parts.layers[layer])[0], pair.base.seen["attention", layer]
    changed: Tensor = norm(block + deltas) - norm(block)
    return changed


def _at_output(lm: LocalModel, pair: _Pair, deltas: Tensor) -> Tensor:
    """The output with each change added to the last stream, `[head]`."""
    parts = find_parts(lm)
    stream = pair.base.residual[-1][-1] + deltas[:, -1]  # [head, d_model]
    return pair.goal.total(parts.unembedding(parts.final_norm(stream))[:, None]).cpu()


class _Stop(Exception):
    """Raised inside a pass when all that is wanted has been seen."""


def _through(lm: LocalModel, pair: _Pair, deltas: Tensor, receiver: tuple[int, int]) -> Tensor:
    """The output with each change let into one later head alone, `[head]`."""
    layer, head = receiver
    at_once = max(1, BATCH_TOKENS // len(pair.base.ids))
    some = [deltas[i : i + at_once] for i in range(0, len(deltas), at_once)]
    mixed = torch.cat([_heads_given(lm, pair, layer, rows) for rows in some])
    size = mixed.shape[-1] // lm.n_heads
    own = slice(head * size, (head + 1) * size)

    def change(number: int, activation: Tensor) -> Tensor:
        new = activation.clone()
        new[:, own] = mixed[number, -len(activation) :, own]
        return new

    return score_edits(lm, pair.base, ("heads", layer), [pair.first] * len(mixed), change, score=pair.goal.total)


def _heads_given(lm: LocalModel, pair: _Pair, layer: int, deltas: Tensor) -> Tensor:
    """What the heads of a layer give when changes are added to the stream that enters it, `[change, token, width]`."""
    stream = pair.base.residual[layer] + deltas
    seen: list[Tensor] = []

    def keep(activation: Tensor) -> Tensor:
        seen.append(activation.detach().clone())
        raise _Stop

    edits: dict[Site, Edit] = {("residual", layer): lambda _: stream, ("heads", layer): keep}
    with skip_layers(lm, layer, pair.base.beside), edit(lm, edits), suppress(_Stop):
        lm.model(inputs_embeds=stream, use_cache=False)
    return seen[0]


def plot_patching(patching: Patching, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """How much of the difference between two runs each patch moves: layers and tokens, or layers and heads."""
    layer, place, effect = patching.top(1)[0]
    where = f"head {layer}.{place}" if patching.over == "heads" else f"layer {layer}, {patching.tokens[place]}"
    title = title or f"{patching.method.capitalize()}: {where} moves {effect:.0%} of the difference"
    if patching.over == "heads":
        return plot_heads(patching.effects, label="share of the difference moved", title=title, ax=ax)
    return plot_layers(patching.effects, patching.tokens, label="share of the difference moved", title=title, ax=ax)
