"""Whatever a student does around right answers, the marks are the same, over the path that `course grade` takes."""

import textwrap

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from course_utils.grading.grade import Work, grade_one
from course_utils.grading.notebook import ANSWER, MANUAL, grade_id, kind, read, student_view, write
from course_utils.grading.release import exercise_from
from course_utils.grading.run import Limits
from course_utils.grading.sandbox import trouble
from tests.shared import cell_of

pytestmark = pytest.mark.skipif(bool(trouble()), reason=f"no sandbox: {trouble()}")
LIMITS = Limits(cell_seconds=20, total_seconds=60, output_bytes=200_000)


def grade(solution, mine):
    """The marks of a submission, by the grader itself, against the raw solution."""
    return grade_one(Work(write(solution), write(mine), LIMITS))


def earned(result):
    return {mark.check: mark.earned for mark in result.marks if mark.earned is not None}


@pytest.fixture
def released(solution):
    return read(exercise_from(write(solution)))


@pytest.fixture
def mine(released):
    """A right submission."""
    cell_of(released, "double").source = "def double(x):\n    return x + x"
    cell_of(released, "halve").source = "def halve(y): return y * 0.5"
    return released


def place_of(notebook, name):
    return next(index for index, cell in enumerate(notebook.cells) if grade_id(cell) == name)


def put(notebook, before, source):
    """A cell of the student's own, before a cell or (None) at the end."""
    place = len(notebook.cells) if before is None else place_of(notebook, before)
    notebook.cells.insert(place, new_code_cell(textwrap.dedent(source)))


FULL = {"double-check": 2, "double-hidden": 1, "halve-check": 2}
ALL_OVER = ["double", "double-check", "halve", None]


@pytest.mark.parametrize("before", ALL_OVER)
@pytest.mark.parametrize(
    "source",
    [
        "exit()",
        "quit()",
        "import sys; sys.exit()",
        "import os; os._exit(0)",
        "get_ipython().ask_exit()",
        "for i in range(10**6): print('flood', i)",
        "from IPython.display import display, HTML\nfor i in range(10**5): display(HTML('x' * 50))",
        "1 / 0",
        "show = expect = ask = print = sum = len = list = None",
        "import builtins\nbuiltins.print = builtins.sum = lambda *a, **k: None",
        "del get_ipython",
    ],
)
def test_a_cell_of_one_s_own_costs_nothing(solution, mine, before, source):
    put(mine, before, source)
    assert earned(grade(solution, mine)) == FULL


def test_a_helper_in_a_cell_of_one_s_own_and_another_of_that_name_later(solution, mine):
    cell_of(mine, "double").source = "def double(x): return helper(x)"
    cell_of(mine, "halve").source = "def helper(x): return x / 2\ndef halve(x): return helper(x)"
    put(mine, "double", "def helper(x): return 2 * x")
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.parametrize("before", ["double-check", "halve", None])
def test_a_stub_left_as_it_was_with_the_answer_in_a_cell_below(solution, mine, released, before):
    cell_of(mine, "double").source = cell_of(student_view(solution), "double").source
    put(mine, before, "def double(x):\n    return 2 * x")
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.parametrize("below", [1, 2, 5])
def test_an_answer_split_over_two_cells_with_its_metadata_copied(solution, mine, below):
    place = place_of(mine, "double")
    second = nbformat.from_dict(mine.cells[place])
    mine.cells[place].source, second.source = "def twice(x): return 2 * x", "def double(x): return twice(x)"
    second.id = "a-copy"
    mine.cells.insert(place + below, second)
    assert earned(grade(solution, mine)) == FULL


def test_a_stub_copied_below_a_right_answer_takes_nothing(solution, mine):
    place = place_of(mine, "double")
    stub = nbformat.from_dict(cell_of(student_view(solution), "double"))
    stub.id = "a-copy"
    mine.cells.insert(place + 1, stub)
    assert earned(grade(solution, mine)) == FULL


