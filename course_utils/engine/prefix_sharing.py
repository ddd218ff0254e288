"""Run many variants of one input, computing only what differs: exact, and several times faster than full passes.

Changing token i of a causal model leaves every position before i as it was. So the keys and values of the unchanged
input are computed once, and of each variant only the *suffix* is run, from where it starts to differ. Suffixes are
packed into rows of equal length, a long one with a short one, each behind a mask that shows it its own prefix and
itself; so a batch holds no needless token. Logits are computed only where the reply is scored. A model on which this
does not give what its own passes give (a window, positions of its own) gets whole passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .._arrays import close, precise
from .._progress import progress
from ..loading.devices import free_memory
from ..loading.others_hooks import disturbed
from ..loading.stored_keys import cache_name
from ..models import LocalModel
from .premises import another, can_batch, check_finite, check_model, holds, logits_at, random_ids

Prefix = list[tuple[Tensor, Tensor]]  # keys and values of each layer, both [1, head, token, d_head]
Rows = list[list[int]]  # which variants share a row
BATCH_TOKENS = 768  # tokens a batch aims at: enough to keep a processor's matrix units busy, few enough for its caches
WIDE = 4  # how many times the stream's width an MLP has, about
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
    """Score an input and variants of it by the logits at their last `keep` positions: `[output]`, `[variant, output]`.

    Args:
        lm: the model.
        base: int64 `[token]`, the unchanged input.
        variants: int64 `[variant, token]`, each like `base` up to some position (they may be shorter or longer).
        score: maps logits `[variant, keep, vocabulary]` to scores `[variant, output]`.
        keep: how many positions are scored, counted from the end.
        label: what the progress bar says.

    >>> value, changed = score_variants(lm, ids, ids[None], lambda logits: logits[:, -1, :1], keep=1)
    >>> value.shape, changed.shape
    (torch.Size([1]), torch.Size([1, 1]))
    """

    def scored(logits: Tensor) -> Tensor:
        return score(precise(logits[None]))[0]

    length = variants.shape[1]
    check_model(lm)
    _can_share(lm, len(base), length)  # what is tried once is no part of what the bar foretells
    begun = time.perf_counter()
    logits, prefix = run_base(lm, base, keep, length)
    seconds = time.perf_counter() - begun
    starts = [min(start, length - keep) if prefix else 0 for start in first_differences(base, variants)]
    scores: list[Tensor] = [torch.empty(0)] * len(starts)
    seconds *= sum(length - start for start in starts) / len(base)
    with progress(len(starts), label, unit="variant", seconds=seconds) as bar:
        for rows in batches(fill_rows(starts, length), length - min(starts), rows_in_budget(lm, length, keep)):
            batch = lay_out(variants, starts, rows, keep)
            for index, one in zip(batch.variants, run_batch(lm, prefix, batch, batch.ids), strict=True):
                scores[index] = scored(one)  # one by one, which a processor's cache holds
            bar.update(len(batch.variants))
    return scored(logits).cpu(), check_finite(lm, torch.stack(scores)).cpu()


def first_differences(base: Tensor, variants: Tensor) -> list[int]:
    """For each variant, the first position at which it differs from `base`.

    >>> first_differences(torch.tensor([5, 6, 7]), torch.tensor([[5, 0, 7], [5, 6, 7]]))
    [1, 3]
    """
    shared = min(len(base), variants.shape[1])
    same = (variants[:, :shared] == base[:shared]).int()
    return same.cumprod(dim=1).sum(dim=1).tolist()


def fill_rows(starts: list[int], length: int) -> Rows:
    """Pack suffixes into rows no longer than the longest of them: each row takes the longest left, then short ones.

    >>> fill_rows([0, 1, 2, 3], length=4)
    [[0], [1, 3], [2]]
    """
    order = sorted(range(len(starts)), key=starts.__getitem__)  # longest suffix first
    rows, first, last = [], 0, len(order) - 1
    while first <= last:
        row, room = [order[first]], starts[order[first]] - starts[order[0]]
        first += 1
        while first <= last and (size := length - starts[order[last]]) <= room:
            row.append(order[last])
            room -= size
            last -= 1
        rows.append(row)
    return rows


def batches(rows: Rows, width: int, most: int) -> Iterator[Rows]:
    """Divide rows of about `width` tokens into batches of about equal size, with at most `most` rows each.

    >>> [len(batch) for batch in batches([[0]] * 7, width=300, most=99)]
    [3, 3, 1]
    """
    count = max(1, round(len(rows) * width / BATCH_TOKENS))
    size = min(most, -(-len(rows) // count))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def rows_in_budget(lm: LocalModel, n_tokens: int, keep: int) -> int:
    """How many rows fit into a quarter of the free memory, at most 1 GiB; one where rows change each other."""
    if not can_batch(lm):
        return 1
    weight = lm.model.get_input_embeddings().weight
    cached = 2 * 2 * lm.n_layers * lm.d_model  # keys and values, of the prefix and of the row
    per_token = cached + (3 * WIDE + 8) * lm.d_model + 2 * n_tokens  # and the mask
    bytes_per_row = n_tokens * per_token * weight.element_size() + 3 * 4 * keep * weight.shape[0]
    return max(1, int(min(BUDGET, free_memory(lm.device.type) / 4) // bytes_per_row))


def run_base(lm: LocalModel, ids: Tensor, keep: int, length: int) -> tuple[Tensor, Prefix]:
    """Logits `[keep, vocabulary]` of the unchanged input, and its keys and values, where variants can share those."""
    sharing = _can_share(lm, len(ids), length)
    logits, prefix = _run_sharing(lm, ids, keep) if sharing else (_run_whole(lm, ids, keep), [])
    return check_finite(lm, logits), prefix


def _run_whole(lm: LocalModel, ids: Tensor, keep: int, **cache: Any) -> Tensor:
    ends = torch.arange(len(ids) - keep, len(ids), device=ids.device)
    return logits_at(lm, torch.zeros_like(ends), ends, input_ids=ids[None], **(cache or {"use_cache": False}))


def _run_sharing(lm: LocalModel, ids: Tensor, keep: int) -> tuple[Tensor, Prefix]:
    cache = DynamicCache()  # not told the model's configuration, it keeps every position, in sliding layers too
    logits = _run_whole(lm, ids, keep, **{cache_name(): cache}, use_cache=True)
    return logits, [(layer.keys, layer.values) for layer in cache.layers]


def can_share(lm: LocalModel, length: int) -> bool:
    """Whether packed suffixes of inputs up to a length give what whole passes give; tried once (see `premises`)."""
    return not disturbed(lm.model) and holds(lm, "prefix sharing", _shares, length)


def _can_share(lm: LocalModel, own: int, length: int) -> bool:
    """Whether variants of a length can share what an input of its own length gives."""
    return can_share(lm, max(own, length)) and _begins_alike(lm, own, length)


def _begins_alike(lm: LocalModel, *lengths: int) -> bool:
    """Whether the beginning of an input gives the same in two lengths: some rotary positions are scaled by length."""
    short, long = sorted(lengths)

    def alike(lm: LocalModel, _: int) -> bool:
        ids, at = random_ids(lm, long)[None], torch.tensor([short - 1])
        row = torch.zeros_like(at)
        found = logits_at(lm, row, at, input_ids=ids, use_cache=False)
        return close(found, logits_at(lm, row, at, input_ids=ids[:, :short], use_cache=False))

    return short == long or holds(lm, f"{short} tokens as in {long}", alike)


def _shares(lm: LocalModel, length: int) -> bool:
    """Whether two variants do, one that differs early and one not at all, beside as many keys as there may be."""
    base, keep = random_ids(lm, length), min(2, length)
    starts = [min(length // 4, length - keep), length - keep]
    variants = base.repeat(2, 1)
    variants[0, starts[0]] = another(lm, base[starts[:1]])
    logits, prefix = _run_sharing(lm, base, keep)
    batch = lay_out(variants, starts, [[0], [1]], keep)
    packed = run_batch(lm, prefix, batch, batch.ids)
    whole = torch.stack([_run_whole(lm, row, keep) for row in variants])
    return close(packed, whole) and close(logits, whole[1])


@dataclass(frozen=True, eq=False)
class Batch:
    """Suffixes of several variants, packed into rows of equal width."""

    ids: Tensor  # int64 [row, token]
    positions: Tensor  # int64 [row, token]: where in its own variant a token stands
    seen: Tensor  # bool [row, token, shared + token]: its own prefix, and its own suffix up to itself
    variants: list[int]  # in the order in which they are laid out
    spans: list[tuple[int, slice]]  # the row and the tokens of each variant's suffix
    scored: tuple[Tensor, Tensor]  # the row and the token of each scored position, variant by variant


def lay_out(variants: Tensor, starts: list[int], rows: Rows, keep: int) -> Batch:
    """Lay out the suffixes of packed variants beside each other, each with its positions and what it sees.

    >>> lay_out(torch.tensor([[5, 6, 7], [5, 6, 8]]), [1, 2], [[0, 1]], keep=1).ids
    tensor([[6, 7, 8]])
    """
    length, device = variants.shape[1], variants.device
    shared = max(starts[i] for row in rows for i in row)
    width = max(sum(length - starts[i] for i in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    positions = torch.zeros_like(ids)
    seen = torch.eye(shared + width, dtype=torch.bool, device=device)[shared:].repeat(len(rows), 1, 1)
    order, spans, scored = [], [], []
    for r, row in enumerate(rows):
        begin = 0
        for i in row:
            end = begin + length - starts[i]
            ids[r, begin:end] = variants[i, starts[i] :]
            positions[r, begin:end] = torch.arange(starts[i], length, device=device)
            seen[r, begin:end, : starts[i]] = True
            seen[r, begin:end, shared + begin : shared + end] = torch.ones(end - begin, end - begin).tril().bool()
            order.append(i)
            spans.append((r, slice(begin, end)))
            scored += [(r, position) for position in range(end - keep, end)]
            begin = end
    where_row, where_token = torch.tensor(scored, device=device).unbind(1)
    return Batch(ids, positions, seen, order, spans, (where_row, where_token))


def run_batch(lm: LocalModel, prefix: Prefix, batch: Batch, ids: Tensor) -> Tensor:
    """Logits `[variant, keep, vocabulary]` of a batch, whose ids are `[row, token]`, in the order of its layout.

    Without a prefix these are whole inputs, one a row, under the model's own masks.
    """
    given: dict[str, Any] = {"use_cache": False}
    if prefix:
        dtype = prefix[0][0].dtype
        hidden = torch.finfo(dtype).min
        mask = torch.zeros(batch.seen.shape, dtype=dtype, device=batch.ids.device).masked_fill(~batch.seen, hidden)
        cache = _lent(prefix, batch.seen.shape[2] - batch.seen.shape[1], len(batch.ids))
        given = {"position_ids": batch.positions, "attention_mask": mask[:, None], cache_name(): cache}
    logits = logits_at(lm, *batch.scored, input_ids=ids, **given)
    return logits.view(len(batch.variants), -1, logits.shape[-1])


def _lent(prefix: Prefix, length: int, rows: int) -> DynamicCache:
    """A cache that lends the first `length` positions to every row without copying them."""
    cache = DynamicCache()
    for keys, values in prefix:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys = keys[:, :, :length].expand(rows, -1, -1, -1)
        layer.values = values[:, :, :length].expand(rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache
