"""Which cells of a merged notebook run, in which order, and whose names they see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from .merge import Merged, defined, is_stub
from .notebook import ANSWER, CHECK, grade_id, has_code, is_hidden, item_of, kind, printed

KEEP = -1  # the place of a step that is no cell: it remembers what names mean where a hidden check stands, or the like


@dataclass(frozen=True)
class Schedule:
    """A notebook to be run, and where its cells come from.

    Attributes:
        cells: the cells to run, as they stand in the merged notebook.
        places: for each, its index there, or KEEP.
        notebook: the same cells with the sources that the kernel is told.
        token: what each check prints at its end if it was run.
    """

    cells: list[NotebookNode]
    places: list[int]
    notebook: NotebookNode
    token: str

    def without(self, cut: set[int]) -> NotebookNode:
        """The notebook with some of its cells, by their number here, empty."""
        cells = [
            {**cell, "source": "pass"} if number in cut and cell.cell_type == "code" else cell
            for number, cell in enumerate(self.notebook.cells)
        ]
        return nbformat.from_dict({**self.notebook, "cells": cells})


def schedule(merged: Merged, token: str) -> Schedule:
    """All cells in order, but each check after all that belongs to its item, and hidden checks last.

    So nothing that a student is shown came out after a hidden check had gone in; what names meant where it stands is
    kept for it.
    """
    cells = merged.notebook.cells
    places = [index for index in range(len(cells)) if not _belongs_later(merged, index)]
    for index in reversed([index for index in range(len(cells)) if index not in places]):
        places.insert(places.index(_belongs_later(merged, index)) + 1, index)
    hidden = [index for index in places if is_hidden(cells[index])]
    steps: list[tuple[int, int]] = []
    for index in places:
        steps.append((KEEP if index in hidden else index, index))
        if kind(cells[index]) == ANSWER and cells[index].cell_type == "code":
            steps.append((KEEP, index))
    steps += [(index, index) for index in hidden]
    answered = {item_of(cell): _names(cell) for cell in merged.released if kind(cell) == ANSWER}
    shown = [cells[index] if place != KEEP else _beside(cells[index]) for place, index in steps]
    told = [
        cell if place == KEEP or place in merged.added or kind(cell) == ANSWER else _wrapped(cell, answered, token)
        for cell, (place, _) in zip(shown, steps, strict=True)
    ]
    notebook = nbformat.from_dict({**merged.notebook, "cells": told})
    return Schedule(shown, [place for place, _ in steps], notebook, token)


def _belongs_later(merged: Merged, index: int) -> int:
    """The last cell below a check that belongs to its item, 0 for none: a copy, or what defines an answer left open."""
    cell = merged.notebook.cells[index]
    if kind(cell) != CHECK or not has_code(cell.source):
        return 0
    item = item_of(cell)
    open_names = {
        name
        for answer in merged.notebook.cells
        if kind(answer) == ANSWER and item_of(answer) == item and is_stub(answer, merged.released)
        for name in _names(answer)
    }
    return max(
        (
            other
            for other in merged.added
            if other > index
            and merged.notebook.cells[other].cell_type == "code"
            and (merged.belongs.get(other) == item or open_names & _names(merged.notebook.cells[other]))
        ),
        default=0,
    )


def _names(cell: NotebookNode) -> set[str]:
    return set(defined(cell.source)) | set(re.findall(r"(?m)^(\w+)[ \t]*=(?!=)", cell.source))


def _beside(cell: NotebookNode) -> NotebookNode:
    """What runs after an answer, or where a hidden check stands."""
    source = _call("salvage", cell.source) if kind(cell) == ANSWER else _call("keep", item_of(cell))
    return nbformat.v4.new_code_cell(source, id=f"beside-{cell.id}"[:64])


def _wrapped(cell: NotebookNode, answered: dict[str, set[str]], token: str) -> NotebookNode:
    """A cell of the course's own as the kernel is told to run it."""
    if cell.cell_type != "code" or not has_code(cell.source):
        return cell
    result: NotebookNode = nbformat.from_dict(cell)
    name = grade_id(cell) or cell.id
    if kind(cell) != CHECK:
        result.source = _call("locked", cell.source, name)
        return result
    names = sorted(answered.get(item_of(cell), set()))
    result.source = _call("check", cell.source, name, names, token, item_of(cell) if is_hidden(cell) else "")
    result.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed(cell.outputs) + token)]
    return result


def _call(name: str, *arguments: object) -> str:
    told = ", ".join(map(repr, arguments))
    return f'__import__("course_utils.grading.scope", fromlist=["{name}"]).{name}({told})'


def without_token(outputs: Sequence[NotebookNode], token: str) -> tuple[list[NotebookNode], bool]:
    """Outputs without the token, and whether it was there."""
    found, kept = False, []
    for output in outputs:
        if output["output_type"] == "stream" and token in output["text"]:
            found, text = True, output["text"].replace(token, "")
            if not text:
                continue
            kept.append(nbformat.from_dict({**output, "text": text}))
        else:
            kept.append(output)
    return kept, found
