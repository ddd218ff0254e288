"""What `course grade` and `course mark` do: grade, tell what was done, write feedback, statistics and exports."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from nbformat import NotebookNode
from tqdm.auto import tqdm

from ..._files import write_folder, write_whole
from ...errors import CourseError
from ...loading.sources import HANDED_OUT
from ..handout.assignment import faults
from ..handout.release import SOLUTIONS
from ..handout.suspects import FOLDER, beside, named, private_in
from ..late_penalty import due_dates
from ..merge import NOT_ASKED
from ..notebook import CHECK, grade_id, has_code, kind, read
from ..people.roster import Roster, check_extensions, read_roster
from ..result import Limits
from ..sandbox import control_groups
from .binding import bind
from .earlier import earlier_in, needs_folder
from .export import FORMATS, About, doubts, statistics, table_of, titles_of
from .feedback import write_feedback
from .grade import Report, grade, needs_sandbox, references_in
from .gradebook import Gradebook
from .gradebook_file import gradebook_path
from .known import as_known, follow
from .late import Late
from .marking import Marking, mark_in_terminal
from .overview import write_overview
from .similarity import Alike, alike
from .similarity import table_of as duplicates_table
from .standing import this_person
from .submissions import Submission, Taken, take
from .untouched import besides_earlier, untouched_in

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def grade_class(
    submissions: Path | None,
    out: Path,
    *,
    exercise: str = "",
    reference: Path | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    memory: str = "4GB",
    no_sandbox: bool = False,
    cold: bool = False,
    scheduler: str = "",
    suspects: Path | None = None,
    roster: Path | None = None,
    late: str = "",
    due: Sequence[str] = (),
    titles: Sequence[str] = (),
    force: bool = False,
    export: str = "",
    against: Path | None = None,
) -> int:
    """Grade a class and tell what was done; 0 if all could be graded, 1 if something could not be run."""
    if submissions is None and not (export or late or due):
        raise CourseError("Expected a folder or zip file of submissions, or --export; name one of them.")
    if submissions is None:
        gradebook_in(out)
    folder, policy = reference or SOLUTIONS, Late(late, due)
    exercises = [path.stem for path in folder.glob("*.ipynb")]
    about = About(_class_in(roster, suspects, exercises), titles_of(titles))
    due_dates(due, exercises)
    if against is not None:  # before hours of grading
        needs_folder(against)
    if submissions is not None:
        references = references_in(folder)
        untouched = untouched_in(references)
        found = take(submissions, references, only=exercise, cells=cells_of(references), untouched=untouched)
        _check_references(references, found, folder)
        limits = Limits(_cell_seconds(timeout), timeout, memory_bytes=bytes_of(memory))
        given = suspects_beside(folder, about.roster)
        if no_sandbox:
            click.echo(
                "No sandbox: the students' code can read and write whatever you can, secrets included.", err=True
            )
        elif not scheduler:
            needs_sandbox()
            if uncounted := control_groups.trouble():
                told = "No control groups: memory in socket buffers and page tables is not counted, for"
                click.echo(f"{told} {uncounted}", err=True)
    report = Report()
    with Gradebook(gradebook_path(out)) as book:
        for told in follow(book, about.roster) if about.roster else ():
            click.echo(f"note: {told}", err=True)
        if submissions is not None:
            check_names(book, found, references)
            found = _of_class(found, about.roster, book, exercise, untouched)
            with tqdm(total=len(found.submissions), unit="notebook", disable=None) as bar:
                how: dict[str, Any] = {"sandboxed": not no_sandbox, "warm": not cold, "scheduler": scheduler}
                how |= {"limits": limits, "jobs": jobs or 0, "force": force, "progress": bar.update}
                report = grade(found, book, references, **given, **how)
        report.changes += policy.settle(book)
        pages = write_feedback(book, out / "feedback") if submissions or late or due or about.roster else 0
        if submissions is not None:
            write_whole(out / "statistics.csv", table_of(statistics(book.current())))
            write_overview(book, out)
            duplicates = duplicates_in(book, references, against)
            write_whole(out / "duplicates.csv", duplicates_table(duplicates))
            _tell(report, pages, duplicates, out, found.notes)
            for told in (*earlier_overrides(book), *no_longer_asked(book, references)):
                click.echo(f"note: {told}", err=True)
        _tell_changes(report)
        if export:
            _export(book, about, export, exercises, out)
    return 1 if report.broken else 0


def check_names(book: Gradebook, found: Taken, references: Mapping[str, bytes]) -> None:
    """Raise a CourseError where an exercise was renamed: its marks would count twice, and what people gave be lost."""
    there = {graded.exercise: graded.result for graded in book.current()}
    gone = {name: _checks(book.notebook(result)) for name, result in there.items() if name not in references}
    for new in sorted({one.exercise for one in found.submissions} - {*there}):
        mine = _checks(read(references[new]))
        if old := next((name for name, checks in gone.items() if checks and checks <= mine), ""):
            raise CourseError(
                f"{new} has the checks of {old}, of which {book.path} has marks: call its file {old}.ipynb again, "
                "or name another folder with --out."
            )


def _checks(notebook: NotebookNode) -> set[tuple[str, str]]:
    return {(grade_id(cell), cell.source) for cell in notebook.cells if kind(cell) == CHECK and has_code(cell.source)}


def _of_class(
    found: Taken, roster: Roster | None, book: Gradebook, exercise: str, untouched: Callable[[Submission], bool]
) -> Taken:
    """The submissions under the names of a roster and of the gradebook, without those that another one replaces."""
    if roster:
        before = [(one.exercise, one.student) for one in book.current(exercise)]
        found = bind(found, roster, [exercise] if exercise else [], untouched, before)
    return besides_earlier(as_known(found, book, roster), book, untouched)


def _export(book: Gradebook, about: About, form: str, exercises: Collection[str], out: Path) -> None:
    write_folder(FORMATS[form](book, about), out)
    click.echo(f"{form} in {out}")
    for told in doubts(book, about, form, exercises):
        click.echo(f"note: {told}", err=True)


def _class_in(roster: Path | None, suspects: Path | None, exercises: Collection[str]) -> Roster | None:
    if roster is not None and suspects is not None:
        raise CourseError("Expected --roster or --suspects, got both; a roster has the suspects in it.")
    path = roster or suspects
    if path is None:
        return None
    found = read_roster(path)
    check_extensions(found, exercises)
    return found


def _check_references(references: Mapping[str, bytes], found: Taken, folder: Path) -> None:
    for name in sorted({submission.exercise for submission in found.submissions}):
        if complaints := faults(read(references[name], name)):
            raise CourseError(f"{folder / name}.ipynb cannot be graded against: {complaints[0]}")


def suspects_beside(folder: Path, roster: Roster | None) -> dict[str, Any]:
    """What `grade` is to know of suspects: who has which, the private ones' words, their files."""
    private = private_in(folder / FOLDER)
    given = roster.suspects if roster else None
    for student, suspect in (given or {}).items():
        if named(suspect) not in (*HANDED_OUT, *private):
            known = ", ".join((*HANDED_OUT, *private))
            place = folder / named(suspect)
            raise CourseError(
                f"Expected the suspect of {student} among {known}, got {suspect}; put its folder at {place}."
            )
    return {"suspects": given, "private": private, "beside": beside(folder / FOLDER)}


