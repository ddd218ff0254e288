"""Who a gradebook knows already: a platform's number is one student's, whatever they are called now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from ..late_penalty import extension_of
from ..people.owners import platform_of
from ..people.roster import Roster
from .gradebook import Gradebook
from .submissions import Submission, Taken, latest

_Numbered = tuple[str, str]  # a platform and its number for a student


def follow(book: Gradebook, roster: Roster) -> list[str]:
    """Let a gradebook follow a roster: who is in the class, under which name, with which extension; what was renamed.

    What it has under a name that is no longer in the roster is theirs who has the number.
    """
    students = {one.student: one.extension for one in roster.students}
    now = {("canvas", one.canvas_id): one.student for one in roster.students}
    now |= {("moodle", number): one.student for one in roster.students for number in one.moodle_ids}
    old = sorted({(student, key) for student, _, key in _numbered(book) if student not in students and key in now})
    for student, key in old:
        book.rename(student, now[key])
    book.extend(lambda who, what: extension_of(students[who], what) if who in students else None)
    book.keep("students", json.dumps(list(students)))
    return [
        f"{student} of the gradebook is {now[key]} in {roster.source}, whose number {key[1]} is: their marks go on."
        for student, key in old
    ]


def as_known(found: Taken, book: Gradebook, roster: Roster | None) -> Taken:
    """The submissions under the names that the gradebook has; a roster's stay as they are.

    One with a known number keeps that number's name, and one of a known name with another number is somebody else:
    platforms let a part of the class be downloaded, in which nobody shares a name.
    """
    theirs = {one.student for one in roster.students} if roster else set()
    names, numbers = _known(book)
    notes: list[str] = []

    def known(one: Submission) -> Submission:
        key = platform_of(one.label), one.number
        if one.student in theirs or not all(key):
            return one
        plain = one.student.removesuffix(f" ({one.number})")
        others = numbers.get((key[0], _within(key[0], one.exercise), plain), set()) - {one.number}
        called = names.get(key) or (f"{plain} ({one.number})" if others else one.student)
        if called != one.student:
            why = "by its number" if key in names else f"as {plain} of the gradebook has another number"
            notes.append(f"{one.place} is of {one.student}, {called} in the gradebook, {why}.")
        return replace(one, student=called)

    mine = sorted(map(known, found.submissions), key=lambda one: (one.order, one.place))
    submissions, earlier = latest(mine)
    return Taken(submissions, (*found.left, *earlier), (*found.notes, *notes))


def _numbered(book: Gradebook) -> Iterator[tuple[str, str, _Numbered]]:
    """Student, exercise and number of what came from a platform, the earliest first."""
    for student, exercise, number, label in book.numbered():
        if platform := platform_of(label):
            yield student, exercise, (platform, number)


def _known(book: Gradebook) -> tuple[dict[_Numbered, str], dict[tuple[str, str, str], set[str]]]:
    """The name of each number; the numbers of each name."""
    names: dict[_Numbered, str] = {}
    numbers: dict[tuple[str, str, str], set[str]] = {}
    for student, exercise, key in _numbered(book):
        names[key] = student
        numbers.setdefault((key[0], _within(key[0], exercise), student), set()).add(key[1])
    return names, numbers


def _within(platform: str, exercise: str) -> str:
    """Where a student has one number: Moodle gives another in each exercise."""
    return exercise if platform == "moodle" else ""
