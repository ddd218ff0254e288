"""Random tokens twice over: a text in whose second half only looking back helps."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch

from ..errors import CourseError
from ..models import LocalModel
from ..prompts import Prompt, encode, token_strings


def repeated_random(lm: LocalModel, length: int = 25, seed: int = 0) -> Prompt:
    """Random tokens twice over: in the second half only looking back helps (Olsson et al. 2022).

    The tokens differ from each other and none is special; before them stands what the tokenizer puts before every text
    by itself. `text` joins the printable tokens: it is to be read, and would not be split into the same tokens.

    >>> prompt = repeated_random(lm)
    >>> prompt.tokens[:25] == prompt.tokens[25:]
    True
    """
    usable = _ordinary_tokens(lm)
    if not isinstance(length, Integral) or not 3 <= length <= len(usable):
        raise CourseError(f"Expected a length from 3 to {len(usable):,}, the tokens to draw from, got {length!r}.")
    opening = _opening(lm.tokenizer)
    lm.check_length(len(opening) + 2 * int(length))
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed))[: int(length)]
    half = [usable[i] for i in order.tolist()]
    return _prompt_of(lm, [*opening, *half, *half], start=len(opening))


def _ordinary_tokens(lm: LocalModel) -> list[int]:
    """The ids a random text may hold: all but special ones and rows that no token uses."""
    rows = lm.model.get_input_embeddings().weight.shape[0]
    if lm.tokenizer is None:
        return list(range(rows))
    added = lm.tokenizer.added_tokens_decoder
    special = {*lm.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return [i for i in range(min(rows, len(lm.tokenizer))) if i not in special]


def _opening(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text by itself: a beginning-of-text token, or nothing."""
    if tokenizer is None:
        return []
    whole, plain = (encode(tokenizer, "a", special=special)[0] for special in (True, False))
    return whole[: whole.index(plain[0])]


def _prompt_of(lm: LocalModel, ids: list[int], start: int) -> Prompt:
    """A prompt of token ids, those from `start` on as typed; without a tokenizer a token is shown by its id."""
    tokens = token_strings(lm.tokenizer, ids) if lm.tokenizer else [f"#{i}" for i in ids]
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    input_ids = torch.tensor([ids], device=lm.device)
    return Prompt("".join(tokens), input_ids, tokens, slice(start, len(ids)), offsets, (offsets[start][0], ends[-1]))
