"""Many prompts in one pass: what neighbours have in common at the beginning is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences laid out one after the other in one row, each without the beginning that the one before has too."""

    ids: Tensor  # int64 [1, token]
    positions: Tensor  # int64 [1, token]: where in its own sequence a token stands
    seen: Tensor  # bool [query, key]: the tokens before it in its own sequence, and itself
    places: list[list[int]]  # for each sequence, where in the row its tokens stand

    def inputs(self, dtype: torch.dtype, end: int | None = None) -> dict[str, Any]:
        """What a transformers model wants to be given: the row, or its tokens up to `end`."""
        seen = self.seen[:end, :end]
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        row = {"input_ids": self.ids[:, :end], "position_ids": self.positions[:, :end]}
        return {**row, "attention_mask": mask[None, None], "use_cache": False}


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """Lay sequences of token ids out in one row.

    >>> packed = pack([[1, 2, 3], [1, 2, 4, 5]])
    >>> packed.ids, packed.places
    (tensor([[1, 2, 3, 4, 5]]), [[0, 1, 2], [0, 1, 3, 4]])
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = []
    for before, sequence in zip([(), *sequences], sequences, strict=False):
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, sequence, strict=False))))
        inherited = places[-1][:shared] if shared else []
        places.append([*inherited, *range(len(ids), len(ids) + len(sequence) - shared)])
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for path in places:
        steps = torch.tensor(path)
        seen[steps[:, None], steps] = torch.ones(len(path), len(path)).tril().bool()
    return Packed(torch.tensor([ids], device=device), torch.tensor([positions], device=device), seen.to(device), places)
