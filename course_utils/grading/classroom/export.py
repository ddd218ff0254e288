"""Marks out of the gradebook: for a spreadsheet, Canvas or Moodle; and what a class found hard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from statistics import median

from ..._files import zipped
from ...errors import CourseError
from ..marks import READ, UNANSWERED, UNREACHED, Mark
from ..people.owners import canvas_name, moodle_name, platform_of
from ..people.roster import Roster, Student
from ..people.tables import Rows, rows_as_csv
from .feedback import page_of
from .gradebook import Gradebook
from .standing import Entry, Graded

_ITEMS = "student exercise item check points earned status comment late machine reason by"
_MOST_NAMED = 20
_NOBODY = (
    "Expected submissions with {}'s names or numbers, found none; grade its download, or a folder with a roster that "
    "has its numbers."
)


@dataclass(frozen=True)
class About:
    """What an export is told besides the marks."""

    roster: Roster | None = None  # the class, for platforms' numbers, full names and sections
    titles: Mapping[str, str] = field(default_factory=dict)  # Canvas's for an exercise: "Token attribution (123)"

    def student(self, graded: Graded) -> Student:
        """Who it is, with the number under which the platform handed it in."""
        found = self.roster[graded.student] if self.roster else Student(graded.student)
        platform = platform_of(graded.label)
        numbers = {f"{platform}_id": graded.number} if platform and graded.number else {}
        if not platform and graded.number and not (found.canvas_id or found.moodle_id):
            numbers = {"canvas_id": graded.number, "moodle_id": graded.number}
        return replace(found, name=found.name or graded.student, **numbers)


def counted(book: Gradebook, about: About, platform: str) -> tuple[list[Graded], list[str]]:
    """What counts for each of a platform's students; a sentence for each of whom the gradebook has two names.

    That happens where a class was graded without its roster and then with it: the later one counts.
    """
    current, notes = list(book.current()), []
    latest: dict[tuple[str, str, str], Graded] = {}
    for graded in sorted(current, key=lambda graded: graded.turn):
        who = about.student(graded)
        number = who.canvas_id if platform == "canvas" else _moodle_number(graded, who)
        key = graded.exercise, number, "" if number else graded.student
        if key in latest:
            both = f"{latest[key].student} and {graded.student} of the gradebook have {platform}'s number {number}"
            notes.append(f"{both}: {graded.exercise} counts as {graded.student}, graded last, has it.")
        latest[key] = graded
    kept = {graded.result for graded in latest.values()}
    return [graded for graded in current if graded.result in kept], notes


def doubts(book: Gradebook, about: About, form: str, exercises: Collection[str]) -> list[str]:
    """A sentence for whatever goes out in a form and may not be meant to: two of one student, others than this class's.

    Exercises are those that there are now; none where that is not known.
    """
    platform = form.partition("-")[0]
    if platform not in ("canvas", "moodle"):
        return []
    found, notes = counted(book, about, platform)
    known = {one.student for one in about.roster.students} if about.roster else set()
    strangers = sorted({graded.student for graded in found} - known) if about.roster else []
    others = sorted({graded.exercise for graded in found} - set(exercises)) if exercises else []
    for what, names in (("students not in the roster", strangers), ("exercises without a solution here", others)):
        if names:
            notes.append(f"The gradebook has {what}, which are exported too: {_listed(names)}.")
    nameless = {one.student for one in found if form == "moodle" and not _moodle_number(one, about.student(one))}
    if nameless:
        told = f"Moodle knows its students by number, and there is none of {_listed(sorted(nameless))}"
        notes.append(f"{told}: write theirs into the roster, as moodle_id, and export again.")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def titles_of(given: Iterable[str]) -> dict[str, str]:
    """Titles as the command line gives them: `EXERCISE=TITLE`; a CourseError for one without = or a title."""
    pairs = [one.partition("=") for one in given]
    for name, _, title in pairs:
        if not name or not title.strip():
            raise CourseError(
                f"Expected a title such as 08_1_token_attribution='Token attribution (123)', got {name!r}."
            )
    return {name: title.strip() for name, _, title in pairs}


def as_csv(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """Two files: a line for each student, exercise and item; a line for each exercise, with what being late cost.

    Where a person has overridden what the run gave, that stands beside what counts.
    """
    sums = ["student", "name", "section", "exercise", "points", "earned", "subtracted", "total", "why", "handed in"]
    rows: Rows = [_ITEMS.split()]
    totals: Rows = [sums]
    for graded in book.current():
        for entry in graded.entries:
            mark = entry.mark
            earned = "" if mark.earned is None or graded.is_unmarked else f"{mark.earned:g}"
            told = [mark.item, mark.check, f"{mark.points:g}", earned, entry.status, entry.comment]
            override = entry.override
            said = [f"{override.machine:g}", override.reason, override.who] if override else ["", "", entry.who]
            rows.append([graded.student, graded.exercise, *told, "late" if graded.late else "", *said])
        who = about.student(graded)
        numbers = [f"{graded.points:g}", f"{graded.earned:g}", f"{graded.subtracted:g}", _total(graded)]
        totals.append([graded.student, who.name, who.section, graded.exercise, *numbers, graded.why, graded.handed_in])
    return {"grades.csv": rows_as_csv(rows), "totals.csv": rows_as_csv(totals)}


def as_canvas(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """One file for Canvas's import of grades: a column for each exercise; who waits for a person has no mark yet.

    Canvas finds a student by ID, else by name, and an assignment by the number in brackets behind its title, else by
    the title; it takes an unknown title for a new assignment.
    """
    found, _ = counted(book, about, "canvas")
    exercises = sorted({graded.exercise for graded in found})
    worth = {graded.exercise: graded.points for graded in found}
    if unknown := [name for name in about.titles if name not in exercises]:
        raise CourseError(f"Expected titles for {', '.join(exercises)}, got one for {unknown[0]!r}.")
    titles = [about.titles.get(exercise, exercise) for exercise in exercises]
    rows: Rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *titles]]
    rows.append(["    Points Possible", "", "", "", "", *(f"{worth[exercise]:g}" for exercise in exercises)])
    theirs: dict[tuple[str, str], list[Graded]] = {}
    for graded in found:
        number = about.student(graded).canvas_id
        theirs.setdefault((number, "" if number else graded.student), []).append(graded)
    for each in theirs.values():
        who = about.student(max(each, key=lambda graded: graded.turn))
        earned = {graded.exercise: _total(graded) for graded in each}
        about_them = [who.name, who.canvas_id, "", who.email, who.section]
        rows.append([*about_them, *(earned.get(exercise, "") for exercise in exercises)])
    return {"canvas.csv": rows_as_csv(rows)}


def as_moodle(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """A grading worksheet for each exercise, as Moodle takes them back.

    Moodle wants the columns Identifier, Grade and Last modified (grade), in English as here where the site is. It
    leaves a grade alone that was changed there after the time in the last of these, which is that of this export, and
    writes an empty comment over one that is there: so comments have a column only where there is something to say.
    """
    sheets: dict[str, Rows] = {}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    columns = ["Grade", "Maximum Grade", "Grade can be changed", "Last modified (submission)", "Last modified (grade)"]
    for graded in counted(book, about, "moodle")[0]:
        who = about.student(graded)
        number = _moodle_number(graded, who)
        comments = [f"late: {graded.why}"] if graded.why else []
        comments += [f"{entry.mark.item}: {entry.comment}" for entry in graded.entries if entry.comment]
        marks = [_total(graded), f"{graded.points:g}", "Yes", graded.handed_in, now]
        row = [f"Participant {number}", who.name, who.email, *marks, "; ".join(comments)]
        if number:
            sheets.setdefault(graded.exercise, []).append(row)
    if not sheets:
        raise CourseError(_NOBODY.format("Moodle"))
    return {f"moodle-{exercise}.csv": rows_as_csv(_sheet(columns, rows)) for exercise, rows in sheets.items()}


def _moodle_number(graded: Graded, who: Student) -> str:
    """The participant's number for this assignment: that under which it was handed in."""
    return graded.number if moodle_name(graded.label) else (*who.moodle_ids, "")[0]


