"""Whatever a student does around right answers, the marks are the same, over the path that `course grade` takes."""

import textwrap

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from course_utils._output_digest import sealed
from course_utils.grading.classroom.grade import Work, grade_one
from course_utils.grading.classroom.untouched import as_released
from course_utils.grading.handout.assignment import exercise_from
from course_utils.grading.notebook import ANSWER, MANUAL, grade_id, kind, read, student_view, write
from course_utils.grading.result import Limits
from course_utils.grading.sandbox.bubblewrap import trouble
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


@pytest.mark.parametrize("cell", ["setup", "double-check", "double-hidden", "halve-check"])
@pytest.mark.parametrize("where", ["above", pytest.param("below", marks=pytest.mark.slow)])
def test_what_a_student_writes_into_a_cell_of_the_course_s_own_is_there(solution, mine, cell, where):
    """An import beside the others, a helper, the answer itself: on the student's machine it ran."""
    line = "import math as m\nhelp_me = lambda x: (\n    m.trunc(2) * x)"
    if cell == "setup":
        cell_of(mine, "double").source = "def double(x): return help_me(x)"
    else:
        line = f"{line}\ndef double(x):\n    return help_me(x)"
        cell_of(mine, "double").source = cell_of(mine, "double").source.replace(
            "return x + x", "raise NotImplementedError()"
        )
    written = cell_of(mine, cell)
    written.source = f"{line}\n{written.source}" if where == "above" else f"{written.source}\n{line}"
    assert earned(grade(solution, mine)) == FULL


HELPER = '''
@staticmethod
def help_me(x):
    """Help.

    More.
    """
    twice = x + x  # 2 x

    return twice
'''


@pytest.mark.parametrize("gap", ["\n\n", "\n", "; "])
def test_a_function_written_into_a_cell_of_the_course_s_own_stays_whole(solution, mine, gap):
    """Also where the cell has blank lines, and lines that the function has as well."""
    own = '"""Set-up."""\n\nSUSPECT = "model-a"\n\n\ndef other(x):\n    twice = x + x\n    return twice\n\nONE = 1'
    cell_of(solution, "setup").source = own
    cell_of(mine, "setup").source = f"{own}{gap}TWO = 2\n{HELPER}"
    cell_of(mine, "double").source = "def double(x): return help_me(x) * ONE * (TWO - 1)"
    result = grade(solution, mine)
    assert earned(result) == FULL
    assert "# 2 x" in result.notebook.decode()


def test_an_exercise_that_was_corrected_between_hand_ins(solution):
    """What an earlier release had in a cell of the course's own is nothing that the student wrote."""
    earlier = nbformat.from_dict(solution)
    cell_of(earlier, "setup").source += "\nTWO = 3"
    cell_of(earlier, "double-check").source = "assert double(1) == TWO\nprint(double(1.5), double(-4))"
    cell_of(earlier, "halve").source = cell_of(earlier, "halve").source.replace("Half", "The half")
    cell_of(solution, "setup").source += "\nTWO = 2"
    mine = read(exercise_from(write(earlier)))
    assert as_released(write(mine), write(solution))
    cell_of(mine, "double").source = "def double(x): return TWO * x"
    assert not as_released(write(mine), write(solution))
    result = grade(solution, mine)
    assert earned(result) == {**FULL, "halve-check": 0}
    assert result.repairs == tuple(
        f"Cell {name} is one of an earlier release: the present one runs in its place."
        for name in ("setup", "double-check")
    )


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_that_another_system_ended_are_the_same_lines(solution, mine, end):
    for cell in mine.cells:
        cell.source = cell.source.replace("\n", end)
    result = grade(solution, mine)
    assert earned(result) == FULL
    assert result.repairs == ()


@pytest.mark.parametrize(
    "helper",
    ["def help_me(x):\n    return x + x", "from operator import add as help_2\nhelp_me = lambda x: help_2(x, x)"],
)
@pytest.mark.parametrize("before", ["halve", None])
def test_a_helper_in_a_cell_below_had_run_in_the_student_s_session(solution, mine, helper, before):
    cell_of(mine, "double").source = "def double(x):\n    return help_me(x)"
    put(mine, before, helper)
    assert earned(grade(solution, mine)) == FULL


