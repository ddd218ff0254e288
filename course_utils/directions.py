"""Directions in the residual stream: take one out, or push along it, and see whether the model used it.

What a probe can decode need not be used (Ravichander 2021, Elazar 2021): the output must change more without it than
without random directions, at the least. These are a weak control: directions made in the same way from labels that
mean nothing are a stricter one (lesson 8.3).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ._arrays import Floats, floats
from ._progress import progress
from .engine.activations import prompts_of, score_last
from .engine.metrics import make_metric
from .errors import CourseError
from .hooks import edit
from .models import LocalModel
from .prompts import Prompt


@dataclass(frozen=True, eq=False)
class DirectionEffect:
    """What a contrast loses or gains when a direction is taken out of the residual stream.

    Attributes:
        effects: float32 `[prompt]`, the change of the contrast without the direction, in logits.
        random: float32 `[direction, prompt]`, the same for random directions.
        value: float32 `[prompt]`, the contrast of the unchanged model, in logits.
        contrast: the two tokens.
    """

    effects: Floats
    random: Floats
    value: Floats
    contrast: str

    @property
    def mean(self) -> float:
        """The change in logits, averaged over the prompts."""
        return float(self.effects.mean())

    @property
    def random_means(self) -> Floats:
        """float32 `[direction]`: the same for each random direction."""
        return self.random.mean(axis=1)

    def __repr__(self) -> str:
        low, high = self.random_means.min(), self.random_means.max()
        return (
            f"{self.contrast} = {self.value.mean():+.2f} logits on average over {len(self.value)} prompts; "
            f"without the direction it changes by {self.mean:+.2f}, without a random one by {low:+.2f} to {high:+.2f}"
        )


@contextmanager
def project_out(lm: LocalModel, direction: ArrayLike, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Take a direction out of the residual stream that enters some layers, at every token, inside the block.

    Args:
        lm: the model.
        direction: `[d_model]`, of any length but zero.
        layers: 0 … n_layers (the last is what enters the final norm), by default all. What a layer's attention writes
            along the direction its own MLP still sees; it is taken out before the next layer.

    Raises:
        CourseError: a direction of another size, zero or not finite; a layer that the model does not have.

    >>> with project_out(lm, np.eye(576)[0]):
    ...     reply = lm.reply(prompt, 1)
    """
    unit = _unit(direction, lm.d_model)

    def remove(stream: Tensor) -> Tensor:
        along = _fitted(unit, stream)
        return stream - (stream @ along)[..., None] * along

    chosen = range(lm.n_layers + 1) if layers is None else layers
    with edit(lm, {("residual", layer): remove for layer in chosen}, tokenwise=True):
        yield


@contextmanager
def steer(
    lm: LocalModel, direction: ArrayLike, layer: int, amount: float, *, positions: Sequence[int] | None = None
) -> Iterator[None]:
    """Add a direction to the residual stream that enters a layer, inside the block (Turner 2023).

    Args:
        lm: the model.
        direction: `[d_model]`; it is made a unit vector first.
        layer: 0 … n_layers.
        amount: how far, in the units of the residual stream (compare with the norm of its vectors); < 0 the other way.
        positions: at which tokens of the input, negative from its end; by default at all.

    Raises:
        CourseError: as `project_out`, or a position that the input does not have.

    >>> with steer(lm, np.eye(576)[0], layer=3, amount=5.0):
    ...     reply = lm.model(ids[None]).logits
    """
    if not np.isfinite(amount):
        raise CourseError(f"Expected a finite amount, got {amount}; compare with the norm of the residual stream.")
    push = amount * _unit(direction, lm.d_model)

    def add(stream: Tensor) -> Tensor:
        if positions is None:
            return stream + _fitted(push, stream)
        n_tokens, moved = stream.shape[1], stream.clone()
        if wrong := [p for p in positions if not -n_tokens <= p < n_tokens]:
            raise CourseError(f"Expected positions from {-n_tokens} to {n_tokens - 1}, got {wrong[0]}.")
        moved[:, list(positions)] += _fitted(push, stream)
        return moved

    with edit(lm, {("residual", layer): add}, tokenwise=positions is None):
        yield


