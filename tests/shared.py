"""What the tests of exercises and grading share: cells by name, and the real nbgrader."""

import os
import subprocess
import sys
from pathlib import Path

from course_utils.grading.notebook import grade_id


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