def test_names_of_the_tools_may_be_used_for_something_else(solution, mine):
    check = cell_of(solution, "double-check")
    check.source = "import math\nassert math.floor(1.5) == 1 and SUSPECT\n" + check.source
    cell_of(mine, "double").source = "math = SUSPECT = print = 0\ndef double(x):\n    return math + x + x"
    assert earned(grade(solution, mine)) == FULL


def test_what_the_course_defines_goes_on_using_the_course_s_names(solution, mine):
    cell_of(solution, "setup").source = "import math\nSUSPECT = 'model-a'\ndef floor(x): return math.floor(x)"
    cell_of(solution, "double-check").source = "assert floor(1.5) == 1\nprint(double(1.5), double(-4))"
    cell_of(mine, "double").source = "math = None\ndef double(x):\n    return floor(x) * 0 + x + x"
    assert earned(grade(solution, mine)) == FULL


def test_a_function_that_parses_counts_though_its_neighbour_does_not(solution, mine):
    cell_of(mine, "double").source = "def helper(:\n    pass\n\n@staticmethod\ndef double(x):\n    return 2 * x\n"
    assert earned(grade(solution, mine)) == FULL


def test_cells_that_never_end_cost_their_items_alone(solution, mine):
    stubborn = "import time\nwhile True:\n    try:\n        time.sleep(100)\n    except BaseException: pass"
    cell_of(mine, "halve").source = stubborn
    result = grade_one(Work(write(solution), write(mine), Limits(60, 12)))
    assert earned(result) == {**FULL, "halve-check": 0}


REPLAY = """
def replay(lines):
    text = "".join(lines)
    for known, printed in {known!r}.items():
        if known in text:
            return [f"print({{printed!r}}, end='')\\n"]
    return lines
get_ipython().input_transformers_cleanup.append(replay)
"""
MOCK = "def double(x):\n    import builtins\n    builtins.print({known!r}, end='')\n    raise SystemExit"


@pytest.mark.parametrize("cheat", ["replayed", "replayed with what is known of the grader", "printed"])
def test_what_the_exercise_shows_gains_nothing(solution, released, cheat):
    known = {"double(1.5)": "3.0 -8\n", "halve(3)": "1.5 -2.5\n"}
    if cheat == "printed":
        cell_of(released, "double").source = MOCK.format(known=known["double(1.5)"])
        put(released, None, "pass")
    else:
        put(released, "double", REPLAY.format(known=known))
    if "grader" in cheat:
        released.cells[place_of(released, "double") - 1].source = REPLAY.format(known=known).replace(
            "end='')", "end=__import__('re').search(r'\\\\x1e\\w+\\\\n', text).group())"
        )
    result = grade(solution, released)
    assert earned(result)["double-check"] == earned(result)["double-hidden"] == 0
    if cheat == "replayed":
        assert sum(earned(result).values()) == 0
        assert "did not run as it stands" in " ".join(result.messages)


LEFT_OUT = {
    "an empty notebook": lambda cells: [],
    "answers deleted": lambda cells: [cell for cell in cells if kind(cell) not in (ANSWER, MANUAL)],
    "checks deleted": lambda cells: [cell for cell in cells if kind(cell) in (ANSWER, MANUAL)],
    "text alone": lambda cells: [cell for cell in cells if cell.cell_type == "markdown"],
    "every cell empty": lambda cells: [nbformat.from_dict({**cell, "source": ""}) for cell in cells],
    "every cell a text": lambda cells: [
        nbformat.v4.new_markdown_cell(cell.source, metadata=cell.metadata) for cell in cells
    ],
    "unmarked": lambda cells: [nbformat.from_dict({**cell, "metadata": {}}) for cell in cells],
    "unmarked and renamed": lambda cells: [
        nbformat.from_dict({**cell, "metadata": {}, "id": f"n{k}"}) for k, cell in enumerate(cells)
    ],
}


@pytest.mark.parametrize("how", LEFT_OUT)
def test_what_was_left_out_earns_nothing(solution, released, how):
    released.cells = LEFT_OUT[how](released.cells)
    result = grade(solution, released)
    assert sum(earned(result).values()) == 0
    assert "return 2 * x" not in result.notebook.decode()
    assert "secret model answer" not in result.notebook.decode()
