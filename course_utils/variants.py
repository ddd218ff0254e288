"""Run many variants of one input, computing only what differs: exact, and several times faster than full passes.

Changing token i of a causal model leaves every position before i as it was. So the keys and values of the unchanged
input are computed once; variants are sorted by where they start to differ, and each batch of them starts from a shared
prefix. Only the last few positions, where the reply is scored, get logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .models import LocalModel
from .progress import progress

WASTE = 48  # tokens that a batch may recompute needlessly: about what starting one more pass costs
BUDGET = 1 << 30  # bytes that one batch may take, at most


@torch.no_grad()
def score_variants(
    lm: LocalModel,
    base: Tensor,
    variants: Tensor,
    score: Callable[[Tensor], Tensor],
    *,
    keep: int,
    label: str = "variants",
) -> tuple[Tensor, Tensor]:
    """Score an input and variants of it by the logits at their last `keep` positions.

    Args:
        lm: the model.
        base: int64 `[token]`, the unchanged input.
        variants: int64 `[variant, token]`, each like `base` up to some position (they may be shorter or longer).
        score: maps logits `[variant, keep, vocabulary]` to scores `[variant, output]`.
        keep: how many positions are scored, counted from the end.
        label: what the progress bar says; it appears after two seconds.

    Returns:
        The scores of the unchanged input, `[output]`, and of the variants in the order given, `[variant, output]`.

    >>> value, changed = score_variants(lm, ids, ids[None], lambda logits: logits[:, -1, :1], keep=1)
    >>> value.shape, changed.shape
    (torch.Size([1]), torch.Size([1, 1]))
    """

    def scored(logits: Tensor) -> Tensor:
        return score(logits[:, -keep:].to(torch.promote_types(logits.dtype, torch.float32))).cpu()

    logits, prefix = _run_base(lm, base, keep)
    starts = [min(start, variants.shape[1] - keep) for start in first_differences(base, variants)]
    if not prefix:  # an architecture whose state cannot be cut at a position: whole passes
        starts = [0] * len(starts)
    scores: list[Tensor] = [torch.empty(0)] * len(starts)
    rows = rows_in_budget(lm, variants.shape[1], keep)
    with progress(len(starts), label, unit="variant") as bar:
        for group in batches(starts, rows):
            start = starts[group[0]]
            output = lm.model(
                input_ids=variants[group, start:],  # [variant, token]
                past_key_values=_shared(prefix, start, len(group)) if start else None,
                use_cache=start > 0,
                logits_to_keep=_last(keep, variants.shape[1] - start, base.device),
            )
            for index, row in zip(group, scored(output.logits), strict=True):
                scores[index] = row
            bar.update(len(group))
    return scored(logits)[0], torch.stack(scores)


def first_differences(base: Tensor, variants: Tensor) -> list[int]:
    """For each variant, the first position at which it differs from `base`.

    >>> first_differences(torch.tensor([5, 6, 7]), torch.tensor([[5, 0, 7], [5, 6, 7]]))
    [1, 3]
    """
    shared = min(len(base), variants.shape[1])
    same = (variants[:, :shared] == base[:shared]).int()
    return same.cumprod(dim=1).sum(dim=1).tolist()


def batches(starts: list[int], rows: int) -> Iterator[list[int]]:
    """Group variants, by where they start to differ, so that little is recomputed and few passes are started.

    >>> list(batches([0, 1, 2, 500], rows=8))
    [[0, 1, 2], [3]]
    """
    group: list[int] = []
    wasted = 0
    for index in sorted(range(len(starts)), key=starts.__getitem__):
        extra = starts[index] - starts[group[0]] if group else 0
        if group and (wasted + extra > WASTE or len(group) == rows):
            yield group
            group, wasted, extra = [], 0, 0
        group.append(index)
        wasted += extra
    yield group


def rows_in_budget(lm: LocalModel, n_tokens: int, keep: int) -> int:
    """How many variants of a length fit into one batch: into a quarter of the free memory, at most 1 GiB."""
    config, weight = lm.config, lm.model.get_input_embeddings().weight
    heads = getattr(config, "num_attention_heads", 1)  # a model without attention has none
    head_size = getattr(config, "head_dim", None) or lm.d_model // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    wide = getattr(config, "intermediate_size", None) or 4 * lm.d_model
    cached = 2 * 2 * lm.n_layers * kv_heads * head_size  # keys and values, once shared and once joined to new ones
    per_token = cached + 3 * wide + 8 * lm.d_model
    bytes_per_row = n_tokens * per_token * weight.element_size() + 3 * 4 * keep * weight.shape[0]
    free = torch.cuda.mem_get_info()[0] if weight.device.type == "cuda" else psutil.virtual_memory().available
    return max(1, int(min(BUDGET, free / 4) // bytes_per_row))


def _last(keep: int, length: int, device: torch.device) -> Tensor:
    """The last positions as indices: a slice would leave a strided view, whose unembedding is four times slower."""
    return torch.arange(length - keep, length, device=device)


Prefix = list[tuple[Tensor, Tensor]]  # keys and values of each layer, both [1, head, token, d_head]


def _run_base(lm: LocalModel, ids: Tensor, keep: int) -> tuple[Tensor, Prefix]:
    """Logits of the unchanged input, and its keys and values (none where a model keeps another kind of state)."""
    if getattr(lm.model, "_is_stateful", False):
        return lm.model(input_ids=ids[None], use_cache=False, logits_to_keep=keep).logits, []
    # a cache that is not told the model's configuration keeps every position, also in layers with a sliding window
    output = lm.model(input_ids=ids[None], past_key_values=DynamicCache(), use_cache=True, logits_to_keep=keep)
    layers = getattr(output.past_key_values, "layers", [])
    whole = [type(layer) is DynamicLayer and layer.get_seq_length() == len(ids) for layer in layers]
    usable = len(whole) == lm.n_layers and all(whole)
    return output.logits, [(layer.keys, layer.values) for layer in layers] if usable else []


def _shared(prefix: Prefix, start: int, rows: int) -> DynamicCache:
    """A cache that lends the first `start` positions to every row without copying them."""
    cache = DynamicCache()
    for keys, values in prefix:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys = keys[:, :, :start].expand(rows, -1, -1, -1)
        layer.values = values[:, :, :start].expand(rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache
