"""Linear probes on activations: one a layer, its accuracy's interval, and the control task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .._arrays import Floats
from .._progress import progress
from .splits import LEFT_OUT, SHARES, Bools, Codes, numbered

# With more dimensions than texts any labels can be separated, so the penalty decides what a probe learns: the strongest
# that costs nothing. On 360 of this course's requests (harm, trigger word) validation accuracy rose up to C = 0.1 and
# was flat from there to 10; it took 50 steps, so the limit on them only keeps odd activations from running for ever.
C = 0.1
MAX_ITER = 1000
DRAWS = 2000  # of the bootstrap


def fit_layers(activations: Floats, positive: Bools, split: NDArray[np.str_]) -> tuple[Bools, Floats]:
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
    return (direction / (np.linalg.norm(direction) or 1.0)).astype(np.float32)


def accuracy_interval(right: Bools, groupings: Sequence[Codes], seed: int) -> Floats:
    """Bootstrap over groups: a text counts as often as its groups are drawn, their counts multiplied (Owen 2007)."""
    rng = np.random.default_rng(seed)
    weights = np.ones((DRAWS, right.shape[1]))  # [draw, text]
    for grouping in groupings:
        codes = numbered(grouping.tolist())
        n_groups = int(codes.max()) + 1
        weights *= rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=DRAWS)[:, codes]
    if all(len(set(grouping.tolist())) == 1 for grouping in groupings):
        return np.full((len(right), 2), np.nan, dtype=np.float32)
    weights = weights[weights.sum(axis=1) > 0]
    accuracies = weights @ right.T / weights.sum(axis=1, keepdims=True)  # [draw, layer + 1]
    return np.quantile(accuracies, (0.025, 0.975), axis=0).T.astype(np.float32)


def control_task(activations: Floats, groups: Codes, seed: int) -> Floats:
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
    right, _ = fit_layers(activations, positive, split)
    return right[:, split == "test"].mean(axis=1).astype(np.float32)
