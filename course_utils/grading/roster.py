"""Who is in the class: one CSV file that binds a student to platforms' names, suspect, section and extension."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..errors import CourseError
from .intake import Submission, Taken, latest
from .late import check_extension
from .owners import canvas_name, moodle_name, plain_text, printable
from .tables import rows_as_csv, rows_of

_KEY = re.compile(r"[\w][\w .@+'-]{0,99}")
_MOST_TOLD = 50


@dataclass(frozen=True)
class Student:
    """One line of a roster.

    Attributes:
        student: the name of their folder and in the gradebook.
        name: in full, as the platform shows it.
        canvas_id: Canvas's number for them.
        moodle_id: Moodle's: "Participant 55" has 55. Every assignment has others; write them all, with spaces between.
        email: their address.
        suspect: a suspect's name, or `suspects/NAME` for a private one.
        section: of the class.
        extension: a number of days, or a time.
    """

    student: str
    name: str = ""
    canvas_id: str = ""
    moodle_id: str = ""
    email: str = ""
    suspect: str = ""
    section: str = ""
    extension: str = ""

    @property
    def moodle_ids(self) -> tuple[str, ...]:
        """Moodle's numbers for them, of all assignments."""
        return tuple(self.moodle_id.split())


@dataclass(frozen=True)
class Roster:
    """A class."""

    students: tuple[Student, ...]
    source: str = "the roster"

    @property
    def suspects(self) -> dict[str, str]:
        """Who was given which suspect."""
        return {one.student: one.suspect for one in self.students if one.suspect}

    def __getitem__(self, student: str) -> Student:
        """The line of a student; one that says nothing for somebody who is not in it."""
        return self._by_key.get(student, Student(student))

    @property
    def _by_key(self) -> Mapping[str, Student]:
        return {one.student: one for one in self.students}


COLUMNS = tuple(field.name for field in fields(Student))


def read_roster(path: Path) -> Roster:
    """A roster from a CSV file of which the column `student` alone is needed; `release --students` wrote such, too.

    Raises:
        CourseError: it is no such table, names somebody twice, or an extension that is none.
    """
    rows = rows_of(path, "a roster")
    head = [cell.casefold() for cell in rows[0]] if rows else []
    if "student" not in head:
        got = ", ".join(head) or "nothing"
        raise CourseError(f"Expected a column student in {path}, got {got}; make one with: course roster.")
    found = tuple(Student(**_cells(head, row, COLUMNS)) for row in rows[1:])
    found = tuple(replace(one, student=one.student.strip()) for one in found if one.student)
    for one in found:
        try:
            check_extension(one.extension)
        except CourseError as error:
            raise CourseError(f"{path}, extension of {one.student}: a number of days, or: {error}") from error
    for column in ("student", "canvas_id", "moodle_id", "email"):
        every = (getattr(one, column) for one in found)
        if twice := _twice(part for value in every for part in (value.split() if column == "moodle_id" else [value])):
            raise CourseError(f"Expected each {column} once in {path}, got {twice} more than once.")
    return Roster(found, str(path))


def _cells(head: Sequence[str], row: Sequence[str], wanted: Iterable[str]) -> dict[str, str]:
    told = dict(zip(head, row, strict=False))
    return {name: told.get(name, "") for name in wanted}


def _twice(values: Iterable[str]) -> str:
    seen: set[str] = set()
    for value in values:
        if value and plain_text(value) in seen:
            return value
        seen.add(plain_text(value))
    return ""


def roster_as_csv(roster: Roster) -> bytes:
    """A roster as a file."""
    return rows_as_csv([list(COLUMNS), *(list(map(str, asdict(one).values())) for one in roster.students)])


def class_list(path: Path) -> Roster:
    """A roster from what there is: names one a line, Canvas's gradebook, Moodle's worksheet or participants, a roster.

    Raises:
        CourseError: it is none of these.
    """
    rows = rows_of(path, "a class list")
    head = [cell.casefold() for cell in rows[0]] if rows else []
    if "student" in head and not _is_canvas(head):
        return read_roster(path)
    if _is_canvas(head):
        found = [_from_canvas(_cells(head, row, head)) for row in rows[1:] if not _is_no_student(row)]
    elif "identifier" in head:
        found = [_from_worksheet(_cells(head, row, head)) for row in rows[1:]]
    elif "email address" in head:
        found = [_from_participants(_cells(head, row, head)) for row in rows[1:]]
    elif all(len(row) == 1 for row in rows) and rows:
        from .bundle import student_names

        found = [Student(name) for name in student_names("\n".join(row[0] for row in rows))]
    else:
        kinds = "names one a line, Canvas's gradebook export, Moodle's grading worksheet or list of participants"
        raise CourseError(f"Expected {kinds} in {path}, got columns {', '.join(head) or 'nothing'}.")
    if not found:
        raise CourseError(f"Expected students in {path}, found none.")
    return Roster(tuple(_with_keys(found)), str(path))


