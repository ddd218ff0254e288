"""The exercises: released as stored, passed by their solutions, and right about plausible wrong and right answers."""

import ast
import json
import pkgutil
import re
from functools import cache, partial
from importlib import import_module
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbgrader.utils import compute_checksum

from course_utils import checks
from course_utils.checks.spies import as_tensor
from course_utils.grading.handout.assignment import exercise_from, faults
from course_utils.grading.merge import merge
from course_utils.grading.notebook import (
    ANSWER,
    CHECK,
    NOT_RUN,
    checksum,
    grade_id,
    has_code,
    is_as_released,
    kind,
    printed,
    read,
    write,
)
from course_utils.grading.runner.run import run
from course_utils.grading.sandbox.bubblewrap import trouble
from tests import mutants as answers
from tests.shared import cell_of, nbgrader, nbgrader_marks

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


@pytest.mark.quick
def test_there_is_an_exercise_and_a_table_of_answers_for_each_solution():
    names = [path.stem for path in SOLUTIONS]
    assert sorted(path.stem for path in (ROOT / "exercises").glob("*.ipynb")) == names
    assert set(answers.EXERCISES) <= set(names)


@pytest.mark.quick
@EACH
def test_what_is_as_released_is_known_by_nbgrader_s_own_checksum(path):
    released = read((ROOT / "exercises" / path.name).read_bytes())
    marked = [cell for cell in released.cells if grade_id(cell)]
    assert [checksum(cell) for cell in marked] == [compute_checksum(cell) for cell in marked]
    assert all(map(is_as_released, marked))
    for cell in marked:
        cell.source += "\n"
    assert not any(map(is_as_released, marked))


@pytest.mark.quick
@EACH
def test_a_notebook_whose_editor_keeps_no_metadata_and_no_ids_is_the_same(path):
    solution = read(path.read_bytes())
    mine = read(exercise_from(path.read_bytes()))
    for cell in mine.cells:
        if kind(cell) == ANSWER:
            cell.source = cell_of(solution, grade_id(cell)).source
    bare = nbformat.from_dict(mine)
    for number, cell in enumerate(bare.cells):
        cell.metadata, cell.id = {}, f"{number}"
    found, whole = merge(solution, bare), merge(solution, mine)
    assert found.repairs == whole.repairs == []
    assert [cell.source for cell in found.notebook.cells] == [cell.source for cell in whole.notebook.cells]


@pytest.fixture(params=[pytest.param("cold", marks=pytest.mark.slow if trouble() == "" else ()), "warm"])
def run_of(request):
    """A run as `course check` does it, in a kernel that starts from nothing, and as `course grade` does, which forks."""
    if request.param == "cold":
        return run
    if trouble():
        pytest.skip(f"no sandbox: {trouble()}")
    return partial(run, sandboxed=True, warm=True)


@pytest.fixture
def graded():
    """A run as `course grade` does it; without a sandbox, as `course check` does."""
    return run if trouble() else partial(run, sandboxed=True, warm=True)


