"""Plausible wrong answers to the exercises, and right ones in another style; `python -m tests.mutants` tables them.

A file for each exercise holds, for each item,

    WRONG = {"item": [("the mistake", answer, r"what the message must say"), …]}
    RIGHT = {"item": [("the style", answer), …]}

where an answer is the source of the whole answer cell, or {old: new, …}: edits of the solution's.
"""

import importlib.util
import io
import linecache
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import nbformat

import course_utils
from course_utils.grading.marks import judge
from course_utils.grading.notebook import ANSWER, CHECK, grade_id, has_code, item_of, kind, printed, read

HERE = Path(__file__).parent
_loaded = cache(course_utils.load_model)  # one suspect for all mutants: a check puts back what an answer changes
SOLUTIONS = HERE.parent.parent / "solutions"
EXERCISES = sorted(path.stem for path in HERE.glob("[0-9]*.py"))


@dataclass(frozen=True)
class Mutant:
    """One answer to one item; `says` is None where the answer is right."""

    item: str
    label: str
    source: str
    says: str | None


def mutants(exercise):
    """All wrong and right answers to an exercise."""
    spec = importlib.util.spec_from_file_location(f"mutants_{exercise}", HERE / f"{exercise}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answers = {grade_id(cell): cell.source for cell in solution(exercise).cells if kind(cell) == ANSWER}
    wrong = [
        Mutant(item, w[0], _source(answers[item], w[1]), w[2]) for item, all_ in module.WRONG.items() for w in all_
    ]
    right = [
        Mutant(item, r[0], _source(answers[item], r[1]), None) for item, all_ in module.RIGHT.items() for r in all_
    ]
    return wrong + right


def solution(exercise):
    path = SOLUTIONS / f"{exercise}.ipynb"
    return read(path.read_bytes(), path.name)


_solution = cache(solution)  # read only, for those who try out hundreds of answers


def _source(answer, change):
    if isinstance(change, str):
        return change.strip("\n")
    for old, new in change.items():
        assert old in answer, f"the solution does not hold {old!r}"
        answer = answer.replace(old, new)
    return answer


def try_out(exercise, mutant, *, hidden=False):
    """The marks of an item's checks with this answer in its place, judged as `course check` judges them.

    Cells run in this process, one namespace a mutant; the other items have the solution's answers.
    """
    notebook = _solution(exercise)
    outcome, names = {}, {"__name__": "__main__"}
    for index, cell in enumerate(notebook.cells):
        what, item = kind(cell), item_of(cell)
        if cell.cell_type != "code" or (what == CHECK and (item != mutant.item or not has_code(cell.source))):
            continue
        if what == CHECK and grade_id(cell).endswith("-hidden") and not hidden:
            continue
        source = mutant.source if what == ANSWER and item == mutant.item else cell.source
        with patch("course_utils.load_model", _loaded):
            outputs = _execute(source, f"<{exercise} {cell.id}>", names)
        agrees = not any(o["output_type"] == "error" for o in outputs) and printed(outputs) == printed(cell.outputs)
        outcome[index] = {"outputs": outputs, "agrees": agrees, "seconds": 0.0, "hangs": False}
        if what == CHECK and not hidden:
            break
    return [mark for _, mark in judge(notebook.cells, outcome) if mark.item == mutant.item and _ran(mark, hidden)]


def _ran(mark, hidden):
    return hidden or not mark.check.endswith("-hidden")


def _execute(source, filename, names):
    """What a kernel would give out for a cell: what it printed, and its error."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    out, outputs = io.StringIO(), []
    try:
        with redirect_stdout(out):
            exec(compile(source, filename, "exec"), names)
    except Exception as error:
        outputs = [{"output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": []}]
    text = out.getvalue()
    stream = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
    return [nbformat.from_dict(output) for output in stream + outputs]


def named(mutant, mark):
    """Whether the message of a failed check names the mistake."""
    return bool(mutant.says) and re.search(mutant.says, mark.message) is not None
