"""Inputs with one token replaced in place, or taken out."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from ..errors import CourseError
from ..models import LocalModel
from ..prompts import encode, token_strings


def occluded(ids: Tensor, n_tokens: int, replacement: int) -> Tensor:
    """One variant for each of the first `n_tokens`, with that token replaced in place: int64 `[variant, token]`.

    >>> occluded(torch.tensor([5, 6, 7]), 2, 0)
    tensor([[0, 6, 7],
            [5, 0, 7]])
    """
    variants = ids.repeat(n_tokens, 1)
    variants.diagonal().fill_(replacement)
    return variants


def deleted(ids: Tensor, n_tokens: int) -> Tensor:
    """One variant for each of the first `n_tokens`, with that token taken out: int64 `[variant, token - 1]`.

    >>> deleted(torch.tensor([5, 6, 7]), 2)
    tensor([[6, 7],
            [5, 7]])
    """
    if n_tokens < 2:
        raise CourseError("Expected a prompt of at least two tokens for deletion, got one: nothing would be left.")
    rest = [torch.cat([ids[:i], ids[i + 1 :]]) for i in range(n_tokens)]
    return torch.stack(rest)


def replacement_id(lm: LocalModel, replacement: str | int) -> int:
    """The id of a replacement, given as a text or as an id; CourseError where it is none."""
    size = lm.model.get_input_embeddings().weight.shape[0]
    if isinstance(replacement, str):
        before, _ = encode(lm.tokenizer, "a", special=False)
        ids, offsets = encode(lm.tokenizer, "a" + replacement, special=False)
        new = slice(len(before), None)
        # where words that a tokenizer lacks are all one token, only its place tells "a" from what swallowed more
        apart = ids[: new.start] == before and all(end <= 1 for _, end in offsets[: new.start])
        if not apart or not ids[new]:
            raise CourseError(
                f"Expected a replacement that is a token of its own, got {replacement!r}; try ' the' or ' a', or a "
                "token's id."
            )
        if len(ids[new]) > 1:
            shown, first = ", ".join(token_strings(lm.tokenizer, ids[new])), replacement[: offsets[len(before)][1] - 1]
            raise CourseError(
                f"Expected a replacement of one token, got {replacement!r}, which is {len(ids[new])} ({shown}); give "
                f"replacement= (--replacement) another, such as its first, {first!r}, or a token's id."
            )
        lm.check_ids(ids)
        return ids[-1]
    if isinstance(replacement, bool) or not isinstance(replacement, Integral) or not 0 <= replacement < size:
        raise CourseError(f"Expected a replacement token id from 0 to {size - 1}, got {replacement!r}.")
    return int(replacement)
