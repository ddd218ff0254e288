"""Put a learner's answers into the reference's notebook: whatever happened to the checks, these are the right ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import nbformat
from nbformat import NotebookNode

from .notebook import ANSWER, CHECK, FREE, MANUAL, NOT_RUN, grade_id, has_code, is_hidden, item_of, kind

_MARKER = re.compile(r"(?m)^(\s*#+\s*)(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$")
_OWN = (ANSWER, MANUAL)  # the cells that a learner writes


@dataclass
class Merged:
    """A notebook made of the reference and a learner's answers.

    Attributes:
        notebook: what is run; its checks hold the reference's outputs, its answers none.
        repairs: a sentence for each thing that was not as it should be.
        added: the cells that the learner added, by their index in the notebook.
    """

    notebook: NotebookNode
    repairs: list[str] = field(default_factory=list)
    added: set[int] = field(default_factory=set)


def merge(reference: NotebookNode, submission: NotebookNode) -> Merged:
    """The reference with the answers of a submission, found by `grade_id`, then cell id, then position.

    Cells that the learner added stay after the cell that they followed. Nothing of a learner's can mark a cell as to be
    skipped or expected to fail.
    """
    found = _Matching(reference.cells, submission.cells)
    cells: list[NotebookNode] = []
    added: set[int] = set()
    taken = {cell.id for cell in reference.cells}
    for place in range(-1, len(reference.cells)):
        if place >= 0:
            own = found.of.get(place) if kind(reference.cells[place]) in _OWN else None
            cells.append(_answered(reference.cells[place], None if own is None else submission.cells[own]))
        for index in found.free.get(place, []):
            added.add(len(cells))
            cells.append(_freed(submission.cells[index], f"added-{index}", taken))
    notebook = nbformat.from_dict({**reference, "cells": cells})
    return Merged(notebook, found.repairs, added)


def run_order(cells: list[NotebookNode]) -> list[int]:
    """Which cells run, by index: hidden checks last, each after its item's answers once more.

    So nothing that a student is shown came out after a hidden check had gone in, and each check meets what its item
    defines, whatever later items call by the same name.
    """
    order = [index for index, cell in enumerate(cells) if not is_hidden(cell)]
    for index, cell in enumerate(cells):
        if is_hidden(cell):
            own = [i for i in range(index) if kind(cells[i]) == ANSWER and item_of(cells[i]) == item_of(cell)]
            order += [*own, index]
    return order


def _answered(cell: NotebookNode, own: NotebookNode | None) -> NotebookNode:
    """A cell of the reference, an answer with the learner's source in it, unmarked and not run."""
    result: NotebookNode = nbformat.from_dict(cell)
    if kind(cell) not in _OWN:
        for output in result.get("outputs", []):
            if output.output_type == "stream":
                output.text = "".join(output.text).removeprefix(NOT_RUN)
        return result
    if own is not None:
        result.source = _unmarked(own.source) if cell.cell_type == "code" else own.source
    if cell.cell_type == "code":
        result.outputs, result.execution_count = [], None
    return result


def _freed(cell: NotebookNode, new_id: str, taken: set[str]) -> NotebookNode:
    """A learner's own cell, without any metadata and outputs."""
    result: NotebookNode = nbformat.from_dict({**cell, "metadata": {}})
    if result.id in taken:
        result.id = new_id
    taken.add(result.id)
    if cell.cell_type == "code":
        result.source, result.outputs, result.execution_count = _unmarked(cell.source), [], None
    return result


def _unmarked(source: str) -> str:
    return _MARKER.sub(r"\1", source)


