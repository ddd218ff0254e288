"""Where each architecture keeps its parts, and how to read or edit what flows through them.

A *site* is a place in the model, named by a kind and a layer: ("residual", 3) is the residual stream that enters
layer 3. The kinds:

    residual    what enters a layer; layer n_layers is what the last layer gives out     [batch, token, d_model]
    attention   what a layer's attention (or what mixes tokens in its place) gives out   [batch, token, d_model]
    heads       what enters attention's output projection: the heads, side by side       [batch, token, head * d_head]
    mlp         what the MLP of a layer gives out                                        [batch, token, d_model]
    neurons     what enters its output projection                                        [batch, token, d_mlp]

Where a module adds the residual stream to its output itself, its output projection's is taken instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import CourseError
from .models import LocalModel

Site = tuple[str, int]
Edit = Callable[[Tensor], Tensor | None]
SITE_KINDS = ("residual", "attention", "heads", "mlp", "neurons")

_ATTENTION = ("self_attn", "self_attention", "attn", "attention")
_MIXERS = ("mamba", "linear_attn", "short_conv", "conv", "temporal_block", "mixer")  # in attention's place
_OUT_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn", "mlp_block", "fc2")  # OPT's stands in the layer
_DOWN_PROJECTION = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "proj_2")
_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_ADDS_ITSELF = ("residual", "input_tensor", "hidden_input")  # arguments by which a module gets the stream


class Parts:
    """The modules of a causal language model, by the role they play; lists have one entry a layer.

    Each is looked for when it is asked for: a model without heads still has layers.

    Raises:
        CourseError: the architecture has no such part, or calls it something else; the sentence names it.
    """

    def __init__(self, lm: LocalModel) -> None:
        self.model, self.n_layers = lm.model, lm.n_layers

    @cached_property
    def embedding(self) -> nn.Module:
        return cast(nn.Module, self.model.get_input_embeddings())

    @cached_property
    def unembedding(self) -> nn.Module:
        return cast(nn.Module, self.model.get_output_embeddings())

    @cached_property
    def _parent(self) -> tuple[nn.Module, nn.ModuleList]:
        for module in self.model.modules():
            for child in module.children():
                if isinstance(child, nn.ModuleList) and len(child) == self.n_layers:
                    return module, child
        raise CourseError(
            f"{type(self.model).__name__} has no list of {self.n_layers} layers, so activations cannot be recorded; "
            "choose a decoder model of transformers."
        )

    @cached_property
    def layers(self) -> list[nn.Module]:
        return list(self._parent[1])

    @cached_property
    def final_norm(self) -> nn.Module:
        return _child(self._parent[0], _FINAL_NORM, "final norm")

    @cached_property
    def attention(self) -> list[nn.Module]:
        return [
            _child(layer, _ATTENTION, f"attention in layer {i}", inside=True) for i, layer in enumerate(self.layers)
        ]

    @cached_property
    def mixers(self) -> list[nn.Module]:
        """The attention of each layer, or what mixes tokens in its place."""
        names = (*_ATTENTION, *_MIXERS)
        return [_child(layer, names, f"attention in layer {i}", inside=True) for i, layer in enumerate(self.layers)]

    @cached_property
    def further_mixers(self) -> list[nn.Module]:
        """What mixes tokens beside a layer's attention (Falcon-H1 has both)."""
        named = ([getattr(layer, name, None) for name in (*_ATTENTION, *_MIXERS)] for layer in self.layers)
        return [one for some in named for one in some[1:] if isinstance(one, nn.Module) and one not in self.mixers]

    @cached_property
    def out_projection(self) -> list[nn.Module]:
        return [_child(block, _OUT_PROJECTION, "output projection", inside=True) for block in self.attention]

    @cached_property
    def mlp(self) -> list[nn.Module]:
        return [_child(layer, _MLP, f"MLP in layer {i}") for i, layer in enumerate(self.layers)]

    @cached_property
    def down_projection(self) -> list[nn.Module]:
        return [_child(block, _DOWN_PROJECTION, "output projection") for block in self.mlp]


def find_parts(lm: LocalModel) -> Parts:
    """Find a model's parts by the names that transformers' architectures give them.

    >>> len(find_parts(load_model()).layers)
    30
    """
    return Parts(lm)


@contextmanager
def record(lm: LocalModel, sites: Iterable[Site]) -> Iterator[dict[Site, Tensor]]:
    """Record what flows through some sites in the forward passes run inside the block (the last pass stays).

    A site is a kind and a layer; the kinds are residual, attention, heads, mlp and neurons, as said in this module.

    Raises:
        CourseError: an unknown kind, or a layer that the model does not have.

    >>> with record(lm, [("residual", 0)]) as seen:
    ...     _ = lm.model(lm.prompt("Hi").input_ids)
    >>> seen["residual", 0].shape
    torch.Size([1, 1, 576])
    """
    seen: dict[Site, Tensor] = {}

    def keep(site: Site) -> Edit:
        return lambda activation: seen.__setitem__(site, activation.detach().clone())  # Falcon adds in place

    with edit(lm, {site: keep(site) for site in sites}, tokenwise=True):
        yield seen