def _sheet(columns: list[str], rows: Rows) -> Rows:
    has_comments = any(row[-1] for row in rows)
    header = ["Identifier", "Full name", "Email address", *columns, "Feedback comments"]
    return [row if has_comments else row[:-1] for row in (header, *rows)]


def as_history(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """One file: every mark that anybody ever got, the oldest first."""
    rows: Rows = [["at", "student", "exercise", "check", "earned", "by", "comment"]]
    for row in book.history():
        earned = "" if row["points"] is None else f"{row['points']:g}"
        rows.append([row["at"], row["student"], row["exercise"], row["check"], earned, row["who"], row["why"]])
    return {"history.csv": rows_as_csv(rows)}


def as_canvas_feedback(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """A zip file for each exercise, for Canvas's "Upload Submissions": Canvas reads the two numbers in a file's name.

    The names are those of the download, with another ending. Canvas shows each under the name of the student's file.
    """

    def name(graded: Graded) -> str | None:
        return f"{_stem(graded.label)}.html" if canvas_name(graded.label) else None

    return _feedback(book, about, "canvas", name)


def as_moodle_feedback(book: Gradebook, about: About = About()) -> dict[str, bytes]:
    """A zip file for each exercise, for Moodle's "Upload multiple feedback files in a zip".

    Moodle divides a name at its first four _: the participant's number is second, and must stand behind one _ alone.
    """

    def name(graded: Graded) -> str | None:
        number = _moodle_number(graded, about.student(graded))
        told = moodle_name(graded.label)
        who = re.sub(r"[_/\\\s]+", " ", told.student if told else graded.student).strip(" .~") or "student"
        return f"{who}_{number}_assignfeedback_file_{graded.exercise}.html" if number else None

    return _feedback(book, about, "moodle", name)


def _feedback(book: Gradebook, about: About, platform: str, name: Callable[[Graded], str | None]) -> dict[str, bytes]:
    """Each exercise's pages under the names that a platform knows; a CourseError where it knows nobody."""
    files: dict[str, dict[str, bytes]] = {}
    for graded in counted(book, about, platform)[0]:
        if called := name(graded):
            files.setdefault(graded.exercise, {})[called] = page_of(book, graded.student, [graded])
    if not files:
        raise CourseError(_NOBODY.format(platform.title()))
    return {f"{platform}-feedback-{exercise}.zip": zipped(found) for exercise, found in files.items()}


def _stem(label: str) -> str:
    """A file's name without its ending, and without what no file system takes."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", re.sub(r"\.[A-Za-z0-9]{1,8}$", "", label))


FORMATS: Mapping[str, Callable[..., dict[str, bytes]]] = {
    "csv": as_csv,
    "canvas": as_canvas,
    "moodle": as_moodle,
    "history": as_history,
    "canvas-feedback": as_canvas_feedback,
    "moodle-feedback": as_moodle_feedback,
}


def _total(graded: Graded) -> str:
    return "" if graded.unread or graded.is_unmarked else f"{graded.total:g}"


@dataclass(frozen=True)
class Statistic:
    """How a class did in one check."""

    exercise: str
    check: str
    students: int
    attempts: int  # students who answered
    passed: float  # the share of these who passed
    mistake: str  # the message that most of the others got, "" for none
    seconds: float  # the median time of answer and check


def statistics(current: Iterable[Graded]) -> list[Statistic]:
    """How the class did in each check that a machine judges, in order."""
    entries: dict[tuple[str, str], list[Entry]] = {}
    for graded in current:
        for entry in graded.entries:
            if entry.mark.status != READ:
                entries.setdefault((graded.exercise, entry.mark.check), []).append(entry)
    return [_statistic(*key, [entry.mark for entry in found]) for key, found in entries.items()]


def _statistic(exercise: str, check: str, marks: list[Mark]) -> Statistic:
    answered = [mark for mark in marks if mark.status not in (UNANSWERED, UNREACHED)]
    told = Counter(mark.message for mark in answered if not mark.passed and mark.message)
    passed = sum(mark.passed for mark in answered) / len(answered) if answered else 0.0
    seconds = median(mark.seconds for mark in answered) if answered else 0.0
    mistake = told.most_common(1)[0][0] if told else ""
    return Statistic(exercise, check, len(marks), len(answered), passed, mistake, seconds)


def table_of(found: Iterable[Statistic]) -> bytes:
    """Statistics as CSV."""
    rows: Rows = [[field.name for field in fields(Statistic)]]
    for each in found:
        told = (getattr(each, field.name) for field in fields(Statistic))
        rows.append([f"{value:.3g}" if isinstance(value, float) else str(value) for value in told])
    return rows_as_csv(rows)
