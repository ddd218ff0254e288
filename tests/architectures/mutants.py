"""A llama whose forward is broken on purpose: each must come out right, or as a sentence, in every method.

A breakage is part of the model: the oracles run it too, so right means right about the broken model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .plain import Case
from .zoo import build

Break = Callable[[Any], None]
BREAKS: dict[str, Break] = {}


def breakage(change: Break) -> Break:
    """Enter a breakage under its function's name."""
    BREAKS[change.__name__.replace("_", " ")] = change
    return change


def broken(name: str) -> Case:
    """The zoo's llama with one breakage, and the truth about it; with dropout left on, that of the model without."""

    def make(attention: str | None = None) -> Any:
        lm = build("llama", attention=attention)
        BREAKS[name](lm.model)
        return lm

    if name == "dropout left on":
        return Case(make(), lambda: build("llama", attention="eager").model, build("llama").model)
    return Case(make(), lambda: make("eager").model)


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _around(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Let a module give out a function of what it is given and of what it would give."""
    forward = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (change(_hidden_states(args, kwargs), output[0]), *output[1:])
        return change(_hidden_states(args, kwargs), output)

    module.forward = changed


@breakage
def an_extra_norm_after_the_last_layer(model: Any) -> None:
    norm = nn.LayerNorm(32).requires_grad_(False)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(5))
    final = model.model.norm.forward
    model.model.norm.forward = lambda x: final(norm(x))


@breakage
def an_extra_norm_on_the_logits_side(model: Any) -> None:
    final = model.model.norm.forward
    model.model.norm.forward = lambda x: torch.tanh(final(x))


@breakage
def a_term_added_between_layers(model: Any) -> None:
    push = torch.randn(32, generator=torch.Generator().manual_seed(6))
    entry = model.model.layers[2].forward
    model.model.layers[2].forward = lambda hidden_states, *args, **kwargs: entry(hidden_states + push, *args, **kwargs)


@breakage
def a_second_stream(model: Any) -> None:
    """What the embedding gives is added again before the last layer, past all layers in between."""
    kept: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        embedded = kwargs.get("inputs_embeds")
        kept[:] = [module.embed_tokens(kwargs["input_ids"]) if embedded is None else embedded]

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    entry = model.model.layers[3].forward
    model.model.layers[3].forward = lambda hidden_states, *args, **kwargs: entry(
        hidden_states + 0.5 * kept[0], *args, **kwargs
    )


@breakage
def a_scaled_layer(model: Any) -> None:
    _around(model.model.layers[1], lambda given, out: 0.5 * out)


@breakage
def a_hidden_attention_window(model: Any) -> None:
    """Layer 1 sees four tokens back, whatever mask it is given; its configuration does not say so."""
    block = model.model.layers[1].self_attn
    forward = block.forward

    def windowed(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        n = hidden_states.shape[1]
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        keys = n + (0 if cache is None else cache.get_seq_length(1))
        query, key = torch.arange(keys - n, keys)[:, None], torch.arange(keys)
        allowed = (key <= query) & (key > query - 4)
        allowed = allowed[None, None] if mask is None else allowed & (mask if mask.dtype == torch.bool else mask >= 0)
        lowest = torch.finfo(hidden_states.dtype).min
        kwargs["attention_mask"] = torch.zeros(allowed.shape).masked_fill(~allowed, lowest).to(hidden_states)
        return forward(hidden_states, *args, **kwargs)

    block.forward = windowed


@breakage
def positions_counted_from_the_cache(model: Any) -> None:
    """A forward that adds the length of the cache to the positions it is given."""
    entry = model.model.rotary_emb.forward
    lengths: list[int] = [0]

    def note(module: Any, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        lengths[0] = cache.get_seq_length() if cache is not None else 0

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    model.model.rotary_emb.forward = lambda x, position_ids: entry(x, position_ids + lengths[0])


@breakage
def a_multiplier_of_the_logits(model: Any) -> None:
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: head(x) / 8


@breakage
def a_multiplier_after_the_unembedding(model: Any) -> None:
    def scaled(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        output.logits = output.logits / 8
        return output

    model.register_forward_hook(scaled, with_kwargs=True)


@breakage
def a_cap_of_the_logits(model: Any) -> None:
    def capped(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    model.register_forward_hook(capped, with_kwargs=True)


@breakage
def a_gate_after_the_heads(model: Any) -> None:
    """What attention adds is gated by what enters it."""
    _around(model.model.layers[2].self_attn, lambda given, out: torch.sigmoid(given) * out)


@breakage
def dropout_left_on(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    model.train()


@breakage
def noise_in_every_pass(model: Any) -> None:
    _around(model.model.layers[0].mlp, lambda given, out: out + 0.05 * torch.randn_like(out))


@breakage
def logits_that_are_not_finite(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(float("inf"))


@breakage
def a_look_ahead(model: Any) -> None:
    """Layer 0's MLP sees the mean over all tokens, later ones too."""
    _around(model.model.layers[0].mlp, lambda given, out: out + 0.3 * out.mean(dim=1, keepdim=True))


@breakage
def tokens_that_count_the_batch(model: Any) -> None:
    """A row's result depends on how many rows there are."""
    _around(model.model.layers[1].mlp, lambda given, out: out * (1 + 0.2 * (len(out) - 1)))