@contextmanager
def edit(lm: LocalModel, edits: Mapping[Site, Edit], *, tokenwise: bool = False) -> Iterator[None]:
    """Replace what flows through some sites by a function of it, in the forward passes run inside the block.

    A function that returns None changes nothing. The hooks are gone after the block, whatever happens in it.

    Args:
        lm: the model.
        edits: a function for each site.
        tokenwise: whether they do the same to every token, wherever it stands; then methods of this package that are
            called inside the block may lay tokens out as they like, which is faster.

    Raises:
        CourseError: an unknown kind, or a layer that the model does not have.

    >>> with edit(lm, {("mlp", 0): lambda activation: 0 * activation}):
    ...     without_first_mlp = lm.model(lm.prompt("Hi").input_ids).logits
    """
    parts = find_parts(lm)
    with ExitStack() as attached:
        for site, function in edits.items():
            module, before = _place_of(parts, site)
            hook = _before(function) if before else _after(function)
            hook.tokenwise = tokenwise  # type: ignore[attr-defined]
            attach = module.register_forward_pre_hook if before else module.register_forward_hook
            attached.callback(attach(hook, with_kwargs=True).remove)
        yield


@contextmanager
def skip_layers(lm: LocalModel, below: int, beside: int = 0) -> Iterator[None]:
    """Let the first layers hand on what they get, unchanged and at no cost, in the passes run inside the block.

    Args:
        lm: the model.
        below: the first layer that is not skipped.
        beside: how many things a layer of this model gives out in a tuple beside the residual stream.

    >>> with skip_layers(lm, 30):
    ...     unembedded_at_once = lm.model(ids[None]).logits
    """

    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, *[None] * beside) if beside else hidden_states

    skipped = find_parts(lm).layers[:below]
    usual = [layer.__dict__.get("forward") for layer in skipped]  # accelerate puts one there
    for layer in skipped:
        layer.forward = hand_on
    try:
        yield
    finally:
        for layer, forward in zip(skipped, usual, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def module_at(lm: LocalModel, site: Site) -> nn.Module:
    """The module that a site hangs on: for "heads" and "neurons", an output projection.

    >>> module_at(lm, ("neurons", 0)).weight.shape
    torch.Size([576, 1536])
    """
    return _place_of(find_parts(lm), site).module


def _child(module: nn.Module, names: tuple[str, ...], role: str, *, inside: bool = False) -> nn.Module:
    """A module's part by name, also in its own parts if `inside`; a projection is its own."""
    for holder in (module, *(module.children() if inside else ())):
        for name in names:
            if isinstance(found := getattr(holder, name, None), nn.Module):
                return found
    if isinstance(module, nn.Linear | Conv1D):
        return module
    raise CourseError(
        f"{type(module).__name__} has no {role} under any of the names {', '.join(names)}; this architecture is "
        "not supported there."
    )


class _Place(NamedTuple):
    """What a site hangs on: what enters a module, or what comes out of it."""

    module: nn.Module
    before: bool


def _place_of(parts: Parts, site: Site) -> _Place:
    kind, layer = site
    if kind not in SITE_KINDS:
        raise CourseError(f"Expected a kind of activation ({', '.join(SITE_KINDS)}), got {kind!r}.")
    last = parts.n_layers - (kind != "residual")
    if not 0 <= layer <= last:
        raise CourseError(f"Expected a layer from 0 to {last} for {kind!r}, got {layer}.")
    if kind == "residual":
        return _Place(parts.layers[min(layer, last - 1)], layer < last)
    if kind in ("heads", "neurons"):
        return _Place((parts.out_projection if kind == "heads" else parts.down_projection)[layer], True)
    block = (parts.mixers if kind == "attention" else parts.mlp)[layer]
    if any(name in signature(block.forward).parameters for name in _ADDS_ITSELF):
        return _Place((parts.out_projection if kind == "attention" else parts.down_projection)[layer], False)
    return _Place(block, False)


def _before(function: Edit) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = function(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        name = next(iter(kwargs))
        changed = function(kwargs[name])
        return None if changed is None else (args, {**kwargs, name: changed})

    return hook


def _after(function: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):  # attention gives (output, weights)
            changed = function(output[0])
            return None if changed is None else (changed, *output[1:])
        return function(output)

    return hook


def head_size(lm: LocalModel, width: int) -> int:
    """How many of the columns that enter a layer's output projection are one head's."""
    if width % lm.n_heads:
        raise CourseError(
            f"Expected {lm.n_heads} heads of one size in each layer, got {width} columns in one of "
            f"{type(lm.model).__name__}'s; its heads cannot be told apart."
        )
    return width // lm.n_heads


def written_by_heads(lm: LocalModel, projection: Any, mixed: Tensor) -> Tensor:
    """What each head writes: `[..., head * d_head]` to `[..., head, d_model]`, without the projection's bias."""
    weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T  # [d_model, head * d_head]
    head_size(lm, mixed.shape[-1])
    split = mixed.reshape(*mixed.shape[:-1], lm.n_heads, -1), weight.reshape(len(weight), lm.n_heads, -1)
    return torch.einsum("...hd,mhd->...hm", *split)
