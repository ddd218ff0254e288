"""From what cells printed to marks: passed or not, what was expected, what came, and the likely mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nbformat import NotebookNode

from .notebook import (
    ANSWER,
    CHECK,
    LOCKED,
    MANUAL,
    STUB,
    TASK,
    grade_id,
    has_code,
    is_hidden,
    item_of,
    kind,
    points,
    printed,
)

PASSED, FAILED, UNANSWERED, SLOW = "passed", "failed", "not answered", "too slow"
UNREACHED, READ = "not run", "to be read"
ALONE = "right on the inputs that you see, not on others; it counts when both are"
VALUES = "shape and properties are right, the values are not"
PRINTS = "all that is expected is printed, and more between: take your own print(…) out of the answer"
BLANK = "nothing is written yet"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CELL = re.compile(r"\([0-9]+\.py, (?=line [0-9]+\))")  # a file that a kernel makes up, another for each student
Outcome = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Mark:
    """What one check, or one item that a person reads, says of a submission."""

    item: str  # the item, such as "occlusion"
    check: str  # the cell that says so, such as "occlusion-check"
    points: float  # what it is worth
    earned: float | None  # what it earned; None where a person decides
    status: str  # PASSED, FAILED, UNANSWERED, SLOW, UNREACHED or READ
    expected: str = ""  # the first line of the output that differs, as it should be
    received: str = ""  # the same line as it came
    message: str = ""  # what is wrong, in a sentence
    seconds: float = 0.0  # how long the answer and the check took

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return self.status == PASSED


def judge(cells: list[NotebookNode], outcome: Outcome) -> Iterator[tuple[int, Mark]]:
    """A mark for each check and each manual item among cells, with its place, from the outcome of the code cells."""
    for index, cell in enumerate(cells):
        what, item = kind(cell), item_of(cell)
        if what in (MANUAL, TASK):
            stopped = _told(outcome, index)
            is_blank = cell.source.strip() in ("", STUB) or stopped.startswith("NotImplementedError")
            told = BLANK if is_blank else f"your cell does not run: {stopped}" if stopped else ""
            yield index, Mark(item, grade_id(cell), points(cell), None, READ, message=told)
        if what != CHECK or not has_code(cell.source):
            continue
        answers = [i for i in range(index) if kind(cells[i]) == ANSWER and item_of(cells[i]) == item]
        seconds = sum(float(outcome[i]["seconds"]) for i in [*answers, index] if i in outcome)
        status, expected, received, message = _verdict(cells, index, answers, outcome)
        earned = points(cell) if status == PASSED else 0.0
        mark = Mark(item, grade_id(cell), points(cell), earned, status, expected, received, message, round(seconds, 1))
        yield index, mark


def best(marks: list[Mark]) -> list[Mark]:
    """One mark for each check: of one that ran twice, where it passed, else the last."""
    found: dict[str, Mark] = {}
    for mark in marks:
        if mark.check not in found or not found[mark.check].passed:
            found[mark.check] = mark
    return list(found.values())


def together(marks: list[Mark], cells: list[NotebookNode]) -> list[Mark]:
    """The same marks, but a check whose values are printed in the exercise counts only with its item's hidden checks.

    What it prints could be had without an answer.
    """
    hidden = {grade_id(cell) for cell in cells if is_hidden(cell)}
    failed = {mark.item for mark in marks if mark.check in hidden and not mark.passed}
    return [
        replace(mark, earned=0.0, status=FAILED, message=ALONE)
        if mark.passed and mark.item in failed and mark.check not in hidden
        else mark
        for mark in marks
    ]


def _verdict(cells: list[NotebookNode], index: int, answers: list[int], outcome: Outcome) -> tuple[str, str, str, str]:
    """Status, expected line, received line and message of one check."""
    found = outcome.get(index)
    was_over = any(told.get("ended") for i, told in outcome.items() if i < index)
    if found is None or found.get("trouble") == "Kernel dead on test start" or was_over:
        return UNREACHED, "", "", f"not run: {_blame(cells, outcome)}"
    if found["hangs"] or found.get("interrupted"):
        does = "look for a sleep, or a wait for what never comes" if found.get("waits") else "look for an endless loop"
        return SLOW, "", "", f"took too long and was stopped: {does}"
    if found["agrees"]:
        return PASSED, "", "", ""
    return _failure(cells, index, answers, outcome)


def _failure(cells: list[NotebookNode], index: int, answers: list[int], outcome: Outcome) -> tuple[str, str, str, str]:
    """The same for a check that ran and did not agree, from what came of it, of its item's answers, of cells above."""
    found = outcome[index]
    name, sentence = _error(found["outputs"]) or ("", "")
    if found.get("ended"):
        return FAILED, "", "", f"your code {found['ended']}"
    ended = [_error(outcome[i]["outputs"]) or ("", "") for i in answers if i in outcome]
    left = [told for error, told in ended if error == "NotImplementedError" and name == "NameError"]
    if left or name in ("NotAnswered", "NotImplementedError"):
        return UNANSWERED, "", "", left[0] if left else sentence
    if not name or sentence.rstrip(" .").endswith("beside the expected"):
        both = printed(cells[index].outputs), printed(found["outputs"])
        return FAILED, *_first_difference(*both), PRINTS if _prints_more(*both) else VALUES
    broken = [f"your cell does not run: {told}" for i in answers if (told := _told(outcome, i))]
    if name != "CheckFailed" and not (name == "AssertionError" and sentence and not broken):
        above = [  # what it needs and a cell that nobody wrote was to define
            f"; {grade_id(cells[i])}, above, stopped: {told}"
            for i in range(index)
            if name == "NameError" and kind(cells[i]) == LOCKED and (told := _told(outcome, i))
        ]
        renamed = ": let your answer define it, by that name" if name == "NameError" else ""
        stopped = f"the check stopped: {_told(outcome, index)}{above[0] if above else renamed}"
        return FAILED, "", "", (broken or [stopped])[0]
    return FAILED, "", "", sentence


def _blame(cells: list[NotebookNode], outcome: Outcome) -> str:
    """Which cell ended the run."""
    for index in sorted(outcome):
        found = outcome[index]
        if found.get("ended") or found["hangs"]:
            name = grade_id(cells[index]) or "a cell that you added"
            return f"{name} {found.get('ended') or 'took too long'}"
    return "the notebook stopped before"


def _told(outcome: Outcome, index: int) -> str:
    """What a cell ended with, "" where it ran."""
    return ": ".join(filter(None, _error(outcome[index]["outputs"]) or ())) if index in outcome else ""


def _error(outputs: list[Any]) -> tuple[str, str] | None:
    """The name and the sentence of the error that a cell ended with."""
    for output in outputs:
        if output["output_type"] == "error":
            return str(output["ename"]), _CELL.sub("(", _COLOUR.sub("", str(output["evalue"]))).strip()
    return None


def _prints_more(expected: str, received: str) -> bool:
    """Whether a printed text holds each line of another, in order, and has more lines."""
    came, wanted = iter(received.splitlines()), expected.splitlines()
    return len(received.splitlines()) > len(wanted) > 0 and all(line in came for line in wanted)


def _first_difference(expected: str, received: str) -> tuple[str, str]:
    """The first line in which two printed texts differ."""
    one, other = expected.splitlines(), received.splitlines()
    for k in range(max(len(one), len(other))):
        left, right = (lines[k] if k < len(lines) else "" for lines in (one, other))
        if left.rstrip() != right.rstrip():
            return left.strip(), right.strip()[:200] or "nothing"
    return "", ""
