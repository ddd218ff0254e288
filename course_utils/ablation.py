"""Ablation: put something neutral in the place of a component, and see what the output loses.

A component is a head (its columns of what enters the output projection), an MLP, a neuron of one, or a whole layer
(what it adds to the residual stream). In its place comes zero, which no input ever gives; the mean over a reference
set, position by position; or what another prompt gives there (resample; Wang et al. 2022, Chan et al. 2022).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._arrays import Floats
from ._progress import progress
from .engine.components import (
    Component,
    ablating,
    channels,
    checked,
    count_of,
    is_numbered,
    of_one_length,
    site_of,
    stand_ins_for,
)
from .engine.interventions import Change, Run, run, score_edits
from .engine.metrics import Goal, make_goal
from .errors import CourseError
from .hooks import Site, edit
from .models import LocalModel
from .plots import plot_bars, plot_heads
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Russia": "Moscow",
}


@dataclass(frozen=True, eq=False)
class AblationSweep:
    """What the output loses without each component, one at a time.

    Attributes:
        effects: float32 `[layer]` (MLPs, layers) or `[layer, number]` (heads, neurons), in `unit`, mean over the
            prompts; above 0, the component raised the output.
        by_prompt: float32 `[prompt, layer]` or `[prompt, layer, number]`.
        value: float32 `[prompt]`, the unablated output.
        damage: like `effects`, nats lost for each token of the replies to unrelated prompts; None if none were given.
        layers: the layers swept.
    """

    effects: Floats
    by_prompt: Floats
    value: Floats
    damage: Floats | None
    unit: str
    over: str
    kind: str
    layers: list[int]

    def top(self, k: int = 5) -> list[tuple[Component, float]]:
        """The k components with the largest effect either way, strongest first.

        >>> ablation_sweep(lm, [prompt], over="mlps", kind="zero", contrast=("I", "Sure")).top(1)  # doctest: +SKIP
        [(Component(over='mlps', layer=0, number=None), 3.1)]
        """
        flat = np.argsort(-abs(self.effects), axis=None)[:k]
        places = [
            tuple(int(i) for i in place) for place in zip(*np.unravel_index(flat, self.effects.shape), strict=True)
        ]
        return [(Component(self.over, self.layers[p[0]], *p[1:]), float(self.effects[p])) for p in places]

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Layers x heads as a heat map; MLPs and layers as bars."""
        return plot_sweep(self, ax=ax, title=title)

    def __repr__(self) -> str:
        top = ", ".join(f"{component} {effect:+.2f}" for component, effect in self.top(3))
        return f"{self.kind} ablation of {self.over}, effect on the output ({self.unit}): {top}"


@dataclass(frozen=True, eq=False)
class JointAblation:
    """What the output loses without some components together, beside what it loses without each alone.

    Attributes:
        effect: float, all of them ablated at once, mean over the prompts, in `unit`.
        singles: float32 `[component]`, each ablated alone.
        value: float, the unablated output.
        damage: nats lost for each token of the replies to unrelated prompts; None if none were given.
    """

    effect: float
    singles: Floats
    value: float
    damage: float | None
    unit: str

    @property
    def summed(self) -> float:
        """The single effects added up; the joint effect is larger where components stand in for each other."""
        return float(self.singles.sum())


@contextmanager
def ablate(
    lm: LocalModel,
    components: Sequence[tuple[str, int] | tuple[str, int, int] | Component],
    *,
    kind: str = "zero",
    reference: Sequence[Prompt] = (),
    seed: int = 0,
) -> Iterator[None]:
    """Ablate any set of components in the passes run inside the block, at every position.

    Args:
        lm: the model.
        components: such as `("heads", 22, 7)`, `("mlps", 3)`, `("layers", 5)`, `("neurons", 3, 100)`.
        kind: "zero", "mean" (per position, over the reference) or "resample" (from one prompt of it).
        reference: prompts as long as those to be run; tokens after its end (a reply) take what stands at its end.
        seed: decides which prompt "resample" takes.

    Raises:
        CourseError: no such component or kind, no reference, prompts of different length.

    >>> with ablate(lm, [("heads", 22, 7), ("mlps", 3)]):
    ...     reply = lm.reply(prompt, 2)
    """
    chosen = [checked(lm, component) for component in components]
    ids = [prompt.input_ids[0] for prompt in reference]
    stand_ins = stand_ins_for(lm, {site_of(c) for c in chosen}, kind, of_one_length(ids, kind), random.Random(seed))
    with edit(lm, ablating(lm, chosen, stand_ins)):
        yield


