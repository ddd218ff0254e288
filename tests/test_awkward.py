"""The notebooks that nbgrader documents as awkward, as submissions: each is graded, or refused with a sentence."""

import json

import pytest

from course_utils.grading.classroom.grade import Work, grade_one
from course_utils.grading.notebook import student_view, write
from course_utils.grading.result import DONE, REFUSED, Limits
from tests.shared import cell_of, outcomes, right

LIMITS = Limits(cell_seconds=3, total_seconds=60, output_bytes=200_000)
ALL = {"double-check": "passed", "double-hidden": "passed", "halve-check": "passed", "why": "to be read"}
NOT_DOUBLE = {"double-hidden": "failed", "double-check": "failed"}


def marks(cell):
    return cell.metadata.nbgrader


def doubled(notebook, name):
    notebook.cells.append({**cell_of(notebook, name), "id": "another"})


# What was done to a right submission (as nbformat has it, or to its JSON), and which checks then say otherwise.
AWKWARD = {
    "a changed check": (lambda nb: cell_of(nb, "double-check").update(source="print('3.0 -8')"), {}),
    "an emptied check": (lambda nb: cell_of(nb, "double-check").update(source=""), {}),
    "a check that is an answer now": (lambda nb: marks(cell_of(nb, "double-check")).update(grade=False, solution=True), {}),
    "an answer that is a check now": (lambda nb: marks(cell_of(nb, "double")).update(grade=True, points=99), {}),
    "a check turned into text": (lambda nb: cell_of(nb, "double-check").update(cell_type="markdown"), {}),
    "a text turned into code": (lambda nb: cell_of(nb, "why").update(cell_type="code", outputs=[], execution_count=None), {}),
    "more points": (lambda nb: marks(cell_of(nb, "double-check")).update(points=1000), {}),
    "blank points": (lambda nb: marks(cell_of(nb, "double-check")).update(points=None), {}),
    "points in words": (lambda nb: marks(cell_of(nb, "double-check")).update(points="lots"), {}),
    "blank ids": (lambda nb: [marks(cell).update(grade_id="") for cell in nb.cells if "nbgrader" in cell.metadata], {}),
    "one id for all": (
        lambda nb: [marks(cell).update(grade_id="double") for cell in nb.cells if "nbgrader" in cell.metadata], {},  # each runs where it stands
    ),
    "a doubled answer": (lambda nb: doubled(nb, "double"), {}),
    "a doubled check": (lambda nb: doubled(nb, "double-check"), {}),
    "no metadata": (lambda nb: [cell.update(metadata={}) for cell in nb.cells], {}),
    "metadata that are no table": (lambda nb: [cell.metadata.update(nbgrader=7) for cell in nb.cells], {}),
    "an older schema": (lambda nb: [marks(c).update(schema_version=1) for c in nb.cells if "nbgrader" in c.metadata], {}),
    "a newer schema": (lambda nb: [marks(c).update(schema_version=9) for c in nb.cells if "nbgrader" in c.metadata], {}),
    "a locked answer": (lambda nb: cell_of(nb, "double").metadata.update(deletable=False, editable=False), {}),
    "another kernel": (lambda nb: nb.metadata.update(kernelspec={"name": "julia", "display_name": "J", "language": "j"}), {}),
    "no kernel": (lambda nb: nb.metadata.clear(), {}),
    "an endless loop that prints": (
        lambda nb: cell_of(nb, "double").update(source="while True: print('on and on')"),
        {"double-check": "not run", "double-hidden": "not run"},
    ),
    "an endless loop": (lambda nb: cell_of(nb, "double").update(source="while True: pass"), NOT_DOUBLE),
    "endless recursion": (lambda nb: cell_of(nb, "double").update(source="def double(x): return double(x)"), NOT_DOUBLE),
    "long output": (
        lambda nb: cell_of(nb, "double").update(source=cell_of(nb, "double").source + "\nprint('x\\n' * 20_000)"), {},
    ),
    "an error in a cell of one's own": (lambda nb: cell_of(nb, "setup").update(source="1 / 0"), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_it_is_graded(solution, name):
    spoil, otherwise = AWKWARD[name]
    mine = right(student_view(solution))
    spoil(mine)
    result = grade_one(Work(write(solution), json.dumps(mine).encode(), LIMITS, sandboxed=False))
    assert result.status == DONE
    assert outcomes(result) == ALL | otherwise
    assert [mark.points for mark in result.marks] == [2, 1, 2, 3]  # nobody sets their own


@pytest.mark.parametrize(
    ("nbformat", "minor", "told"),
    [(5, 0, "of format 5"), (99, 0, "of format 99"), (0, 0, "of format 0"), ("four", 0, "of format 'four'"), (None, 0, "None")],
)  # fmt: skip
def test_a_format_that_nobody_knows_is_refused(solution, nbformat, minor, told):
    mine = {**right(student_view(solution)), "nbformat": nbformat, "nbformat_minor": minor}
    result = grade_one(Work(write(solution), json.dumps(mine).encode(), LIMITS, sandboxed=False))
    assert result.status == REFUSED
    assert told in result.marks[0].message


def test_an_old_format_is_graded(solution):
    """Version 3 had worksheets, and code in `input`."""
    cells = []
    for cell in right(student_view(solution)).cells:
        content = {"input": cell.source, "language": "python", "collapsed": False} if cell.cell_type == "code" else {}
        text = {} if cell.cell_type == "code" else {"source": cell.source}
        more = {"outputs": [], "prompt_number": 1} if cell.cell_type == "code" else {}
        cells.append({"cell_type": cell.cell_type, "metadata": cell.metadata, **content, **text, **more})
    old = {
        "metadata": {"name": ""},
        "nbformat": 3,
        "nbformat_minor": 0,
        "worksheets": [{"cells": cells, "metadata": {}}],
    }
    result = grade_one(Work(write(solution), json.dumps(old).encode(), LIMITS, sandboxed=False))
    assert outcomes(result) == ALL
