"""Where each architecture keeps its parts, and how to read or edit what flows through them.

A *site* is a place in the model, named by a kind and a layer: ("residual", 3) is the residual stream that enters
layer 3. The kinds:

    residual    what enters a layer; layer n_layers is what enters the final norm    [batch, token, d_model]
    attention   what the attention block of a layer gives out                        [batch, token, d_model]
    heads       what enters its output projection: the heads, side by side           [batch, token, head * d_head]
    mlp         what the MLP of a layer gives out                                    [batch, token, d_model]
    neurons     what enters its output projection                                    [batch, token, d_mlp]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .errors import CourseError
from .models import LocalModel

Site = tuple[str, int]
Edit = Callable[[Tensor], Tensor | None]
SITE_KINDS = ("residual", "attention", "heads", "mlp", "neurons")

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OUT_PROJECTION = ("o_proj", "out_proj", "c_proj", "dense")
_MLP = ("mlp", "feed_forward", "block_sparse_moe")
_DOWN_PROJECTION = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")
_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of a causal language model, by the role they play; lists have one entry a layer."""

    embedding: nn.Module
    layers: list[nn.Module]
    attention: list[nn.Module]
    out_projection: list[nn.Module]
    mlp: list[nn.Module]
    final_norm: nn.Module
    unembedding: nn.Module


def find_parts(lm: LocalModel) -> Parts:
    """Find a model's parts by the names that transformers' architectures give them.

    Raises:
        CourseError: the architecture has no such part, or calls it something else; the sentence names it.

    >>> len(find_parts(load_model()).layers)
    30
    """
    parent = _parent_of_layers(lm)
    layers = list(_list_of_layers(parent, lm.n_layers) or [])
    attention = [_child(layer, _ATTENTION, "attention") for layer in layers]
    return Parts(
        embedding=lm.model.get_input_embeddings(),
        layers=layers,
        attention=attention,
        out_projection=[_child(block, _OUT_PROJECTION, "output projection") for block in attention],
        mlp=[_child(layer, _MLP, "MLP") for layer in layers],
        final_norm=_child(parent, _FINAL_NORM, "final norm"),
        unembedding=lm.model.get_output_embeddings(),
    )


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

    with edit(lm, {site: keep(site) for site in sites}):
        yield seen


@contextmanager
def edit(lm: LocalModel, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace what flows through some sites by a function of it, in the forward passes run inside the block.

    A function that returns None changes nothing. The hooks are gone after the block, whatever happens in it.

    Raises:
        CourseError: an unknown kind, or a layer that the model does not have.

    >>> with edit(lm, {("mlp", 0): lambda activation: 0 * activation}):
    ...     without_first_mlp = lm.model(lm.prompt("Hi").input_ids).logits
    """
    parts = find_parts(lm)
    with ExitStack() as attached:
        for site, function in edits.items():
            module, before = _hook_point(parts, site)
            hook = _before(function) if before else _after(function)
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
    return _hook_point(find_parts(lm), site)[0]


def _parent_of_layers(lm: LocalModel) -> nn.Module:
    for module in lm.model.modules():
        if _list_of_layers(module, lm.n_layers) is not None:
            return cast(nn.Module, module)
    raise CourseError(
        f"{type(lm.model).__name__} has no list of {lm.n_layers} layers called layers or h, so activations "
        "cannot be recorded; choose a decoder model of transformers."
    )


def _list_of_layers(module: nn.Module, length: int) -> nn.ModuleList | None:
    found = [getattr(module, name, None) for name in ("layers", "h")]
    return next((f for f in found if isinstance(f, nn.ModuleList) and len(f) == length), None)


def _child(module: nn.Module, names: tuple[str, ...], role: str) -> nn.Module:
    for name in names:
        if isinstance(found := getattr(module, name, None), nn.Module):
            return found
    raise CourseError(
        f"{type(module).__name__} has no {role} under any of the names {', '.join(names)}; this architecture is "
        "not supported there."
    )


def _hook_point(parts: Parts, site: Site) -> tuple[nn.Module, bool]:
    """The module that a site hangs on, and whether it is what enters the module (or what comes out)."""
    kind, layer = site
    places = {
        "residual": [*parts.layers, parts.final_norm],
        "attention": parts.attention,
        "heads": parts.out_projection,
        "mlp": parts.mlp,
        "neurons": parts.mlp,
    }
    if kind not in places:
        raise CourseError(f"Expected a kind of activation ({', '.join(SITE_KINDS)}), got {kind!r}.")
    if not 0 <= layer < len(places[kind]):
        raise CourseError(f"Expected a layer from 0 to {len(places[kind]) - 1} for {kind!r}, got {layer}.")
    module = places[kind][layer]
    if kind == "neurons":
        module = _child(module, _DOWN_PROJECTION, "output projection")
    return module, kind in ("residual", "heads", "neurons")


def _before(function: Edit) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            changed = function(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = function(kwargs["hidden_states"])
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    return hook


def _after(function: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):  # attention gives (output, weights)
            changed = function(output[0])
            return None if changed is None else (changed, *output[1:])
        return function(output)

    return hook


def added_by(layer: Any) -> list[Any]:
    """What the outputs of a layer's attention and MLP go through before they are added to the stream."""
    if hasattr(layer, "post_feedforward_layernorm"):
        return [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
    return [nn.Identity(), nn.Identity()]


def written_by_heads(lm: LocalModel, projection: Any, mixed: Tensor) -> Tensor:
    """What each head writes: `[..., head * d_head]` to `[..., head, d_model]`, without the projection's bias."""
    weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T  # [d_model, head * d_head]
    split = mixed.reshape(*mixed.shape[:-1], lm.n_heads, -1), weight.reshape(len(weight), lm.n_heads, -1)
    return torch.einsum("...hd,mhd->...hm", *split)