def ablation_sweep(
    lm: LocalModel,
    prompts: Sequence[Prompt] | Prompt,
    *,
    over: str = "heads",
    kind: str = "mean",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    layers: Sequence[int] | None = None,
    reference: Sequence[Prompt] | None = None,
    unrelated: Sequence[tuple[Prompt, str]] = (),
    seed: int = 0,
) -> AblationSweep:
    """Ablate every component of a sort, one at a time, and measure what the output loses.

    Each run starts at the ablated layer (and, for mean and resample, at the first token that tells the reference
    prompts apart).

    Args:
        lm: the model.
        prompts: what it reads; effects are averaged over them.
        over: "heads", "mlps", "layers" or "neurons" (many: name the layers).
        kind: "zero", "mean" or "resample".
        target: a reply whose log-probability is scored (nats).
        contrast: two single tokens, the logit of the first minus that of the second is scored.
        layers: which layers to sweep; by default all.
        reference: prompts for "mean" and "resample"; by default `prompts`. Those with a prompt's length are used.
        unrelated: prompts with their replies, on which the damage to other abilities is measured (see `capitals`).
        seed: decides which prompts "resample" takes.

    Raises:
        CourseError: no such component or kind, a layer out of range, no reference prompt of a prompt's length.

    >>> ablation_sweep(lm, prompt, over="mlps", kind="zero", contrast=("I", "Sure"), layers=[29]).effects.shape
    (1,)
    """
    prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    study = _study(lm, prompts, reference, target=target, contrast=contrast, kind=kind, seed=seed)
    other = _unrelated(lm, unrelated, kind, seed)
    chosen = list(range(lm.n_layers)) if layers is None else list(layers)
    by_prompt, value = _sweep(study, over, chosen)
    damage = _sweep(other, over, chosen)[0].mean(axis=0) / np.float32(other.goals[0].keep) if other else None
    return AblationSweep(
        effects=by_prompt.mean(axis=0),
        by_prompt=by_prompt,
        value=value,
        damage=damage,
        unit=study.goals[0].unit,
        over=over,
        kind=kind,
        layers=chosen,
    )


@torch.no_grad()
def joint_ablation(
    lm: LocalModel,
    prompts: Sequence[Prompt],
    components: Sequence[tuple[str, int] | tuple[str, int, int] | Component],
    *,
    kind: str = "mean",
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    reference: Sequence[Prompt] | None = None,
    unrelated: Sequence[tuple[Prompt, str]] = (),
    seed: int = 0,
) -> JointAblation:
    """Ablate some components together, and each alone: single ablations understate where others step in.

    Later components make up for a missing one (self-repair; McGrath et al. 2023, Rushing & Nanda 2024).
    The arguments are those of `ablation_sweep`.

    >>> both = joint_ablation(lm, [prompt], [("mlps", 3), ("mlps", 4)], kind="zero", contrast=("I", "Sure"))
    >>> both.singles.shape
    (2,)
    """
    chosen = [checked(lm, component) for component in components]
    if not chosen:
        raise CourseError("Expected at least one component, got none.")
    study = _study(lm, prompts, reference, target=target, contrast=contrast, kind=kind, seed=seed)
    other = _unrelated(lm, unrelated, kind, seed)
    effects, value = _together(study, [chosen, *([component] for component in chosen)])
    damage = float(_together(other, [chosen])[0].mean()) / other.goals[0].keep if other else None
    return JointAblation(
        effect=float(effects[:, 0].mean()),
        singles=effects[:, 1:].mean(axis=0),
        value=float(value.mean()),
        damage=damage,
        unit=study.goals[0].unit,
    )


