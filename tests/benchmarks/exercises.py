"""What one right notebook of each exercise costs: `course grade` on warm and cold kernels, nbgrader beside it. One run.

python -m tests.benchmarks.exercises                             # all six, three notebooks each, one after the other
python -m tests.benchmarks.exercises 5 08_1_token_attribution    # five notebooks of one

Our time is that of `grade_one`, in the sandbox; the start of what warm kernels are forked from is not part of it, since a
class shares it, and is printed. nbgrader's is that of autograde and feedback, a notebook. Marks must agree.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from course_utils.grading.classroom.grade import Work, grade_one
from course_utils.grading.notebook import ANSWER, grade_id, kind, read, write
from course_utils.grading.sandbox import fork_client
from tests.shared import cell_of, nbgrader, nbgrader_marks

ROOT = Path(__file__).resolve().parents[2]


def right(exercise, count):
    """What students hand in who answer as the solution does, each with a comment of their own."""
    answers = {grade_id(c): c.source for c in read(_reference(exercise)).cells if kind(c) == ANSWER}
    for student in range(count):
        mine = read((ROOT / "exercises" / f"{exercise}.ipynb").read_bytes())
        for name, source in answers.items():
            cell_of(mine, name).source = source.replace("### BEGIN SOLUTION", f"# {student}")
        yield f"student-{student}", write(mine)


def _reference(exercise):
    return (ROOT / "solutions" / f"{exercise}.ipynb").read_bytes()


def ours(exercise, handed_in, *, is_warm):
    """Seconds a notebook, and what each student earned by each check."""
    began, marks = time.perf_counter(), {}
    for student, content in handed_in:
        result = grade_one(Work(_reference(exercise), content, warm=is_warm))
        marks[student] = {mark.check: mark.earned for mark in result.marks if mark.earned is not None}
    return (time.perf_counter() - began) / len(handed_in), marks


def theirs(exercise, handed_in, folder):
    """The same from nbgrader, its release not counted."""
    source = folder / "source" / "work" / f"{exercise}.ipynb"
    source.parent.mkdir(parents=True)
    source.write_bytes(_reference(exercise))
    nbgrader(folder, "generate_assignment", "work", "--create")
    for student, content in handed_in:
        path = folder / "submitted" / student / "work" / f"{exercise}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    began = time.perf_counter()
    nbgrader(folder, "autograde", "work", "--create")
    nbgrader(folder, "generate_feedback", "work")
    return (time.perf_counter() - began) / len(handed_in), nbgrader_marks(folder, exercise)


def main():
    count = next((int(each) for each in sys.argv[1:] if each.isdigit()), 3)
    wanted = [each for each in sys.argv[1:] if not each.isdigit()]
    for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")):
        os.environ.setdefault(name, value)
    began = time.perf_counter()
    fork_client.parent()
    print(f"what warm kernels are forked from starts in {time.perf_counter() - began:.1f} s")
    print(f"{'seconds a notebook':24}   warm   cold  nbgrader  cold : warm  nbgrader : warm")
    for exercise in wanted or sorted(path.stem for path in (ROOT / "solutions").glob("*.ipynb")):
        handed_in = list(right(exercise, count))
        warmed, warm_marks = ours(exercise, handed_in, is_warm=True)
        cold, cold_marks = ours(exercise, handed_in, is_warm=False)
        with tempfile.TemporaryDirectory() as folder:
            peer, their_marks = theirs(exercise, handed_in, Path(folder))
        assert warm_marks == cold_marks == their_marks, (exercise, warm_marks, cold_marks, their_marks)
        ratios = f"{cold / warmed:11.1f}  {peer / warmed:15.1f}"
        print(f"{exercise:24} {warmed:6.2f} {cold:6.2f}  {peer:8.2f}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