@EACH
class TestEveryExercise:
    @pytest.mark.quick
    def test_the_exercise_is_the_released_solution(self, path):
        assert (ROOT / "exercises" / path.name).read_bytes() == exercise_from(path.read_bytes(), path.name)

    @pytest.mark.quick
    def test_the_solution_has_no_faults_and_nothing_hidden_is_left(self, path):
        notebook = read(path.read_bytes())
        assert faults(notebook) == []
        released = exercise_from(path.read_bytes()).decode()
        assert not re.search(r"BEGIN (HIDDEN|MARK|SOLUTION)|# NEXT", released)
        for cell in notebook.cells:
            for name, region in re.findall(r"(?s)BEGIN (HIDDEN TESTS|SOLUTION)\n(.*?)### END", cell.source):
                where = released if name != "SOLUTION" else json.dumps(cell_of(read(released.encode()), cell.id).source)
                lines = [line.strip() for line in region.splitlines() if len(line.strip()) > 40]
                assert not [line for line in lines if json.dumps(line, ensure_ascii=False)[1:-1] in where]

    @pytest.mark.quick
    def test_each_item_has_difficulty_minutes_and_two_hints(self, path):
        cells = {grade_id(cell): cell for cell in read(path.read_bytes()).cells}
        for name in [name for name, cell in cells.items() if kind(cell) in (ANSWER, "manual")]:
            heading = cells[f"{name}-text"].source
            assert re.search(r"Difficulty ●+○* · about \d+ minutes", heading), name
            assert heading.count("<details><summary>Hint") == 2
            if kind(cells[name]) == ANSWER:
                assert kind(cells[f"{name}-check"]) == CHECK

    @pytest.mark.quick
    def test_what_comes_next_names_functions_that_are_there(self, path):
        """One sent learners to `pairs`, which is the name of a cell."""
        *cells, last = read(path.read_bytes()).cells
        there = {name for cell in cells for name in re.findall(r"(?m)^def (\w+)", cell.source)}
        assert {*re.findall(r"`([a-z]\w+)`", last.source)} <= there

    @pytest.mark.quick
    def test_checks_are_folded_and_say_what_they_are(self, path):
        notebook = read((ROOT / "exercises" / path.name).read_bytes())
        for cell in notebook.cells:
            hides = cell.metadata.get("jupyter", {}).get("source_hidden", False)
            assert hides == ((kind(cell) == CHECK and has_code(cell.source)) or grade_id(cell) == "tools")
            assert not hides or cell.source.startswith(("# The check of item ", "# For the checks: "))
            assert printed(cell.get("outputs", [])).startswith(NOT_RUN) == (hides and kind(cell) == CHECK)

    def test_the_solution_passes(self, path, run_of):
        result = run_of(path.read_bytes(), path.read_bytes())
        assert [mark for mark in result.marks if mark.earned is not None and not mark.passed] == []
        assert result.repairs == ()

    def test_the_untouched_stub_is_not_answered(self, path, graded):
        stub = (ROOT / "exercises" / path.name).read_bytes()
        result = graded(stub, stub)
        assert {mark.status for mark in result.marks if mark.earned is not None} == {"not answered"}
        assert "Traceback" not in str([mark.message for mark in result.marks])
        asked = [mark.message for mark in result.marks if mark.earned is not None and mark.check.endswith("-check")]
        assert [told for told in asked if not re.match(r"\w+ is not answered yet\.", told)] == []

    @pytest.mark.slow
    def test_who_replaces_what_checks_call_gains_nothing(self, path, graded):
        notebook = read((ROOT / "exercises" / path.name).read_bytes())
        for cell in notebook.cells:
            if kind(cell) == ANSWER:
                cell.source = f"{cell.source}\n\n{IDLE}"
        result = graded(path.read_bytes(), write(notebook))
        assert sum(mark.earned for mark in result.marks if mark.earned is not None) == 0

    def test_who_has_the_checks_print_what_is_expected_gains_nothing(self, path, graded):
        """Of whoever gets at the checks' functions before any other cell, or between all others."""
        notebook = read((ROOT / "exercises" / path.name).read_bytes())
        checks_ = [cell for cell in notebook.cells if kind(cell) == CHECK and has_code(cell.source)]
        expected = {cell.id.removesuffix("-check"): printed(cell.outputs).removeprefix(NOT_RUN) for cell in checks_}
        source = f"EXPECTED = {expected}\n{PRINTING}"
        for place, cell in reversed([*enumerate(notebook.cells)]):
            if kind(cell) == ANSWER and cell.cell_type == "code":
                defined = [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
                cell.source = "\n".join(f"def {name}(*given, **named): return 0" for name in defined)
            if place == 0 or kind(cell) == ANSWER:
                notebook.cells.insert(place, nbformat.v4.new_code_cell(source, id=f"mine-{place}"))
        result = graded(path.read_bytes(), write(notebook))
        assert sum(mark.earned for mark in result.marks if mark.earned is not None) == 0
        assert not [mark.check for mark in result.marks if mark.message.startswith("right on the inputs")]


PRINTING = """
import importlib
import pkgutil

import course_utils.checks

for _each in pkgutil.iter_modules(course_utils.checks.__path__):
    _module = importlib.import_module(f"course_utils.checks.{_each.name}")
    for _name in EXPECTED.keys() & vars(_module).keys():
        setattr(_module, _name, lambda *given, _text=EXPECTED[_name], **named: print(_text, end=""))
"""

IDLE = """
import course_utils.checks

for _name, _value in list(globals().items()):
    if callable(_value) and not _name.startswith("_") and _name not in ("In", "Out", "get_ipython", "exit", "quit", "open"):
        globals()[_name] = lambda *given, **named: None
for _name in course_utils.checks.__all__:
    setattr(course_utils.checks, _name, lambda *given, **named: None)
"""


@pytest.mark.parametrize("exercise", answers.EXERCISES)
@pytest.mark.slow
def test_wrong_answers_fail_by_name_and_right_ones_pass(exercise):
    tried = [(mutant, _worst(answers.try_out(exercise, mutant, hidden=True))) for mutant in answers.mutants(exercise)]
    for item in {mutant.item for mutant, _ in tried}:
        wrong = [(m, mark) for m, mark in tried if m.item == item and m.says is not None]
        right = [(m, mark) for m, mark in tried if m.item == item and m.says is None]
        assert len(wrong) >= 6
        assert len(right) >= 2
        assert [m.label for m, mark in wrong if mark.passed] == []
        assert [(m.label, mark.message) for m, mark in right if not mark.passed] == []
        unnamed = [(m.label, mark.message) for m, mark in wrong if not answers.named(m, mark)]
        assert len(unnamed) <= 0.2 * len(wrong), unnamed


def _worst(marks):
    """The visible check's mark, or the hidden check's where the visible one passed: both are asked of an answer."""
    return next((mark for mark in marks if not mark.passed), marks[0])


EXERCISES = [  # the chapter's loads a suspect, again and again
    pytest.param(name, marks=pytest.mark.slow) if "chapter" in name else name for name in answers.EXERCISES
]
JUNK = ("[{}]", "[(float('nan'), 0)]")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_junk_gets_a_sentence(exercise):
    for cell in answers.solution(exercise).cells:
        if kind(cell) != ANSWER or cell.cell_type != "code":
            continue
        names = [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
        for name, junk in product(names, JUNK):
            source = f"{cell.source}\n\ndef {name}(*given, **named):\n    return {junk}\n"
            mark = answers.try_out(exercise, answers.Mutant(grade_id(cell), junk, source, None))[0]
            assert not mark.passed
            assert not mark.message.startswith("the check stopped"), (name, junk, mark.message)


CHECKS = [
    checks,
    *(import_module(f"course_utils.checks.{each.name}") for each in pkgutil.iter_modules(checks.__path__)),
]


@pytest.fixture
def in_all_checks(monkeypatch):
    """Puts another function in the place of one that the checks call, and forgets what they made with the old one."""

    def forget():
        for value in [value for module in CHECKS for value in vars(module).values() if hasattr(value, "cache_clear")]:
            value.cache_clear()

    def put(name, other):
        for module in CHECKS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, other)
        forget()

    yield put
    forget()


@pytest.mark.parametrize("exercise", EXERCISES)
def test_float32_rounds_no_value_the_other_way(exercise, in_all_checks):
    """Of every check, hidden ones too."""
    plain, shown = checks.show, []

    def show(*values, seal, digits=3):
        for value in values:
            if not isinstance(value, str):
                scaled = as_tensor(value) * 10**digits
                shown.append(float((scaled - scaled.floor() - 0.5).abs().min()) / 10**digits)
        plain(*values, seal=seal, digits=digits)

    in_all_checks("show", show)
    run_all(exercise)
    assert min(shown) > 5e-7


def run_all(exercise):
    """A solution's code cells, hidden checks among them, in this process; a check that fails raises."""
    names = {"__name__": "__main__"}
    for cell in answers.solution(exercise).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)