class _Matching:
    """Which cell of a submission stands for which of the reference, which were added, and what had to be repaired."""

    def __init__(self, reference: list[NotebookNode], submission: list[NotebookNode]) -> None:
        self.reference, self.submission = reference, submission
        self.of: dict[int, int] = {}  # place in the reference -> index in the submission
        self.repairs: list[str] = []
        self._dropped: set[int] = set()
        places = {grade_id(cell): place for place, cell in enumerate(reference) if grade_id(cell)}
        self._match([places.get(grade_id(cell), -1) for cell in submission])
        ids = {cell.id: place for place, cell in enumerate(reference)}
        self._match([ids.get(cell.id, -1) if not grade_id(cell) else -1 for cell in submission])
        texts = {cell.source: place for place, cell in enumerate(reference) if kind(cell) not in _OWN}
        self._match([texts.get(cell.source, -1) if kind(cell) == FREE else -1 for cell in submission])
        for place, cell in enumerate(reference):
            if kind(cell) in _OWN and place not in self.of:
                self._by_position(place)
        self._report()
        self.free = self._added()

    def _match(self, wanted: list[int]) -> None:
        """Match every cell of the submission with the place that it claims; of several claims the last edited wins."""
        claims: dict[int, list[int]] = {}
        for index, place in enumerate(wanted):
            if place >= 0 and place not in self.of and index not in self.of.values():
                claims.setdefault(place, []).append(index)
        for place, indices in claims.items():
            cell = self.reference[place]
            edited = [i for i in indices if self.submission[i].source.strip() != cell.source.strip()]
            self.of[place] = edited[-1] if edited and kind(cell) in _OWN else indices[0]
            if len(indices) > 1:
                self._dropped.update(i for i in indices if i != self.of[place])
                which = "the last edited one counts" if kind(cell) in _OWN else "it runs once"
                self.repairs.append(f"Cell {_name(cell)} is there {len(indices)} times: {which}.")

    def _by_position(self, place: int) -> None:
        """An answer without its marks: of the code between its neighbours, what defines its function, or the first."""
        before = max((self.of[p] for p in self.of if p < place), default=-1)
        after = min((self.of[p] for p in self.of if p > place), default=len(self.submission))
        free = [i for i in range(before + 1, after) if i not in {*self.of.values(), *self._dropped}]
        free = [i for i in free if kind(self.submission[i]) == FREE]
        cell = self.reference[place]
        same = [i for i in free if self.submission[i].cell_type == cell.cell_type]
        names = re.findall(r"(?m)^(?:async )?(?:def|class) (\w+)", cell.source)
        defining = [i for i in free if any(f"def {name}(" in self.submission[i].source for name in names)]
        if cell.cell_type != "code" and not self._lost_marks():
            return  # a written answer that was deleted, beside a note of the learner's
        if chosen := defining or ([] if names and not self._lost_marks() else same):
            self.of[place] = chosen[0]

    def _lost_marks(self) -> bool:
        """Whether the submission has lost the marks of all its cells, as some editors do."""
        return not any(grade_id(cell) for cell in self.submission)

    def _report(self) -> None:
        for place, cell in enumerate(self.reference):
            what, name = kind(cell), _name(cell)
            if place not in self.of:
                if what in _OWN or (what == CHECK and _is_run(cell)):
                    self.repairs.append(f"Cell {name} was missing: it is put back{_as_stub(what)}.")
                continue
            own = self.submission[self.of[place]]
            if own.cell_type != cell.cell_type:
                self.repairs.append(f"Cell {name} had become a {own.cell_type} cell: it is {cell.cell_type} again.")
            elif what not in _OWN and _is_run(cell) and own.source.strip() != cell.source.strip():
                self.repairs.append(f"Cell {name} was edited: the original runs in its place.")

    def _added(self) -> dict[int, list[int]]:
        """The cells that the learner added, by the place of the reference's cell that they follow."""
        place_of = {index: place for place, index in self.of.items()}
        free: dict[int, list[int]] = {}
        last = -1
        for index in range(len(self.submission)):
            if index in place_of:
                last = place_of[index]
            elif index not in self._dropped:
                free.setdefault(last, []).append(index)
        return free


def _is_run(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and has_code(cell.source)


def _name(cell: NotebookNode) -> str:
    return grade_id(cell) or cell.id


def _as_stub(what: str) -> str:
    return ", not answered" if what in _OWN else ""
