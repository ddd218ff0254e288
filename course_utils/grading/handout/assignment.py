"""From solutions to exercises: nbgrader's own preprocessors, the same bytes every time, nothing hidden left in."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import nbformat
from nbformat import NotebookNode

from ...errors import CourseError, first_line
from ..notebook import (
    ANSWER,
    CHECK,
    MANUAL,
    METADATA,
    NAMESPACE,
    NOT_RUN,
    REGIONS,
    STUB,
    TASK,
    grade_id,
    has_code,
    is_hidden,
    item_of,
    kind,
    mark_scheme,
    next_steps,
    printed,
    read,
    without_regions,
    write,
)
from ..rubric import criteria

_STUB = "raise NotImplementedError()"


def exercise_from(solution: bytes, name: str = "the solution") -> bytes:
    """The exercise that a solution stands for, through nbgrader's preprocessors; a CourseError where it is faulty."""
    notebook = read(solution, name)
    if complaints := faults(notebook):
        raise CourseError(f"{name} cannot be released: {complaints[0]}")
    try:
        stub = _preprocessed(notebook)
    except (RuntimeError, ValueError, KeyError) as error:  # nbgrader's ways to say that a notebook is wrong
        raise CourseError(f"{name} cannot be released: {first_line(error)}.") from error
    stub.metadata = nbformat.from_dict(METADATA)
    return write(stub)


def _preprocessed(notebook: NotebookNode) -> NotebookNode:
    """The notebook after the preprocessors of `nbgrader generate_assignment`, except those that keep a database."""
    try:
        from nbgrader import preprocessors as steps
    except ImportError as error:
        raise CourseError("Releasing needs nbgrader: pip install 'interpretability-course[grading]'.") from error
    clear = steps.ClearSolutions(code_stub={"python": _STUB})
    told = {cell.id: next_steps(cell.source) for cell in notebook.cells if kind(cell) in (ANSWER, MANUAL)}
    order: list[Any] = [steps.LockCells(), clear, steps.ClearHiddenTests(), steps.ClearMarkScheme()]
    for step in (*order, steps.CheckCellMetadata()):
        notebook, _ = step.preprocess(notebook, {})
    for cell in notebook.cells:
        for text in told.get(cell.id, []):
            cell.source = cell.source.replace(_STUB, f"raise NotImplementedError( {text})", 1)
        cell.source = cell.source.replace("NotImplementedError( ", "NotImplementedError(")
    notebook, _ = steps.ComputeChecksums().preprocess(notebook, {})
    for cell in notebook.cells:
        if cell.cell_type == "code" and (kind(cell) in (ANSWER, MANUAL) or not has_code(cell.source)):
            cell.outputs, cell.execution_count = [], None
        if kind(cell) == CHECK and has_code(cell.source):  # folded: an exercise reads as a page, and gives less away
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.outputs[0].text = [NOT_RUN, *"".join(cell.outputs[0].text).splitlines(keepends=True)]
    return notebook


def faults(solution: NotebookNode) -> list[str]:
    """What makes a solution's checks useless or invalid, a sentence each."""
    found: list[str] = []
    names = [grade_id(cell) for cell in solution.cells if grade_id(cell)]
    found += [
        f"two cells are called {name}: give one of them another grade_id."
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for cell in solution.cells:
        name, marks = grade_id(cell), cell.metadata.get(NAMESPACE)
        marks = marks if isinstance(marks, dict) else {}
        if not name and (marks.get("grade") or marks.get("solution") or marks.get("task")):
            found.append(
                f"a cell has no name and would not be graded, so give it a grade_id: {first_line(cell.source)[:60]!r}."
            )
        worth = marks.get("points", 0)
        if kind(cell) in (CHECK, MANUAL, TASK) and not (
            type(worth) in (int, float) and math.isfinite(worth) and worth >= 0
        ):
            found.append(f"{name} is worth {worth!r} points: write a number from 0 on.")
        if name and not re.fullmatch(r"[a-zA-Z0-9_-]+", name):
            found.append(f"{name!r} is no name for a cell: write letters, digits, - and _ only.")
        ends = {one: (cell.source.count(f"BEGIN {one}"), cell.source.count(f"END {one}")) for one in REGIONS}
        if alone := next((one for one, (begun, ended) in ends.items() if begun != ended), ""):
            found.append(f"{name} has BEGIN or END {alone} alone: write ### BEGIN {alone} and ### END {alone}.")
            continue
        blank = ("", STUB, _STUB) if kind(cell) == MANUAL else ()
        bare = "BEGIN SOLUTION" not in cell.source and without_regions(cell.source, REGIONS).strip() not in blank
        if kind(cell) in (ANSWER, MANUAL) and bare:
            found.append(
                f"{name} has no BEGIN SOLUTION, so students would get nothing of it: write ### BEGIN SOLUTION below "
                "what they are to see (a signature, a question) and ### END SOLUTION at the end."
            )
        if is_hidden(cell) and has_code(without_regions(cell.source, REGIONS)):
            found.append(
                f"{name} has code beside its hidden tests, and one output for both: "
                f"put these into a cell of their own, {item_of(cell)}-hidden."
            )
        if kind(cell) == CHECK and has_code(cell.source):
            found += [f"{name} {fault}" for fault in _check_faults(cell)]
        scheme = criteria(mark_scheme(cell))
        if scheme and (given := sum(one.points for one in scheme)) != worth:
            found.append(
                f"{name} is worth {worth:g} points, and its mark scheme's criteria {given:g}: make them agree."
            )
    return found


def _check_faults(cell: NotebookNode) -> list[str]:
    """What is wrong with one check cell."""
    from ..._output_digest import SEAL, sealed

    if any(output["output_type"] == "error" for output in cell.outputs):
        return ["fails on the solution itself: mend the check or the answer, and run the solution again."]
    text = printed(cell.outputs)
    if cell.execution_count is None or not text.strip():
        return [
            "has no stored output, so nothing would be compared: end it with print(…), run the solution and store it."
        ]
    if any(output["output_type"] != "stream" or output.get("name") != "stdout" for output in cell.outputs):
        return [
            "gives out something besides what it prints: nbgrader would take it for a score or a failure: "
            "end it with print(…), and run it again."
        ]
    if found := _ending_faults(cell.source):
        return found
    seals = re.findall(SEAL, cell.source)
    if seals and seals != [sealed(text)]:
        return [f'prints what its seal does not fit: write seal="{sealed(text)}".']
    return []


def _ending_faults(source: str) -> list[str]:
    """What is wrong with how a check's code ends."""
    try:
        last = ast.parse(source).body[-1]
    except SyntaxError:
        return ["is not plain Python: take magics (%) and shell commands (!) out, and run the solution again."]
    if isinstance(last, ast.Expr) and source.rstrip().endswith(";"):
        return ["ends in a semicolon: end it with print(…) alone."]
    return []