TIES_MEANT = {"ranks", "agreement", "connections"}  # their docstrings say what becomes of equal values


@pytest.mark.parametrize(
    "first", [pytest.param(True, marks=pytest.mark.slow), False], ids=("the first leads", "the last leads")
)
@pytest.mark.parametrize("exercise", EXERCISES)
def test_no_value_hangs_on_a_tie_or_on_the_last_bits(exercise, first, in_all_checks, monkeypatch):
    """Weights and scores are moved by rounding's size, equal scores one way and the other: the same choices, digits."""
    random, way = np.random.default_rng(int(first)), -1 if first else 1

    def moved(value):
        if isinstance(value, torch.Tensor) and value.dim() == 1 and value.is_floating_point():
            return value + way * (1e-9 if value.dtype == torch.float64 else 1e-7) * torch.arange(len(value)).to(value)
        if (
            isinstance(value, list)
            and value
            and all(isinstance(each, tuple) and type(each[-1]) is float for each in value)
        ):
            return [(*each, score + way * 1e-9 * place) for place, (*each, score) in enumerate(value)]
        return value

    def ask(function, /, *arguments, **named):
        if function.__name__ in TIES_MEANT:
            return plain_ask(function, *arguments, **named)
        return plain_ask(function, *map(moved, arguments), **{name: moved(value) for name, value in named.items()})

    def tiny(*given, **named):
        lm = plain_tiny(*given, **named)
        for weight in lm.model.parameters():
            weight.mul_(1 + 1e-9 * torch.from_numpy(random.uniform(-1, 1, tuple(weight.shape))))
        return lm

    plain_ask, plain_tiny = checks.ask, checks.tiny
    in_all_checks("ask", ask)
    in_all_checks("tiny", tiny)
    monkeypatch.setattr("course_utils.load_model", answers._loaded)
    run_all(exercise)  # a seal that no longer fits raises


