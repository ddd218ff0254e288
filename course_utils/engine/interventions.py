"""Run a model once, then again with edits of its activations, computing only what an edit can reach: exact.

What an edit at layer l and token t leaves alone is every layer below l and every token before t. So the first run keeps
the residual stream that enters each layer, and the keys and values; an edited run starts at layer l, from token t on.
Edited runs of one layer are packed into batches like the variants of an input (see `prefix_sharing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import precise
from ..hooks import Edit, Site, edit, find_parts, record, skip_layers
from ..models import LocalModel
from .prefix_sharing import Batch, Prefix, batches, fill_rows, lay_out, rows_in_budget, run_base, run_batch

Intervention = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """What one pass of a model left behind.

    Attributes:
        ids: int64 `[token]`.
        logits: `[keep, vocabulary]`, at the last `keep` positions.
        residual: for each layer, and for the final norm, what enters it, `[token, d_model]`.
        seen: other recorded sites, each `[token, width]`.
        prefix: keys and values of each layer, where edited runs can share them.
        beside: how many things a layer gives out beside the residual stream.
        seconds: how long the pass took.
    """

    ids: Tensor
    logits: Tensor
    residual: list[Tensor]
    seen: dict[Site, Tensor]
    prefix: Prefix
    beside: int
    seconds: float

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
    """Run an input once and keep what edited runs start from.

    Args:
        lm: the model.
        ids: int64 `[token]`.
        keep: how many of the last positions get logits.
        sites: what else to record (see `hooks`).

    >>> run_once(lm, ids).residual[30].shape == (len(ids), 576)
    True
    """
    streams: list[Site] = [("residual", layer) for layer in range(lm.n_layers + 1)]
    begun = time.perf_counter()
    with _count_outputs(lm) as counted, record(lm, [*streams, *sites]) as seen:
        logits, prefix = run_base(lm, ids, keep, len(ids))
    seconds = time.perf_counter() - begun
    residual = [seen.pop(site)[0] for site in streams]
    others = {site: activation[0] for site, activation in seen.items()}
    return Run(ids, logits, residual, others, prefix, counted[0] - 1, seconds)


@contextmanager
def _count_outputs(lm: LocalModel) -> Iterator[list[int]]:
    """How many things the layers of a model give out: a tensor alone, or a tuple with others beside it."""
    counted: list[int] = []

    def count(module: Any, args: Any, output: Any) -> None:
        counted.append(len(output) if isinstance(output, tuple) else 1)

    hook = find_parts(lm).layers[0].register_forward_hook(count)
    try:
        yield counted
    finally:
        hook.remove()


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

    Returns:
        The scores, in the order of the edits.

    >>> everything = lambda logits: logits.flatten(1)
    >>> score_edits(lm, run_once(lm, ids), ("mlp", 3), [0], lambda i, was: 0 * was, score=everything).shape
    torch.Size([1, 49152])
    """
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

        entering = base.residual[site[1]][batch.ids]  # [row, token, d_model]: what is laid out are places in the input
        with skip_layers(lm, site[1], base.beside), edit(lm, _edits(site, entering, changed)):
            edited = run_batch(lm, base.prefix, batch, inputs_embeds=entering)
        for index, logits in zip(batch.variants, edited, strict=True):
            scores[index] = score(precise(logits[None]))[0]
        if bar is not None:
            bar.update(len(batch.variants))
    return torch.stack(scores).cpu()


def _edits(site: Site, entering: Tensor, changed: Callable[[Tensor], Tensor]) -> dict[Site, Edit]:
    """Start at the layer of a site with what enters it, and change what flows through the site."""
    if site[0] == "residual":
        return {site: lambda _: changed(entering)}
    return {("residual", site[1]): lambda _: entering, site: changed}
