"""Gradient attributions: gradient x input, and integrated gradients along a path of embeddings.

Both speak about the embeddings of the prompt's tokens, at the output of the embedding layer: its weights may be tied to
the unembedding's, so a gradient on the weights would mix the two.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from .._arrays import close, precise
from .._progress import progress
from ..loading.devices import free_memory
from ..models import LocalModel
from .metrics import Metric, Scored
from .prefix_sharing import BATCH_TOKENS, BUDGET, WIDE
from .premises import another, can_batch, check_finite, logits_at, plain_logits, random_ids, require, with_gradients


def gradient_x_input(lm: LocalModel, metric: Metric) -> Scored:
    """Each embedding times the gradient there: the effect of removing it, if the model were linear."""
    value, slopes = slopes_at_embeddings(lm, metric)
    return Scored((slopes * embed(lm, metric.ids)).sum(dim=-1), value)


def slopes_at_embeddings(lm: LocalModel, metric: Metric) -> tuple[Tensor, Tensor]:
    """The outputs `[output]`, and how each changes with each embedding, `[output, token, d_model]`."""
    check_embedding(lm)
    values, slopes = _slopes(lm, metric, embed(lm, metric.ids)[None], torch.ones(1, device=lm.device))
    return values[0], slopes


def integrated_gradients(
    lm: LocalModel, metric: Metric, n_tokens: int, *, replacement: int | None = None, steps: int = 50
) -> Scored:
    """Gradients averaged along the straight path from a baseline, times the way (Sundararajan et al. 2017).

    Scores add up to what the output gains from baseline to prompt, but for the error of the sum over steps
    (Gauss-Legendre, as Captum's default). The path moves the first `n_tokens`; what follows, a forced reply, stays. The
    baseline of each is the embedding of `replacement`, or the zero vector.
    """
    check_embedding(lm)
    embedded = embed(lm, metric.ids)
    start = embedded.clone()
    start[:n_tokens] = 0 if replacement is None else embed(lm, metric.ids.new_tensor([replacement]))
    way = embedded - start
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = torch.tensor((nodes + 1) / 2, dtype=embedded.dtype, device=lm.device)
    shares = torch.tensor(weights / 2, dtype=embedded.dtype, device=lm.device)
    begun = time.perf_counter()
    with torch.no_grad():
        value, baseline = (_outputs(lm, metric, one[None])[0] for one in (embedded, start))
    seconds = (time.perf_counter() - begun) / 2 * steps * (1 + 2 * len(value))
    total = torch.zeros(len(value), *embedded.shape, dtype=embedded.dtype, device=lm.device)
    n_batches = -(-steps // _rows_with_gradients(lm, len(metric.ids)))
    at_once = -(-steps // n_batches)  # batches of about equal size
    with progress(steps, "integrated gradients", unit="step", seconds=seconds) as bar:
        for i in range(0, steps, at_once):
            rows = start + places[i : i + at_once, None, None] * way  # [row, token, d_model]
            total += _slopes(lm, metric, rows, shares[i : i + at_once])[1]
            bar.update(len(rows))
    scores, gained = (total * way).sum(dim=-1)[:, :n_tokens], value - baseline
    return Scored(scores, value, gap=(scores.sum(dim=1) - gained).abs() / gained.abs())


def check_embedding(lm: LocalModel) -> None:
    """Raise unless all that a model knows of its tokens comes by its embedding; Gemma 3n's layers look them up anew."""
    complaint = (
        f"{type(lm.model).__name__} reads its tokens by another way than its embedding alone, or lets no gradient "
        'through, so gradients there would leave a part out; use method="occlusion".'
    )
    require(lm, "one embedding", _embeds_once, complaint)


def _embeds_once(lm: LocalModel, length: int) -> bool:
    ids = random_ids(lm, length)
    others = another(lm, ids)
    ends = torch.arange(length, device=ids.device)
    with with_gradients():
        embedded = embed(lm, others)[None].requires_grad_()
        found = _logits_of(lm, ids, embedded, torch.zeros_like(ends), ends)
        (slope,) = torch.autograd.grad(found.sum(), embedded)
    return close(found.detach(), plain_logits(lm, others[None])[0]) and bool(slope.isfinite().all())


def embed(lm: LocalModel, ids: Tensor) -> Tensor:
    """What the embedding layer gives for some ids, `[token, d_model]`."""
    with torch.no_grad():
        return lm.model.get_input_embeddings()(ids[None])[0]


def _outputs(lm: LocalModel, metric: Metric, rows: Tensor) -> Tensor:
    """The scores `[row, output]` of inputs given as embeddings `[row, token, d_model]`."""
    n_rows, n_tokens, _ = rows.shape
    row = torch.arange(n_rows, device=rows.device).repeat_interleave(metric.keep)
    token = torch.arange(n_tokens - metric.keep, n_tokens, device=rows.device).repeat(n_rows)
    logits = _logits_of(lm, metric.ids, rows, row, token)
    logits = logits.view(n_rows, metric.keep, -1)
    return metric.score(precise(logits))


def _logits_of(lm: LocalModel, ids: Tensor, embedded: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """Logits `[scored, vocabulary]` of an input whose embeddings `[row, token, d_model]` are given."""
    with lm.model.get_input_embeddings().register_forward_hook(lambda *_: embedded.clone()):
        return logits_at(lm, row, token, input_ids=ids.expand(len(embedded), -1), use_cache=False)


def _slopes(lm: LocalModel, metric: Metric, rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs `[row, output]`, and their gradients summed over the rows by share, `[output, token, d_model]`."""
    with with_gradients():
        rows = rows.detach().requires_grad_()
        values = _outputs(lm, metric, rows)
        summed = (shares[:, None] * values).sum(dim=0)  # [output]
        last = len(summed) - 1
        slopes = [torch.autograd.grad(one, rows, retain_graph=k < last)[0].sum(dim=0) for k, one in enumerate(summed)]
    return values.detach(), check_finite(lm, torch.stack(slopes))


def _rows_with_gradients(lm: LocalModel, n_tokens: int) -> int:
    """How many rows fit into one batch: backward, every layer's activations are kept."""
    if not can_batch(lm):
        return 1
    weight = lm.model.get_input_embeddings().weight
    heads = getattr(lm.config, "num_attention_heads", 1)  # a model without attention has none
    per_token = lm.n_layers * ((10 + 4 * WIDE) * lm.d_model + heads * n_tokens)
    fits = min(BUDGET, free_memory(lm.device.type) / 4) // (n_tokens * per_token * weight.element_size())
    return max(1, min(BATCH_TOKENS // n_tokens, int(fits)))