@cache
def submissions(exercise):
    """Three students: right in the first item and in every other one after it, or in the rest; wrong in the first."""
    released = read((ROOT / "exercises" / f"{exercise}.ipynb").read_bytes())
    of = {}
    for mutant in answers.mutants(exercise):
        of.setdefault(mutant.item, ([], []))[mutant.says is None].append(mutant.source)
    made = {}
    for student in range(3):
        mine = nbformat.from_dict(released)
        for number, (item, (wrong, right)) in enumerate(of.items()):
            fails = number == 0 if student == 2 else number > 0 and number % 2 == student
            cell_of(mine, item).source = wrong[-1] if fails else right[-1]
        made[f"student-{student}"] = write(mine)
    return made


@pytest.mark.parametrize("exercise", answers.EXERCISES)
@pytest.mark.slow
def test_nbgrader_itself_gives_the_same_marks(exercise, tmp_path):
    """The real thing, from its command line: release, autograde, and read its gradebook."""
    source = tmp_path / "source" / "work" / f"{exercise}.ipynb"
    source.parent.mkdir(parents=True)
    source.write_bytes((ROOT / "solutions" / f"{exercise}.ipynb").read_bytes())
    if exercise == answers.EXERCISES[0]:
        assert "Success" in nbgrader(tmp_path, "validate", str(source))
    nbgrader(tmp_path, "generate_assignment", "work", "--create")
    released = (tmp_path / "release" / "work" / f"{exercise}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"BEGIN (SOLUTION|HIDDEN|MARK)|hidden_(?!states)", released)
    for student, content in submissions(exercise).items():
        handed_in = tmp_path / "submitted" / student / "work" / f"{exercise}.ipynb"
        handed_in.parent.mkdir(parents=True)
        handed_in.write_bytes(content)
    nbgrader(tmp_path, "autograde", "work", "--create")
    theirs, statuses = nbgrader_marks(tmp_path, exercise), set()
    for student, content in submissions(exercise).items():
        result = run(source.read_bytes(), content)
        ours = {mark.check: mark.earned for mark in result.marks if mark.earned is not None}
        assert theirs[student] == ours
        statuses |= {(mark.item, mark.passed) for mark in result.marks if mark.earned is not None}
    assert {item for item, passed in statuses if passed} == {item for item, passed in statuses if not passed}
