"""What a student wrote for an item: the answer's cell, and with it cells of their own that define what it uses."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from nbformat import NotebookNode

from ..merge import bound
from ..notebook import FREE, grade_id, kind


def answers_in(notebook: NotebookNode, items: Collection[str], given: Collection[str]) -> Iterator[tuple[str, ...]]:
    """For each answer the name of its cell, its text, and if it needs other cells, its text below these.

    Items are the names of the answers' cells, given are the texts of the cells that the exercise has.
    """
    free = (cell.source for cell in notebook.cells if cell.cell_type == "code" and kind(cell) == FREE)
    own = [source for source in free if source.strip() not in given]
    defining: dict[str, list[int]] = {}
    for number, source in enumerate(own):
        for name in bound(source):
            defining.setdefault(name, []).append(number)
    for cell in notebook.cells:
        if grade_id(cell) in items:
            needed = _needed(cell.source, own, defining) if cell.cell_type == "code" else []
            yield grade_id(cell), cell.source, *(["\n".join([*needed, cell.source])] if needed else [])


def _needed(answer: str, own: list[str], defining: dict[str, list[int]]) -> list[str]:
    """The cells that define what an answer names, and what these name, in their order."""
    found: set[int] = set()
    texts = [answer]
    while texts:
        more = {number for word in set(re.findall(r"\w+", texts.pop())) for number in defining.get(word, ())} - found
        found |= more
        texts += [own[number] for number in more]
    return [own[number] for number in sorted(found)]
