"""Exercises that come back as they were handed out: none takes the place of one in which something is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

from nbformat import NotebookNode

from ...errors import CourseError
from ..limited import within
from ..notebook import ANSWER, MANUAL, TASK, grade_id, is_as_released, kind, read, student_view
from ..people.owners import canvas_name, moodle_name
from .gradebook import Gradebook
from .submissions import Submission, Taken


def untouched_in(references: Mapping[str, bytes]) -> Callable[[Submission], bool]:
    """Whether nothing is written in a submission, by the notebooks to grade against; each is read once, when asked."""

    @cache
    def is_untouched(submission: Submission) -> bool:
        try:
            return within(as_released, submission.content(), references[submission.exercise])
        except (CourseError, OSError, MemoryError):  # whoever grades it says why
            return False

    return is_untouched


def besides_earlier(found: Taken, book: Gradebook, untouched: Callable[[Submission], bool]) -> Taken:
    """The same without those whose students have handed in another that counts: later, or with something written in it.

    So nothing is lost where an older download is graded again.
    """
    kept, left = [], list(found.left)
    for submission in found.submissions:
        digest, place, *when = book.counts(submission.student, submission.exercise)
        if not digest or digest == _digest(submission):
            kept.append(submission)
        elif _is_before(submission, *when):
            left.append(f"{submission.place} was handed in before {place}, which counts.")
        elif untouched(submission):
            left.append(f"{submission.place} has nothing written in it: {place}, handed in before, counts.")
        else:
            kept.append(submission)
    return replace(found, submissions=tuple(kept), left=tuple(left))


def _is_before(submission: Submission, label: str, handed_in: str) -> bool:
    """Whether a platform says that another was handed in later: Canvas by its files' numbers, Moodle by their times."""
    mine, other = canvas_name(submission.label), canvas_name(label)
    if mine and other and mine.order and other.order:
        return int(mine.order) < int(other.order)
    from_moodle = moodle_name(submission.label) and moodle_name(label)
    return bool(from_moodle and submission.handed_in and submission.handed_in < handed_in)


def _digest(submission: Submission) -> str:
    try:
        return hashlib.sha256(submission.content()).hexdigest()
    except (CourseError, OSError, MemoryError):  # whoever grades it says why
        return ""


def as_released(content: bytes, reference: bytes) -> bool:
    """Whether each answer is as it was handed out, now or before, and no cell was added, whichever suspect is named."""
    cells = student_view(read(reference)).cells
    given = {grade_id(cell): cell.source.strip() for cell in cells if kind(cell) in (ANSWER, MANUAL, TASK)}
    known = {name for cell in cells for name in (grade_id(cell), cell.id)} - {""}
    sources = {cell.source.strip() for cell in cells} | {""}

    def is_given(cell: NotebookNode) -> bool:
        text = cell.source.strip()
        if grade_id(cell) in given:
            return bool(text == given[grade_id(cell)]) or is_as_released(cell)
        return text in sources or bool({grade_id(cell), cell.id} & known)

    return all(map(is_given, read(content).cells))
