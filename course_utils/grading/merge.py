"""Put a learner's answers into the reference's notebook: whatever happened to the checks, these are the right ones."""

from __future__ import annotations

import ast
import re
import symtable
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import nbformat
from nbformat import NotebookNode

from ..errors import CourseError
from .limited import within
from .notebook import (
    ANSWER,
    CHECK,
    FREE,
    MANUAL,
    NOT_RUN,
    grade_id,
    has_code,
    is_as_released,
    item_of,
    kind,
    student_view,
)

_MARKER = re.compile(r"(?m)^([ \t]*#+[ \t]*)(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)[ \t]*$")
_DEFINED = re.compile(r"(?m)^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)")
_ASSIGNED = re.compile(r"(?m)^(\w+)[ \t]*=(?!=)")
_IMPORTED = re.compile(r"(?m)^(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+([^#;\n]+)")
_LONGEST = 100_000  # characters of a cell of the course's own that are looked through for what was written into it
_OF_BEFORE = "is one of an earlier release: the present one runs in its place"
NOT_ASKED = "answers an item that this exercise does not have: it counts for nothing"
_MOST_STRANGE = 10  # of these told
_OWN = (ANSWER, MANUAL)  # the cells that a learner writes


@dataclass
class Merged:
    """A notebook made of the reference and a learner's answers."""

    notebook: NotebookNode  # what is run; its checks hold the reference's outputs, its answers none
    released: list[NotebookNode] = field(default_factory=list)  # the cells as students were given them
    repairs: list[str] = field(default_factory=list)  # a sentence for each thing that was not as it should be
    added: set[int] = field(default_factory=set)  # the cells that the learner added, by their index in the notebook
    belongs: dict[int, str] = field(default_factory=dict)  # the item of which an added cell is a further part, by index


def merge(reference: NotebookNode, submission: NotebookNode) -> Merged:
    """The reference with the answers of a submission, found by `grade_id`, then cell id, then position.

    What was not handed in is the stub that was handed out, never the reference's own answer. Cells that the learner
    added stay after the cell that they followed, further copies of an answer too, and lines that they wrote into a cell
    of the course's own become a cell after it. Nothing of a learner's can mark a cell as to be skipped or expected to
    fail.
    """
    released = student_view(reference).cells
    found = _Matching(released, submission.cells, reference.cells)
    cells: list[NotebookNode] = []
    added: set[int] = set()
    belongs: dict[int, str] = {}
    taken = {cell.id for cell in reference.cells}
    for place in range(-1, len(released)):
        if place >= 0 and kind(released[place]) in _OWN:
            own = [submission.cells[index] for index in found.written(place)]
            cells.append(_answered(released[place], own, is_elsewhere=found.is_elsewhere(released[place])))
        elif place >= 0:
            cells.append(_checked(reference.cells[place]))
            if more := found.into.get(place):
                added.add(len(cells))
                cells.append(_freed(nbformat.v4.new_code_cell(more), f"into-{place}", taken))
        for index in found.free.get(place, []):
            added.add(len(cells))
            if (copied := found.copies.get(index)) is not None:
                belongs[len(cells)] = item_of(released[copied])
            cells.append(_freed(submission.cells[index], f"added-{index}", taken))
    notebook = nbformat.from_dict({**reference, "cells": cells})
    return Merged(notebook, released, found.repairs, added, belongs)


def defined(source: str) -> list[str]:
    r"""The functions and classes that a source defines at its left margin.

    >>> defined("def double(x):\n    return 2 * x")
    ['double']
    """
    return _DEFINED.findall(source)


def bound(source: str) -> set[str]:
    """The names that a source defines or assigns at its left margin."""
    return {*defined(source), *_ASSIGNED.findall(source)}


def at_hand(source: str) -> set[str]:
    r"""The names that a source defines, assigns or imports at its left margin.

    >>> sorted(at_hand("import numpy as np, torch.nn\nfrom math import log, exp as e"))
    ['e', 'log', 'np', 'torch']
    """
    parts = [part for line in _IMPORTED.findall(source) for part in re.sub("[()]", "", line).split(",")]
    return bound(source) | {words[-1].split(".")[0] for part in parts if (words := part.split())}


