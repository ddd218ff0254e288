"""What is left out at once: a token, a word, a sentence, a message, or spans of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import CourseError
from ..prompts import Prompt, covering, joined

Spans = Sequence[tuple[int, int]]  # in characters of the prompt's text
By = str | Spans
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese: no spaces between words
_PATTERNS = {
    "word": rf"[{_ALONE}]|[^\s{_ALONE}]+",
    "sentence": r"\S(?:[^.!?…。！？\n]|[.!?…](?![\"'”’)]*(?:\s|$)))*[.!?…。！？]*[\"'”’)]*",
}
SIZES = ("message", "sentence", "word", "token")  # from large to small


def unit_slices(prompt: Prompt, by: By, within: Sequence[slice] | None = None) -> list[slice]:
    """The token slices of the units of what was typed, in order; units that share a token are one.

    Args:
        prompt: the prompt, of one message or several.
        by: "token", "word", "sentence", "message", or spans in characters of `prompt.text`.
        within: only the units that lie in one of these slices; by default those of the last message, or all messages
            where those are the units.

    Raises:
        CourseError: an unknown unit, or no such unit in the text.

    >>> [prompt.tokens[one] for one in unit_slices(prompt, "word")]
    [['Hi'], ['·there']]
    """
    if not isinstance(by, str):
        if not isinstance(by, Sequence) or not by:
            raise CourseError(f"Expected units ({', '.join(SIZES)}) or spans of characters, got {by!r}.")
        return _merged([covering(prompt.offsets, *_checked(prompt, span)) for span in by])
    if by not in SIZES:
        raise CourseError(f"Expected units ({', '.join(SIZES)}) or spans of characters, got {by!r}.")
    if by == "message":
        return _merged([covering(prompt.offsets, *span) for _, span in prompt.messages])
    wide = [prompt.user] if within is None else list(within)
    if by == "token":
        return [slice(i, i + 1) for some in wide for i in range(some.start, some.stop)]
    spans = []
    for some in wide:
        start, end = _characters(prompt, some)
        spans += [
            (start + found.start(), start + found.end()) for found in re.finditer(_PATTERNS[by], prompt.text[start:end])
        ]
    if not spans:
        raise CourseError(f"Expected text with at least one {by}, got {prompt.text[slice(*prompt.typed)]!r}.")
    return _merged([covering(prompt.offsets, *span) for span in spans])


def _characters(prompt: Prompt, tokens: slice) -> tuple[int, int]:
    """Where some tokens stand in the text, without what of them is template."""
    start, end = prompt.offsets[tokens.start][0], prompt.offsets[tokens.stop - 1][1]
    inside = [(s, e) for _, (s, e) in prompt.messages if s < end and e > start]
    return (max(start, inside[0][0]), min(end, inside[-1][1])) if inside else (start, end)


def _checked(prompt: Prompt, span: Any) -> tuple[int, int]:
    try:
        start, end = span
        if 0 <= start < end <= len(prompt.text):
            return start, end
    except (TypeError, ValueError):
        pass
    raise CourseError(
        f"Expected spans (start, end) in characters from 0 to {len(prompt.text)}, none of them empty, got {span!r}."
    )


def _merged(slices: Sequence[slice]) -> list[slice]:
    """The slices in order; those that share a token are one."""
    found: list[slice] = []
    for one in sorted(slices, key=lambda each: (each.start, each.stop)):
        if found and one.start < found[-1].stop:
            found[-1] = slice(found[-1].start, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    return found


def unit_texts(prompt: Prompt, slices: Sequence[slice]) -> list[str]:
    """The printable text of each unit."""
    return [joined(prompt.tokens[one]) for one in slices]


def units_occluded(ids: Tensor, slices: Sequence[slice], replacement: int) -> Tensor:
    """One variant a unit, with all of its tokens replaced in place: int64 `[unit, token]`.

    >>> units_occluded(torch.tensor([5, 6, 7]), [slice(0, 2)], 0)
    tensor([[0, 0, 7]])
    """
    variants = ids.repeat(len(slices), 1)
    for row, one in zip(variants, slices, strict=True):
        row[one] = replacement
    return variants