def _is_canvas(head: Sequence[str]) -> bool:
    return head[:1] == ["student"] and "id" in head and "section" in head


def _is_no_student(row: Sequence[str]) -> bool:
    """Canvas's rows of points and of posting, and its test student."""
    first = row[0].casefold()
    return not first or "points possible" in first or first == "student, test"


def _from_canvas(row: Mapping[str, str]) -> Student:
    login = row.get("sis login id", "")
    email = login if "@" in login else ""
    return Student(login, row["student"], canvas_id=row["id"], email=email, section=row["section"])


def _from_worksheet(row: Mapping[str, str]) -> Student:
    number = re.search(r"([0-9]{1,20})$", row["identifier"][-40:])
    name, email = row.get("full name", ""), row.get("email address", "")
    return Student("", name or row["identifier"], moodle_id=number[1] if number else "", email=email)


def _from_participants(row: Mapping[str, str]) -> Student:
    last = row.get("last name") or row.get("surname", "")
    name = f"{row.get('first name', '')} {last}".strip()
    return Student("", name, email=row["email address"], section=row.get("groups", ""))


def _with_keys(found: Iterable[Student]) -> list[Student]:
    """Each with a name of their own that can name a folder: their login, their name, or these with a number."""
    taken: set[str] = set()
    keyed = []
    for one in found:
        last, comma, first = one.name.partition(", ")
        name = f"{first} {last}" if comma else one.name
        plain = " ".join(re.sub(r"[^\w .@+'-]", " ", one.student or name or one.email)[:90].split()).strip(" .-+'@")
        key, number = plain or "student", 2
        while plain_text(key) in taken or not _KEY.fullmatch(key):
            key, number = f"{plain or 'student'} {number}", number + 1
        taken.add(plain_text(key))
        keyed.append(replace(one, student=key))
    return keyed


def with_suspects(roster: Roster, suspects: Sequence[str]) -> Roster:
    """A roster in which everybody has a suspect; who has one keeps it."""
    from .bundle import assign

    given = assign((one.student for one in roster.students if not one.suspect), suspects)
    students = tuple(replace(one, suspect=one.suspect or given[one.student]) for one in roster.students)
    return replace(roster, students=students)


def make_roster(source: Path, out: Path, suspects: Sequence[str] = (), *, force: bool = False) -> str:
    """Write the roster of a class, everybody with a suspect; what was done, in a sentence.

    Raises:
        CourseError: no class list, a suspect that is not there, or a file in the way.
    """
    from .._files import write_whole
    from ..loading.sources import SUSPECTS
    from .bundle import check_suspect
    from .suspects import named

    if out.exists() and not force:
        raise CourseError(f"Expected a new file, got {out}, which is there; name another with --out, or say --force.")
    for suspect in suspects:
        check_suspect(suspect)
    roster = with_suspects(class_list(source), [named(suspect) for suspect in suspects] or SUSPECTS)
    write_whole(out, roster_as_csv(roster))
    has = [column for column in COLUMNS if any(getattr(one, column) for one in roster.students)]
    return f"{len(roster.students)} students with {', '.join(has[1:])} in {out}, which is for you alone"


def bind(taken: Taken, roster: Roster, exercises: Iterable[str] = ()) -> Taken:
    """The submissions under the names of a roster, with its extensions; who matches nobody and who is missing is told.

    Args:
        taken: what was handed in.
        roster: the class.
        exercises: for which everybody should have handed in; without them those that anybody did.
    """
    known = _Known(roster)
    notes: list[str] = []
    strangers: dict[str, str] = {}
    mine: list[Submission] = []
    for one in sorted(taken.submissions, key=lambda one: (one.order, one.place)):
        student = known.who(one, notes)
        if student is None:
            called = known.free(one)
            strangers[called] = f"{called} is nobody in {roster.source}: graded under that name, to be added there."
            mine.append(replace(one, student=called))
            continue
        number = one.number or student.canvas_id or (*student.moodle_ids, "")[0]
        mine.append(replace(one, student=student.student, number=number, extension=student.extension))
    submissions, earlier = latest(mine)
    notes += _shortened(list(strangers.values()), "more whom the roster does not know")
    handed_in = {(one.exercise, one.student) for one in submissions}
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
        platform = "moodle" if moodle_name(one.label) else "canvas" if canvas_name(one.label) else ""
        by_name = self._by_name(one.student.removesuffix(f" ({one.number})"), platform)
        by_number = self._numbers.get((platform, one.number)) if platform and one.number else None
        named = next(iter(by_name)) if len(by_name) == 1 else None
        if by_number is not None:
            if named not in (None, by_number):
                whose = f"the number of {by_number.student} and the name of {named and named.student}"
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
    return re.sub(r"[^\w]", "", printable(name)).casefold()