def test_all_code_moved_into_the_first_cell_of_the_course_s_own(solution, mine):
    codes = [cell for cell in mine.cells if cell.cell_type == "code"]
    codes[0].source = "\n\n".join(cell.source for cell in codes)
    mine.cells = [cell for cell in mine.cells if cell not in codes[1:]]
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.parametrize(
    "source",
    [
        "def double(x):\n    # raise NotImplementedError('add')\n    return x + x",
        'def double(x):\n    """Before: raise NotImplementedError."""\n    return x + x',
        "def double(x):\n    if x is None: raise NotImplementedError\n    return x + x",
        "class Base:\n    def f(self): raise NotImplementedError\ndef double(x): return x + x",
    ],
)
def test_a_right_answer_that_speaks_of_the_stub_and_an_experiment_below(solution, mine, source):
    cell_of(mine, "double").source = source
    put(mine, "halve", "def double(x): return 3 * x  # what if?")
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.parametrize(
    "show", ["display(HTML('x' * 4_000_000))", "print('x' * 2_000_000)", "len('" + "x" * 2_000_000 + "')"]
)
def test_a_cell_may_show_as_much_as_people_show(solution, mine, show):
    cell_of(mine, "double").source += f"\nfrom IPython.display import HTML, display\n{show}"
    put(mine, "halve", f"def half(x): return x / 2\n{show}")
    cell_of(mine, "halve").source = "def halve(x): return half(x)"
    result = grade_one(Work(write(solution), write(mine)))
    assert earned(result) == FULL
    assert not result.messages


TEE = """
import sys
class Tee:
    def __init__(self, stream): self.stream = stream
    def write(self, text): self.stream.write(text)
    def flush(self): self.stream.flush()
sys.{0} = Tee(sys.{0})
"""


@pytest.mark.parametrize("before", ["double", "double-check", "halve"])
@pytest.mark.parametrize(
    "source", [TEE.format("stdout"), TEE.format("stderr"), "import sys\nsys.stdout = open('log.txt', 'w')"]
)
def test_who_sends_what_is_printed_elsewhere_loses_nothing(solution, mine, before, source):
    put(mine, before, source)
    assert earned(grade(solution, mine)) == FULL


AT_WORK = """
import logging, subprocess, sys, threading, time
from IPython.display import HTML, clear_output, display
from tqdm.auto import tqdm
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
def work():
    while True:
        {shows}
        time.sleep(0.002)
threading.Thread(target=work, daemon=True).start()
"""


SHOWS = [
    "print('tick')",
    "print('tick', file=sys.stderr)",
    "display(HTML('tick'))",
    "subprocess.run('echo tick', shell=True)",
]
SHOWS_TOO = [
    "print('\\rtick\\b\\b', end='')", "logging.info('tick')", "sys.displayhook('tick')", "clear_output()",
    "tqdm(range(2)).update()", "1 / 0",
]  # fmt: skip


@pytest.mark.parametrize("shows", [*SHOWS, *(pytest.param(each, marks=pytest.mark.slow) for each in SHOWS_TOO)])
def test_what_a_thread_goes_on_showing_meanwhile_costs_nothing(solution, mine, shows):
    put(mine, "double", AT_WORK.format(shows=shows))
    result = grade(solution, mine)
    assert earned(result) == FULL
    assert not result.messages


def test_a_thread_that_floods_costs_no_more_than_what_runs_beside_it(solution, mine):
    put(mine, "double", "import threading\n\ndef work():\n    while True: print('flood' * 20)\n\n"
                        "threading.Thread(target=work, daemon=True).start()")  # fmt: skip
    marks = [earned(grade(solution, mine)) for _ in range(3)]
    assert marks[0] == marks[1] == marks[2] == FULL, marks


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


@pytest.mark.slow
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


TOKEN = """
def {name}(x):
    import sys
    frame = sys._getframe()
    while "token" not in frame.f_locals:
        frame = frame.f_back
    sys.modules["course_utils.grading.runner.scope"]._stdout.write({known!r} + frame.f_locals["token"])
    {then}
"""


@pytest.mark.parametrize("then", ["return x", "raise SystemExit", "print('x')", "import os; os._exit(0)"])
def test_who_finds_the_token_cannot_end_a_check_early(solution, released, then):
    for name, known in (("double", "3.0 -8\n"), ("halve", "1.5 -2.5\n")):
        cell_of(released, name).source = TOKEN.format(name=name, known=known, then=then)
    assert sum(earned(grade(solution, released)).values()) == 0


def test_a_check_whose_complaint_is_silenced_is_reported(solution, released):
    """Its beginning alone is no sign that it was run as it stands."""
    silenced = "get_ipython().set_custom_exc((Exception,), lambda *told, **more: print('fine'))"
    put(released, "double", silenced)
    cell_of(released, "double").source = "def double(x): return 7"
    result = grade(solution, released)
    assert earned(result)["double-check"] == earned(result)["double-hidden"] == 0
    assert "double-check did not run as it stands" in " ".join(result.messages)


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


