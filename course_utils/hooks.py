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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from inspect import signature
from itertools import pairwise
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ._arrays import close
from .errors import CourseError
from .loading.others_hooks import alone
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


_lists: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class CompiledError(CourseError):
    """No hook on this model has an effect, whatever a method wants it for."""


class Parts:
    """The modules of a causal language model, by the role they play; lists have one entry a layer.

    Each is looked for when it is asked for: a model without heads still has layers.

    Raises:
        CourseError: the architecture has no such part, or calls it something else; the sentence names it.
    """

    def __init__(self, lm: LocalModel) -> None:
        self.model, self.n_layers, self.device = lm.model, lm.n_layers, lm.device

    @cached_property
    def embedding(self) -> nn.Module:
        return cast(nn.Module, self.model.get_input_embeddings())

    @cached_property
    def unembedding(self) -> nn.Module:
        return cast(nn.Module, self.model.get_output_embeddings())

    @cached_property
    def _list(self) -> str:
        """The name of the list of layers: one as long as the model is deep, which runs in a pass over token ids."""
        if self.model not in _lists:
            _lists[self.model] = _list_of_layers(self.model, self.n_layers, self.device)
        return _lists[self.model]

    @cached_property
    def layers(self) -> list[nn.Module]:
        return list(self.model.get_submodule(self._list))

    @cached_property
    def final_norm(self) -> nn.Module:
        return _child(self.model.get_submodule(self._list.rpartition(".")[0]), _FINAL_NORM, "final norm")

    @cached_property
    def attention(self) -> Sequence[nn.Module]:
        return self._each(lambda layer, i: _child(layer, _ATTENTION, f"attention in layer {i}", inside=True))

    @cached_property
    def mixers(self) -> Sequence[nn.Module]:
        """The attention of each layer, or what mixes tokens in its place."""
        return self._each(_mixer)

    @cached_property
    def further_mixers(self) -> list[nn.Module]:
        """What mixes tokens beside a layer's attention (Falcon-H1 has both)."""
        named = ([getattr(layer, name, None) for name in (*_ATTENTION, *_MIXERS)] for layer in self.layers)
        return [one for some in named for one in some[1:] if isinstance(one, nn.Module) and one not in self.mixers]

    @cached_property
    def out_projection(self) -> Sequence[nn.Module]:
        return self._each(lambda _, i: _child(self.attention[i], _OUT_PROJECTION, "output projection", inside=True))

    @cached_property
    def mlp(self) -> Sequence[nn.Module]:
        return self._each(lambda layer, i: _child(layer, _MLP, f"MLP in layer {i}"))

    @cached_property
    def down_projection(self) -> Sequence[nn.Module]:
        return self._each(lambda _, i: _child(self.mlp[i], _DOWN_PROJECTION, "output projection"))

    def _each(self, find: Callable[[nn.Module, int], nn.Module]) -> Sequence[nn.Module]:
        each = _OfLayers(self.layers, find)
        if all(one is None for one in each.found):
            _ = each[0]  # says what is missing
        return each


class _OfLayers(Sequence[nn.Module]):
    """A module of each layer's own; CourseError where a layer that is asked for has none, or shares it with another."""

    def __init__(self, layers: list[nn.Module], find: Callable[[nn.Module, int], nn.Module]) -> None:
        self._layers, self._find = layers, find
        self.found: list[nn.Module | None] = [None] * len(layers)
        for number, layer in enumerate(layers):
            with suppress(CourseError):
                self.found[number] = find(layer, number)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, layer: Any) -> Any:
        found = self.found[layer]
        if found is None:
            return self._find(self._layers[layer], layer)  # says what is missing
        if self.found.count(found) > 1:  # Zamba's layers do: it runs several times
            raise CourseError(
                f"Expected a {type(found).__name__} of its own in each layer, got one that several share, so what "
                "flows through it in one layer cannot be told from the others'; look at whole layers instead."
            )
        return found


def find_parts(lm: LocalModel) -> Parts:
    """Find a model's parts by the names that transformers' architectures give them.

    >>> len(find_parts(load_model()).layers)
    30
    """
    return Parts(lm)


