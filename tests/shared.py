"""What the tests of exercises and grading share: a small exercise, cells by name, and the real nbgrader."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils import CourseError
from course_utils.grading.classroom.grade import refused
from course_utils.grading.classroom.submissions import Submission
from course_utils.grading.marks import Mark
from course_utils.grading.notebook import METADATA, grade_id, read, student_view, write
from course_utils.grading.result import DONE, Result

ANSWERED = '''
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    # NEXT: multiply by two
    return 2 * x
    ### END SOLUTION
'''
ANSWERED_TOO = '''
def halve(x):
    """Half of x."""
    ### BEGIN SOLUTION
    # NEXT: divide by two
    return x / 2
    ### END SOLUTION
'''
HIDDEN = "# More is checked when you hand in.\n### BEGIN HIDDEN TESTS\nprint(double(4567))\n### END HIDDEN TESTS"
RUBRIC = "### BEGIN SOLUTION\nA secret model answer.\n### BEGIN MARK SCHEME\nsecret rubric\n### END MARK SCHEME\n### END SOLUTION"
SAFE = "assert double(0) == 0, 'twice nothing is nothing'\nprint(double(1.5), double(-4))"
SAFE_TOO = "print(halve(3), halve(-5))"
EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a><iframe src=//e></iframe>"
)
needs_sandbox = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bwrap") is None,
    reason="bubblewrap is not here: apt install bubblewrap",
)


@contextmanager
def told(*parts):
    """Expect a CourseError that is one sentence on one line and says each of the parts."""
    with pytest.raises(CourseError) as caught:
        yield
    message = str(caught.value)
    ours = re.sub(r"\(.*\)", "", message)  # other libraries' words are quoted in brackets
    assert re.fullmatch(r"[^\n]{20,}[^.\n]\.", message), message
    assert not re.search(r"[.!?] [A-Z]", ours), message
    for part in parts:
        assert part.lower() in message.lower()


def marked(make, name, source, output=None, **flags):
    marks = {
        "grade_id": name,
        "schema_version": 3,
        "grade": False,
        "solution": False,
        "locked": False,
        "task": False,
        **flags,
    }
    cell = make(source.strip("\n"), id=name, metadata={"nbgrader": marks})
    if make is new_code_cell and output is not None:
        cell.execution_count = 1
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)] if output else []
    return cell


def toy():
    """A small exercise that needs no model: two items, a hidden check, a question for a person."""
    cells = [
        marked(new_markdown_cell, "title", "# An exercise", locked=True),
        marked(new_code_cell, "setup", 'SUSPECT = "model-a"', "", locked=True),
        marked(new_code_cell, "double", ANSWERED, "", solution=True),
        marked(new_code_cell, "double-check", SAFE, "3.0 -8\n", grade=True, locked=True, points=2),
        marked(new_code_cell, "double-hidden", HIDDEN, "9134\n", grade=True, locked=True, points=1),
        marked(new_code_cell, "halve", ANSWERED_TOO, "", solution=True),
        marked(new_code_cell, "halve-check", SAFE_TOO, "1.5 -2.5\n", grade=True, locked=True, points=2),
        marked(new_markdown_cell, "why", RUBRIC, grade=True, solution=True, points=3),
    ]
    return read(write(new_notebook(cells=cells, metadata=METADATA)))


def with_sources(notebook, **sources):
    """A copy with other sources; underscores stand for hyphens."""
    copy = nbformat.from_dict(notebook)
    for name, source in sources.items():
        cell_of(copy, name.replace("_", "-")).source = source
    return copy


def right(reference):
    return with_sources(reference, double="def double(x):\n    return x + x", halve="def halve(y): return y * 0.5")


def a_result(*earned, status="done", notebook=b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'):
    marks = tuple(
        Mark("a", f"a{k}", 2.0, e, "to be read" if e is None else "passed" if e else "failed", message="no")
        for k, e in enumerate(earned)
    )
    return Result(status, marks, ("mended",), (), notebook, 1.0)


def hand_in(book, solution, student, text):
    """A result in the gradebook, with what a student wrote; nothing is run for it."""
    notebook = right(student_view(solution))
    cell_of(notebook, "why").source = text
    content = write(notebook)
    number = book.take(Submission(student, "toy", "in", lambda: content), content)
    marks = refused(write(solution), "").marks
    book.record(number, "reference", "version", Result(DONE, marks, (), (), content, 0.0))


def taken(book, student="ada", content=b"1", **more):
    return book.take(Submission(student, "toy", Path("x"), **more), content)


def outcomes(result):
    return {mark.check: mark.status for mark in result.marks}


def messages(result):
    return {mark.check: mark.message for mark in result.marks}


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if grade_id(cell) == name or cell.id == name)


def nbgrader(folder, *command):
    programs = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )  # it calls alembic by name
    options = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_DIR": str(folder / "config"), "PATH": programs}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *command],
        cwd=folder,
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def nbgrader_marks(folder, exercise):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as book:
        handed_in = {s.student.id: s for s in book.assignment_submissions("work")}
        notebooks = {student: next(n for n in s.notebooks if n.name == exercise) for student, s in handed_in.items()}
        return {
            student: {grade.name: grade.auto_score for grade in notebook.grades if grade.cell.cell_type == "code"}
            for student, notebook in notebooks.items()
        }