@pytest.mark.parametrize(
    "source",
    [
        "import builtins\nbuiltins.print = lambda *a, **k: None",
        "import sys\nsys.stdout = open('results.txt', 'w')",
        "import torch\ntorch.set_default_device('meta')",
        "import course_utils.checks as c\nc.ask = c.show = c.expect = lambda *a, **k: None",
        "import course_utils.checks as c\nc.show.__code__ = (lambda *values, seal, digits=3: None).__code__",
        "math = None\nimport builtins\nbuiltins.sum = None",
    ],
)
def test_what_a_last_cell_changes_for_all_costs_nothing(solution, mine, source):
    tools = "from course_utils.checks import ask, show\n"
    check = cell_of(solution, "double-check")
    check.source = f'{tools}show([ask(double, 1.5), ask(double, -4)], seal="")'
    check.outputs[0].text = "  3.000  -8.000\n"
    put(mine, None, source)
    assert earned(grade(solution, mine)) == FULL


def test_what_stands_below_is_left_out_where_hidden_checks_fail_for_it(solution, mine):
    cell_of(mine, "double").source = "table = {1: 2}\ndef double(x):\n    return x * table[1]"
    put(mine, None, "table[1] = 3")
    assert earned(grade(solution, mine)) == FULL


def test_a_seal_helps_nobody_in_a_hidden_check(solution, mine):
    hidden = cell_of(solution, "double-hidden")
    hidden.source = (
        "### BEGIN HIDDEN TESTS\nfrom course_utils.checks import ask, show\n"
        f'show(ask(double, 4567), seal="{sealed("9134.000")}")\n### END HIDDEN TESTS'
    )
    hidden.outputs[0].text = "9134.000\n"
    put(
        mine,
        "double",
        textwrap.dedent("""
        import course_utils.checks as c, sys
        def show(value, seal, digits=3):
            assert seal, "there is no seal"
            print("9134.000")
        c.show = show
    """),
    )
    cell_of(mine, "double").source = "def double(x): return 2 * x if x < 9 else 0"
    assert earned(grade(solution, mine)) == {**FULL, "double-check": 0, "double-hidden": 0}


def test_a_display_or_a_figure_in_an_answer_costs_nothing(solution, mine):
    cell_of(mine, "double").source = (
        "from IPython.display import display\nimport matplotlib.pyplot as plt\n"
        "def double(x):\n    display('look'); plt.plot([x]); print\n    return 2 * x"
    )
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.parametrize("where", ["with the other answer", "both in a cell of one's own", "above all"])
def test_a_deleted_answer_that_stands_elsewhere_is_not_overwritten(solution, mine, where):
    halve = "def halve(x): return x / 2"
    if where == "with the other answer":
        cell_of(mine, "double").source += f"\n{halve}"
        del mine.cells[place_of(mine, "halve")]
    elif where == "above all":
        del mine.cells[place_of(mine, "halve")]
        mine.cells.insert(0, new_code_cell(halve))
    else:
        put(mine, "double", f"double = lambda x: 2 * x\n{halve}")
        for name in ("double", "halve"):
            del mine.cells[place_of(mine, name)]
    assert earned(grade(solution, mine)) == FULL


def test_an_experiment_in_a_copy_below_the_check_takes_nothing(solution, mine):
    copy = nbformat.from_dict(cell_of(mine, "double"))
    copy.source, copy.id = "def double(x): return 3 * x  # what if?", "a-copy"
    mine.cells.insert(place_of(mine, "halve"), copy)
    assert earned(grade(solution, mine)) == FULL


@pytest.mark.slow
def test_long_experiments_below_keep_nothing_from_being_checked(solution, mine):
    for _ in range(5):
        put(mine, None, "import time\ntime.sleep(4)")
    assert earned(grade_one(Work(write(solution), write(mine), Limits(6, 14)))) == FULL


def test_what_all_cells_print_together_is_cut(solution, mine):
    for _ in range(60):
        put(mine, None, "print('x' * 190_000)")
    result = grade(solution, mine)
    assert earned(result) == FULL
    assert len(result.notebook) < 10_000_000


def test_more_cells_than_anybody_writes_are_refused_at_once(solution, mine):
    mine.cells += [new_code_cell("") for _ in range(3000)]
    result = grade(solution, mine)
    assert result.status == "refused"
    assert "at most 2000 cells" in result.messages[0]
