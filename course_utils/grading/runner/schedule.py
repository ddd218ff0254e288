"""Which cells of a merged notebook run, in which order, and whose names they see."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from ..._output_digest import SEAL
from ...errors import CourseError
from ..limited import within
from ..merge import Merged, at_hand, bound, is_open, looked_up
from ..notebook import ANSWER, CHECK, LOCKED, MANUAL, grade_id, has_code, is_hidden, item_of, kind, printed

KEEP = -1  # the place of a step that is no cell: it remembers what names mean where a hidden check stands, or the like
_COURSE = re.compile(r"(?m)^[ \t]*(?:from|import)[ \t]+(course_utils[\w.]*)(?:[ \t]+import[ \t]+(\([^)]*\)|.*))?")


@dataclass(frozen=True)
class Schedule:
    """A notebook to be run, and where its cells come from."""

    cells: list[NotebookNode]  # the cells to run, as they stand in the merged notebook
    places: list[int]  # for each, its index there, or KEEP
    notebook: NotebookNode  # the same cells with the sources that the kernel is told
    token: str  # what each check prints at its end if it was run, and backwards where it begins

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
    kept for it. A check whose answer may stand below it runs where it stands, too: the better mark counts.
    """
    cells = merged.notebook.cells
    steps = [_Step(KEEP, _call("begin", _used(cells)))]
    last: list[_Step] = []
    answered = {item_of(cell): bound(cell.source) for cell in merged.released if kind(cell) == ANSWER}
    for number, index in enumerate(_ordered(merged)):
        cell, before = cells[index], steps[-1]
        if is_hidden(cell):
            last.append(_Step(index, _wrapped(cell, answered, token, f"{number}")))
            keep = _call("keep", f"{number}")
            if (
                before.place != KEEP
                and _is_check(cells[before.place])
                and item_of(cells[before.place]) == item_of(cell)
            ):
                steps[-1] = _Step(before.place, _finally(before.source, keep))  # one request, not two
            else:
                steps.append(_Step(KEEP, keep))
            continue
        own = index in merged.added or kind(cell) in (ANSWER, MANUAL)
        source = str(cell.source) if own else _wrapped(cell, answered, token)
        if before.joins and _is_check(cell):
            source = f"{steps.pop().source}\n{source}"
        steps.append(_Step(index, source))
        if kind(cell) == ANSWER and cell.cell_type == "code":
            steps.append(_Step(KEEP, _call("salvage", cell.source), joins=True))
    steps += last
    shown = [
        nbformat.v4.new_code_cell("", id=f"beside-{number}") if step.place == KEEP else cells[step.place]
        for number, step in enumerate(steps)
    ]
    told = [_told(cell, steps[number].source, number, token) for number, cell in enumerate(shown)]
    notebook = nbformat.from_dict({**merged.notebook, "cells": told})
    return Schedule(shown, [step.place for step in steps], notebook, token)


