"""A model that remembers its passes: checks ask a learner's function the same prompts again and again."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_for_all

from ..loading.stored_keys import cache_in, cache_name
from .side_effects import SMALL, inside_of, parameters_of

if TYPE_CHECKING:
    from ..models import LocalModel

_MOST, _MOST_LOGITS = 256, 12  # passes remembered at once
_WORTH = 4  # tokens that two texts must share
_AROUND = ("_forward_hooks", "_forward_pre_hooks")


def remember(lm: LocalModel) -> LocalModel:
    """Let a model remember what it made of each input, and give back the model.

    Logits, and hooks on the whole model and on its unembedding, are as ever; only what lies between is not computed
    again for ids that were there before. Where anything could make a difference (a hook or another `forward` inside,
    other weights, gradients, a mask, stored keys and values), the pass is run. Of a large model, what a text shares
    with the beginning of an earlier one is taken from there: logits then agree up to rounding.

    >>> remember(lm) is lm
    True
    """
    base, head = lm.model.base_model, lm.model.get_output_embeddings()
    if not isinstance(base.__dict__.get("forward"), _Passes):
        base.forward = _Passes(base, head, base.forward)
        if sum(p.numel() for p in base.parameters()) >= SMALL:
            head.forward = _Head(base.forward, head.forward)
    return lm


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass: its hidden states [batch, token, d_model], keys and values, and what it shares with an earlier one."""

    key: tuple[tuple[int, ...], ...]  # the ids
    hidden: Tensor
    cache: Any
    shared: int = 0  # so many tokens, from the first on, …
    begun: tuple[tuple[int, ...], ...] = ()  # … with the first row of these ids


@dataclass(eq=False)
class _Passes:
    """The passes of a model's body so far; called in place of its `forward`."""

    base: nn.Module
    head: nn.Module
    plain: Any
    known: dict[tuple[tuple[int, ...], ...], _Pass] = field(default_factory=dict)
    weights: list[tuple[int, int, int]] = field(default_factory=list)  # which, where, and how often changed
    copies: list[Tensor] = field(default_factory=list)  # of the weights, where the model is small
    logits: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict)  # of first rows, where it is large
    given: tuple[Tensor, int, _Pass] | None = None  # what was given out last, where changes of it would be seen

    def __call__(self, input_ids: Any = None, **named: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        use_cache = named.pop("use_cache", None)
        inside = inside_of(self.base)
        if any(value is not None for value in named.values()) or not (
            _plain_ids(input_ids) and self._undisturbed(inside)
        ):
            return self.plain(input_ids=input_ids, use_cache=use_cache, **named)
        self._forget_other_weights(inside)
        key = tuple(map(tuple, input_ids.tolist()))
        if key not in self.known:
            _put(self.known, key, self._run(input_ids, key), _MOST)
        one = self.known[key]
        hidden = one.hidden.clone()
        self.given = None if hidden.is_inference() else (hidden, hidden._version, one)
        stored = None if use_cache is False else _copied(one.cache)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{cache_name(): stored})

    def _run(self, ids: Tensor, key: tuple[tuple[int, ...], ...]) -> _Pass:
        """A pass that was not there before."""
        shared, begun = max(((_shared(key, rows), rows) for rows in self.known), key=itemgetter(0), default=(0, ()))
        if self.copies or shared < _WORTH:
            out = self.plain(input_ids=ids, use_cache=True)
            return _Pass(key, out.last_hidden_state, cache_in(out))
        earlier = self.known[begun]
        stored = _begun(earlier.cache, shared, len(ids))
        if shared == ids.shape[1]:
            return _Pass(key, earlier.hidden[:1, :shared], stored, shared, begun)
        out = self.plain(input_ids=ids[:, shared:], **{cache_name(): stored}, use_cache=True)
        before = earlier.hidden[:1, :shared].expand(len(ids), -1, -1)
        return _Pass(key, torch.cat([before, out.last_hidden_state], dim=1), cache_in(out), shared, begun)

    def _undisturbed(self, inside: list[tuple[str, nn.Module]]) -> bool:
        """Whether nothing inside the model could change what it makes of an input, or is to hear of it."""
        if hooks_for_all._global_forward_hooks or hooks_for_all._global_forward_pre_hooks:
            return False
        for _, module in inside:
            its = module.__dict__
            if module is not self.base and ("forward" in its or any(its[kind] for kind in _AROUND)):
                return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.base.parameters()))

    def _forget_other_weights(self, inside: list[tuple[str, nn.Module]]) -> None:
        parameters = [*parameters_of(self.base, inside).values(), *parameters_of(self.head).values()]
        weights = [(id(p), p.data_ptr(), p._version) for p in parameters]
        same = weights == self.weights and all(map(torch.equal, parameters, self.copies))
        if not same:
            small = sum(p.numel() for p in parameters) < SMALL
            self.weights, self.copies = weights, [p.detach().clone() for p in parameters] if small else []
            self.known.clear()
            self.logits.clear()


@dataclass(frozen=True, eq=False)
class _Head:
    """A large vocabulary's unembedding: what texts begin with is not unembedded again either."""

    passes: _Passes
    plain: Any

    def __call__(self, hidden: Tensor) -> Tensor:
        given = self.passes.given
        if given is None or not _is_still(hidden, *given[:2]):
            return self.plain(hidden)
        one, known = given[2], self.passes.logits
        if one.begun in known:
            begin = known[one.begun][:, : one.shared].expand(len(hidden), -1, -1)
            logits = torch.cat([begin, self.plain(hidden[:, one.shared :])], dim=1)
        else:
            logits = self.plain(hidden)
        if len(hidden) == 1 or not one.shared:
            _put(known, one.key, logits[:1].detach().clone(), _MOST_LOGITS)
        return logits


def _is_still(hidden: Tensor, given: Tensor, version: int) -> bool:
    """Whether these are the hidden states that were given out, all of them and unchanged."""
    same = hidden.data_ptr() == given.data_ptr() and hidden.shape == given.shape
    return same and not hidden.is_inference() and given._version == version


def _put(where: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep something, and let go of the oldest."""
    if len(where) >= most:
        where.pop(next(iter(where)))
    where[key] = value


def _plain_ids(ids: Any) -> bool:
    return isinstance(ids, Tensor) and ids.dim() == 2 and ids.dtype == torch.long and ids.numel() > 0


def _shared(rows: tuple[tuple[int, ...], ...], others: tuple[tuple[int, ...], ...]) -> int:
    """How many tokens all rows begin with that the first of some others begins with, too; of several rows not all."""
    first, most = others[0], min(len(rows[0]) - (len(rows) > 1), len(others[0]))
    return min(next((i for i in range(most) if row[i] != first[i]), most) for row in rows)


def _begun(cache: Any, length: int, batch: int) -> Any:
    """The keys and values of the first tokens of the first row, for each row of a batch."""
    from transformers import DynamicCache

    begun = DynamicCache()
    for number, layer in enumerate(cache.layers):
        both = (part[:1, :, :length].expand(batch, -1, -1, -1) for part in (layer.keys, layer.values))
        begun.update(*both, number)  # each [batch, kv_head, token, d_head]
    return begun


def _copied(cache: Any) -> Any:
    """Another cache of the same tensors: what is added to one is not added to the other."""
    twin = copy(cache)
    twin.layers = [copy(layer) for layer in cache.layers]
    return twin