@torch.no_grad()
def _list_of_layers(model: Any, n_layers: int, device: torch.device) -> str:
    """The name of the list, found by running the model on two tokens: each layer gets what the one before gives out.

    A model that also sees may have as many layers for its pictures; and lists of parts of layers are as long.
    """
    _check_uncompiled(model)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {name: layers for name, layers in lists.items() if len(layers) == n_layers}
    given: dict[nn.Module, Tensor] = {}
    taken: dict[nn.Module, Tensor] = {}
    with alone(model), ExitStack() as attached:
        for layer in (one for layers in lists.values() for one in layers):
            for keep, attach in (
                (_before(partial(_put, taken, layer)), layer.register_forward_pre_hook),
                (_after(partial(_put, given, layer)), layer.register_forward_hook),
            ):
                attached.callback(attach(keep, with_kwargs=True).remove)
        with suppress(Exception):  # models raise what they like; then no layer ran
            ids = torch.tensor([[1, 2]], device=device)
            model(input_ids=ids, use_cache=False)
    for name, layers in lists.items():
        ran = all(layer in given for layer in layers)
        if ran and all(torch.equal(given[one], taken[following]) for one, following in pairwise(layers)):
            return str(name)
    raise CourseError(
        f"Expected {n_layers} layers of which each gets what the one before gives out, and {type(model).__name__} has "
        "no list of such; what flows between them cannot be looked at, so choose another decoder of transformers."
    )


def _check_uncompiled(model: nn.Module) -> None:
    """Raise where a part of a model is compiled: code that is made once runs no hooks that are hung there later."""
    for module in model.modules():
        remade = hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        if remade or module._compiled_call_impl or "_orig_mod" in module._modules:
            raise CompiledError(
                f"Expected a model whose activations can be looked at and edited, and {type(module).__name__} is "
                "compiled, which leaves that without effect; load the model again and don't compile it."
            )


