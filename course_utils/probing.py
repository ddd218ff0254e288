"""Probing: what can be read off the residual stream, layer by layer, and whether the model uses it.

A probe is a linear classifier on activations (Alain & Bengio 2017). Its accuracy means little by itself, so here it
always stands beside what needs no model, no training, or no meaning: baselines and a control task (Hewitt & Liang
2019). And what can be decoded need not be used (Elazar 2021), so a probe's direction can be taken out, or added.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ._arrays import Floats
from .engine.activations import collect_activations, prompts_of
from .engine.probe_fits import MAX_ITER, accuracy_interval, control_task, fit_layers
from .engine.splits import LEFT_OUT, SPLITS, Plan, plan_of
from .errors import CourseError
from .loading.devices import free_memory
from .models import LocalModel
from .plots import WIDE, axes_of, style
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Probes:
    """One probe for each layer, and what its accuracy has to be compared with.

    Attributes:
        accuracy: float32 `[layer + 1]`, the share of test texts that are right; chance is near `baselines["majority"]`.
        interval: float32 `[layer + 1, 2]`, 95 % bootstrap interval of the accuracy, over the test groups of every
            grouping at once (Owen 2007); NaN with a single test group, and of width zero where all texts are right.
        validation: float32 `[layer + 1]`, accuracy on the validation texts, which choose the layer.
        control: float32 `[layer + 1]`, accuracy on the control task: random labels by group, new texts of the same
            groups; NaN where fewer than two groups have two texts.
        directions: float32 `[layer + 1, d_model]`, unit vectors in the residual stream that point to the positive
            class; zero where a layer holds nothing to go by (a template's token at layer 0).
        baselines: test accuracy of "majority", "bag of words", "layer 0" and "untrained model" (its own best layer).
        split: for each text "train", "validation", "test" or "left out".
        classes: the negative class and the positive one, the later of the two in sorting order.
    """

    accuracy: Floats
    interval: Floats
    validation: Floats
    control: Floats
    directions: Floats
    baselines: Mapping[str, float]
    split: NDArray[np.str_]
    classes: tuple[str, str]

    @property
    def best_layer(self) -> int:
        """The layer with the best validation accuracy; of several, the earliest."""
        return int(self.validation.argmax())

    @property
    def selectivity(self) -> Floats:
        """float32 `[layer + 1]`: accuracy less control, what is left when memorised groups are taken off."""
        return self.accuracy - self.control

    @property
    def sizes(self) -> dict[str, int]:
        """How many texts each split holds, and how many were left out because their groups fell apart."""
        return {name: int((self.split == name).sum()) for name in (*SPLITS, LEFT_OUT)}

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """Probe accuracy by layer with its interval, the control task beside it, and the baselines as level lines."""
        p, layers, best = self, range(len(self.accuracy)), self.best_layer
        floor = max(p.baselines, key=p.baselines.__getitem__)
        default = f"Layer {best} tells {p.accuracy[best]:.0%} of unseen texts apart, {floor} {p.baselines[floor]:.0%}"
        with style():
            ax = axes_of(ax, WIDE)
            ax.fill_between(layers, *p.interval.T, color="#0072B2", alpha=0.25, linewidth=0)
            ax.plot(layers, p.accuracy, color="#0072B2", linewidth=2, label="probe, 95 % interval")
            ax.plot(best, p.accuracy[best], "o", color="#0072B2", markersize=8, label="layer chosen on validation")
            if not np.isnan(p.control).any():
                ax.plot(layers, p.control, color="#D55E00", linestyle="--", label="control task")
            for (name, value), (colour, dashes, width) in zip(p.baselines.items(), _LEVELS, strict=False):
                label = f"{name}: {value:.2f}"
                ax.axhline(value, color=colour, linestyle=dashes, linewidth=width, label=label, zorder=1)
            ax.set_ylim(
                np.nanmin([0.4, *p.interval[:, 0], *p.accuracy, *p.control, *p.baselines.values()]) - 0.03, 1.03
            )
            ax.set_xlabel("layer (last: before the final norm)")
            ax.set_ylabel("accuracy on test")
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
            ax.set_title(title or default)
        return ax

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
            for name, value in _probe_rows(self)
        )
        return f'<table aria-label="Probes by layer">{cells}</table>'

    def __repr__(self) -> str:
        return "\n".join(f"{name:<16} {value}" for name, value in _probe_rows(self))


def probe_layers(
    lm: LocalModel,
    texts: Sequence[str | Prompt],
    labels: Sequence[Any],
    *,
    groups: Sequence[Any],
    position: int = -1,
    seed: int = 0,
    untrained: bool = True,
) -> Probes:
    """Train a linear probe on the residual stream at every layer, and all it must be compared with.

    Args:
        lm: the model.
        texts: typed texts (in the chat template, if the model has one) or prompts.
        labels: one a text, of two classes.
        groups: what each text was made from, one hashable a text; or several such sequences (its act, its frame). A
            group goes to one split as a whole, and a text whose groups went to different splits is left out.
        position: which token of the prompt is read; negative counts from its end.
        seed: for splits, bootstrap, control task and the untrained model.
        untrained: whether to run a freshly initialised model of the same architecture too (twice the time).

    Raises:
        CourseError: no two classes, lengths that differ, too few groups, a position outside a prompt, activations
            that are not finite.

    >>> probes = probe_layers(lm, ["a", "b"] * 3, [0, 1] * 3, groups=[1, 1, 2, 2, 3, 3], untrained=False)
    >>> probes.accuracy.shape, probes.sizes["test"]
    ((31,), 2)
    """
    plan = plan_of(labels, groups, len(texts), seed)
    prompts = prompts_of(lm, texts)
    probes = _probes(collect_activations(lm, prompts, position), plan, seed)
    majority, embeddings = probes.baselines.values()
    baselines = {"majority": majority, "bag of words": _bag_of_words(prompts, plan), "layer 0": embeddings}
    if untrained:
        activations = _untrained_activations(lm, prompts, position, seed)
        right, _ = fit_layers(activations, plan.positive, plan.split)
        layer = right[:, plan.split == "validation"].mean(axis=1).argmax()
        baselines["untrained model"] = float(right[layer, plan.split == "test"].mean())
    return replace(probes, baselines=baselines)


def probe_activations(activations: Floats, labels: Sequence[Any], *, groups: Sequence[Any], seed: int = 0) -> Probes:
    """Probe activations `[text, layer + 1, d_model]` from anywhere, as `probe_layers` does, without its two models.

    Raises:
        CourseError: as `probe_layers`.

    >>> noise = np.random.default_rng(0).normal(size=(40, 2, 8))
    >>> probe_activations(noise, [0, 1] * 20, groups=range(40)).accuracy.shape
    (2,)
    """
    return _probes(activations, plan_of(labels, groups, len(activations), seed), seed)


def _probes(activations: Floats, plan: Plan, seed: int) -> Probes:
    """All of `Probes` that the activations `[text, layer + 1, d_model]` tell by themselves."""
    if activations.ndim != 3:
        shape = list(activations.shape)
        raise CourseError(
            f"Expected activations [text, layer + 1, d_model], got the shape {shape}; add the missing axis."
        )
    broken = ~np.isfinite(activations).all(axis=(0, 2))
    if broken.any():
        raise CourseError(
            f"Expected finite activations, got infinite ones or NaN at layer {broken.argmax()}; "
            'load the model with dtype="float32".'
        )
    right, directions = fit_layers(activations, plan.positive, plan.split)
    train, validation, test = (plan.split == name for name in SPLITS)
    accuracy = right[:, test].mean(axis=1)
    majority = plan.positive[train].mean() >= 0.5
    return Probes(
        accuracy=accuracy.astype(np.float32),
        interval=accuracy_interval(right[:, test], [codes[test] for codes in plan.groupings], seed),
        validation=right[:, validation].mean(axis=1).astype(np.float32),
        control=control_task(activations, plan.groupings[0], seed),
        directions=directions,
        baselines={"majority": float((plan.positive[test] == majority).mean()), "layer 0": float(accuracy[0])},
        split=plan.split,
        classes=plan.classes,
    )


def _bag_of_words(prompts: list[Prompt], plan: Plan) -> float:
    """Test accuracy of logistic regression on which words and signs the typed texts hold, not on their order."""
    typed = np.array([prompt.text[slice(*prompt.typed)] for prompt in prompts])
    train, test = plan.split == "train", plan.split == "test"
    words = CountVectorizer(binary=True, token_pattern=r"\w+|[^\w\s]")
    probe = make_pipeline(words, LogisticRegression(max_iter=MAX_ITER)).fit(typed[train], plan.positive[train])
    return float((probe.predict(typed[test]) == plan.positive[test]).mean())


def untrained_copy(lm: LocalModel, seed: int = 0) -> LocalModel:
    """A model of the same architecture with fresh random weights; torch's own random state stays as it was.

    Raises:
        CourseError: there is no memory for it.

    >>> untrained_copy(lm).n_layers  # doctest: +SKIP
    30
    """
    from transformers import AutoModelForCausalLM

    wanted, free = sum(p.numel() * p.element_size() for p in lm.model.parameters()), free_memory(lm.device.type)
    if wanted > 0.9 * free:
        raise CourseError(
            f"Expected {wanted / 1e9:.1f} GB of free memory for an untrained copy of {lm.name}, got {free / 1e9:.1f}; "
            "pass untrained=False to do without."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(lm.model.config), dtype=lm.model.dtype)
    return replace(lm, name=f"{lm.name}, untrained", model=model.to(lm.device).eval().requires_grad_(False))


def _untrained_activations(lm: LocalModel, prompts: list[Prompt], position: int, seed: int) -> Floats:
    try:
        return collect_activations(untrained_copy(lm, seed), prompts, position)
    finally:
        gc.collect()  # a model refers to itself, so its memory would come back only later


_LEVELS = (  # a colour, a line style and a width for each baseline: where two coincide, both are seen
    ("#999999", "-", 6.0),
    ("#E69F00", "-.", 3.6),
    ("#009E73", (0, (5, 1)), 2.2),
    ("#CC79A7", (0, (1, 1)), 1.4),
)


def _probe_rows(probes: Probes) -> list[tuple[str, str]]:
    p, best = probes, probes.best_layer
    low, high = p.interval[best]
    spread = "a single test group, so no interval" if np.isnan(low) else f"95 % interval {low:.2f} to {high:.2f}"
    control = f"{p.control[best]:.2f}, selectivity {p.selectivity[best]:+.2f}"
    return [
        ("probe", f"{p.classes[1]} against {p.classes[0]}, {len(p.accuracy)} layers"),
        (f"layer {best}", f"{p.accuracy[best]:.2f} on test, {spread}"),
        *((name, f"{value:.2f}") for name, value in p.baselines.items()),
        ("control task", "needs two texts a group" if np.isnan(p.control[best]) else control),
        ("texts", ", ".join(f"{size} {name}" for name, size in p.sizes.items())),
    ]
