"""What a student left out is worth nothing and shows nothing: over every exercise and every way to leave answers out."""

import re
from pathlib import Path

import nbformat
import pytest

from course_utils.grading.classroom.feedback import write_feedback
from course_utils.grading.classroom.grade import Work, grade_one, refused
from course_utils.grading.classroom.gradebook import Gradebook
from course_utils.grading.classroom.marking import Marking
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.marks import judge
from course_utils.grading.merge import merge
from course_utils.grading.notebook import ANSWER, MANUAL, kind, read, student_view, write
from course_utils.grading.result import DONE, Result
from course_utils.grading.sandbox.bubblewrap import trouble

SOLUTIONS = sorted((Path(__file__).resolve().parent.parent / "solutions").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


def _cells(change):
    return lambda cells: [nbformat.from_dict({**cell, **change(cell, k)}) for k, cell in enumerate(cells)]


WAYS = {
    "untouched": lambda cells: cells,
    "no cells": lambda cells: [],
    "no answers": lambda cells: [cell for cell in cells if kind(cell) not in (ANSWER, MANUAL)],
    "answers alone": lambda cells: [cell for cell in cells if kind(cell) in (ANSWER, MANUAL)],
    "every other cell": lambda cells: cells[::2],
    "backwards": lambda cells: cells[::-1],
    "twice": lambda cells: [*cells, *cells],
    "no source": _cells(lambda cell, k: {"source": ""}),
    "no marks": _cells(lambda cell, k: {"metadata": {}}),
    "no marks, no ids": _cells(lambda cell, k: {"metadata": {}, "id": f"n{k}"}),
    "answers of another name": _cells(
        lambda cell, k: {"metadata": {"nbgrader": {**cell.metadata["nbgrader"], "grade_id": f"other-{k}"}}, "id": f"n{k}"}
        if kind(cell) in (ANSWER, MANUAL)
        else {}
    ),
    "checks asked for as answers": _cells(
        lambda cell, k: {"metadata": {"nbgrader": {**cell.metadata.get("nbgrader", {}), "solution": True}}}
    ),
}  # fmt: skip


def secrets(reference):
    """The longer lines between the solution's answer markers, and of its rubrics, that students were not given."""
    given = re.sub(r"\s+", " ", " ".join(cell.source for cell in student_view(reference).cells))
    text = "\n".join(cell.source for cell in reference.cells)
    regions = re.findall(r"(?s)BEGIN (?:SOLUTION|MARK SCHEME)\n(.*?)### END", text)
    lines = {line.strip() for region in regions for line in region.splitlines()}
    return sorted(line for line in lines if len(line) > 20 and line not in given)


def _shown(path, results, folder):
    """All that students or who marks them see as a student's: the feedback, the answers to be read, the notebooks."""
    from html import unescape

    with Gradebook(folder / "g.db") as book:
        for name, result in results.items():
            number = book.take(Submission(name, path.stem, Path("x")), name.encode())
            book.record(number, "r", "v", result)
        write_feedback(book, folder / "feedback")
        marking, texts = Marking(book, {path.stem: path.read_bytes()}), []
        while (answer := marking.answer()) is not None:
            texts += [answer.text, write(answer.notebook).decode()]
            marking.place += 1
    pages = [unescape(page.read_text()) for page in (folder / "feedback").iterdir()]
    assert len(pages) == len(results)
    return "\n".join([*pages, *texts])


@EACH
@pytest.mark.quick
def test_no_line_of_an_answer_is_shown(path, tmp_path):
    reference = read(path.read_bytes())
    results = {"refused": refused(path.read_bytes(), "it is no notebook")}
    for way, leave_out in WAYS.items():
        mine = student_view(reference)
        mine.cells = leave_out(mine.cells)
        merged = merge(reference, read(write(mine)))
        hidden = nbformat.from_dict(merged.notebook)
        for cell in hidden.cells:  # what the kernel would have printed of its own stands for nothing here
            if cell.cell_type == "code":
                cell.outputs = []
        marks = tuple(mark for _, mark in judge(merged.notebook.cells, {}))
        results[way] = Result(DONE, marks, (), (), write(hidden), 0.0)
    shown = _shown(path, results, tmp_path)
    assert len(secrets(reference)) > 10
    assert [line for line in secrets(reference) if line in shown] == []


@EACH
@pytest.mark.skipif(bool(trouble()), reason=f"no sandbox: {trouble()}")
def test_an_empty_notebook_earns_nothing_over_the_real_path(path, tmp_path):
    empty = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    result = grade_one(Work(path.read_bytes(), empty))
    assert sum(mark.earned or 0 for mark in result.marks) == 0
    shown = _shown(path, {"empty": result}, tmp_path)
    assert [line for line in secrets(read(path.read_bytes())) if line in shown] == []