def _put(where: dict[nn.Module, Tensor], layer: nn.Module, stream: Tensor) -> None:
    where[layer] = stream.clone()


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
        CourseError: an unknown kind, a layer that the model does not have, or a model that is compiled.

    >>> with edit(lm, {("mlp", 0): lambda activation: 0 * activation}):
    ...     without_first_mlp = lm.model(lm.prompt("Hi").input_ids).logits
    """
    _check_uncompiled(lm.model)
    parts = find_parts(lm)
    with ExitStack() as attached:

        def hang(module: nn.Module, hook: Callable[..., Any], *, before: bool, tokenwise: bool) -> None:
            hook.tokenwise = tokenwise  # type: ignore[attr-defined]
            attach = module.register_forward_pre_hook if before else module.register_forward_hook
            attached.callback(attach(hook, with_kwargs=True).remove)

        for site, function in edits.items():
            module, before = _place_of(parts, site)
            rows: list[torch.Size] = []
            if site[0] != "residual":
                hang(parts.layers[site[1]], _before(partial(_note, rows)), before=True, tokenwise=True)
            by_row = _by_row(function, rows)
            hang(module, _before(by_row) if before else _after(by_row), before=before, tokenwise=tokenwise)
        yield


def _note(rows: list[torch.Size], stream: Tensor) -> None:
    """Keep how many rows and tokens there are in what enters a layer; edits nothing."""
    rows[:] = [stream.shape[:2]]


def _by_row(function: Edit, rows: list[torch.Size]) -> Edit:
    """An edit of `[batch, token, width]`, also where a block has the tokens of all rows in one (OPT's, Llama 4's)."""

    def edited(activation: Tensor) -> Tensor | None:
        if not rows or activation.dim() != 2 or len(activation) != rows[0].numel():
            return function(activation)
        changed = function(activation.reshape(*rows[0], -1))
        return None if changed is None else changed.expand(*rows[0], -1).flatten(0, 1)

    return edited


def instead(value: Tensor) -> Edit:
    """An edit that puts a value in the place of whatever flows through a site."""
    return lambda _: value


@contextmanager
def skip_layers(lm: LocalModel, layers: Iterable[int], outputs: int = 0) -> Iterator[None]:
    """Let some layers hand on what they get, unchanged and at no cost, in the passes run inside the block.

    Args:
        lm: the model.
        layers: which.
        outputs: how many things a layer of this model gives out in a tuple; 0 for the residual stream itself.

    >>> with skip_layers(lm, range(30)):
    ...     unembedded_at_once = lm.model(ids[None]).logits
    """

    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, *[None] * (outputs - 1)) if outputs else hidden_states

    every = find_parts(lm).layers
    skipped = [every[layer] for layer in layers]
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
    return _place_of(find_parts(lm), site)[0]


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


def _mixer(layer: nn.Module, number: int) -> nn.Module:
    for names in (_ATTENTION, _MIXERS):
        with suppress(CourseError):
            return _child(layer, names, "attention", inside=True)
    raise CourseError(f"Layer {number} ({type(layer).__name__}) has no part that is known to mix tokens.")


def _place_of(parts: Parts, site: Site) -> tuple[nn.Module, bool]:
    """The module that a site hangs on, and whether it is what enters it, or else what comes out."""
    kind, layer = site
    if kind not in SITE_KINDS:
        raise CourseError(f"Expected a kind of activation ({', '.join(SITE_KINDS)}), got {kind!r}.")
    last = parts.n_layers - (kind != "residual")
    if not hasattr(layer, "__index__") or not 0 <= layer <= last:  # PyTorch's integers are fine
        raise CourseError(f"Expected a layer from 0 to {last} for {kind!r}, got {layer!r}.")
    if kind == "residual":
        return parts.layers[min(layer, last - 1)], layer < last
    if kind in ("heads", "neurons"):
        return (parts.out_projection if kind == "heads" else parts.down_projection)[layer], True
    block = (parts.mixers if kind == "attention" else parts.mlp)[layer]
    if any(name in signature(block.forward).parameters for name in _ADDS_ITSELF):
        block = (parts.out_projection if kind == "attention" else parts.down_projection)[layer]
    return block, False


def _with_first(output: Any, first: Any) -> Any:
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: first})
    return type(output)([first, *output[1:]])


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
        if isinstance(output, tuple | list):  # attention gives (output, weights)
            changed = function(output[0])
            return None if changed is None else _with_first(output, changed)
        return function(output)

    return hook


def head_size(lm: LocalModel, width: int) -> int:
    """How many of the columns that enter a layer's output projection are one head's."""
    if not lm.n_heads or width % lm.n_heads:
        raise CourseError(
            f"Expected as many heads of one size in each layer, got {width} columns for {lm.n_heads} heads in one of "
            f"{type(lm.model).__name__}'s, so they cannot be told apart; look at whole blocks instead."
        )
    return width // lm.n_heads


def written_by_heads(lm: LocalModel, projection: Any, mixed: Tensor) -> Tensor:
    """What each head writes: `[..., head * d_head]` to `[..., head, d_model]`, without the projection's bias."""
    weight, size = linear_weight(projection), head_size(lm, mixed.shape[-1])
    by_head = weight.reshape(len(weight), lm.n_heads, size)  # [d_model, head, d_head]
    return torch.einsum("...hd,mhd->...hm", mixed.reshape(*mixed.shape[:-1], lm.n_heads, size), by_head)


def linear_weight(projection: Any) -> Tensor:
    """An output projection's weight, `[d_model, width]`, tried out: with its bias it is all that the projection does.

    It isn't where a LoRA was put in beside it, or where what enters is rounded first.
    """
    weight = projection_weight(projection)
    check_in_memory(weight)
    given = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad(), suppress(RuntimeError):  # some kinds of numbers are multiplied by code of their own alone
        bias = getattr(projection, "bias", None)
        found = projection.forward(given) - (0 if bias is None else bias)  # past hooks on it
        if close(found, given @ weight.T):
            return weight
    raise _no_matrix(projection, ", which does more than multiply by one")


def check_in_memory(weight: Tensor) -> None:
    """Raise where a weight is fetched for each pass alone."""
    if weight.is_meta:
        raise CourseError(
            "Expected weights that are in memory, and some are put away between passes (by accelerate); load the model "
            'where it fits as a whole, in a half precision (dtype="bfloat16") or with device="cpu".'
        )


def projection_weight(projection: Any) -> Tensor:
    """An output projection's weight, `[d_model, width]`; GPT-2 keeps its own the other way round."""
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise _no_matrix(projection)
    return weight.T if isinstance(projection, Conv1D) else weight


def _no_matrix(projection: Any, more: str = "") -> CourseError:
    return CourseError(
        f"Expected an output projection with one matrix of numbers, got {type(projection).__name__}{more}; "
        "its heads and neurons cannot be told apart."
    )
