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
from typing import TYPE_CHECKING

import numpy as np
import torch

from ._arrays import Floats, strongest
from .engine.components import Component, ablating, ablation_values, checked, count_of, of_one_length, site_of
from .engine.sweeps import each_alone, study_of, together, unrelated_study
from .errors import CourseError
from .hooks import edit
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
        places = strongest(abs(self.effects), k)
        return [(Component(self.over, self.layers[p[0]], *p[1:]), float(self.effects[p])) for p in places]

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """What the output loses without each: heads as a heat map, layers and MLPs as bars, neurons by rank."""
        (component, effect), *_ = self.top(1)
        title = title or f"Without {component} ({self.kind}) the output changes most, by {-effect:+.2f} {self.unit}"
        if self.over == "heads":
            values = np.full((max(self.layers) + 1, self.effects.shape[1]), np.nan, dtype=np.float32)
            values[self.layers] = self.effects
            return plot_heads(values, label=f"effect ({self.unit})", title=title, ax=ax)
        shown = [(str(c), e) for c, e in self.top(20)]
        if self.over != "neurons":
            shown = [(str(layer), float(e)) for layer, e in zip(self.layers, self.effects, strict=True)]
        names, effects = zip(*shown, strict=True)
        ax = plot_bars(names, effects, unit=self.unit, title=title, ax=ax)
        if self.over != "neurons":
            ax.set_xlabel("layer")
            ax.tick_params(axis="x", rotation=0)
        return ax

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
    for prompt in reference:
        lm.check_prompt(prompt)
    ids = [prompt.input_ids[0] for prompt in reference]
    values_at = ablation_values(lm, {site_of(c) for c in chosen}, kind, of_one_length(ids, kind), random.Random(seed))
    with edit(lm, ablating(lm, chosen, values_at), tokenwise=kind == "zero"):
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
    study = study_of(lm, prompts, reference, target=target, contrast=contrast, kind=kind, seed=seed)
    other = unrelated_study(lm, unrelated, kind, seed)
    chosen = list(range(lm.n_layers)) if layers is None else list(layers)
    by_prompt, value = each_alone(study, over, chosen)
    damage = each_alone(other, over, chosen)[0].mean(axis=0) / np.float32(other.metrics[0].keep) if other else None
    return AblationSweep(
        effects=by_prompt.mean(axis=0),
        by_prompt=by_prompt,
        value=value,
        damage=damage,
        unit=study.metrics[0].unit,
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
    study = study_of(lm, prompts, reference, target=target, contrast=contrast, kind=kind, seed=seed)
    other = unrelated_study(lm, unrelated, kind, seed)
    effects, value = together(study, [chosen, *([component] for component in chosen)])
    damage = float(together(other, [chosen])[0].mean()) / other.metrics[0].keep if other else None
    return JointAblation(
        effect=float(effects[:, 0].mean()),
        singles=effects[:, 1:].mean(axis=0),
        value=float(value.mean()),
        damage=damage,
        unit=study.metrics[0].unit,
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
