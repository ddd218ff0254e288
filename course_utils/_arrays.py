"""Arrays of numbers as results hold them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]


def floats(values: Tensor) -> Floats:
    """A tensor as a float32 array."""
    result: Floats = values.float().cpu().numpy()
    return result


def precise(values: Tensor) -> Tensor:
    """A tensor in float32 at least: half precision is too coarse to add up, or to be compared."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
