"""docs/write_an_exercise.md, followed to the letter in an empty folder; and every refusal says what to write."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell

from course_utils import CourseError
from course_utils._output_digest import sealed
from course_utils.cli import main
from course_utils.grading.handout.assignment import exercise_from
from course_utils.grading.marks import UNANSWERED, judge
from course_utils.grading.notebook import read, student_view, write
from tests.shared import HIDDEN, cell_of, marked, needs_sandbox

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "write_an_exercise.md"
SAVED = re.compile(r"Save as `([\w.]+)`:\n$")


def blocks(text):
    """Each block of code: the text before it, its language, its lines."""
    before = ""
    for part in re.split(r"(?ms)^(```\w+\n.*?^```\n)", text):
        if found := re.fullmatch(r"(?s)```(\w+)\n(.*)```\n", part):
            yield before, *found.groups()
        else:
            before = part


def shell(folder, line, said=""):
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HOME": str(folder / "home"),
    }
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def course(folder, line):
    """The same as `shell` of a command line of ours, in this process: the page itself is followed in processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.output


def marks(folder):
    course(folder, "course grade --out grades --export csv")
    rows = csv.DictReader((folder / "grades" / "grades.csv").read_text(encoding="utf-8-sig").splitlines())
    return {(row["student"], row["check"]): row["earned"] for row in rows}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What is there when the page has been followed, and what was said on the way."""
    folder, said = tmp_path_factory.mktemp("followed"), {}
    for before, language, code in blocks(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            (folder / SAVED.search(before)[1]).write_text(code, encoding="utf-8")
            continue
        for line in code.splitlines():
            answers = "+1 +2=1 well argued\n" * 2 if line.startswith("course mark") else ""
            said[line] = shell(folder, line, answers)
    return folder, said


@pytest.mark.slow
@needs_sandbox
def test_the_page_leads_to_marks(followed):
    folder, said = followed
    assert marks(folder) == {
        ("ada", "entropy-check"): "2", ("ada", "entropy-hidden"): "1", ("ada", "largest"): "2",
        ("ben", "entropy-check"): "1", ("ben", "entropy-hidden"): "0", ("ben", "largest"): "2",
    }  # fmt: skip
    (marking,) = (told for line, told in said.items() if line.startswith("course mark"))
    for shown in ("The uniform distribution", "an exchange argument", "+1  Names it (1)", "+2  Gives a reason (2)"):
        assert shown in marking
    ada = (folder / "grades" / "feedback" / "ada.html").read_text()
    assert "Names it: given, 1 of 1" in ada
    assert "Gives a reason: in part, 1 of 2" in ada
    assert "well argued" in ada
    assert "exchange argument" not in ada
    assert "handed in on paper" in (folder / "grades" / "feedback" / "ben.html").read_text()


@pytest.mark.slow
@needs_sandbox
def test_what_is_released_holds_no_answer(followed):
    folder, _ = followed
    text = (folder / "released" / "entropy.ipynb").read_text()
    for secret in ("math.log(x)", "0.1, 0.1, 0.8", "transfer of probability", "Lagrange", "MARK SCHEME"):
        assert secret not in text
    assert 'NotImplementedError(\\"sum -x * log(x) over all x that are not 0\\")' in text


@pytest.mark.slow
@needs_sandbox
def test_points_alone_change_without_a_run_and_a_wrong_answer_reads_the_sentence(followed):
    folder, _ = followed
    make = folder / "make.py"
    make.write_text(make.read_text().replace("points=2", "points=4"))
    shell(folder, "python make.py && jupyter nbconvert --to notebook --execute --inplace solutions/entropy.ipynb")
    said = course(folder, "course grade submissions --reference solutions --out grades")
    assert "0 graded, 2 had their marks" in said
    assert "ada, entropy, entropy-check: 2 before, 4 now" in said
    assert marks(folder)["ben", "entropy-check"] == "1"

    wrong = nbformat.read(folder / "released" / "entropy.ipynb", as_version=4)
    cell_of(wrong, "entropy").source = "def entropy(p):\n    return 0 if 0 in p else -sum(x * math.log(x) for x in p)"
    (folder / "submissions" / "cy").mkdir()
    nbformat.write(wrong, folder / "submissions" / "cy" / "entropy.ipynb")
    course(folder, "course grade submissions --reference solutions --out grades")
    cy = (folder / "grades" / "feedback" / "cy.html").read_text()
    assert "<td>An outcome of probability 0 adds nothing: leave it out before you take the log.</td>" in cy
    assert marks(folder)["cy", "entropy-check"] == "0"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("halve-check", {"outputs": []}, r"end it with print\(…\), run the solution and store it"),
        ("halve-check", {"execution_count": None}, r"run the solution and store it"),
        ("double-check", {"points": -1}, r"write a number from 0 on"),
        ("double-check", {"points": None}, r"write a number from 0 on"),
        ("double-check", {"name": "halve-check"}, r"give one of them another grade_id"),
        ("double-check", {"name": "double check"}, r"write letters, digits, - and _ only"),
        ("double-check", {"name": ""}, r"give it a grade_id"),
        ("double", {"source": "def double(x): return 2 * x"}, r"write ### BEGIN SOLUTION"),
        ("double", {"source": "### BEGIN SOLUTION\n2"}, r"END SOLUTION|end"),
        ("why", {"source": "It is forty-two."}, r"write ### BEGIN SOLUTION"),
        ("double-hidden", {"source": f"print(double(0))\n{HIDDEN}"}, r"a cell of their own, double-hidden"),
        ("double-check", {"source": "print(double(1.5), double(-4)); 3;"}, r"end it with print\(…\)"),
        ("double-check", {"source": 'print(1, seal="x")'}, rf'write seal="{sealed("3.0 -8")}"'),
        ("double-check", {"source": "%%time\nprint(double(1.5), double(-4))"}, "take magics"),
        ("double-check", {"error": "boom"}, r"mend the check or the answer, and run the solution again"),
    ],
)
def test_every_refusal_says_what_to_write(solution, name, change, told):
    cell = cell_of(solution, name)
    for key, value in change.items():
        if key == "points":
            cell.metadata.nbgrader.points = value
        elif key == "name":
            cell.metadata.nbgrader.grade_id = value
        elif key == "error":
            cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue=value, traceback=[]))
        else:
            cell[key] = value
    with pytest.raises(CourseError, match=told):
        exercise_from(write(solution), "toy.ipynb")


DRAWN = "fig = plot()\n### BEGIN SOLUTION\n# NEXT: draw a bar for each\nfig\n### END SOLUTION"


@pytest.mark.quick
@pytest.mark.parametrize("source", [DRAWN, "raise NotImplementedError()", "YOUR ANSWER HERE"])
def test_an_answer_that_a_person_reads_shows_nothing_of_the_solution_and_is_put_back_as_released(solution, source):
    make = new_markdown_cell if source == "YOUR ANSWER HERE" else new_code_cell
    cell = marked(make, "figure", source, grade=True, solution=True, points=0)
    if make is new_code_cell:
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "c2VjcmV0"})]
    solution.cells.append(cell)
    released = cell_of(read(exercise_from(write(solution))), "figure")
    put_back = cell_of(student_view(solution), "figure")
    assert not released.get("outputs")
    assert not put_back.get("outputs")
    assert put_back.source == released.source
    assert source != DRAWN or 'raise NotImplementedError("draw a bar for each")' in released.source


@pytest.mark.quick
def test_an_answer_that_is_no_function_and_was_left_is_not_answered():
    cells = [
        marked(new_code_cell, "n", 'raise NotImplementedError("count them")', solution=True),
        marked(new_code_cell, "n-check", "print(n)", grade=True, locked=True, points=1),
    ]
    errors = [{"ename": "NotImplementedError", "evalue": "count them"}, {"ename": "NameError", "evalue": "no n"}]
    outcome = {
        k: {"agrees": False, "hangs": False, "seconds": 0.1, "outputs": [{"output_type": "error", **told}]}
        for k, told in enumerate(errors)
    }
    ((_, mark),) = judge(cells, outcome)
    assert (mark.status, mark.message) == (UNANSWERED, "count them")
    errors[1] |= {"ename": "AssertionError", "evalue": ""}
    outcome[1]["outputs"] = [{"output_type": "error", **errors[1]}]
    outcome[0]["outputs"] = []
    ((_, mark),) = judge(cells, outcome)
    assert mark.message == "the check stopped: AssertionError"
    errors[0] |= {"ename": "SyntaxError", "evalue": "'(' was never closed (3398316201.py, line 1)"}
    outcome[0]["outputs"] = [{"output_type": "error", **errors[0]}]
    ((_, mark),) = judge(cells, outcome)
    assert mark.message == "your cell does not run: SyntaxError: '(' was never closed (line 1)"


@pytest.mark.quick
def test_a_file_beside_a_solution_which_no_student_gets_is_told_before_the_class_is_graded(solution, tmp_path):
    cell_of(solution, "setup").source = 'import csv\ntable = list(csv.reader(open("data/survey.csv")))'
    (tmp_path / "solutions" / "data").mkdir(parents=True)
    (tmp_path / "solutions" / "toy.ipynb").write_bytes(write(solution))
    given = ["release", "--solutions", str(tmp_path / "solutions"), "--out", str(tmp_path / "out")]
    assert "note" not in CliRunner().invoke(main, given).output
    (tmp_path / "solutions" / "data" / "survey.csv").write_text("a,1\n")
    told = " ".join(CliRunner().invoke(main, given).output.split())
    assert told.startswith("note: toy.ipynb names data/survey.csv, which is not handed out")
    assert "put what it holds into a set-up cell" in told


@pytest.mark.quick
@pytest.mark.parametrize(
    ("printed", "told"),
    [("mine\n3\n4\n", "print(…)"), ("3\nmine\n4\nmine\n", "print(…)"), ("4\n3\n3\n", "the values are not")],
)
def test_who_prints_inside_an_answer_reads_that_that_is_what_is_wrong(printed, told):
    check = marked(new_code_cell, "n-check", "print(n(), m())", "3\n4\n", grade=True, locked=True, points=1)
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
    ((_, mark),) = judge([check], {0: {"agrees": False, "hangs": False, "seconds": 0.1, "outputs": outputs}})
    assert told in mark.message


@pytest.mark.quick
def test_release_from_a_folder_needs_a_place_of_its_own_and_solutions(tmp_path):
    for more, told in (([], "add --out FOLDER or --zip FILE"), (["--out", "x"], "name their folder with --solutions")):
        done = CliRunner().invoke(main, ["release", "--solutions", str(tmp_path), *more])
        assert done.exit_code == 2
        assert told in " ".join(done.output.split())


@pytest.mark.quick
def test_an_answer_cell_of_ones_own_is_no_fault(solution):
    solution.cells.append(new_code_cell("1 + 1", id="own"))
    solution.cells.append(marked(new_code_cell, "more", "x = 1", "", locked=True))
    assert read(exercise_from(write(solution))).cells[-1].source == "x = 1"
