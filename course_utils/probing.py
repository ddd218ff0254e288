"""Probing: what can be read off the residual stream, layer by layer, and whether the model uses it.

A probe is a linear classifier on activations (Alain & Bengio 2017). Its accuracy means little by itself, so here it
always stands beside what needs no model, no training, or no meaning: baselines and a control task (Hewitt & Liang
2019). And what can be decoded need not be used (Elazar 2021), so a probe's direction can be taken out, or added.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ._arrays import Floats
from ._progress import progress
from .engine.activations import collect_activations, prompts_of
from .errors import CourseError
from .loading.devices import free_memory
from .models import LocalModel
from .plots import WIDE, axes_of, style
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]  # [text], the number of each text's group
SPLITS = ("train", "validation", "test")
SHARES = (0.6, 0.2, 0.2)
LEFT_OUT = "left out"
# With more dimensions than texts any labels can be separated, so the penalty decides what a probe learns: the strongest
# that costs nothing. On 360 of this course's requests (harm, trigger word) validation accuracy rose up to C = 0.1 and
# was flat from there to 10; it took 50 steps, so the limit on them only keeps odd activations from running for ever.
C = 0.1
MAX_ITER = 1000


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
        """Accuracy by layer with its interval, the control task, and the baselines."""
        return plot_probes(self, ax=ax, title=title)

    def _repr_html_(self) -> str:

        return probes_html(self)

    def __repr__(self) -> str:

        return probes_text(self)


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
    plan = _plan(labels, groups, len(texts), seed)
    prompts = prompts_of(lm, texts)
    probes = _probes(collect_activations(lm, prompts, position), plan, seed)
    majority, embeddings = probes.baselines.values()
    baselines = {"majority": majority, "bag of words": _bag_of_words(prompts, plan), "layer 0": embeddings}
    if untrained:
        activations = _untrained_activations(lm, prompts, position, seed)
        right, _ = _fit_layers(activations, plan.positive, plan.split)
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
    return _probes(activations, _plan(labels, groups, len(activations), seed), seed)


class Plan(NamedTuple):
    """Labels and groups in the form in which the probes use them."""

    positive: Bools  # [text]
    classes: tuple[str, str]
    groupings: list[Codes]
    split: NDArray[np.str_]  # [text]


def _plan(labels: Sequence[Any], groups: Sequence[Any], n_texts: int, seed: int) -> Plan:
    if len(labels) != n_texts:
        raise CourseError(f"Expected one label a text, got {len(labels)} labels for {n_texts} texts.")
    positive, classes = _two_classes(labels)
    groupings = _groupings(groups, n_texts)
    return Plan(positive, classes, groupings, split_by_groups(groupings, positive, seed))


def _two_classes(labels: Sequence[Any]) -> tuple[Bools, tuple[str, str]]:
    given = np.asarray(labels)
    found, which = np.unique(given.astype(str) if given.dtype == object else given, return_inverse=True)
    if given.ndim != 1 or len(found) != 2:
        shown = ", ".join(map(str, found[:5]))
        raise CourseError(
            f"Expected labels of two classes, one a text, got {len(found)} ({shown}); choose texts of two classes."
        )
    return which == 1, (str(found[0]), str(found[1]))


def _groupings(groups: Sequence[Any], n_texts: int) -> list[Codes]:
    kinds = (list, np.ndarray) if len(groups) == n_texts else (list, np.ndarray, tuple, range)
    several = all(isinstance(grouping, kinds) for grouping in groups)
    groupings = [_numbered(grouping) for grouping in (groups if several else [groups])]
    if not groupings or any(len(codes) != n_texts for codes in groupings):
        raise CourseError(
            f"Expected one group a text ({n_texts}), or several sequences of as many, got groups of length "
            f"{len(groups)}; pass range(len(texts)) if every text stands for itself."
        )
    return groupings


def _numbered(grouping: Sequence[Hashable]) -> Codes:
    number: dict[Hashable, int] = {}
    try:
        return np.array([number.setdefault(group, len(number)) for group in grouping], dtype=np.int64)
    except TypeError as error:
        raise CourseError(
            f"Expected groups that can be compared and counted ({error}); use texts or numbers."
        ) from error


def split_by_groups(groupings: Sequence[Codes], positive: Bools, seed: int = 0) -> NDArray[np.str_]:
    """Deal whole groups out to train, validation and test, 60/20/20: the name of each text's split, `[text]`.

    Of a hundred random deals it takes the one in which each class comes closest to its share of every split.

    Raises:
        CourseError: a grouping of fewer than three groups, or no deal that puts both classes in every split.

    >>> split_by_groups([np.repeat(range(5), 2)], np.tile([True, False], 5)).tolist().count("train")
    6
    """
    fewest = min(int(codes.max()) + 1 for codes in groupings)
    if fewest < len(SPLITS):
        raise CourseError(f"Expected at least three groups, one for each split, got {fewest}; use a finer grouping.")
    rng = np.random.default_rng(seed)
    deals = [_deal(groupings, rng) for _ in range(100)]
    evenness = [_evenness(deal, positive, len(groupings)) for deal in deals]
    if not max(evenness):
        raise CourseError(
            "Expected groups that leave texts of both classes in train, validation and test, and found no such "
            "division in 100; add groups of the rarer class, or drop a grouping."
        )
    return deals[int(np.argmax(evenness))]


def _deal(groupings: Sequence[Codes], rng: np.random.Generator) -> NDArray[np.str_]:
    dealt = []
    for codes in groupings:
        n_groups = int(codes.max()) + 1
        held = max(1, round(SHARES[2] * n_groups))
        names = np.repeat(SPLITS, [n_groups - 2 * held, held, held])
        dealt.append(rng.permutation(names)[codes])  # [text]
    return np.where(np.all([names == dealt[0] for names in dealt], axis=0), dealt[0], LEFT_OUT)


def _evenness(split: NDArray[np.str_], positive: Bools, n_groupings: int) -> float:
    """The smallest class of any split, as a share of what it would be were all divided evenly."""
    return min(
        float((split[positive == sign] == name).mean()) / share**n_groupings
        for name, share in zip(SPLITS, SHARES, strict=True)
        for sign in (True, False)
    )


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
    right, directions = _fit_layers(activations, plan.positive, plan.split)
    train, validation, test = (plan.split == name for name in SPLITS)
    accuracy = right[:, test].mean(axis=1)
    majority = plan.positive[train].mean() >= 0.5
    return Probes(
        accuracy=accuracy.astype(np.float32),
        interval=_interval(right[:, test], [codes[test] for codes in plan.groupings], seed),
        validation=right[:, validation].mean(axis=1).astype(np.float32),
        control=_control(activations, plan.groupings[0], seed),
        directions=directions,
        baselines={"majority": float((plan.positive[test] == majority).mean()), "layer 0": float(accuracy[0])},
        split=plan.split,
        classes=plan.classes,
    )


def _fit_layers(activations: Floats, positive: Bools, split: NDArray[np.str_]) -> tuple[Bools, Floats]:
    """A probe for each layer: whether it is right on each text `[layer + 1, text]`, and its direction."""
    train, right, directions = split == "train", [], []
    layers = activations.astype(float).swapaxes(0, 1)  # [layer + 1, text, d_model]
    with progress(len(layers), "probes", unit="layer") as bar:
        for layer in layers:
            probe = fit_probe(layer[train], positive[train])
            right.append(probe.predict(layer) == positive)
            directions.append(_unscaled(probe))
            bar.update()
    return np.stack(right), np.stack(directions)


def fit_probe(activations: ArrayLike, labels: ArrayLike) -> Any:
    """A scikit-learn pipeline: each dimension to mean 0 and variance 1, as seen here, then logistic regression.

    >>> fit_probe([[0.0, 1.0], [1.0, 1.0]], [False, True]).predict([[3.0, 1.0]])
    array([ True])
    """
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=MAX_ITER)).fit(activations, labels)


def _unscaled(probe: Any) -> Floats:
    """A probe's direction in the coordinates of the residual stream, a unit vector: w · (x − mean) / scale."""
    scaler, regression = probe[0], probe[1]
    direction = regression.coef_[0] / scaler.scale_
    unit: Floats = (direction / (np.linalg.norm(direction) or 1.0)).astype(np.float32)
    return unit