def cells_of(references: Mapping[str, bytes]) -> dict[str, list[str]]:
    """The names of each reference's cells."""
    return {name: [grade_id(cell) for cell in read(content, name).cells] for name, content in references.items()}


def _cell_seconds(timeout: float) -> float:
    """A minute for a cell, or a fifth of the time for the notebook, whichever is more."""
    return max(min(60.0, timeout), timeout / 5)


def gradebook_in(out: Path) -> Path:
    """The gradebook that grading left in a folder; a CourseError where there is none."""
    path = gradebook_path(out)
    if not path.is_file():
        raise CourseError(f"Expected a gradebook in {out}, found none; make one: course grade SUBMISSIONS --out {out}.")
    return path


def mark_class(
    out: Path,
    *,
    exercise: str = "",
    reference: Path | None = None,
    who: str = "",
    names: bool = False,
    everything: bool,
) -> None:
    """Have a person read in the terminal what only a person can, then write feedback anew."""
    references = references_in(reference or SOLUTIONS)
    if exercise and exercise not in references:
        raise CourseError(f"Expected one of {', '.join(references)}, got {exercise!r}.")
    with Gradebook(gradebook_in(out)) as book:
        mark_in_terminal(Marking(book, references, exercise, who, everything), names)
        write_feedback(book, out / "feedback")
        write_overview(book, out)


def override_mark(
    out: Path, graded: tuple[str, str, str], points: float | None, *, reason: str = "", who: str = "", clear: bool
) -> str:
    """Have a person's points stand for one check of one student, or (`clear`) take that back; what was done.

    `graded` is student, exercise and check. The student reads the reason; who says so is by default this machine's
    user.
    """
    if clear == (points is not None):
        raise CourseError("Expected points, or --clear to take an override back; give one of them.")
    student, exercise, check = graded
    with Gradebook(gradebook_in(out)) as book:
        (found,) = list(book.current(exercise, student)) or [_nobody(book, student, exercise)]
        book.override(found, check, points, reason, who or this_person())
        (now,) = book.current(exercise, student)
        write_feedback(book, out / "feedback")
        write_overview(book, out)
    entry = next(entry for entry in now.entries if entry.mark.check == check)
    said = f", where the run gave {entry.override.machine:g}" if entry.override else ", as the run gave"
    return f"{student}, {exercise}, {check}: {entry.mark.earned or 0:g} of {entry.mark.points:g}{said}"


