"""The components of a model, and what comes in their place when they are ablated."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CourseError, is_count
from ..hooks import Edit, Site, head_size, module_at, projection_weight
from ..models import LocalModel
from .blocks import check_adds
from .interventions import Run, check_skips, run_once

ABLATION_KINDS = ("zero", "mean", "resample")
SITES = {"heads": "heads", "mlps": "mlp", "neurons": "neurons", "layers": "residual"}


class Component(NamedTuple):
    """One of "heads", "mlps", "neurons" or "layers", by its layer and (a head or a neuron) its number in it.

    >>> str(Component("heads", 22, 7)), str(Component("mlps", 3))
    ('head 22.7', 'mlp 3')
    """

    over: str
    layer: int
    number: int | None = None

    def __str__(self) -> str:
        return f"{self.over[:-1]} {self.layer}" + ("" if self.number is None else f".{self.number}")


def checked(lm: LocalModel, component: Sequence[object]) -> Component:
    try:
        one = Component(*component)  # type: ignore[arg-type]
        indexed = is_numbered(one.over)
        fits = is_count(one.layer, 0) and one.layer < lm.n_layers and is_count(one.number, 0) == indexed
        if fits and indexed:
            fits = int(one.number or 0) < count_of(lm, one.over, one.layer)
    except TypeError:
        fits = False
    if not fits:
        raise CourseError(
            f'Expected a component such as ("heads", layer, head), ("neurons", layer, neuron), ("mlps", layer) or '
            f'("layers", layer), of {lm.n_layers} layers and {lm.n_heads} heads, each counted from 0, '
            f"got {component!r}."
        )
    return one


def is_numbered(over: str) -> bool:
    if over not in list(SITES):
        raise CourseError(f"Expected a sort of component ({', '.join(SITES)}), got {over!r}.")
    return over in ("heads", "neurons")


def count_of(lm: LocalModel, over: str, layer: int) -> int:
    """How many components of a sort a layer has."""
    if not is_numbered(over):
        return 1
    width = projection_weight(module_at(lm, (SITES[over], layer))).shape[1]
    return width if over == "neurons" else width // head_size(lm, width)


def site_of(component: Component) -> Site:
    """Where a component can be edited; a layer is edited in the residual stream after it."""
    return SITES[component.over], component.layer + (component.over == "layers")


def channels(lm: LocalModel, component: Component, width: int) -> slice:
    """The columns at its site that are a component's own."""
    if component.number is None:
        return slice(None)
    size = head_size(lm, width) if component.over == "heads" else 1
    return slice(component.number * size, (component.number + 1) * size)


def _written(base: Run, site: Site) -> Tensor:
    """What stands at a site, `[token, width]`; for the residual stream, what the layer before added to it."""
    if site[0] == "residual":
        return base.residual[site[1]] - base.residual[site[1] - 1]
    return base.at(site)


def of_one_length(ids: Sequence[Tensor], kind: str) -> list[Tensor]:
    if len({len(one) for one in ids}) > 1:
        lengths = sorted({len(one) for one in ids})
        raise CourseError(
            f"Expected reference prompts of one length for {kind!r}, got {lengths} tokens; choose others."
        )
    return list(ids)


def ablation_values(
    lm: LocalModel, sites: set[Site], kind: str, reference: Sequence[Tensor], rng: random.Random
) -> dict[Site, Tensor]:
    """What comes in the place of components at some sites: `[token, width]`, or a plain zero."""
    if kind not in ABLATION_KINDS:
        raise CourseError(f"Expected a kind of ablation ({', '.join(ABLATION_KINDS)}), got {kind!r}.")
    if any(site[0] == "mlp" for site in sites):
        check_adds(lm)
    if any(site[0] == "residual" for site in sites):
        check_skips(lm)
    if kind == "zero":
        return {site: torch.zeros(1, 1, device=lm.device) for site in sites}
    if not reference:
        raise CourseError(
            f"Expected reference prompts for {kind!r}, of the same number of tokens, got none; "
            'give reference=[...], or kind="zero".'
        )
    if kind == "resample":
        reference = [rng.choice(list(reference))]
    recorded = [site for site in sites if site[0] != "residual"]
    runs = [run_once(lm, ids, sites=recorded) for ids in reference]
    return {site: torch.stack([_written(one, site) for one in runs]).mean(dim=0) for site in sites}


def ablating(lm: LocalModel, components: Sequence[Component], values_at: Mapping[Site, Tensor]) -> dict[Site, Edit]:
    """The edits that put values in the place of components, for passes over whole prompts and their replies."""
    streams: dict[int, Tensor] = {}  # what entered the ablated layers
    skipped = {c.layer for c in components if c.over == "layers"}
    by_site: dict[Site, list[Component]] = {("residual", layer): [] for layer in skipped}
    for component in components:
        by_site.setdefault(site_of(component), []).append(component)

    def editor(site: Site) -> Edit:
        def apply(activation: Tensor) -> Tensor:
            for component in by_site[site]:
                value = _fitted(values_at[site], activation.shape[1])
                if component.over == "layers":
                    activation = streams[component.layer] + value
                else:
                    activation = activation.clone()
                    own = channels(lm, component, activation.shape[-1])
                    activation[..., own] = value[..., own] if value.shape[-1] > 1 else value
            if site[0] == "residual" and site[1] in skipped:
                streams[site[1]] = activation
            return activation

        return apply

    return {site: editor(site) for site in by_site}


def _fitted(value: Tensor, n_tokens: int) -> Tensor:
    """A value for a pass over so many tokens: those after its end, and one alone (a reply's), take its last."""
    length = len(value)
    if length == 1 or n_tokens == 1:
        return value[-1:]
    if n_tokens < length:
        raise CourseError(
            f"Expected a prompt of at least {length} tokens, as the reference has, got {n_tokens}; "
            'choose prompts of one length, or kind="zero".'
        )
    return torch.cat([value, value[-1:].expand(n_tokens - length, -1)])