def random_components(
    lm: LocalModel, components: Sequence[tuple[str, int, int] | Component], *, seed: int = 0
) -> list[Component]:
    """As many others of the same sort and layers, drawn at random: the control that an ablation needs.

    Raises:
        CourseError: a layer has too few others.

    >>> [component.layer for component in random_components(lm, [("heads", 22, 7), ("heads", 3, 1)])]
    [22, 3]
    """
    rng, taken = random.Random(seed), {checked(lm, c) for c in components}
    drawn = []
    for component in (Component(*c) for c in components):
        count = count_of(lm, component.over, component.layer)
        left = [c for i in range(count) if (c := component._replace(number=i)) not in taken]
        if not left or component.number is None:
            raise CourseError(f"Expected heads or neurons in layers that have others left, got {component}; drop it.")
        drawn.append(rng.choice(left))
        taken.add(drawn[-1])
    return drawn


def capitals(lm: LocalModel) -> list[tuple[Prompt, str]]:
    """An unrelated task: asking a chat model for capitals, with the replies; prompts of one length for SmolLM2.

    >>> capitals(lm)[0][1]
    'The capital of France is Paris'
    """
    return [
        (lm.chat(f"What is the capital of {country}?"), f"The capital of {country} is {city}")
        for country, city in CAPITALS.items()
    ]


@dataclass(frozen=True, eq=False)
class _Study:
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


def _study(
    lm: LocalModel, prompts: Sequence[Prompt], reference: Sequence[Prompt] | None, *, kind: str, seed: int, **goal: Any
) -> _Study:
    if not prompts:
        raise CourseError("Expected at least one prompt, got none.")
    goals = [make_goal(lm, prompt, **goal) for prompt in prompts]
    background = goals if reference is None else [make_goal(lm, prompt, **goal) for prompt in reference]
    return _Study(lm, goals, background, kind, seed)


def _unrelated(lm: LocalModel, pairs: Sequence[tuple[Prompt, str]], kind: str, seed: int) -> _Study | None:
    """The study of the damage to something else, if there is one."""
    goals = [make_goal(lm, prompt, target=reply) for prompt, reply in pairs]
    if len({goal.keep for goal in goals}) > 1:
        raise CourseError("Expected unrelated replies of one length in tokens, got several; choose others.")
    return _Study(lm, goals, goals, kind, seed) if goals else None


def _sweep(study: _Study, over: str, layers: list[int]) -> tuple[Floats, Floats]:
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


def _together(study: _Study, sets: list[list[Component]]) -> tuple[Floats, Floats]:
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


def plot_sweep(sweep: AblationSweep, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """What the output loses without each component: heads as a heat map, layers and MLPs as bars, neurons by rank."""
    (component, effect), *_ = sweep.top(1)
    title = title or f"Without {component} ({sweep.kind}) the output changes most, by {-effect:+.2f} {sweep.unit}"
    if sweep.over == "heads":
        values = np.full((max(sweep.layers) + 1, sweep.effects.shape[1]), np.nan, dtype=np.float32)
        values[sweep.layers] = sweep.effects
        return plot_heads(values, label=f"effect ({sweep.unit})", title=title, ax=ax)
    shown = [(str(c), e) for c, e in sweep.top(20)]
    if sweep.over != "neurons":
        shown = [(str(layer), float(e)) for layer, e in zip(sweep.layers, sweep.effects, strict=True)]
    names, effects = zip(*shown, strict=True)
    ax = plot_bars(names, effects, unit=sweep.unit, title=title, ax=ax)
    if sweep.over != "neurons":
        ax.set_xlabel("layer")
        ax.tick_params(axis="x", rotation=0)
    return ax
