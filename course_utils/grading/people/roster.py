"""Who is in the class: one CSV file that binds a student to platforms' names, suspect, section and extension."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ...errors import CourseError
from ..late_penalty import extensions_in
from .names import BESIDE, LONGEST, composed, fitting, is_name
from .owners import plain_text
from .tables import Rows, rows_as_csv, rows_of

_SHORTENED = re.compile(r"[0-9][.,]?[0-9]*E\+[0-9]+")
_TITLES = ("name", "names", "full name", "student name", "students")  # above a list, nobody's name


@dataclass(frozen=True)
class Student:
    """One line of a roster."""

    student: str  # the name of their folder and in the gradebook
    name: str = ""  # in full, as the platform shows it
    canvas_id: str = ""  # Canvas's number for them
    moodle_id: str = ""  # Moodle's: 55 of "Participant 55"; each assignment has others: all, with spaces between
    email: str = ""
    suspect: str = ""  # a suspect's name, or `suspects/NAME` for a private one
    section: str = ""  # of the class
    extension: str = ""  # a number of days, or a time; `EXERCISE=` before it for one exercise, `;` between several

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
    """A roster from a CSV file of which the column `student` alone is needed; `release --students` wrote such, too."""
    rows = rows_of(path, "a roster")
    head = [cell.casefold() for cell in rows[0]] if rows else []
    if "student" not in head:
        got = ", ".join(head) or "nothing"
        raise CourseError(f"Expected a column student in {path}, got {got}; make one with: course roster.")
    _check_widths(rows, path)
    found = tuple(Student(**_cells(head, row, COLUMNS)) for row in rows[1:])
    found = tuple(replace(one, student=one.student.strip()) for one in found if one.student)
    if not found:
        raise CourseError(f"Expected students in {path}, found none below its first line; add a line for each.")
    roster = _each_once(found, path)
    check_extensions(roster)
    return roster


def check_extensions(roster: Roster, exercises: Collection[str] = ()) -> None:
    """Do nothing where each extension can be understood, and is of one of these exercises if any are given.

    Raises:
        CourseError: one is not.
    """
    for one in roster.students:
        try:
            extensions_in(one.extension, exercises)
        except CourseError as error:
            raise CourseError(f"{roster.source}, extension of {one.student}: a number of days, or: {error}") from error


def _each_once(found: tuple[Student, ...], path: Path) -> Roster:
    """The roster of students; a CourseError where two have a name, a number or an address in common."""
    for column in ("student", "canvas_id", "moodle_id", "email"):
        every = (getattr(one, column) for one in found)
        if twice := _twice(part for value in every for part in (value.split() if column == "moodle_id" else [value])):
            told = f"Expected each {column} once in {path}, got {twice} more than once"
            raise CourseError(f"{told}; keep one line for each student.")
        if short := next((value for one in found if _SHORTENED.fullmatch(value := getattr(one, column))), ""):
            told = f"Expected each {column} in full in {path}, got {short}, as spreadsheets shorten long numbers"
            raise CourseError(f"{told}; take it from the platform's own file once more, without opening it in one.")
    return Roster(found, str(path))


def _check_widths(rows: Rows, path: Path) -> None:
    """Raise a CourseError where a line has more cells than the first: a comma in a name moves all behind it."""
    if long := next((row for row in rows if any(row[len(rows[0]) :])), None):
        raise CourseError(
            f"Expected {len(rows[0])} cells a line in {path}, got {len(long)} in that of {long[0]}; put quotation "
            'marks around a name with a comma or semicolon in it: "Doe, Jane".'
        )


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
    """A roster from what there is: names one a line, Canvas's gradebook, Moodle's worksheet or participants."""
    rows = rows_of(path, "a class list")
    head = [cell.casefold() for cell in rows[0]] if rows else []
    if "student" in head and not _is_canvas(head):
        return read_roster(path)
    if _is_canvas(head) or {"identifier", "email address"} & {*head}:
        _check_widths(rows, path)
    if _is_canvas(head):
        found = [_from_canvas(_cells(head, row, head)) for row in rows[1:] if not _is_no_student(row)]
    elif "identifier" in head:
        found = [_from_worksheet(_cells(head, row, head)) for row in rows[1:]]
    elif "email address" in head:
        found = [_from_participants(_cells(head, row, head)) for row in rows[1:]]
    elif all(len(row) == 1 for row in rows) and rows:
        found = [Student(name) for name in student_names("\n".join(row[0] for row in rows))]
    else:
        if long := next((row for row in rows if len(rows[0]) == 1 < len(row)), None):
            told = f"Expected names one a line in {path}, got {', '.join(long)!r}, which the comma divides"
            raise CourseError(f"{told}; write {' '.join([*long[1:], long[0]])!r}.")
        kinds = "names one a line, Canvas's gradebook export, Moodle's grading worksheet or list of participants"
        raise CourseError(f"Expected {kinds} in {path}, got columns {', '.join(head) or 'nothing'}.")
    if not found:
        raise CourseError(f"Expected students in {path}, found none.")
    return _each_once(tuple(_with_keys(_merged(found))), path)


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


def _merged(found: Iterable[Student]) -> list[Student]:
    """One line for each student: who is in two sections has two in an export, of one name and number or address."""
    lines: dict[tuple[str, ...], Student] = {}
    for number, one in enumerate(found):
        known_by = one.canvas_id or one.moodle_id or one.email
        key = (plain_text(one.name), plain_text(known_by)) if known_by else (str(number),)
        before = lines.setdefault(key, one)
        sections = dict.fromkeys([*before.section.split(", "), *one.section.split(", ")])
        lines[key] = replace(before, section=", ".join(filter(None, sections)))
    return list(lines.values())


def _with_keys(found: Iterable[Student]) -> list[Student]:
    """Each with a name of their own that can name a folder: their login, their name, or these with a number."""
    taken: set[str] = set()
    keyed = []
    for one in found:
        last, comma, first = one.name.partition(", ")
        name = f"{first} {last}" if comma else one.name
        plain = " ".join(fitting(one.student or name or one.email, " ")[: LONGEST - 10].split()).strip(BESIDE)
        key, number = plain or "student", 2
        while plain_text(key) in taken or not is_name(key):
            key, number = f"{plain or 'student'} {number}", number + 1
        taken.add(plain_text(key))
        keyed.append(replace(one, student=key))
    return keyed


def with_suspects(roster: Roster, suspects: Sequence[str]) -> Roster:
    """A roster in which everybody has a suspect; who has one keeps it."""
    given = assign((one.student for one in roster.students if not one.suspect), suspects)
    students = tuple(replace(one, suspect=one.suspect or given[one.student]) for one in roster.students)
    return replace(roster, students=students)


def student_names(text: str) -> list[str]:
    """The names in a list, one a line; a CourseError where one is there twice, or cannot name a folder."""
    names = [composed(line.strip()) for line in text.splitlines() if line.strip()]
    if names and names[0].casefold() in _TITLES:
        del names[0]
    if not names:
        raise CourseError("Expected a list of students, one name a line, got an empty one.")
    for name in names:
        if not is_name(name):
            told = f"Expected names of at most {LONGEST} letters, digits, spaces and . @ + ' ’ · - _"
            raise CourseError(f"{told}, a letter or digit first and no . last, got {name!r}.")
    twice = sorted({name for name in names if [n.casefold() for n in names].count(name.casefold()) > 1})
    if twice:
        raise CourseError(f"Expected each student once, got {twice[0]!r} more than once; add a number.")
    return names


def assign(students: Iterable[str], suspects: Sequence[str]) -> dict[str, str]:
    """A suspect for each student: the same for the same class, each suspect as often as the others (or once more).

    >>> sorted(assign(["Ada", "Ben", "Cy"], ["model-a", "model-b", "model-c"]).values())
    ['model-a', 'model-b', 'model-c']
    """
    names = list(students)
    mixed = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    found = {name: suspects[k % len(suspects)] for k, name in enumerate(mixed)}
    return {name: found[name] for name in names}
