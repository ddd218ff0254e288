"""Marks out of the gradebook: for a spreadsheet, Canvas or Moodle; and what a class found hard."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from statistics import median

from .gradebook import Entry, Gradebook, Graded
from .verdict import READ, UNANSWERED, UNREACHED, Mark

Rows = list[list[str]]


def as_csv(book: Gradebook) -> dict[str, bytes]:
    """One file: a line for each student, exercise and item; what the run gave, where a person has overridden it."""
    header = "student exercise item check points earned status comment late machine reason by"
    rows: Rows = [header.split()]
    for graded in book.current():
        for entry in graded.entries:
            mark = entry.mark
            earned = "" if mark.earned is None else f"{mark.earned:g}"
            told = [mark.item, mark.check, f"{mark.points:g}", earned, mark.status, entry.comment]
            override = entry.override
            said = [f"{override.machine:g}", override.reason, override.who] if override else ["", "", entry.who]
            rows.append([graded.student, graded.exercise, *told, "late" if graded.late else "", *said])
    return {"grades.csv": rows_as_csv(rows)}


def as_canvas(book: Gradebook) -> dict[str, bytes]:
    """One file for Canvas's import of grades: a column for each exercise; who waits for a person has no mark yet."""
    found = list(book.current())
    exercises = sorted({graded.exercise for graded in found})
    worth = {graded.exercise: graded.points for graded in found}
    rows: Rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *exercises]]
    rows.append(["    Points Possible", "", "", "", "", *(f"{worth[exercise]:g}" for exercise in exercises)])
    students: dict[tuple[str, str], dict[str, str]] = {}
    for graded in found:
        students.setdefault((graded.student, graded.number), {})[graded.exercise] = _total(graded)
    for (student, number), earned in students.items():
        rows.append([student, number, "", "", "", *(earned.get(exercise, "") for exercise in exercises)])
    return {"canvas.csv": rows_as_csv(rows)}


def as_moodle(book: Gradebook) -> dict[str, bytes]:
    """A grading worksheet for each exercise, as Moodle takes them back."""
    sheets: dict[str, Rows] = {}
    header = ["Identifier", "Full name", "Grade", "Maximum grade", "Feedback comments"]
    for graded in book.current():
        comments = "; ".join(f"{entry.mark.item}: {entry.comment}" for entry in graded.entries if entry.comment)
        told = [f"Participant {graded.number}", graded.student, _total(graded), f"{graded.points:g}", comments]
        sheets.setdefault(graded.exercise, [header]).append(told)
    return {f"moodle-{exercise}.csv": rows_as_csv(rows) for exercise, rows in sheets.items()}


def as_history(book: Gradebook) -> dict[str, bytes]:
    """One file: every mark that anybody ever got, the oldest first."""
    rows: Rows = [["at", "student", "exercise", "check", "earned", "by", "comment"]]
    for row in book.history():
        earned = "" if row["points"] is None else f"{row['points']:g}"
        rows.append([row["at"], row["student"], row["exercise"], row["check"], earned, row["who"], row["why"]])
    return {"history.csv": rows_as_csv(rows)}


FORMATS: Mapping[str, Callable[[Gradebook], dict[str, bytes]]] = {
    "csv": as_csv,
    "canvas": as_canvas,
    "moodle": as_moodle,
    "history": as_history,
}


def _total(graded: Graded) -> str:
    return "" if graded.unread else f"{graded.earned:g}"


def rows_as_csv(rows: Rows) -> bytes:
    """Rows as a CSV file that spreadsheets read, none of its cells a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
    return cell


@dataclass(frozen=True)
class Statistic:
    """How a class did in one check.

    Attributes:
        attempts: students who answered.
        passed: the share of these who passed.
        mistake: the message that most of the others got, "" for none.
        seconds: the median time of answer and check.
    """

    exercise: str
    check: str
    students: int
    attempts: int
    passed: float
    mistake: str
    seconds: float


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