def _nobody(book: Gradebook, student: str, exercise: str) -> NoReturn:
    known = sorted({graded.student for graded in book.current(exercise)})
    like = [name for name in known if student.casefold() in name.casefold()] or known
    told = ", ".join(like[:5]) or "nobody"
    raise CourseError(f"Expected a student with a mark in {exercise}, got {student!r}; there: {told}.")


def earlier_overrides(book: Gradebook) -> list[str]:
    """A sentence for each override that was made of an earlier submission than the one that counts."""
    return [
        f"{graded.student}, {graded.exercise}, {entry.mark.check}: the override of {entry.override.who}"
        f" ({entry.override.points:g} points, the run now gives {entry.override.machine:g}) was of an earlier hand-in;"
        " look again, and course override … --clear if it no longer holds."
        for graded in book.current()
        for entry in graded.entries
        if entry.override is not None and entry.override.is_earlier
    ]


def no_longer_asked(book: Gradebook, references: Mapping[str, bytes]) -> list[str]:
    """A sentence for each item that students answered, or that a person marked, and that the solution does not have."""
    asked = cells_of(references)
    marked = {(exercise, name, student) for student, exercise, name in book.named_by_people()}
    answered = {
        (graded.exercise, name.split()[1], graded.student)
        for graded in book.current()
        for name in graded.repairs
        if name.endswith(f"{NOT_ASKED}.")
    }
    whom: dict[tuple[str, str], set[str]] = {}
    for exercise, name, student in marked | answered:
        if name not in asked.get(exercise, [name]):
            whom.setdefault((exercise, name), set()).add(student)
    return [
        f"{exercise}: the solution has no {name}, which {len(who)} answered or got marks for: it counts for nothing. "
        "If it was renamed, give its cell that grade_id back, and grade again; what was given then stands."
        for (exercise, name), who in sorted(whom.items())
    ]


def duplicates_in(book: Gradebook, references: Mapping[str, bytes], against: Path | None = None) -> list[Alike]:
    """Answers in a gradebook that resemble each other, the solution, or those in an earlier class's folder."""
    found: list[Alike] = []
    solutions = {name: read(content, name) for name, content in references.items()}
    earlier = earlier_in(against, solutions) if against is not None else {}
    for exercise, reference in solutions.items():
        notebooks = ((graded.student, book.notebook(graded.result)) for graded in book.current(exercise))
        found += alike(notebooks, reference, exercise, earlier=earlier.get(exercise, ()))
    return found


def _tell(report: Report, pages: int, duplicates: Sequence[Alike], out: Path, notes: Sequence[str] = ()) -> None:
    for told in (*notes, *report.left, *_by_reason(report.broken)):
        click.echo(f"note: {told}", err=True)
    graded = f"{report.graded} graded, {report.known} had their marks, {len(report.left)} files left"
    click.echo(f"{graded}, {len(report.broken)} could not be run; feedback for {pages} in {out / 'feedback'}")
    if groups := sum(each.compared for each in duplicates):
        click.echo(f"{groups} groups of answers resemble each other or the solution: {out / 'duplicates.csv'}")
    if unseen := sum(len(each.students) for each in duplicates if not each.compared):
        click.echo(f"{unseen} answers could not be compared with others: {out / 'duplicates.csv'}")


def _by_reason(broken: Sequence[str]) -> list[str]:
    """Sentences of the form "who, what: why", those of one reason in one."""
    whom: dict[str, list[str]] = {}
    for one in broken:
        who, _, why = one.partition(": ")
        whom.setdefault(why, []).append(who)
    more = {why: f" and {len(those) - 1} more" * (len(those) > 1) for why, those in whom.items()}
    return [f"{those[0]}{more[why]}: {why}" for why, those in whom.items()]


def _tell_changes(report: Report) -> None:
    for change in report.changes:
        came = f"{change.before:g} before, {change.after:g} now"
        click.echo(f"{change.student}, {change.exercise}, {change.check}: {came}")


def bytes_of(size: str) -> int:
    """A number of bytes: "4GB", "500 MB"; a CourseError where it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)B?\s*", size, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise CourseError(f"Expected a size such as 4GB or 500MB, got {size!r}.")
    return int(float(found[1]) * _UNITS[found[2].upper()])