def _interval(right: Bools, groupings: Sequence[Codes], seed: int, draws: int = 2000) -> Floats:
    """Bootstrap over groups: a text counts as often as its groups are drawn, their counts multiplied (Owen 2007)."""
    rng = np.random.default_rng(seed)
    weights = np.ones((draws, right.shape[1]))  # [draw, text]
    for grouping in groupings:
        codes = _numbered(grouping.tolist())
        n_groups = int(codes.max()) + 1
        weights *= rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)[:, codes]
    if all(len(set(grouping.tolist())) == 1 for grouping in groupings):
        return np.full((len(right), 2), np.nan, dtype=np.float32)
    weights = weights[weights.sum(axis=1) > 0]
    accuracies = weights @ right.T / weights.sum(axis=1, keepdims=True)  # [draw, layer + 1]
    bounds: Floats = np.quantile(accuracies, (0.025, 0.975), axis=0).T.astype(np.float32)
    return bounds


def _control(activations: Floats, groups: Codes, seed: int) -> Floats:
    """Accuracy `[layer + 1]` on random labels of the groups, learnt from some texts of each and asked of the others."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    members = [rng.permutation(texts) for texts in members if len(texts) > 1]
    if len(members) < 2:
        return np.full(activations.shape[1], np.nan, dtype=np.float32)
    labels = rng.permutation(np.arange(len(members)) % 2 == 1)  # [group], half of each
    positive, split = np.zeros(len(groups), dtype=np.bool_), np.full(len(groups), LEFT_OUT)
    for texts, label in zip(members, labels, strict=True):
        cut = min(max(1, round(SHARES[0] * len(texts))), len(texts) - 1)
        positive[texts] = label
        split[texts[:cut]], split[texts[cut:]] = "train", "test"
    right, _ = _fit_layers(activations, positive, split)
    control: Floats = right[:, split == "test"].mean(axis=1).astype(np.float32)
    return control


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


def plot_probes(probes: Probes, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Probe accuracy by layer with its interval, the control task beside it, and the baselines as level lines."""
    p, layers, best = probes, range(len(probes.accuracy)), probes.best_layer
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
        ax.set_ylim(np.nanmin([0.4, *p.interval[:, 0], *p.accuracy, *p.control, *p.baselines.values()]) - 0.03, 1.03)
        ax.set_xlabel("layer (last: before the final norm)")
        ax.set_ylabel("accuracy on test")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
        ax.set_title(title or default)
    return ax


_LEVELS = (  # a colour, a line style and a width for each baseline: where two coincide, both are seen
    ("#999999", "-", 6.0),
    ("#E69F00", "-.", 3.6),
    ("#009E73", (0, (5, 1)), 2.2),
    ("#CC79A7", (0, (1, 1)), 1.4),
)


def probes_text(probes: Probes) -> str:
    """Probes in a few lines: the chosen layer, its accuracy with interval, the baselines, the control, the sizes."""
    return "\n".join(f"{name:<16} {value}" for name, value in _probe_rows(probes))


def probes_html(probes: Probes) -> str:
    """The same as a small table."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in _probe_rows(probes)
    )
    return f'<table aria-label="Probes by layer">{cells}</table>'


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