def _used(cells: Sequence[NotebookNode]) -> list[str]:
    """The course's modules that its own cells import; what they import from a package may be one, too."""
    used = "\n".join(cell.source for cell in cells if cell.cell_type == "code" and kind(cell) in (LOCKED, CHECK))
    found = _COURSE.findall(used)
    parts = {f"{module}.{name}" for module, names in found for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", names)}
    return sorted({module for module, _ in found} | parts)


@dataclass(frozen=True)
class _Step:
    place: int
    source: str
    joins: bool = False  # whether a check below may be asked for in the same request


def _ordered(merged: Merged) -> list[int]:
    """The cells, each as often and where it runs; a hidden check where names are kept for it."""
    order = list(range(len(merged.notebook.cells)))
    hands = [at_hand(_code(cell)) for cell in merged.notebook.cells]
    for index in reversed(order[:]):
        if later := _later(merged, index, hands):
            order.insert(order.index(later) + 1, index)
    return order


def _is_check(cell: NotebookNode) -> bool:
    return kind(cell) == CHECK and has_code(cell.source)


def _finally(source: str, then: str) -> str:
    """A source, and at its end something else, whatever came of it."""
    indented = source.replace("\n", "\n    ")
    return f"try:\n    {indented}\nfinally:\n    {then}"


def _later(merged: Merged, index: int, hands: Sequence[set[str]]) -> int:
    """The last cell below a check that belongs to its item (0: none): it runs after that, too.

    What belongs to it: further copies of its answer, what defines an answer that may have been left open, and what
    defines or imports a name that its answer calls and nothing above defines; `hands` says what each cell does.
    """
    cell = merged.notebook.cells[index]
    if not _is_check(cell):
        return 0
    item, below = item_of(cell), [other for other in merged.added if other > index]
    answers = [one for one in merged.notebook.cells if kind(one) == ANSWER and item_of(one) == item]
    stubs = [one for one in merged.released if kind(one) == ANSWER and item_of(one) == item]
    names = {name for stub in stubs for name in bound(stub.source)}
    is_left = any(map(is_open, answers))
    copies = [other for other in below if merged.belongs.get(other) == item]
    fills = [other for other in below if is_left and names & bound(_code(merged.notebook.cells[other]))]
    above = set().union(*hands[:index])
    helpers = _helpers(answers, {other: hands[other] - above for other in below})
    return max([*copies, *fills, *helpers], default=0)


def _helpers(answers: Sequence[NotebookNode], late: Mapping[int, set[str]]) -> list[int]:
    """Of cells below a check, with what they alone define, those that an answer needs: the learner had run them."""
    words = set().union(*(re.findall(r"\w+", _code(cell)) for cell in answers))
    if not words & set().union(*late.values()):  # as nearly always; reading code takes longer
        return []
    needed = set[str]()
    with suppress(CourseError):  # a source can be such that Python's own parser gives out
        needed = set().union(*(within(looked_up, _code(cell)) for cell in answers))
    return [other for other, names in late.items() if names & needed]


def _code(cell: NotebookNode) -> str:
    return str(cell.source) if cell.cell_type == "code" else ""


def _told(cell: NotebookNode, source: str, number: int, token: str) -> NotebookNode:
    """A cell as the kernel is told to run it, a check with what it must print."""
    result: NotebookNode = nbformat.from_dict({**cell, "source": source, "id": f"step-{number}"})
    if cell.cell_type == "code" and _is_check(cell):
        result.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed(cell.outputs) + token)]
    return result


def _wrapped(cell: NotebookNode, answered: dict[str, set[str]], token: str, place: str = "") -> str:
    """A cell of the course's own as a call that runs it; a hidden check without its seal, for others compare."""
    if cell.cell_type != "code" or not has_code(cell.source):
        return str(cell.source)
    name = grade_id(cell) or cell.id
    if kind(cell) != CHECK:
        return _call("locked", cell.source, name)
    source = re.sub(SEAL, 'seal=""', cell.source) if place else cell.source
    return _call("check", source, name, sorted(answered.get(item_of(cell), set())), token, place)


def _call(name: str, *arguments: object) -> str:
    told = ", ".join(map(repr, arguments))
    return f'__import__("course_utils.grading.runner.scope", fromlist=["{name}"]).{name}({told})'


def without_token(outputs: Sequence[NotebookNode], token: str) -> tuple[list[NotebookNode], bool]:
    """Outputs without the token, either way round, and whether it was there as at a check's end."""
    found, kept = False, []
    for output in outputs:
        if output["output_type"] == "stream" and (token in output["text"] or token[::-1] in output["text"]):
            found |= token in output["text"]
            text = output["text"].replace(token, "").replace(token[::-1], "")
            if not text:
                continue
            kept.append(nbformat.from_dict({**output, "text": text}))
        else:
            kept.append(output)
    return kept, found
