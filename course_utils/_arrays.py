"""Arrays of numbers as results hold them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
HALF = (torch.bfloat16, torch.float16)


def floats(values: Tensor) -> Floats:
    """A tensor as a float32 array."""
    return values.detach().float().cpu().contiguous().numpy()


def precise(values: Tensor) -> Tensor:
    """A tensor in float32 at least: half precision is too coarse to add up, or to be compared."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def strongest(values: Floats, k: int) -> list[tuple[int, ...]]:
    """Where the k largest of some values stand, the largest first.

    >>> strongest(np.eye(2, k=1), 1)
    [(0, 1)]
    """
    order = np.argsort(-values, axis=None, kind="stable")[:k]
    return [tuple(map(int, place)) for place in zip(*np.unravel_index(order, values.shape), strict=True)]


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether values agree as far as their precision lets them; never where some are not finite."""
    share = 3e-2 if expected.dtype in HALF else 1e-4
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return False
    return bool((found - expected).abs().max() <= share * expected.abs().max())


def mean_interval(values: Floats | Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a mean, the same for the same values.

    >>> mean_interval([1.0] * 9)
    (1.0, 1.0)
    """
    means = np.asarray(values, np.float64)[_resamples(len(values))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=64)
def _resamples(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(n, size=(2000, n))
