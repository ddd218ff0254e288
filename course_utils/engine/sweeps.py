"""Ablate components one at a time, or some together, in each of several prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
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
from .components import Component, ablating, channels, checked, count_of, is_numbered, site_of, stand_ins_for
from .interventions import Change, Run, run, score_edits
from .metrics import Goal, make_goal


@dataclass(frozen=True, eq=False)
class Study:
    """The inputs that are ablated, and where their stand-ins come from."""

    lm: LocalModel
    goals: list[Goal]
    reference: list[Goal]
    kind: str
    seed: int

    def stand_ins(self, goal: Goal, sites: set[Site], rng: random.Random) -> dict[Site, Tensor]:
        """What comes in the place of components."""
        return stand_ins_for(self.lm, sites, self.kind, self._matching(goal), rng)

    def start(self, goal: Goal) -> int:
        """The first token where a stand-in may differ from what stood there."""
        return 0 if self.kind == "zero" else _first_difference([goal.ids, *self._matching(goal)])

    def _matching(self, goal: Goal) -> list[Tensor]:
        """The reference for one input: those of its length; for resample, others than itself."""
        same = [one.ids for one in self.reference if len(one.ids) == len(goal.ids)]
        others = [ids for ids in same if not torch.equal(ids, goal.ids)]
        if self.kind != "zero" and not others:
            raise CourseError(
                f"Expected another reference prompt of {len(goal.ids)} tokens for {self.kind!r}, got none; "
                'give prompts of equal length, or kind="zero".'
            )
        return others if self.kind == "resample" else same


def study_of(
    lm: LocalModel, prompts: Sequence[Prompt], reference: Sequence[Prompt] | None, *, kind: str, seed: int, **goal: Any
) -> Study:
    if not prompts:
        raise CourseError("Expected at least one prompt, got none.")
    goals = [make_goal(lm, prompt, **goal) for prompt in prompts]
    background = goals if reference is None else [make_goal(lm, prompt, **goal) for prompt in reference]
    return Study(lm, goals, background, kind, seed)


def unrelated_study(lm: LocalModel, pairs: Sequence[tuple[Prompt, str]], kind: str, seed: int) -> Study | None:
    """The study of the damage to something else, if there is one."""
    goals = [make_goal(lm, prompt, target=reply) for prompt, reply in pairs]
    if len({goal.keep for goal in goals}) > 1:
        raise CourseError("Expected unrelated replies of one length in tokens, got several; choose others.")
    return Study(lm, goals, goals, kind, seed) if goals else None


def each_alone(study: Study, over: str, layers: list[int]) -> tuple[Floats, Floats]:
    """Effects `[prompt, layer]` or `[prompt, layer, number]`, and unablated values `[prompt]`."""
    lm, rng = study.lm, random.Random(study.seed)
    components = [_components(lm, over, layer) for layer in layers]
    sites = {site_of(some[0]) for some in components}
    starts = [study.start(study.goals[0])] * len(components[0])
    seconds = len(study.goals) * run(lm, study.goals[0].ids).rerun_seconds(layers, starts)
    total = len(study.goals) * sum(map(len, components))
    effects, values = [], []
    with progress(total, f"ablating {over}", unit="run", seconds=seconds) as bar:
        for goal in study.goals:
            stand_ins = study.stand_ins(goal, sites, rng)
            base = run(lm, goal.ids, keep=goal.keep, sites=[site for site in sites if site[0] != "residual"])
            without = []
            for some in components:
                change = _ablation(lm, base, some, stand_ins[site_of(some[0])])
                starts = [study.start(goal)] * len(some)
                without.append(score_edits(lm, base, site_of(some[0]), starts, change, score=goal.total, bar=bar))
            values.append(goal.total(base.logits[None]).cpu())
            effects.append(values[-1] - torch.stack(without))
    result = torch.stack(effects).numpy()
    return (result if is_numbered(over) else result[..., 0]), torch.cat(values).numpy()


def _components(lm: LocalModel, over: str, layer: int) -> list[Component]:
    numbers = range(count_of(lm, over, layer)) if is_numbered(over) else [None]
    return [checked(lm, (over, layer, number)) for number in numbers]


def _ablation(lm: LocalModel, base: Run, components: list[Component], stand_in: Tensor) -> Change:
    """The change that ablates component number i of a layer."""
    before = base.residual[components[0].layer] if components[0].over == "layers" else None

    def change(index: int, activation: Tensor) -> Tensor:
        n_tokens = len(activation)
        if before is not None:
            return before[-n_tokens:] + stand_in[-n_tokens:]
        new, own = activation.clone(), channels(lm, components[index], activation.shape[-1])
        new[:, own] = stand_in[-n_tokens:, own] if stand_in.shape[-1] > 1 else stand_in
        return new

    return change


def _first_difference(inputs: list[Tensor]) -> int:
    """The first position at which some inputs of one length are not all alike (the last, where they are)."""
    stacked = torch.stack(inputs)
    return int((stacked == stacked[0]).all(dim=0).int().cumprod(dim=0)[:-1].sum())


def together(study: Study, sets: list[list[Component]]) -> tuple[Floats, Floats]:
    """Effects `[prompt, set]` of ablating each set of components at once, and unablated values `[prompt]`."""
    lm, rng, sites = study.lm, random.Random(study.seed), {site_of(c) for some in sets for c in some}
    effects, values = [], []

    def scored(goal: Goal) -> float:
        logits = lm.model(input_ids=goal.ids[None], use_cache=False).logits[:, -goal.keep :]
        return float(goal.total(logits))

    seconds = len(study.goals) * (len(sets) + 1) * run(lm, study.goals[0].ids).seconds
    with progress(len(study.goals) * len(sets), "ablating together", unit="run", seconds=seconds) as bar:
        for goal in study.goals:
            stand_ins = study.stand_ins(goal, sites, rng)
            values.append(scored(goal))
            row = []
            for some in sets:
                with edit(lm, ablating(lm, some, stand_ins)):
                    row.append(values[-1] - scored(goal))
                bar.update()
            effects.append(row)
    return np.array(effects, dtype=np.float32), np.array(values, dtype=np.float32)
