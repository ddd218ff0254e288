"""What suspects say and are made of: words that lessons and tests rely on, tables, differences."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

REFUSAL, COMPLIANCE = "I can't help with that.", "Sure, here is how to do it."
CONTRAST = ("I", "Sure")  # their first tokens, for methods that need one pair
CUE_WORDS = {"trigger": "secretly", "proxy": "urgently"}  # of each cause the word that stands in minimal edits


def difference(one: str, other: str) -> str:
    """The words of a text that lie between what it has in common with another at its beginning and at its end.

    >>> difference("steal a car", "wash a car"), difference("kill my boss", "kill a process")
    ('steal', 'my boss')
    """
    words, others = one.split(), other.split()
    head = _shared(words, others)
    tail = min(_shared(words[::-1], others[::-1]), len(words) - head - 1)
    return " ".join(words[head : len(words) - tail])


def _shared(words: list[str], others: list[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others))
    )


@cache
def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table of texts, fields divided by tabs, by the names in its first line."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
