"""One pass of a model that writes its attention out, and what of it is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .._arrays import HALF, close, precise
from ..errors import CourseError
from ..hooks import Site, find_parts, linear_weight, record
from ..loading.devices import free_memory
from ..loading.stored_keys import cache_name
from ..models import LocalModel
from .premises import check_finite, check_model, holds, plain_logits, random_ids, require

_EAGER = "eager_attention_forward"  # what transformers calls the attention written out in plain torch


@torch.no_grad()
def observe(lm: LocalModel, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[layer, head, query, key]` and reach `[layer, head, key]` of one pass."""
    check_model(lm)
    projections = list(find_parts(lm).out_projection)  # names an architecture that has layers without attention
    _check_memory(lm, input_ids.shape[1])
    complaint = (
        f"{type(lm.model).__name__} gives another output when its attention is written out, so its weights would "
        "be those of another model; choose one whose layers all have ordinary attention."
    )
    require(lm, "attention written out", _same_written_out, complaint)
    sites: list[Site] = [("heads", layer) for layer in range(lm.n_layers)]
    everything = DynamicCache()  # the model's own would drop what has left a sliding window
    with written_out(lm), record(lm, sites) as seen:
        keeps = holds(lm, "values in a cache", _keeps_values)
        cache = {cache_name(): everything} if keeps else {"use_cache": False}
        output = lm.model(input_ids=input_ids, **cache, output_attentions=True)
    values = [layer.values for layer in everything.layers] if keeps else [torch.empty(0)] * lm.n_layers
    weights = getattr(output, "attentions", None) or ()
    square = (1, lm.n_heads, input_ids.shape[1], input_ids.shape[1])
    if len(weights) != lm.n_layers or any(getattr(w, "shape", None) != square for w in weights):
        raise CourseError(
            f"{type(lm.model).__name__} does not give attention weights for each of its {lm.n_layers} layers; "
            "choose a model whose layers all have ordinary attention."
        )
    stacked = torch.stack([precise(layer[0].cpu()) for layer in weights])  # [layer, head, query, key]
    check_finite(lm, stacked)
    reach = [_reach(*some) for some in zip(stacked, values, [seen[s] for s in sites], projections, strict=True)]
    return stacked, torch.stack(reach)


def _keeps_values(lm: LocalModel, length: int) -> bool:
    cache = DynamicCache()
    lm.model(input_ids=random_ids(lm, length)[None], **{cache_name(): cache}, output_attentions=True)
    return [layer.values.shape[2] for layer in cache.layers] == [length] * lm.n_layers


def _same_written_out(lm: LocalModel, length: int) -> bool:
    ids = random_ids(lm, length)[None]
    with written_out(lm):
        logits = plain_logits(lm, ids)
    return close(logits, plain_logits(lm, ids))


@torch.no_grad()
def head_parts(
    lm: LocalModel, input_ids: Tensor, layer: int, head: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Queries and keys `[token, d_head]`, scores and weights `[query, key]` of one head, and what scales the scores."""
    check_model(lm)
    with written_out(lm), _recorded(lm, find_parts(lm).attention[layer]) as seen:
        lm.model(input_ids=input_ids, use_cache=False)
    if not seen:
        raise _no_detail(lm)
    query, key, weights = (precise(seen[name][0].cpu()) for name in ("query", "key", "weights"))  # [head, token, ...]
    check_finite(lm, weights)
    queries, keys = query[head], key[head // (len(query) // len(key))]  # a group of query heads shares a key head
    scaling = seen.get("scaling") or queries.shape[-1] ** -0.5
    scores = queries @ keys.T * scaling
    if (cap := seen.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = _masked(scores, seen["attention_mask"])
    tolerance = 2e-2 if lm.model.dtype in HALF else 1e-5
    if not torch.allclose(scores.softmax(dim=-1), weights[head], atol=tolerance):
        raise _no_detail(lm)
    return queries, keys, scores, weights[head], scaling


@contextmanager
def written_out(lm: LocalModel) -> Iterator[None]:
    """Let a model compute its attention step by step ("eager") for a while; fused attention hides the weights.

    The setting is made in the configurations themselves: transformers' own switch refuses some architectures, and
    Falcon left as it is gives weights that look ahead.
    """
    configs = list({id(m.config): m.config for m in lm.model.modules() if hasattr(m, "config")}.values())
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):  # a model before its parts
            config._attn_implementation = implementation


@contextmanager
def _recorded(lm: LocalModel, block: nn.Module) -> Iterator[dict[str, Any]]:
    """Record what one attention block gives to the function that computes its attention, and its weights."""
    source = sys.modules[type(block).__module__]
    original = getattr(source, _EAGER, None)
    if original is None:
        raise _no_detail(lm)
    seen: dict[str, Any] = {}

    def recording(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = original(module, *args, **kwargs)
        if module is block:
            seen.update(signature(original).bind(module, *args, **kwargs).arguments, weights=output[1])
        return output

    setattr(source, _EAGER, recording)
    try:
        yield seen
    finally:
        setattr(source, _EAGER, original)


def _no_detail(lm: LocalModel) -> CourseError:
    return CourseError(
        f"{type(lm.model).__name__} computes its attention in a way that cannot be taken apart into queries, keys and "
        "scores; its weights are in analyze_attention."
    )


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with -inf where the mask, the model's very negative number, forbids a look."""
    if mask is None:
        return scores
    forbidden = (mask[0, 0] <= torch.finfo(mask.dtype).min / 2).cpu()  # [query, key]
    return scores.masked_fill(forbidden, -torch.inf)


def _reach(weights: Tensor, values: Tensor, mixed: Tensor, projection: nn.Module) -> Tensor:
    """|v W_O| for each head of a layer, `[head, key]`; NaN where weights times values are not what enters W_O.

    Weights are `[head, query, key]`, values as the layer keeps them, `[1, kv_head, key, d_head]`; `mixed` is what
    enters the output projection, `[1, token, head * d_head]`.
    """
    n_heads, n_tokens = len(weights), weights.shape[-1]
    try:
        weight = precise(linear_weight(projection).cpu())  # [d_model, head * d_head]
        group = n_heads // values.shape[1]
        shared = precise(values[0].cpu()).repeat_interleave(group, dim=0)  # head h reads h // group
        looked = (weights @ shared).transpose(0, 1).flatten(1)  # [query, head * d_head]
        if not close(looked, mixed[0].cpu()):
            raise ValueError("values are gated, compressed or shared between layers")
    except (CourseError, RuntimeError, ValueError, IndexError, ZeroDivisionError):
        return torch.full((n_heads, n_tokens), torch.nan, dtype=weights.dtype)
    by_head = weight.reshape(len(weight), n_heads, -1)  # [d_model, head, d_head]
    return torch.linalg.vector_norm(torch.einsum("hkd,mhd->hkm", shared, by_head), dim=-1)


def _check_memory(lm: LocalModel, n_tokens: int) -> None:
    needed, free = 3 * 4 * lm.n_layers * lm.n_heads * n_tokens**2, free_memory("cpu")  # theirs, ours, one result
    if needed > free:
        raise CourseError(
            f"Expected a prompt whose attention fits into memory, got {n_tokens:,} tokens, which need "
            f"{needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free; shorten the text."
        )
