"""Where in the model a refusal can be read, whether what is read is used, and which heads carry it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._arrays import Floats, strongest
from ..directions import project_out
from ..engine.activations import collect_activations
from ..engine.openings import Opening, opening_chances, opening_ids, refusal_log_odds
from ..errors import CourseError
from ..models import LocalModel
from ..patching import activation_patching
from ..plots import WIDE, axes_of, style
from ..prompts import Prompt
from .kept import can_be_kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 6  # requests refused, and helped with
READ = 0.9  # of the requests told apart: then it can be read
N_COINS = 5


@can_be_kept
@dataclass(frozen=True, eq=False)
class Inside:
    """What was found inside a model."""

    # float32 [layer + 1], the share of requests told apart by the difference of means at the last token of the prompt,
    # each by the requests on other acts
    accuracy: Floats
    layer: int | None  # the first layer at which it is at least `READ`; None where there is none
    before: float  # mean log-odds of refusing of the refused requests, in logits
    without: float | None  # the same with that layer's direction taken out of all layers
    # the same with each of several directions taken out instead that are made alike and mean nothing: a coin puts acts
    # on two sides (random ones hardly ever move a score, lesson 8.3)
    coins: tuple[float, ...]
    heads: tuple[tuple[int, int, float], ...]  # whose patching brings most of a refusal back, as (layer, head, share)
    no_heads: str = ""  # why there are none

    def plot(self, ax: Axes | None = None) -> Axes:
        """The share of requests told apart, by layer."""
        with style():
            ax = axes_of(ax, WIDE)
            ax.plot(np.arange(len(self.accuracy)), self.accuracy, color="#0072B2")
            ax.axhline(0.5, color="#999999", linestyle="--", linewidth=1)
            ax.set_ylim(0.3, 1.03)
            ax.set_xlabel("layer")
            ax.set_ylabel("told apart")
            ax.set_title(f"Where it can be read: from layer {self.layer}; dashed: chance")
        return ax


@torch.no_grad()
def look_inside(
    lm: LocalModel,
    prompts: Sequence[Prompt],
    scores: Floats,
    groups: Sequence[int],
    openings: Sequence[Opening],
    *,
    seed: int = 0,
) -> Inside:
    """Read refusals off the residual stream, take the direction out, and patch the heads of one pair.

    The scores of the requests are their log-odds of refusing, `[prompt]`; those of a group are on the same act.
    """
    refused = np.asarray(scores) > 0
    if min(refused.sum(), (~refused).sum()) < LEAST:
        raise CourseError(
            f"Expected at least {LEAST} refused requests and as many others, got {refused.sum()} of {len(refused)}: "
            "where all end alike there is nothing to tell apart."
        )
    stream = collect_activations(lm, prompts)  # [prompt, layer + 1, d_model]
    accuracy = _told_apart(stream, refused, np.asarray(groups))
    layer = next((int(i) for i in np.flatnonzero(accuracy >= READ)), None)
    declined = [prompt for prompt, each in zip(prompts, refused, strict=True) if each][: 2 * LEAST]

    def mean_score() -> float:
        return float(refusal_log_odds(lm, declined, openings).mean())

    def without_direction(side: np.ndarray) -> float:
        """The mean score without the direction to the prompts on one side from those on the other."""
        with project_out(lm, stream[side, layer].mean(axis=0) - stream[~side, layer].mean(axis=0)):
            return mean_score()

    before, without = mean_score(), None
    coins: tuple[float, ...] = ()
    if layer is not None:
        without = without_direction(refused)
        coins = tuple(map(without_direction, _tosses(np.asarray(groups), N_COINS, seed)))
    try:
        heads, no_heads = _heads(lm, prompts, refused, openings), ""
    except CourseError as error:  # what was read stands without them
        heads, no_heads = (), str(error)
    return Inside(accuracy, layer, before, without, coins, heads, no_heads)


def _tosses(groups: np.ndarray, n: int, seed: int) -> list[np.ndarray]:
    """Two sides, half of the groups on each, drawn so often: bool `[prompt]`, the same for all prompts of a group."""
    names, number = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    return [(rng.permutation(len(names)) % 2 == 0)[number] for _ in range(n)]


def _told_apart(stream: Floats, refused: np.ndarray, groups: np.ndarray) -> Floats:
    """The share of requests on the right side of the middle between the means of the other groups' requests."""
    right = np.zeros(stream.shape[:2], bool)
    for group in np.unique(groups):
        own = groups == group
        high, low = (stream[~own & side].mean(axis=0) for side in (refused, ~refused))  # [layer + 1, d_model]
        along = np.einsum("pld,ld->pl", stream[own] - (high + low) / 2, high - low)
        right[own] = (along > 0) == refused[own, None]
    # as if both kinds were as many
    return np.mean([right[side].mean(axis=0) for side in (refused, ~refused)], axis=0).astype(np.float32)


def _heads(
    lm: LocalModel, prompts: Sequence[Prompt], refused: np.ndarray, openings: Sequence[Opening], n: int = 5
) -> tuple[tuple[int, int, float], ...]:
    """The heads that bring most of a refusal into a request of the same length that is helped with."""
    pairs = (
        (one, other)
        for one, r in zip(prompts, refused, strict=True)
        for other, s in zip(prompts, refused, strict=True)
        if r and not s and len(one) == len(other)
    )
    apart = ((int((one.input_ids != other.input_ids).sum()), one, other) for one, other in pairs)
    _, clean, corrupted = min(apart, key=itemgetter(0), default=(0, None, None))
    if clean is None or corrupted is None:
        raise CourseError("No refused request is as long as one that is helped with, so no heads were patched.")
    chances = opening_chances(lm, [clean], openings)[0]
    opening = str(lm.tokenizer.decode(opening_ids(lm, clean, openings)[int(chances.argmax())]))
    effects = activation_patching(lm, clean, corrupted, over="heads", target=opening).effects  # [layer, head]
    return tuple((layer, head, round(float(effects[layer, head]), 3)) for layer, head in strongest(effects, n))
