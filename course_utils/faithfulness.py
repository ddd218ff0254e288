"""Is a ranking of tokens faithful? Take the top tokens out, or keep them alone, and see what the output does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import Floats
from .engine.metrics import Metric, make_metric
from .engine.prefix_sharing import score_variants
from .engine.replacements import replacement_id
from .errors import CourseError
from .models import LocalModel
from .plots import WIDE, axes_of, style
from .prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRACTIONS = (0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the output loses when the top typed tokens go (comprehensiveness) or alone remain (sufficiency).

    A faithful ranking has a large comprehensiveness and a small sufficiency (DeYoung et al. 2020).

    Attributes:
        comprehensiveness: float32 `[fraction]`, in `unit`.
        sufficiency: float32 `[fraction]`, in `unit`.
        fractions: the shares of the typed tokens that count as top.
        baselines: the same two for rankings that know nothing: "random" (mean of several) and "position" (last first).
    """

    comprehensiveness: Floats
    sufficiency: Floats
    fractions: tuple[float, ...]
    unit: str
    baselines: dict[str, tuple[Floats, Floats]]

    @property
    def area(self) -> tuple[float, float]:
        """Comprehensiveness and sufficiency, averaged over the fractions."""
        return float(self.comprehensiveness.mean()), float(self.sufficiency.mean())

    def plot(self, ax: Axes | None = None, *, title: str | None = None) -> Axes:
        """What the output loses without the top tokens, and with them alone, over the share that counts as top."""
        f = self
        gone, kept = f.area
        shares = [100 * fraction for fraction in f.fractions]
        lines = {
            "comprehensiveness": (f.comprehensiveness, "#D55E00", "-"),
            "sufficiency": (f.sufficiency, "#0072B2", "-"),
        }
        lines |= {
            f"{name} of a random order": (values, lines[name][1], ":")
            for name, values in zip(lines, f.baselines["random"], strict=True)
        }
        with style():
            ax = axes_of(ax, WIDE)
            for label, (values, colour, dashes) in lines.items():
                ax.plot(shares, values, color=colour, linestyle=dashes, marker="o", markersize=4, label=label)
            ax.axhline(0, color="0.3", linewidth=0.8)
            ax.set_xlabel("share of the typed tokens that counts as top (%)")
            ax.set_ylabel(f"loss of the output ({f.unit})")
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02))
            ax.set_title(title or f"Without the top the output loses {gone:.1f} {f.unit}, with it alone {kept:.1f}")
        return ax


def faithfulness(
    lm: LocalModel,
    prompt: Prompt,
    scores: Sequence[float] | NDArray[np.float32],
    *,
    target: str | None = None,
    contrast: tuple[str, str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    replacement: str | int = " the",
    n_random: int = 10,
    seed: int = 0,
) -> Faithfulness:
    """Score a ranking of the typed tokens by what the output loses without its top, and with its top alone.

    Args:
        lm: the model.
        prompt: what it reads.
        scores: one a token of the prompt; the largest are the top.
        target: a reply whose log-probability is the output (nats).
        contrast: two single tokens; the output is the logit of the first minus that of the second.
        fractions: shares of the typed tokens that count as top (at least one token each).
        replacement: what stands in for tokens that are taken out.
        n_random: how many random rankings to compare with.
        seed: decides them.

    Raises:
        CourseError: scores that are not one a token or not finite, fractions outside 0 to 1.

    >>> scores = range(len(prompt))
    >>> f = faithfulness(lm, prompt, scores, contrast=("I", "Sure"))
    >>> len(f.comprehensiveness)
    4
    """
    ranks = np.asarray(scores, dtype=np.float64)
    if ranks.shape != (len(prompt),) or not np.isfinite(ranks).all():
        raise CourseError(f"Expected {len(prompt)} finite scores, one a token of the prompt, got shape {ranks.shape}.")
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise CourseError(f"Expected fractions above 0 and up to 1, got {tuple(fractions)}.")
    metric = make_metric(lm, prompt, target=target, contrast=contrast)
    typed = np.arange(len(prompt))[prompt.user]
    rng = np.random.default_rng(seed)
    rankings = [typed[np.argsort(-ranks[typed], kind="stable")], typed[::-1]]
    rankings += [rng.permutation(typed) for _ in range(n_random)]
    tops = [ranking[: max(1, round(f * len(typed)))].tolist() for ranking in rankings for f in fractions]
    lost = _losses(lm, metric, typed.tolist(), tops, replacement_id(lm, replacement))
    by_ranking = lost.reshape(len(rankings), len(fractions), 2)
    own, position, rest = by_ranking[0], by_ranking[1], by_ranking[2:]
    chance = rest.mean(axis=0) if n_random else np.full_like(own, np.nan)
    return Faithfulness(
        comprehensiveness=own[:, 0],
        sufficiency=own[:, 1],
        fractions=tuple(fractions),
        unit=metric.unit,
        baselines={"random": (chance[:, 0], chance[:, 1]), "position": (position[:, 0], position[:, 1])},
    )


def _losses(lm: LocalModel, metric: Metric, typed: list[int], tops: list[list[int]], token: int) -> Floats:
    """What the output loses without each set of tokens, and with it alone of those typed, `[set, 2]`."""
    variants: list[Tensor] = []
    for top in tops:
        for out in (top, [place for place in typed if place not in top]):
            variant = metric.ids.clone()
            variant[out] = token
            variants.append(variant)
    value, scores = score_variants(
        lm, metric.ids, torch.stack(variants), metric.score, keep=metric.keep, label="faithfulness"
    )
    return (value.sum() - scores.sum(dim=1)).float().numpy().reshape(-1, 2)


def hit(scores: Sequence[float] | NDArray[np.float32], cue: slice, user: slice, k: int = 1) -> bool:
    """Whether one of the k largest scores among the typed tokens, by size, is the cue's (of several tokens, any).

    >>> hit([0.0, 3.0, -4.0], cue=slice(1, 2), user=slice(0, 3), k=2)
    True
    """
    sizes = np.abs(np.asarray(scores, dtype=np.float64))
    typed = np.arange(len(sizes))[user]
    top = typed[np.argsort(-sizes[typed], kind="stable")][:k]
    return bool(set(top.tolist()) & set(range(len(sizes))[cue]))
