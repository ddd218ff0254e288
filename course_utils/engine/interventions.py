"""Run a model once, then again with edits of its activations, computing only what an edit can reach: exact.

What an edit at layer l and token t leaves alone is every layer below l and every token before t. So the first run keeps
the residual stream that enters each layer, and the keys and values; an edited run starts at layer l, from token t on.
Edited runs of one layer are packed into batches like the variants of an input (see `prefix_sharing`). A model on which
a run from the middle doesn't give what a whole one gives (its layers share more than the stream) is run from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import close, precise
from ..errors import CourseError
from ..hooks import Edit, Site, edit, find_parts, instead, record, skip_layers
from ..loading.others_hooks import has_unknown_hooks
from ..models import LocalModel
from .prefix_sharing import Batch, Prefix, batches, fill_rows, lay_out, rows_in_budget, run_base, run_batch
from .premises import another, check_finite, check_model, holds, plain_logits, random_ids, require

Intervention = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """What one pass of a model left behind."""

    ids: Tensor  # int64 [token]
    logits: Tensor  # [keep, vocabulary], at the last `keep` positions
    residual: list[Tensor]  # for each layer, and for the final norm, what enters it, [token, d_model]
    seen: dict[Site, Tensor]  # other recorded sites, each [token, width]
    prefix: Prefix  # keys and values of each layer, where edited runs can share them
    outputs: int  # how many things a layer gives out in a tuple; 0 for the residual stream itself
    seconds: float  # how long the pass took

    @property
    def keep(self) -> int:
        return len(self.logits)

    def rerun_seconds(self, layers: Iterable[int], starts: Iterable[int]) -> float:
        """Roughly how long edited runs take, one for each of the layers at each of the first tokens."""
        n_layers, n_tokens, starts = len(self.residual) - 1, len(self.ids), list(starts)
        share = sum(1 - layer / n_layers for layer in layers) * sum(1 - start / n_tokens for start in starts)
        return self.seconds * share

    def at(self, site: Site) -> Tensor:
        """What flowed through a site, `[token, width]`."""
        return self.residual[site[1]] if site[0] == "residual" else self.seen[site]


@torch.no_grad()
def run_once(lm: LocalModel, ids: Tensor, *, keep: int = 1, sites: Iterable[Site] = ()) -> Run:
    """Run an input, int64 `[token]`, once, record some sites, and keep what edited runs start from.

    >>> run_once(lm, ids).residual[30].shape == (len(ids), 576)
    True
    """
    check_model(lm)
    streams: list[Site] = [("residual", layer) for layer in range(lm.n_layers + 1)]
    begun = time.perf_counter()
    with _count_outputs(lm) as counted, record(lm, [*streams, *sites]) as seen:
        logits, prefix = run_base(lm, ids, keep, len(ids))
    seconds = time.perf_counter() - begun
    for site, activation in seen.items():
        if activation.dim() != 3 or activation.shape[:2] != (1, len(ids)):
            raise CourseError(
                f"Expected what flows through {site[0]} of layer {site[1]} as [batch, token, width], got "
                f"{list(activation.shape)}; {type(lm.model).__name__} is not supported there."
            )
    residual = [seen.pop(site)[0] for site in streams]
    others = {site: activation[0] for site, activation in seen.items()}
    return Run(ids, logits, residual, others, prefix, counted[0], seconds)


@contextmanager
def _count_outputs(lm: LocalModel) -> Iterator[list[int]]:
    """How many things the layers of a model give out in a tuple; 0 for a tensor alone."""
    counted: list[int] = []

    def count(module: Any, args: Any, output: Any) -> None:
        counted.append(len(output) if isinstance(output, tuple | list) else 0)

    count.tokenwise = True  # type: ignore[attr-defined]
    with find_parts(lm).layers[0].register_forward_hook(count):
        yield counted


@torch.no_grad()
def score_edits(
    lm: LocalModel,
    base: Run,
    site: Site,
    starts: list[int],
    change: Intervention,
    *,
    score: Callable[[Tensor], Tensor],
    bar: Any = None,
    first: int | None = None,
) -> Tensor:
    """Score edited runs, each with one change at one site, by the logits at the last positions.

    Args:
        lm: the model.
        base: the unedited run.
        site: where the edits are.
        starts: for each edit, the first token that it changes.
        change: maps the number of an edit and the activation there from some token on, `[token, width]`, to what it
            should be; counted from the end, tokens are where they are in the whole.
        score: maps logits `[variant, keep, vocabulary]` to scores `[variant, ...]`.
        bar: a progress bar, moved on by one an edit.
        first: the first layer that is run; by default the site's own, where a run may begin there.

    >>> everything = lambda logits: logits.flatten(1)
    >>> score_edits(lm, run_once(lm, ids), ("mlp", 3), [0], lambda i, was: 0 * was, score=everything).shape
    torch.Size([1, 49152])
    """
    if first is None:
        first = site[1] if can_restart(lm) else 0
    length, keep = len(base.ids), base.keep
    starts = [min(start, length - keep) if base.prefix else 0 for start in starts]
    where = torch.arange(length, device=base.ids.device).expand(len(starts), -1)
    scores: list[Tensor] = [torch.empty(0)] * len(starts)
    for rows in batches(fill_rows(starts, length), length - min(starts), rows_in_budget(lm, length, keep)):
        batch = lay_out(where, starts, rows, keep)

        def changed(activation: Tensor, batch: Batch = batch) -> Tensor:
            new = activation.clone()
            for index, (row, tokens) in zip(batch.variants, batch.spans, strict=True):
                new[row, tokens] = change(index, activation[row, tokens])
            return new

        edits: dict[Site, Edit] = {site: changed}
        if first:
            # [row, token, d_model]: what is laid out are places in the input
            entering = base.residual[first][batch.ids]
            edits = _edits(site, entering, changed)
        with skip_layers(lm, range(first), base.outputs), edit(lm, edits):
            edited = run_batch(lm, base.prefix, batch, base.ids[batch.ids])
        for index, logits in zip(batch.variants, edited, strict=True):
            scores[index] = score(precise(logits[None]))[0]
        if bar is not None:
            bar.update(len(batch.variants))
    return check_finite(lm, torch.stack(scores)).cpu()


def can_restart(lm: LocalModel) -> bool:
    """Whether a run that begins in the middle, with what enters a layer, gives what a whole one gives; tried once.

    Never while a hook hangs on the model of which nothing is known: it may carry something from layer to layer.
    """
    return not has_unknown_hooks(lm.model.modules()) and holds(lm, "restart", _restarts)


def _restarts(lm: LocalModel, length: int) -> bool:
    base, end = run_once(lm, random_ids(lm, length)), length - 2
    for layer in {1, lm.n_layers // 2, lm.n_layers - 1, lm.n_layers}:
        site = ("residual", layer)
        found = score_edits(lm, base, site, [end], lambda _, was: was, score=lambda x: x.flatten(1), first=layer)
        if not close(found.to(base.logits), base.logits[-1:]):
            return False
    return True


def check_skips(lm: LocalModel) -> None:
    """Raise unless a layer that adds nothing to the stream is as good as none: layers may hand on something else."""
    complaint = (
        f"Expected layers that hand on nothing but the residual stream, and those of {type(lm.model).__name__} "
        "hand on more, which other layers use; a whole layer cannot be ablated there."
    )
    require(lm, "skips", _skips, complaint)


def _skips(lm: LocalModel, length: int) -> bool:
    base = run_once(lm, random_ids(lm, length))
    for odd in (0, 1):  # every other layer at once
        layers = range(odd, lm.n_layers, 2)
        edits: dict[Site, Edit] = {}
        for layer in layers:
            entered: list[Tensor] = []
            edits["residual", layer] = entered.append
            edits["residual", layer + 1] = _latest(entered)
        with edit(lm, edits):
            edited = plain_logits(lm, base.ids[None])
        with skip_layers(lm, layers, base.outputs):
            if not close(plain_logits(lm, base.ids[None]), edited):
                return False
    return True


def _latest(entered: list[Tensor]) -> Edit:
    return lambda _: entered[-1]


def check_stream(lm: LocalModel) -> None:
    """Raise unless the residual stream carries all that a layer knows: with another input's, the output is its."""
    complaint = (
        f"Expected a residual stream that carries all there is from layer to layer, and the layers of "
        f"{type(lm.model).__name__} get something past it; this method is not right for it."
    )
    require(lm, "stream", _carries, complaint)


def _carries(lm: LocalModel, length: int) -> bool:
    ids = random_ids(lm, length)
    others = another(lm, ids)
    source = run_once(lm, others)
    for layer in {1, lm.n_layers // 2, lm.n_layers}:
        with edit(lm, {("residual", layer): instead(source.residual[layer][None])}):
            if not close(plain_logits(lm, ids[None])[0, -1:], source.logits):
                return False
    return True


def _edits(site: Site, entering: Tensor, changed: Callable[[Tensor], Tensor]) -> dict[Site, Edit]:
    """Start at the layer of a site with what enters it, and change what flows through the site."""
    if site[0] == "residual":
        return {site: lambda _: changed(entering)}
    return {("residual", site[1]): instead(entering), site: changed}