def _fitted(direction: Tensor, stream: Tensor) -> Tensor:
    """A direction as the residual stream's own kind of number."""
    if stream.dim() != 3 or stream.shape[-1] != len(direction):
        raise CourseError(
            f"Expected a residual stream of {len(direction)} numbers for each token, got {list(stream.shape)}: the "
            "model has more streams than one, and a direction in it is not defined."
        )
    return direction.to(stream)


def random_directions(direction: ArrayLike, n: int, seed: int = 0) -> Floats:
    """Random unit vectors of a direction's size, all directions alike probable: float32 `[n, d_model]`.

    >>> random_directions(np.ones(4), 10).shape
    (10, 4)
    """
    if n < 1:
        raise CourseError(f"Expected at least one random direction, got {n}; without them there is no control.")
    size = torch.as_tensor(direction).numel()
    drawn = np.random.default_rng(seed).normal(size=(n, size))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def direction_effect(
    lm: LocalModel,
    prompts: Sequence[str | Prompt],
    direction: ArrayLike,
    *,
    contrast: tuple[str, str] = ("I", "Sure"),
    layers: Iterable[int] | None = None,
    n_random: int = 10,
    seed: int = 0,
) -> DirectionEffect:
    """How much a contrast of first reply tokens changes when a direction is projected out, and when random ones are.

    A probe shows what can be decoded, not what is used (Ravichander 2021). Any removal disturbs the model a little,
    hence the controls. A direction that matters no more than random ones is not shown to be used; one that matters
    more may only lie where states differ most: compare with directions of labels that mean nothing, too.

    Args:
        lm: the model.
        prompts: typed texts or prompts.
        direction: `[d_model]`.
        contrast: two single tokens; the logit of the first less that of the second.
        layers: where to project it out, by default at all layers.
        n_random: how many random directions; each costs one more round of passes.
        seed: of the random directions.

    Raises:
        CourseError: as `project_out`; a contrast of several tokens.

    >>> direction_effect(lm, [prompt], np.eye(576)[5], n_random=1, layers=[29]).random.shape
    (1, 1)
    """
    ready = prompts_of(lm, prompts)
    metric = make_metric(lm, ready[0], contrast=contrast)
    sequences = [prompt.input_ids[0].tolist() for prompt in ready]

    def contrasts() -> Floats:
        """The contrast at the last token of each prompt, `[prompt]`."""
        return floats(score_last(lm, sequences, lambda logits: metric.score(logits[:, None])[:, 0]))

    directions = [_unit(direction, lm.d_model), *random_directions(direction, n_random, seed)]
    places = None if layers is None else list(layers)
    begun = time.perf_counter()
    value, changed = contrasts(), []
    seconds = (time.perf_counter() - begun) * len(directions)
    with progress(len(directions), "directions", seconds=seconds, unit="direction") as bar:
        for one in directions:
            with project_out(lm, one, places):
                changed.append(contrasts() - value)
            bar.update()
    return DirectionEffect(changed[0], np.stack(changed[1:]), value, metric.output_tokens[0])


def _unit(direction: ArrayLike, size: int) -> Tensor:
    """A direction as a float64 unit vector `[d_model]`."""
    vector = torch.as_tensor(direction).detach().double().cpu()
    if vector.shape != (size,):
        raise CourseError(
            f"Expected a direction of {size} numbers, one for each dimension of the residual stream, got the shape "
            f"{list(vector.shape)}; take one layer's, such as probes.directions[probes.best_layer]."
        )
    if not vector.isfinite().all() or not vector.any():
        raise CourseError("Expected a direction of finite numbers, not all of them zero; choose another layer's.")
    return vector / vector.norm()
