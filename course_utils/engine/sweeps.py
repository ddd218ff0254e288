"""Ablate components one at a time, or some together, in each of several prompts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import Floats
from .._progress import progress
from ..errors import CourseError
from ..hooks import Site, edit
from ..models import LocalModel
from ..prompts import Prompt
from .components import Component, ablating, ablation_values, channels, checked, count_of, is_numbered, site_of
from .interventions import Intervention, Run, run_once, score_edits
from .metrics import Metric, make_metric


@dataclass(frozen=True, eq=False)
class Study:
    """The inputs that are ablated, and where what takes the place of components comes from."""

    lm: LocalModel
    metrics: list[Metric]
    reference: list[Metric]
    kind: str
    seed: int
    _means: dict[int, dict[Site, Tensor]] = field(default_factory=dict)  # by the length of the input

    def values_at(self, metric: Metric, sites: set[Site], rng: random.Random) -> dict[Site, Tensor]:
        """What comes in the place of components; a mean is the same for every input of a length."""
        known = self._means.get(len(metric.ids)) if self.kind == "mean" else None
        found = known or ablation_values(self.lm, sites, self.kind, self._matching(metric), rng)
        if self.kind == "mean":
            self._means[len(metric.ids)] = found
        return found

    def start(self, metric: Metric) -> int:
        """The first token where an ablation value may differ from what stood there."""
        return 0 if self.kind == "zero" else _first_difference([metric.ids, *self._matching(metric)])

    def _matching(self, metric: Metric) -> list[Tensor]:
        """The reference for one input: those of its length; for resample, others than itself."""
        same = [one.ids for one in self.reference if len(one.ids) == len(metric.ids)]
        others = [ids for ids in same if not torch.equal(ids, metric.ids)]
        if self.kind != "zero" and not others:
            raise CourseError(
                f"Expected another reference prompt of {len(metric.ids)} tokens for {self.kind!r}, got none; "
                'give prompts of equal length, or kind="zero".'
            )
        return others if self.kind == "resample" else same


def study_of(
    lm: LocalModel,
    prompts: Sequence[Prompt],
    reference: Sequence[Prompt] | None,
    *,
    kind: str,
    seed: int,
    **metric: Any,
) -> Study:
    if not prompts:
        raise CourseError("Expected at least one prompt, got none.")
    metrics = [make_metric(lm, prompt, **metric) for prompt in prompts]
    background = metrics if reference is None else [make_metric(lm, prompt, **metric) for prompt in reference]
    return Study(lm, metrics, background, kind, seed)


def unrelated_study(lm: LocalModel, pairs: Sequence[tuple[Prompt, str]], kind: str, seed: int) -> Study | None:
    """The study of the damage to something else, if there is one."""
    metrics = [make_metric(lm, prompt, target=reply) for prompt, reply in pairs]
    if len({metric.keep for metric in metrics}) > 1:
        raise CourseError("Expected unrelated replies of one length in tokens, got several; choose others.")
    return Study(lm, metrics, metrics, kind, seed) if metrics else None


def each_alone(study: Study, over: str, layers: list[int]) -> tuple[Floats, Floats]:
    """Effects `[prompt, layer]` or `[prompt, layer, number]`, and unablated values `[prompt]`."""
    lm, rng = study.lm, random.Random(study.seed)
    numbers = [range(count_of(lm, over, layer)) if is_numbered(over) else [None] for layer in layers]
    components = [[checked(lm, (over, layer, n)) for n in some] for layer, some in zip(layers, numbers, strict=True)]
    sites = {site_of(some[0]) for some in components}
    starts = [study.start(study.metrics[0])] * len(components[0])
    recorded = [site for site in sites if site[0] != "residual"]
    runs = (run_once(lm, metric.ids, keep=metric.keep, sites=recorded) for metric in study.metrics)
    first = next(runs)
    seconds = len(study.metrics) * first.rerun_seconds(layers, starts)
    total = len(study.metrics) * sum(map(len, components))
    effects, values = [], []
    with progress(total, f"ablating {over}", unit="run", seconds=seconds) as bar:
        for metric, base in zip(study.metrics, chain([first], runs), strict=True):
            values_at = study.values_at(metric, sites, rng)
            without = []
            for some in components:
                change = _ablation(lm, base, some, values_at[site_of(some[0])])
                starts = [study.start(metric)] * len(some)
                without.append(score_edits(lm, base, site_of(some[0]), starts, change, score=metric.total, bar=bar))
            values.append(metric.total(base.logits[None]).cpu())
            effects.append(values[-1] - torch.stack(without))
    result = torch.stack(effects).numpy()
    return (result if is_numbered(over) else result[..., 0]), torch.cat(values).numpy()


def _ablation(lm: LocalModel, base: Run, components: list[Component], value: Tensor) -> Intervention:
    """The change that ablates component number i of a layer."""
    before = base.residual[components[0].layer] if components[0].over == "layers" else None

    def change(index: int, activation: Tensor) -> Tensor:
        n_tokens = len(activation)
        if before is not None:
            return before[-n_tokens:] + value[-n_tokens:]
        new, own = activation.clone(), channels(lm, components[index], activation.shape[-1])
        new[:, own] = value[-n_tokens:, own] if value.shape[-1] > 1 else value
        return new

    return change


def _first_difference(inputs: list[Tensor]) -> int:
    """The first position at which some inputs of one length are not all alike (the last, where they are)."""
    stacked = torch.stack(inputs)
    return int((stacked == stacked[0]).all(dim=0).int().cumprod(dim=0)[:-1].sum())


def together(study: Study, sets: list[list[Component]]) -> tuple[Floats, Floats]:
    """Effects `[prompt, set]` of ablating each set of components at once, and unablated values `[prompt]`."""
    lm, rng, sites = study.lm, random.Random(study.seed), {site_of(c) for some in sets for c in some}
    effects: list[list[float]] = []
    values: list[float] = []

    def scored(metric: Metric) -> float:
        logits = lm.model(input_ids=metric.ids[None], use_cache=False).logits[:, -metric.keep :]
        return float(metric.total(logits))

    begun = time.perf_counter()
    first = scored(study.metrics[0])
    seconds = len(study.metrics) * (len(sets) + 1) * (time.perf_counter() - begun)
    with progress(len(study.metrics) * len(sets), "ablating together", unit="run", seconds=seconds) as bar:
        for metric in study.metrics:
            values_at = study.values_at(metric, sites, rng)
            values.append(scored(metric) if values else first)
            row = []
            for some in sets:
                with edit(lm, ablating(lm, some, values_at)):
                    row.append(values[-1] - scored(metric))
                bar.update()
            effects.append(row)
    return np.array(effects, dtype=np.float32), np.array(values, dtype=np.float32)