def looked_up(source: str) -> list[str]:
    r"""The names that the functions of a source look up outside of themselves when they are called.

    >>> looked_up("def double(x):\n    two = 2\n    return times(x, two)")
    ['times']
    """
    found: set[str] = set()
    try:
        tables = [symtable.symtable(_without_magics(source), "", "exec")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    for table in tables:
        tables += table.get_children()
        if table.get_type() == "function":
            found |= {one.get_name() for one in table.get_symbols() if one.is_global() and one.is_referenced()}
    return sorted(found)


def is_open(cell: NotebookNode) -> bool:
    """Whether an answer, or a function of it, stands as it was handed out, or was emptied."""
    return not has_code(cell.source) or "raise NotImplementedError" in cell.source


def _same(one: NotebookNode, other: NotebookNode) -> bool:
    return bool(one.source.strip() == other.source.strip())


def _answered(stub: NotebookNode, own: list[NotebookNode], *, is_elsewhere: bool) -> NotebookNode:
    """An answer cell as it was handed out, with the learner's source in it, unmarked and not run.

    Where the learner has deleted it and defines its names in another cell, nothing is put in their way.
    """
    result: NotebookNode = nbformat.from_dict(stub)
    if not own and is_elsewhere:
        result.source = ""
    if own:
        sources = [cell.source for cell in own]
        result.source = _unmarked(sources[0]) if stub.cell_type == "code" else "\n\n".join(sources)
    if stub.cell_type == "code":
        result.outputs, result.execution_count = [], None
    elif pictures := {name: data for cell in own for name, data in cell.get("attachments", {}).items()}:
        result.attachments = pictures
    return result


def _checked(cell: NotebookNode) -> NotebookNode:
    """A cell of the reference's own, its outputs as a run prints them."""
    result: NotebookNode = nbformat.from_dict(cell)
    for output in result.get("outputs", []):
        if output.output_type == "stream":
            output.text = "".join(output.text).removeprefix(NOT_RUN)
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

    def __init__(self, reference: list[NotebookNode], submission: list[NotebookNode], raw: list[NotebookNode]) -> None:
        self.reference, self.submission, self.raw = reference, submission, raw
        self.of: dict[int, int] = {}  # place in the reference -> index in the submission
        self.repairs: list[str] = []
        self.copies: dict[int, int] = {}  # index of a further copy of an answer -> its place
        self._dropped: set[int] = set()
        places = {grade_id(cell): place for place, cell in enumerate(reference) if grade_id(cell)}
        self._match([places.get(grade_id(cell), -1) for cell in submission])
        ids = {cell.id: place for place, cell in enumerate(reference)}
        self._match([ids.get(cell.id, -1) if not grade_id(cell) else -1 for cell in submission])
        self._match(self._by_text())
        for place, cell in enumerate(reference):
            if kind(cell) in _OWN and place not in self.of:
                self._by_position(place)
        self.into = {place: lines for place in self.of if (lines := self._written_into(place))}
        self._report()
        self.free = self._added()

    def _by_text(self) -> list[int]:
        """The place of the reference's own text that each cell claims: of those that are alike each one in its turn."""
        places: dict[str, list[int]] = {}
        for place, cell in enumerate(self.reference):
            if kind(cell) not in _OWN and place not in self.of:
                places.setdefault(cell.source, []).append(place)
        matched, wanted = {*self.of.values()}, list[int]()
        for index, cell in enumerate(self.submission):
            alike = places.get(cell.source, []) if kind(cell) == FREE and index not in matched else []
            wanted.append(alike[0] if alike else -1)
            del alike[: len(alike) > 1]
        return wanted

    def _match(self, wanted: list[int]) -> None:
        """Match every cell of the submission with the place that it claims; of several answers all that were edited."""
        claims: dict[int, list[int]] = {}
        for index, place in enumerate(wanted):
            if place >= 0 and place not in self.of and index not in self.of.values():
                claims.setdefault(place, []).append(index)
        for place, indices in claims.items():
            cell = self.reference[place]
            alike = [i for i in indices if self.submission[i].cell_type == cell.cell_type] or indices
            edited = [i for i in alike if not (_same(self.submission[i], cell) or is_as_released(self.submission[i]))]
            self.of[place] = edited[0] if edited and kind(cell) in _OWN else alike[0]
            if len(indices) > 1:
                further = edited[1:] if kind(cell) in _OWN else []
                self.copies |= dict.fromkeys(further, place)
                self._dropped.update(i for i in alike if i != self.of[place] and i not in further)
                which = "each runs where it stands" if cell.cell_type == "code" else "all that was written counts"
                which = which if kind(cell) in _OWN else "it runs once"
                self.repairs.append(f"Cell {_name(cell)} is there {len(indices)} times: {which}.")

    def written(self, place: int) -> list[int]:
        """The cells of the submission that an answer is made of: one, or all texts written for it."""
        if place not in self.of:
            return []
        further = [index for index, copied in self.copies.items() if copied == place]
        return [self.of[place], *further] if self.reference[place].cell_type != "code" else [self.of[place]]

    def _written_into(self, place: int) -> str:
        """What a learner wrote into a cell of the course's own, by statements: such a cell is put back as it was."""
        cell, own = self.reference[place], self.submission[self.of[place]]
        if kind(cell) in _OWN or not (cell.cell_type == own.cell_type == "code"):
            return ""
        if _same(own, cell) or _same(own, self.raw[place]) or is_as_released(own):
            return ""
        left, more, mine = Counter(tree for tree, _ in statements(cell.source)), [], list[tuple[str, str]]()
        with suppress(CourseError):  # a source can be such that Python's own parser gives out
            mine = within(statements, own.source)
        for tree, text in mine:
            if left[tree]:
                left[tree] -= 1
            else:
                more.append(text)
        return "\n".join(more)

    def _by_position(self, place: int) -> None:
        """An answer without its marks: of the code between its neighbours, what defines its function, or the first."""
        before = max((self.of[p] for p in self.of if p < place), default=-1)
        after = min((self.of[p] for p in self.of if p > place), default=len(self.submission))
        taken = {*self.of.values(), *self.copies, *self._dropped}
        free = [i for i in range(before + 1, after) if i not in taken]
        free = [i for i in free if kind(self.submission[i]) == FREE]
        cell = self.reference[place]
        same = [i for i in free if self.submission[i].cell_type == cell.cell_type]
        names = set(defined(cell.source))
        defining = [i for i in free if names & set(defined(self.submission[i].source))]
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
                    done = "it is put back, not answered" if what in _OWN else "it is put back"
                    done = "what other cells define counts" if what in _OWN and self.is_elsewhere(cell) else done
                    self.repairs.append(f"Cell {name} was missing: {done}.")
                continue
            own = self.submission[self.of[place]]
            if own.cell_type != cell.cell_type:
                self.repairs.append(f"Cell {name} had become a {own.cell_type} cell: it is {cell.cell_type} again.")
            elif what not in _OWN and _is_run(cell) and not (_same(own, cell) or _same(own, self.raw[place])):
                more = ", then what you added" if place in self.into else " in its place"
                told = f"was edited: the original runs{more}" if not is_as_released(own) else _OF_BEFORE
                self.repairs.append(f"Cell {name} {told}.")

        self.repairs += [f"Cell {name} {NOT_ASKED}." for name in self._strange()[:_MOST_STRANGE]]

    def _strange(self) -> list[str]:
        """The names of answers to items that the exercise does not have."""
        known, taken = {grade_id(cell) for cell in self.reference}, {*self.of.values()}
        left = [cell for i, cell in enumerate(self.submission) if i not in taken and kind(cell) in _OWN]
        names = dict.fromkeys(grade_id(cell) for cell in left if not is_as_released(cell))
        return [name for name in names if name not in known and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)]

    def _added(self) -> dict[int, list[int]]:
        """The cells that the learner added, by the place of the reference's cell that they follow."""
        place_of = {index: place for place, index in self.of.items()}
        free: dict[int, list[int]] = {}
        last = -1
        for index in range(len(self.submission)):
            if index in place_of:
                last = place_of[index]
            elif index not in self._dropped and not self._is_text_copy(index):
                free.setdefault(last, []).append(index)
        return free

    def is_elsewhere(self, stub: NotebookNode) -> bool:
        """Whether cells that stand for no answer, or for another one, define all that an answer is to define."""
        kept = [cell for index, cell in enumerate(self.submission) if index not in self._dropped]
        codes = [cell.source for cell in kept if cell.cell_type == "code"]
        names = bound(stub.source)
        return stub.cell_type == "code" and bool(names) and names <= set().union(*map(bound, codes))

    def _is_text_copy(self, index: int) -> bool:
        return index in self.copies and self.reference[self.copies[index]].cell_type != "code"


def _is_run(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and has_code(cell.source)


def statements(source: str) -> list[tuple[str, str]]:
    r"""The statements of a cell, each as Python reads it and as it is written; none if it can't, or is too long.

    Those that share a line are one; a magic is one of its own.

    >>> [text for _, text in statements("%matplotlib inline\nx = 1; y = 2")]
    ['%matplotlib inline', 'x = 1; y = 2']
    """
    if len(source) > _LONGEST:
        return []
    found, end = list[tuple[str, str]](), 0
    lines = source.split("\n")
    try:
        for statement in ast.parse(_without_magics(source)).body:
            begin = min(node.lineno for node in (statement, *getattr(statement, "decorator_list", ())))
            trees, begin = (found.pop()[0], end) if begin == end else ("", begin)
            end = statement.end_lineno or begin
            found.append((trees + ast.dump(statement), "\n".join(lines[begin - 1 : end])))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return found


def _without_magics(source: str) -> str:
    """A source with each magic as a text, a line for a line."""
    return "\n".join(repr(line) if line[:1] in ("%", "!") else line for line in source.split("\n"))


def _name(cell: NotebookNode) -> str:
    return grade_id(cell) or cell.id
