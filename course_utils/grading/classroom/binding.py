"""Whose each submission is, by the class's roster."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from ..late_penalty import extension_of
from ..people.names import composed
from ..people.owners import Owned, canvas_readings, plain_text, platform_of, printable
from ..people.roster import Roster, Student
from .submissions import Submission, Taken, latest

_MOST_TOLD = 50


def bind(
    taken: Taken,
    roster: Roster,
    exercises: Iterable[str] = (),
    untouched: Callable[[Submission], bool] = lambda _: False,
    before: Collection[tuple[str, str]] = (),
) -> Taken:
    """The submissions under the names of a roster, with its extensions; who matches nobody and who is missing is told.

    Missing is who has none for one of the exercises; without these, for one for which anybody has. Those of whom there
    was one before, by exercise and student, are not.
    """
    known = _Known(roster)
    notes: list[str] = []
    strangers: dict[str, str] = {}
    mine: list[Submission] = []
    found = [known.read_otherwise(one, notes) for one in taken.submissions]
    for one in sorted(found, key=lambda one: (one.order, one.place)):
        student = known.who(one, notes)
        if student is None:
            called = known.free(one)
            strangers[called] = f"{called} is nobody in {roster.source}: graded under that name, to be added there."
            mine.append(replace(one, student=called))
            continue
        number = one.number or student.canvas_id or (*student.moodle_ids, "")[0]
        extension = extension_of(student.extension, one.exercise)
        mine.append(replace(one, student=student.student, number=number, extension=extension))
    submissions, earlier = latest(mine, untouched)
    notes += _shortened(list(strangers.values()), "more whom the roster does not know")
    handed_in = {(one.exercise, one.student) for one in submissions} | {*before}
    for exercise in sorted({*exercises} or {one.exercise for one in submissions}):
        missing = [one.student for one in roster.students if (exercise, one.student) not in handed_in]
        names = ", ".join(_shortened(missing, "more"))
        notes += [f"{exercise}: nothing from {len(missing)} of the roster: {names}."] if missing else []
    return Taken(submissions, (*taken.left, *earlier), (*taken.notes, *notes))


def _shortened(told: list[str], more: str) -> list[str]:
    return told if len(told) <= _MOST_TOLD else [*told[:_MOST_TOLD], f"{len(told) - _MOST_TOLD} {more}"]


class _Known:
    """A roster by all the names that a platform may give a student."""

    def __init__(self, roster: Roster) -> None:
        self._numbers: dict[tuple[str, str], Student] = {}
        self._names: list[dict[str, set[Student]]] = [{}, {}, {}, {}]  # by key, by name, by email, by Canvas's own form
        for one in roster.students:
            self._numbers[("canvas", one.canvas_id)] = one
            self._numbers |= {("moodle", number): one for number in one.moodle_ids}
            canvas = {_squeezed(turned) for name in (one.name, one.student) for turned in _turned(name)}
            for index, names in enumerate([{one.student}, _turned(one.name), {one.email}, canvas]):
                for name in names:
                    self._names[index].setdefault(plain_text(name), set()).add(one)

    def who(self, one: Submission, notes: list[str]) -> Student | None:
        """Whose a submission is by its number, else by key, name, email; None where that is nobody or in doubt."""
        platform = platform_of(one.label)
        by_name = self._by_name(one.student.removesuffix(f" ({one.number})"), platform)
        by_number = self._numbers.get((platform, one.number)) if platform and one.number else None
        named = next(iter(by_name)) if len(by_name) == 1 else None
        if by_number is not None:
            shares_its_name = one.student.endswith(f" ({one.number})")  # as all have one where Moodle hides names
            if by_number.name and by_number not in by_name and not shares_its_name:
                whose = f"the number of {by_number.student} and the name of {named.student if named else one.student}"
                notes.append(f"{one.place} has {whose}: the number counts.")
            return by_number
        if len(by_name) > 1:
            several = ", ".join(sorted(each.student for each in by_name))
            notes.append(f"{one.place} may be of {several}: write {platform} number {one.number} into the roster.")
        elif named is not None and platform == "canvas" and one.number and named.canvas_id not in ("", one.number):
            theirs = f"{named.student}, whose number in the roster is {named.canvas_id}"
            notes.append(f"{one.place} has the name of {theirs}: it does not count as theirs.")
            return None
        return named

    def read_otherwise(self, one: Submission, notes: list[str]) -> Submission:
        """The same, or as another reading of Canvas's name has it, if that alone fits; nobody's where it may be two's.

        Who may choose their own name there can put another's number, or all of another's name, before their own number.
        """
        first, *more = [*canvas_readings(one.label)] or [Owned("", (), "")]
        is_doubtful = bool(first.order) and ("canvas", first.order) in self._numbers
        if not more or (self._fits(first) and not is_doubtful):
            return one
        if told := next(filter(self._fits, more), None):
            whose = self._numbers["canvas", told.number].student
            notes.append(f"{one.place} is of {whose}, whose name and number in the roster alone fit it.")
            return replace(one, student=whose, number=told.number, order=float(told.order or 0), late=told.late)
        if not is_doubtful:
            return one
        two = " or ".join(who.student for n in (first.number, first.order) if (who := self._numbers.get(("canvas", n))))
        notes.append(f"{one.place} may be of {two}: it counts for neither.")
        return replace(one, student=f"{first.student}_{first.number}_{first.order}", number="")

    def _fits(self, told: Owned) -> bool:
        """Whether a reading has a number of the roster and that student's name, with or without numbers in it."""
        names = (told.student, re.sub(r"[_0-9]", "", told.student))
        return any(self._numbers.get(("canvas", told.number)) in self._by_name(name, "canvas") for name in names)

    def _by_name(self, called: str, platform: str) -> set[Student]:
        tried = [(index, plain_text(called)) for index in range(3)]
        tried += [(3, plain_text(_squeezed(called)))] if platform == "canvas" else []
        return next((found for index, name in tried if name and (found := self._names[index].get(name))), set())

    def free(self, one: Submission) -> str:
        """The name of somebody whom the roster does not know, which is nobody's in it."""
        taken = plain_text(one.student) in self._names[0]
        return f"{one.student} ({one.number or 'not in the roster'})" if taken else one.student


def _turned(name: str) -> set[str]:
    """A name as it is and with the family name at its other end: "Jane van Doe" is also "Doe, Jane van" and so on."""
    words = name.replace(",", " ").split()[:12]
    return {name, " ".join(words), *(" ".join(words[k:] + words[:k]) for k in range(1, len(words)))} if words else set()


def _squeezed(name: str) -> str:
    """A name as Canvas writes it into a file's: letters, digits and _ only, lower case."""
    return re.sub(r"[^\w]", "", composed(printable(name))).casefold()
